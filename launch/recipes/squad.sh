#!/usr/bin/env bash
# SQuAD 1.1, distilled twice: the teacher learns to answer, then the student under it.
#
#   DATA=squad STUDENT=runs/base/dilbert bash launch/recipes/squad.sh
#   bash launch/recipes/squad.sh --dry-run    rehearses the first of the two: the second needs what it makes
#
# Flags are those of finetune_dilbert.py.
#
# Hardware: one GPU with bf16, or a few; others: DS_CONFIG=ds_configs/finetune_fp16.json, or finetune_fp32.json on CPUs.
# Duration: not on paper: launch.plan knows pre-training alone. Three epochs each.
# Disk:     some 8 GB: checkpoints, three each, of 110 and of 66 million parameters, and the two models.
# Result:   not run here. Published: exact match 79.1 and F1 86.9; 77.7 and 85.8 without a teacher; BERT-base 81.2 and
#           88.5 (Sanh et al., 2019, table 2).
set -euo pipefail
cd "$(dirname "$0")/../.."

TEACHER=${TEACHER:-bert-base-uncased}
STUDENT=${STUDENT:-runs/base/dilbert} # or dilbert-base-uncased, the published one
DATA=${DATA:-}                        # folder with train-v1.1.json and dev-v1.1.json; none: by `datasets`, from the hub
OUT=${OUT:-runs/squad}
DS_CONFIG=${DS_CONFIG:-ds_configs/finetune_bf16.json}
LENGTH=${LENGTH:---epochs 3} # or --max-steps N
LAUNCH=${LAUNCH:-deepspeed}

# tune MODEL NAME FLAGS...: fine-tune, and export as a folder.
tune() {
  local model=$1 name=$2
  shift 2
  # shellcheck disable=SC2086
  $LAUNCH finetune_dilbert.py --deepspeed_config "$DS_CONFIG" --task squad ${DATA:+--data "$DATA"} --model "$model" \
    --output "$OUT/$name" $LENGTH "$@"
  [ -e "$OUT/$name/DONE.json" ] || exit 0 # it was a rehearsal
  [ -d "$OUT/$name-model" ] || python -m model.export "$OUT/$name" --output "$OUT/$name-model"
}

tune "$TEACHER" teacher "$@"
tune "$STUDENT" student --teacher "$OUT/teacher-model" "$@"
