#!/usr/bin/env bash
# DilBERT base: six of the twelve layers of bert-base-uncased, distilled on English text, on one machine with all of its
# GPUs. The other recipes of pre-training are this one with other values.
#
#   CORPUS='texts/*.txt' bash launch/recipes/base.sh              the same command again goes on where it was
#   CORPUS='texts/*.txt' bash launch/recipes/base.sh --dry-run    makes data and student, and rehearses the training
#   CORPUS=hub:wikimedia/wikipedia:20231101.en FIELD=text bash launch/recipes/base.sh
#
# Flags are those of train_dilbert.py.
#
# Hardware: GPUs with bf16 (A100 and later); others: DS_CONFIG=ds_configs/zero1_fp16.json.
# Duration: 4.71 hours on one H100, on paper (python -m launch.plan --gpu H100 --gpus-per-node 1): BooksCorpus and
#           Wikipedia, three times.
# Disk:     12.38 GB beside the text, on paper.
# Result:   not run here. Published: GLUE 77.0 (BERT-base: 79.5), SQuAD 1.1 F1 85.8 (88.5), 66 million parameters of 110
#           (Sanh et al., 2019, arXiv 1910.01108).
set -euo pipefail
cd "$(dirname "$0")/../.."

TEACHER=${TEACHER:-bert-base-uncased} # folder, or name on the Hugging Face hub
CORPUS=${CORPUS:-dump.txt}            # text, a sequence a line: a file, or a pattern in quotes
FIELD=${FIELD:-}                      # or records: JSON lines, Parquet, hub:NAME; and this field of them is the text
SAMPLE=${SAMPLE:-1}                   # share of the lines
OUT=${OUT:-runs/base}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero1_bf16.json}
LENGTH=${LENGTH:---epochs 3} # or --max-steps N
LAUNCH=${LAUNCH:-deepspeed}

[ -d "$OUT/data" ] || python -m data.binarize --input "$CORPUS" ${FIELD:+--field "$FIELD"} --sample "$SAMPLE" \
  --valid-fraction 0.001 --tokenizer "$TEACHER" --output "$OUT/data"
[ -d "$OUT/student" ] || python -m model.extract --teacher "$TEACHER" --output "$OUT/student"

# shellcheck disable=SC2086
$LAUNCH train_dilbert.py --deepspeed_config "$DS_CONFIG" --data "$OUT/data/train" --valid-data "$OUT/data/valid" \
  --teacher "$TEACHER" --student "$OUT/student" --output "$OUT/run" $LENGTH "$@"

[ -e "$OUT/run/DONE.json" ] || exit 0 # it was a rehearsal
[ -d "$OUT/dilbert" ] || python -m model.export "$OUT/run" --output "$OUT/dilbert"
