#!/usr/bin/env bash
# usage: down.sh ROOT    Cancels the jobs of the cluster under ROOT and stops it.
root=$(realpath -m "${1:?usage: down.sh ROOT}")
export SLURM_CONF=$root/slurm.conf
timeout 10 scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 40); do # KillWait
    [ -z "$(timeout 5 squeue -h -o %i 2>/dev/null)" ] && break
    sleep 0.25
done
for daemon in slurmctld slurmd munged; do
    pid=$(cat "$root/pids/$daemon.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null
    for _ in $(seq 40); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null
done
exit 0
