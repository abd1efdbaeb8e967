#!/usr/bin/env bash
# Real-size speed on a data-centre GPU, in one line:
#
#     bash experiments/real_size/run.sh all OUT [KEY=VALUE ...]
#
# Run again, it leaves out the stages that ended well. A stage alone, in ten minutes at most:
#
#     bash experiments/real_size/run.sh STAGE OUT [KEY=VALUE ...]
#
# OUT gets STAGE.log and store/, which `topi report --store OUT/store` and
# `topi predict model=flux_kontext store=OUT/store gpu=h200` read. Nothing is downloaded: weights are
# random, of the published sizes. Without a GPU the same stages run scaled down, as a rehearsal.
set -euo pipefail
cd "$(dirname "$0")/../.."
stages="check kernels flux rivals_20 rivals_30 rivals_50 rivals_70 rivals_stores rivals_floors
flux_two flux_small flux_large flux_40 flux_compiled flux_graphs flux_trimmed
qwen qwen_two qwen_small qwen_large qwen_40 qwen_compiled"
stage=${1:-}
if [[ " all ${stages//$'\n'/ } " != *" $stage "* || $# -lt 2 ]]; then
    echo "usage: $0 STAGE OUT [KEY=VALUE ...], STAGE one of: all ${stages//$'\n'/ }" >&2
    exit 2
fi
out=$(mkdir -p "$2" && cd "$2" && pwd)
shift 2

if [[ $stage == all ]]; then
    failed=
    for each in $stages; do
        [[ -e $out/$each.done ]] || bash experiments/real_size/run.sh "$each" "$out" "$@" || failed+=" $each"
    done
    [[ -z $failed ]] || { echo "failed, run again:$failed" >&2 && exit 1; }
    exit
fi

python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

bench() { # two intervals of ten steps: what 40 steps give, in half of the time
    "$python" -c 'import sys; from topi.bench.cli.main import main; sys.exit(main(sys.argv[1:]))' \
        bench weights=random store="$out/store" steps=20 "$@"
}
flux=model=flux_kontext
qwen='model=qwen_image_edit model.true_cfg=1.0' # one branch: the two of guidance cost the same
several='model=qwen_image_edit_plus model.true_cfg=1.0'
pruners='methods=[topi,random,checker]'
merging='methods=[tomesd,tomesd_ref,toma,toma_ref,dato,dato_ref,sdtm,sdtm_ref] repeats=2'
stores='methods=[ref_kv,ref_kv_causal,regione,topi_kv] repeats=2'
floors='methods=[topi_cover,downscaled_ref,fewer_steps] repeats=2'
ours='methods=[topi]'
half='keep=[0.5]'

run() { # unquoted: several settings each
    case $stage in
    check)
        "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name()
            if torch.cuda.is_available() else "no GPU: scaled down")'
        bench $flux $ours $half repeats=1 warmup=0 steps=3 "$@"
        ;;
    kernels)
        "$python" -m topi.bench.speed.scoring_speed
        for kernel in chunked flash triton; do
            bench $flux $ours $half kernel=$kernel "$@" || echo "$kernel does not run here"
        done
        ;;
    flux) bench $flux $pruners "$@" ;;
    rivals_20) bench $flux $merging keep=[0.2] "$@" ;;
    rivals_30) bench $flux $merging keep=[0.3] "$@" ;;
    rivals_50) bench $flux $merging keep=[0.5] "$@" ;;
    rivals_70) bench $flux $merging keep=[0.7] "$@" ;;
    rivals_stores) bench $flux $stores "$@" ;;
    rivals_floors) bench $flux $floors "$@" ;;
    flux_two) bench $flux $ours references=2 "$@" ;;
    flux_small) bench $flux $ours size=512 repeats=10 "$@" ;;
    flux_large) bench $flux $ours $half size=1536 "$@" ;;
    flux_40) bench $flux $ours $half steps=40 "$@" ;;
    flux_compiled) bench $flux $ours compile=true "$@" ;;
    flux_graphs) bench $flux $ours compile=true graphs=true "$@" ;;
    flux_trimmed) bench $flux $ours trim_last=true "$@" ;;
    qwen) bench $qwen $ours "$@" ;;
    qwen_two) bench $several $ours $half references=2 "$@" ;;
    qwen_small) bench $qwen $ours size=512 repeats=10 "$@" ;;
    qwen_large) bench $qwen $ours $half size=1536 "$@" ;;
    qwen_40) bench $qwen $ours $half steps=40 repeats=2 "$@" ;;
    qwen_compiled) bench $qwen $ours compile=true "$@" ;;
    esac
}
set -f # no file is meant by [topi]
run "$@" 2>&1 | tee "$out/$stage.log"
touch "$out/$stage.done"
