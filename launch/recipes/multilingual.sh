#!/usr/bin/env bash
# Multilingual DilBERT: from bert-base-multilingual-cased, on several languages, each with its share of the sequences.
#
#   TEXTS=texts bash launch/recipes/multilingual.sh                     texts/en.txt, texts/de.txt ...
#   TEXTS=hub:wikimedia/wikipedia:20231101. FIELD=text bash launch/recipes/multilingual.sh
#
# The teacher's own text is Wikipedia in 104 languages, by shares in proportion to size ^ 0.7: shares that are flatter
# than the sizes teach small languages, too. A language goes through epochs of its own, see `epoch_...` in the log.
#
# Hardware: GPUs with bf16 (A100 and later); others: DS_CONFIG=ds_configs/zero1_fp16.json.
# Duration: 7.34 hours on one H100, on paper, for 10 billion tokens (python -m launch.plan --gpu H100 --gpus-per-node 1
#           --tokens 1e10 --epochs 1 --teacher-config bert-base-multilingual-cased).
# Disk:     49.16 GB beside the text, on paper, if that is as long; with a vocabulary of 119,547 an id has 4 bytes.
# Result:   not run here. Published: 92 % of the teacher on XNLI, with 134 million parameters of 177 (README of the
#           original).
set -euo pipefail
cd "$(dirname "$0")/../.."

TEACHER=${TEACHER:-bert-base-multilingual-cased}
TEXTS=${TEXTS:-texts} FIELD=${FIELD:-} # a folder, or a dataset of the hub, whose configurations end in the language
LANGUAGES=${LANGUAGES:-en:0.3 de:0.2 fr:0.2 es:0.2 zh:0.1}
OUT=${OUT:-runs/multilingual}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero1_bf16.json}
LENGTH=${LENGTH:---max-steps 20000} # 10 billion tokens at 127 a sequence
LAUNCH=${LAUNCH:-deepspeed}

shares=()
for language in $LANGUAGES; do
  name=${language%:*} share=${language#*:}
  [ -n "$FIELD" ] && text=$TEXTS$name || text=$TEXTS/$name.txt
  [ -d "$OUT/data/$name" ] || python -m data.binarize --input "$text" ${FIELD:+--field "$FIELD"} \
    --valid-fraction 0.001 --tokenizer "$TEACHER" --output "$OUT/data/$name"
  shares+=("$OUT/data/$name/train:$share")
done
[ -d "$OUT/valid" ] || python -m data.merge "$OUT"/data/*/valid --output "$OUT/valid"
[ -d "$OUT/student" ] || python -m model.extract --teacher "$TEACHER" --output "$OUT/student"

# shellcheck disable=SC2086
$LAUNCH train_dilbert.py --deepspeed_config "$DS_CONFIG" --data "${shares[@]}" --valid-data "$OUT/valid" \
  --teacher "$TEACHER" --student "$OUT/student" --output "$OUT/run" $LENGTH "$@"

[ -e "$OUT/run/DONE.json" ] || exit 0 # it was a rehearsal
[ -d "$OUT/dilbert" ] || python -m model.export "$OUT/run" --output "$OUT/dilbert"
