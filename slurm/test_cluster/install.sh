#!/usr/bin/env bash
# Installs what the tests need to start a SLURM of their own: 4 packages of Debian or Ubuntu, about 17 MB.
# Best effort: without root or apt it says why and succeeds; the tests that need SLURM are skipped then.
set -uo pipefail

skip() { echo "no SLURM for the tests: $1; they will be skipped" >&2; exit 0; }

for program in slurmctld slurmd munged sbatch; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0
[ "$(id -u)" = 0 ] || skip "installing it needs root"
command -v apt-get >/dev/null || skip "there is no apt-get"
export DEBIAN_FRONTEND=noninteractive
packages="slurmctld slurmd slurm-client munge"
{ apt-get install -y -qq --no-install-recommends $packages ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; }
} >/dev/null 2>&1 || skip "apt-get could not install $packages"
