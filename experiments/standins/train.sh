#!/bin/sh
# Trains both stand-ins, measures their cards, then runs the factor study of what makes references redundant.
# usage: experiments/standins/train.sh [schedule] [factor schedule]
#        (gpu | cpu | smoke | none: the study alone; study | study_cpu | smoke)
# Every step goes on where it was stopped; run it again until it says nothing more.
# shellcheck disable=SC2086
set -euf
schedule=${1:-gpu}
study=${2:-study}
hardware=${HARDWARE:-an unnamed machine}
workers=${WORKERS:+workers=$WORKERS}
python=${PYTHON:-.venv/bin/python}

models="kontext_standin qwen_standin"
test "$schedule" != none || models=
# Most of the samples are of the tasks that small models learn last; the end makes up for those left behind.
late='data.focus=0.6 data.focus_on=[add,replace,zoom,rotate,resize]'
left='data.focus=0.3 data.focus_on=[zoom,rotate,resize,style,tone,background]'
both='data.focus=0.5 data.focus_on=[add,replace,zoom,rotate,resize,style,tone,background]'
taken='data.focus=0.7 data.focus_on=[add,replace,zoom,rotate,resize,style,tone,background,visual_reference]'
for model in $models; do
    out=results/training/$model
    two='data=mini_edit_plus data.plus=0.25'
    end=schedule=finish
    test "$schedule" != smoke || end=schedule=smoke
    set -- "$python" -m topi.bench.standins model=$model $workers hardware="'$hardware'"
    ship=ship=${SHIP:-true}
    case $model-$schedule in
        qwen_standin-cpu)
            set -- "$@" data=mini_edit_plus
            "$@" $both data.plus=0.25 schedule=cpu_second start=results/training/kontext_standin_finish out=$out
            "$@" $both data.plus=0.1 schedule=full_size start=$out out=${out}_full_size
            "$@" $taken data.plus=0.5 schedule=two_references start=${out}_full_size out=${out}_two_references $ship
            ;;
        *)
            data=data.beside=0.1
            test $model = kontext_standin || data=$two
            "$@" $data $late schedule="$schedule" out=$out
            "$@" $data $left $end start=$out out=${out}_finish $ship
            ;;
    esac
    test "${SHIP:-true}" = false || "$python" -m topi.bench.standins.model_card $model
done

runs=
for factor in none no_copy_head wide_copy_head conv_latents moved_references moving_content irrelevant_content fine_grid finer_grid deeper longer; do
    "$python" -m topi.bench.standins factor=$factor schedule="$study" $workers \
        out=results/redundancy/$factor hardware="'$hardware'"
    runs="$runs results/redundancy/$factor"
done
"$python" -m topi.bench.standins schedule="$study" $workers seed=1 \
    out=results/redundancy/another_seed hardware="'$hardware'" # how far two equal runs are apart
"$python" -m topi.bench.standins.redundancy $runs results/redundancy/another_seed \
    --out results/redundancy/measured --samples "${SAMPLES:-48}" --size "${SIZE:-96}"
"$python" -m topi.bench.standins.redundancy_table results/redundancy/measured/none.json results/redundancy/measured/*.json
