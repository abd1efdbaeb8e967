#!/usr/bin/env bash
# Measures every number of the stand-ins that this repository shows, from the weights in it:
#
#     bash experiments/reproduce.sh              # all stages, in this order
#     bash experiments/reproduce.sh STAGE ...    # models | sweeps | pages
#
# models: cards, representative layers and what caches must know, beside the weights; sweeps: the cells of
# every experiment, into results, checks, selection and irrelevant; pages: what is committed of them.
# Two processes of one thread each (JOBS=2). Stopped, `sweeps` and a card go on where they were. MODELS=qwen_standin does the
# first two stages for that model alone; `pages` needs the cells of both in the stores. By hand stay
# findings.csv, the numbers in prose, and conf/experiment/pareto_searched.yaml, from what `topi search` finds.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
both=kontext_standin,qwen_standin
chosen=${MODELS:-$both}

models() {
    local jobs=() model
    for model in ${chosen/,/ }; do
        (
            topi calibrate "model=$model" --ship
            test "$model" != qwen_standin || topi calibrate model=qwen_plus_standin data=mini_edit_plus --ship
            python -m topi.bench.standins.model_card "$model"
            topi fit-cache "model=$model" --ship
            topi probe size=small "model=$model"
        ) &
        jobs+=($!)
    done
    join "${jobs[@]}"
}

sweeps() {
    local jobs=() job
    for job in $(seq "${JOBS:-2}"); do
        every_sweep & # cells are locked, so each takes what no other has
        jobs+=($!)
    done
    join "${jobs[@]}"
}

sweep() { topi run -m hydra.sweeper.report=null "$@"; } # without a page after each

every_sweep() {
    local each
    for each in table1 table2 table3 table4 table5 table7 fig5 fig6 fig7 fig10 fig11 pareto; do
        sweep experiment="$each" model="$chosen"
    done
    sweep experiment=equal_count model="$chosen" data.count=64 latency.samples=0
    sweep experiment=selection model="$chosen" store=selection
    sweep experiment=checks model="$chosen" data.count=8 store=checks
    sweep experiment=irrelevant model="${chosen/qwen/qwen_plus}" store=irrelevant
    case $chosen in *kontext*) sweep experiment=pareto_searched ;; esac # its schedules alone
    case $chosen in *qwen*) # several references
        sweep experiment=fig9
        sweep experiment=references data.count=8 latency.samples=0
        ;;
    esac
}

pages() {
    rm -rf experiments/results
    topi export --store results --out experiments/results
    topi pages --store experiments/results README.md docs/*.md
    decisions >experiments/selection/decisions.md
    choices >experiments/selection/results.md
    topi compare --store irrelevant --against random --against "topi ratio=0.5" \
        >experiments/standins/irrelevant.md
    topi report --store experiments/results --out report
    cp report/figures/equal_count.png experiments/equal_count/
    cp report/figures/fig7.png experiments/fig7/
    cp report/tables/equal_count.md experiments/equal_count/results.md
}

decisions() { # experiments/selection/decisions.md
    cat <<'END'
# The questions behind `topi_cover` and `topi_kv`

Paired differences in PSNR to the full-context output, in dB with 95 % bootstrap intervals, on calibration samples of the
stand-ins; [results.md](results.md) says how many. Numbers of stand-ins, never those of FLUX or Qwen. A star: holds at 5 % (signed ranks) after
correction for all questions of a model. Speeds, where they differ, are ratios of counted FLOPs.

END
    topi compare --store selection --questions experiments/selection/questions.csv
}

choices() { # experiments/selection/results.md
    cat <<'END'
# Every pair of `experiment=selection`

Calibration samples of each stand-in; n says how many. Numbers of stand-ins, never those of FLUX or Qwen.
A star: the difference holds at 5 % (signed ranks) after correction for all comparisons of its table.
END
    local rivals
    for rivals in '"topi ratio=0.5" --against "checker flip=step"' \
        '"topi_cover ratio=0.5" --against "topi_kv ratio=0.5"' 'ref_kv --against "ref_kv update_every=5"'; do
        printf '\n## `topi compare --store selection --against %s`\n\n' "$rivals"
        eval "topi compare --store selection --against $rivals"
    done
}

join() { # fails if one of them did
    local failed=0 each
    for each in "$@"; do wait "$each" || failed=1; done
    return $failed
}

for stage in "${@:-models sweeps pages}"; do
    for each in $stage; do
        case $each in
            models | sweeps | pages) "$each" ;;
            *)
                echo "usage: $0 [models] [sweeps] [pages]; not a stage: $each" >&2
                exit 2
                ;;
        esac
    done
done
