#!/usr/bin/env bash
# usage: slurm/prefetch.sh MODEL...    as in conf/model: flux_kontext qwen_image_edit
# Downloads on the login node what the compute nodes cannot: the weights of the models and of LPIPS.
# FLUX.1 Kontext is gated: accept its licence on the hub and run `.venv/bin/hf auth login` first.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
value() { sed -n "s/^$1: *\([^ #]*\).*/\1/p" "conf/model/$2.yaml"; }

for model; do
    [ -f "conf/model/$model.yaml" ] || { echo "there is no conf/model/$model.yaml" >&2; exit 2; }
done
.venv/bin/topi fetch-lpips
for model; do
    hub_id=$(value hub_id "$model")
    if [ "$hub_id" = null ]; then
        echo "$model comes with the repository"
    else
        .venv/bin/hf download "$hub_id" --revision "$(value revision "$model")"
    fi
done
