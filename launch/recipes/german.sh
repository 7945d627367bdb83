#!/usr/bin/env bash
# German DilBERT: as launch/recipes/base.sh, which has all settings, from bert-base-german-cased.
#
#   CORPUS='texts/de/*.txt' bash launch/recipes/german.sh
#   CORPUS=hub:wikimedia/wikipedia:20231101.de FIELD=text bash launch/recipes/german.sh
#
# Hardware: GPUs with bf16 (A100 and later); others: DS_CONFIG=ds_configs/zero1_fp16.json.
# Duration: 2.34 hours on one H100, on paper (python -m launch.plan --gpu H100 --gpus-per-node 1 --tokens 2e9
#           --teacher-config bert-base-german-cased): 2 billion tokens, three times.
# Disk:     8.04 GB beside the text, on paper.
# Result:   not run here. The published German DistilBERT has another teacher, dbmdz/bert-base-german-cased
#           (TEACHER=...), and keeps 99 % of its F1 score in named entities: 83.5 of 84.5 on CoNLL-2003 (README of the
#           original).
set -euo pipefail
export TEACHER=${TEACHER:-bert-base-german-cased} OUT=${OUT:-runs/german}
exec bash "$(dirname "$0")/base.sh" "$@"
