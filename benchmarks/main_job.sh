#!/usr/bin/env bash
# The main job on real tasks: search, tune, compare. Every run writes benchmarks/results/main_job/NAME.json (its summary).
#
#   benchmarks/main_job.sh GLUE LLAMA [NAME ...]
#
# GLUE: folder with sst2/, cola/, stsb/, cb/, copa/, boolq/, each with train.jsonl and validation.jsonl (fields and labels
# as in the Hugging Face data sets). LLAMA: folder of a tiny Llama (stories260K as a transformers checkpoint).
set -euo pipefail
glue=$1 llama=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
minilm=$(python -c 'from peftscout.demo import model_path; print(model_path())')
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

run() {
  local name=$1
  shift
  peftscout search "$@" --study "studies/$name"
  cp "studies/$name/summary.json" "$here/results/main_job/$name.json"
}

for name in "${@:-sst2 llama-sst2 copa cola cb stsb boolq}"; do
  for task in $name; do
    case $task in
      sst2) run sst2 "$minilm" --data "$glue/sst2" --max-train-rows 4000 --budget 0.35% --trials 8 --steps 125 ;;
      llama-sst2) run llama-sst2 "$llama" --data "$glue/sst2" --max-train-rows 4000 --budget 2% --trials 8 --steps 125 \
        --set 'final.lr_scales=[1.0,3.0]' ;;
      copa) run copa "$minilm" --data "$glue/copa" --budget 0.35% --trials 3 --steps 30 --final-seeds 2 \
        --set 'final.lr_scales=[1.0]' ;;
      cola) run cola "$minilm" --data "$glue/cola" --max-train-rows 4000 --budget 0.35% --trials 3 --steps 125 \
        --final-seeds 2 --set 'final.lr_scales=[1.0]' ;;
      cb) run cb "$minilm" --data "$glue/cb" --budget 0.35% --trials 3 --steps 30 --final-seeds 2 \
        --set 'final.lr_scales=[1.0]' --set data.max_length=128 ;;
      stsb) run stsb "$minilm" --data "$glue/stsb" --max-train-rows 4000 --budget 0.35% --trials 3 --steps 100 \
        --final-seeds 1 --set 'final.lr_scales=[1.0]' ;;
      boolq) run boolq "$minilm" --data "$glue/boolq" --budget 0.35% --trials 3 --steps 20 --final-seeds 1 \
        --set 'final.lr_scales=[1.0]' --set training.batch_size=16 --set data.max_length=128 \
        --set data.max_search_rows=300 ;;
      *) echo "unknown run: $task" >&2 && exit 1 ;;
    esac
  done
done
