#!/usr/bin/env bash
# DilBERT cased: as launch/recipes/base.sh, which has all settings, from bert-base-cased: English whose case matters.
#
#   CORPUS='texts/*.txt' bash launch/recipes/cased.sh
#
# Hardware: GPUs with bf16 (A100 and later); others: DS_CONFIG=ds_configs/zero1_fp16.json.
# Duration: 4.64 hours on one H100, on paper (python -m launch.plan --gpu H100 --gpus-per-node 1 --teacher-config
#           bert-base-cased): BooksCorpus and Wikipedia, three times.
# Disk:     12.32 GB beside the text, on paper.
# Result:   not run here. Published: GLUE 75.9 (BERT-base cased: 78.2), 65 million parameters (README of the original).
set -euo pipefail
export TEACHER=${TEACHER:-bert-base-cased} OUT=${OUT:-runs/cased}
exec bash "$(dirname "$0")/base.sh" "$@"
