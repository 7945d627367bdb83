#!/usr/bin/env bash
# A whole distillation on one machine: text in, a folder that `transformers` loads out.
#
#   make quickstart                                              small models, English text found on this machine
#   make quickstart TEACHER=bert-base-uncased CORPUS=dump.txt    a real teacher, your text (one sequence a line)
#
# Hardware: 2 CPU cores (GPUs are used where there are some). Duration: 8 minutes at most on 2 cores. Expected result: a
# table at the end, in which the student's held-out loss after distillation is far below its loss before.
# Every stage prints its command; what is there already is not made again. Start over: remove the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

TEACHER=${TEACHER:-} CORPUS=${CORPUS:-} OUT=${OUT:-quickstart}
TEACHER_STEPS=${TEACHER_STEPS:-3000} STUDENT_STEPS=${STUDENT_STEPS:-1200} MAX_LENGTH=${MAX_LENGTH:-128}
DS_CONFIG=${DS_CONFIG:-ds_configs/cpu.json}
# The published recipe masks rare words more often; a small corpus has too few of each to learn from.
MASKING=${MASKING---mlm-smoothing 0}
[ -n "$TEACHER$CORPUS" ] && OUT=$OUT-$(basename "${TEACHER:-small}")-$(basename "${CORPUS:-docs}" .txt)
GPUS=$(python -c 'import torch; print(torch.cuda.device_count())')
RANKS=$((GPUS ? GPUS : $(nproc) > 1 ? 2 : 1))
[ "$GPUS" = 0 ] && export DS_ACCELERATOR=cpu
mkdir -p "$OUT"
began=$SECONDS

# stage TITLE RESULT COMMAND...: run the command unless its result is there; show it as it can be typed.
stage() {
  local title=$1 result=$2 start=$SECONDS
  shift 2
  if [ -e "$result" ]; then
    printf '\n\033[1m== %s\033[0m: %s is there\n' "$title" "$result"
    return
  fi
  printf '\n\033[1m== %s\033[0m\n$ %s\n' "$title" "$*"
  "$@"
  printf '   (%d s)\n' $((SECONDS - start))
}

# train TITLE RUN FLAGS...: a stage inside DeepSpeed (-q: only the training's own lines).
train() {
  local title=$1 run=$2
  shift 2
  stage "$title" "$run/DONE.json" deepspeed -q --num_gpus "$RANKS" train_dilbert.py --deepspeed_config "$DS_CONFIG" \
    --data "$OUT/data/train" --valid-data "$OUT/data/valid" --output "$run" $MASKING "$@"
}

if [ -z "$CORPUS" ]; then
  CORPUS=$OUT/corpus.txt
  stage "English text from the documentation of the Python packages installed" "$CORPUS" \
    python -m data.docs_corpus --output "$CORPUS" --max-megabytes 12
fi
# Every 50th line, 2000 at most, is held out.
hold_out() {
  awk -v valid="$3.partial" -v train="$2.partial" 'NR % 50 || NR > 100000 { print >train; next } { print >valid }' "$1"
  mv "$2.partial" "$2" && mv "$3.partial" "$3"
}
stage "A part of the text that is only measured on" "$OUT/valid.txt" hold_out "$CORPUS" "$OUT/train.txt" "$OUT/valid.txt"
if [ -z "$TEACHER" ]; then
  TOKENIZER=$OUT/teacher-start
  stage "A vocabulary for it" "$TOKENIZER" \
    python -m data.train_tokenizer --input "$OUT/train.txt" --vocab-size 8192 --output "$TOKENIZER"
else
  TOKENIZER=$TEACHER
fi
for part in train valid; do
  stage "Text -> dataset ($part)" "$OUT/data/$part" \
    python -m data.binarize --input "$OUT/$part.txt" --tokenizer "$TOKENIZER" --max-length "$MAX_LENGTH" \
    --output "$OUT/data/$part"
done

if [ -z "$TEACHER" ]; then
  # A model folder with nothing but config.json and a tokenizer: weights start at random.
  [ -e "$TOKENIZER/config.json" ] || cat >"$TOKENIZER/config.json" <<'JSON'
{"model_type": "bert", "vocab_size": 8192, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
 "intermediate_size": 512, "max_position_embeddings": 128, "initializer_range": 0.05,
 "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
JSON
  TEACHER=$OUT/teacher
  train "A small teacher, pre-trained on masked words" "$OUT/runs/teacher" --student "$TOKENIZER" \
    --max-steps "$TEACHER_STEPS" --log-interval 200 --eval-interval 1000
  stage "The teacher as a Hugging Face folder" "$TEACHER" \
    python -m model.export "$OUT/runs/teacher" --output "$TEACHER"
fi
stage "A student from every second of its layers" "$OUT/student-start" \
  python -m model.extract --teacher "$TEACHER" --output "$OUT/student-start"
train "Distillation" "$OUT/runs/student" --teacher "$TEACHER" --student "$OUT/student-start" \
  --max-steps "$STUDENT_STEPS" --log-interval 200 --eval-interval 400
stage "The student as a Hugging Face folder" "$OUT/dilbert" \
  python -m model.export "$OUT/runs/student" --output "$OUT/dilbert"

printf '\n\033[1m== What came of it\033[0m\n'
python -m launch.showcase --teacher "$TEACHER" --before "$OUT/student-start" --after "$OUT/dilbert" \
  --run "$OUT/runs/student" --data "$OUT/data/valid" --train-data "$OUT/data/train"
printf '\n%d s in all. TensorBoard: %s --logdir %s\n' $((SECONDS - began)) "$(command -v tensorboard)" "$OUT/runs"
