#!/usr/bin/env bash
# usage: slurm/sync_wandb.sh [STORE] [SECONDS]
# Uploads finished offline runs from the login node, now and then every SECONDS (default: once).
# `wandb login` first. Run it in tmux, or without SECONDS from cron.
set -uo pipefail
cd "$(dirname "$0")/.."
while :; do
    .venv/bin/topi sync --store "${1:-results}"
    code=$?
    [ -n "${2:-}" ] || exit $code
    sleep "$2"
done
