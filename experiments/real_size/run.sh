#!/usr/bin/env bash
# Real-size speed on a data-centre GPU, one stage per call so that each ends within ten minutes:
#
#     bash experiments/real_size/run.sh STAGE OUT [KEY=VALUE ...]
#
# OUT gets STAGE.log and STAGE.tar.gz; unpack the latter in a store (`tar xzf STAGE.tar.gz -C results`)
# and `topi predict model=flux_kontext store=results gpu=h200` checks it. Nothing is downloaded: weights
# are random, of the published sizes. Without a GPU the same stages run scaled down, as a rehearsal.
set -euo pipefail
cd "$(dirname "$0")/../.."
stages="check kernels flux rivals flux_two flux_small flux_large flux_40 flux_compiled flux_graphs flux_trimmed
qwen qwen_two qwen_40 qwen_compiled"
stage=${1:-}
if [[ " ${stages//$'\n'/ } " != *" $stage "* || $# -lt 2 ]]; then
    echo "usage: $0 STAGE OUT [KEY=VALUE ...], STAGE one of: ${stages//$'\n'/ }" >&2
    exit 2
fi
out=$(mkdir -p "$2" && cd "$2" && pwd)
shift 2
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
store=$(mktemp -d)

pack() {
    [[ -d $store/bench ]] && tar czf "$out/$stage.tar.gz" -C "$store" bench
    rm -rf "$store"
}
trap pack EXIT # also of a stage that was cut short: its rows are whole

bench() {
    "$python" -c 'import sys; from topi.cli import main; sys.exit(main(sys.argv[1:]))' \
        bench weights=random store="$store" "$@"
}
flux=model=flux_kontext
qwen=model=qwen_image_edit # one branch: the two of classifier-free guidance cost the same
several=model=qwen_image_edit_plus
pruners='methods=[topi,random,checker]'
ours='methods=[topi]'
half='keep=[0.5]'

run() {
    case $stage in
    check)
        "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name()
            if torch.cuda.is_available() else "no GPU: scaled down")'
        bench $flux "$ours" "$half" repeats=1 warmup=0 steps=3 "$@"
        ;;
    kernels)
        "$python" -m topi.evaluation.scoring_speed
        for kernel in chunked flash triton; do
            bench $flux "$ours" "$half" kernel=$kernel "$@" || echo "$kernel does not run here"
        done
        ;;
    flux) bench $flux "$pruners" repeats=4 "$@" ;;
    rivals) bench $flux "$half" repeats=2 "$@" ;;
    flux_two) bench $flux "$ours" references=2 "$@" ;;
    flux_small) bench $flux "$ours" size=512 repeats=10 "$@" ;;
    flux_large) bench $flux "$ours" "$half" size=1536 "$@" ;;
    flux_40) bench $flux "$ours" "$half" steps=40 "$@" ;;
    flux_compiled) bench $flux "$ours" 'keep=[0.3,0.5]' compile=true "$@" ;;
    flux_graphs) bench $flux "$ours" 'keep=[0.3,0.5]' compile=true graphs=true "$@" ;;
    flux_trimmed) bench $flux "$ours" trim_last=true "$@" ;;
    qwen) bench $qwen "$ours" model.true_cfg=1.0 "$@" ;;
    qwen_two) bench $several "$ours" "$half" references=2 model.true_cfg=1.0 "$@" ;;
    qwen_40) bench $qwen "$ours" "$half" steps=40 repeats=2 model.true_cfg=1.0 "$@" ;;
    qwen_compiled) bench $qwen "$ours" "$half" compile=true model.true_cfg=1.0 "$@" ;;
    esac
}
run "$@" 2>&1 | tee "$out/$stage.log"
