#!/usr/bin/env bash
# usage: up.sh ROOT [PORT]
# Starts a SLURM of one node on loopback, as root, with all its state under ROOT. The node claims 8 cores and
# two "a100" and two "h20", for which null devices stand in. Use it with SLURM_CONF=ROOT/slurm.conf.
set -euo pipefail
PATH=$PATH:/usr/sbin
root=$(realpath -m "${1:?usage: up.sh ROOT [PORT]}") port=${2:-16817}
host=$(hostname -s)
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) * 9 / 10 / 1024)) # MB

mkdir -p "$root"/{ctld,slurmd,log,pids,munge,dev}
chmod 755 "$root" "$root/munge" # munge wants others to reach its socket
dd if=/dev/urandom bs=1 count=1024 of="$root/munge/key" status=none
chmod 600 "$root/munge/key"
for number in 0 1 2 3; do # SLURM sets CUDA_VISIBLE_DEVICES only for GPUs that have a device file
    [ -e "$root/dev/nvidia$number" ] || mknod "$root/dev/nvidia$number" c 1 3
done

cat >"$root/gres.conf" <<EOF
AutoDetect=off
NodeName=$host Name=gpu Type=a100 File=$root/dev/nvidia[0-1]
NodeName=$host Name=gpu Type=h20 File=$root/dev/nvidia[2-3]
EOF
# cred_expire: a requeued job waits so many seconds (default: 120).  MinJobAge: ended jobs stay visible, as
# there is no accounting.  Jobs of partition "high" preempt those of "main".
cat >"$root/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$root/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$root/ctld
SlurmdSpoolDir=$root/slurmd
SlurmctldPidFile=$root/pids/slurmctld.pid
SlurmdPidFile=$root/pids/slurmd.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$root/log/jobcomp.log
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,defer_batch
GresTypes=gpu
JobRequeue=1
KillWait=5
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 Boards=1 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=$memory Gres=gpu:a100:2,gpu:h20:2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
EOF

export SLURM_CONF=$root/slurm.conf
munged --force --key-file="$root/munge/key" --socket="$root/munge/sock" --pid-file="$root/pids/munged.pid" \
    --log-file="$root/log/munged.log" --seed-file="$root/munge/seed" --num-threads=2
slurmctld -c
slurmd -N "$host"
for _ in $(seq 240); do
    [ "$(sinfo -h -o %T 2>/dev/null | head -1)" = idle ] && exit 0
    sleep 0.25
done
echo "the node did not become idle:" >&2
sinfo >&2 || true
tail -n 20 "$root"/log/*.log >&2
exit 1
