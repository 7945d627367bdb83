#!/usr/bin/env bash
# A whole distillation on one machine: text in, a folder that `transformers` loads out.
#
#   make quickstart                                              small models, English text found on this machine
#   make quickstart TEACHER=bert-base-uncased CORPUS=dump.txt    a real teacher, your text (one sequence a line)
#
# Hardware: 2 CPU cores, or 1 to 2 GPUs. Duration: 8 minutes at most on 2 cores. Expected result: a table at the end, in
# which the student's held-out loss after distillation is below its loss before.
# Every stage prints its command; what is there already is not made again. Start over: remove the folder. Exit code 75:
# a run was stopped on request.
set -euo pipefail
cd "$(dirname "$0")/.."

TEACHER=${TEACHER:-} CORPUS=${CORPUS:-} OUT=${OUT:-quickstart}
TEACHER_STEPS=${TEACHER_STEPS:-5000} STUDENT_STEPS=${STUDENT_STEPS:-600} MAX_LENGTH=${MAX_LENGTH:-128}
DS_CONFIG=${DS_CONFIG:-ds_configs/cpu.json}
AGAIN="make quickstart${TEACHER:+ TEACHER=$TEACHER}${CORPUS:+ CORPUS=$CORPUS}"
trap '[ $? != 75 ] || printf "\nstopped; \`%s\` goes on\n" "$AGAIN"' EXIT
# The published recipe masks rare words more often; a small corpus has too few of each to learn from.
MASKING=""
[ -n "$TEACHER" ] || MASKING="--mlm-smoothing 0"
if [ -n "$TEACHER$CORPUS" ]; then # a folder of its own for each teacher and text, which may change under its name
  OUT=$OUT-$(basename "${TEACHER:-small}")-$(basename "${CORPUS:-docs}" .txt)
  [ -z "$CORPUS" ] || OUT=$OUT-$(stat -c '%n %s %Y' "$(realpath "$CORPUS")" | cksum | cut -d ' ' -f 1)
fi
GPUS=$(python -c 'import torch; print(torch.cuda.device_count())')
RANKS=$((GPUS == 1 || $(nproc) == 1 ? 1 : 2))
[ "$GPUS" = 0 ] && export DS_ACCELERATOR=cpu
PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') # beside other jobs
mkdir -p "$OUT"
began=$SECONDS

# stage TITLE RESULT COMMAND...: run the command unless its result is there; show it as it can be typed.
stage() {
  local title=$1 result=$2 start=$SECONDS
  shift 2
  if [ -n "$result" ] && [ -e "$result" ]; then
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
  stage "$title" "$run/DONE.json" deepspeed -q --num_gpus "$RANKS" --master_port "$PORT" train_dilbert.py \
    --deepspeed_config "$DS_CONFIG" --data "$OUT/data/train" --valid-data "$OUT/data/valid" --output "$run" $MASKING "$@"
}

if [ -z "$CORPUS" ]; then
  stage "English text from the documentation of the Python packages installed" "$OUT/valid.txt" \
    python -m data.docs_corpus --output "$OUT/train.txt" --valid-output "$OUT/valid.txt"
fi
if [ -z "$TEACHER" ]; then
  TOKENIZER=$OUT/teacher-start
  stage "A vocabulary for it" "$TOKENIZER" \
    python -m data.train_tokenizer --input "${CORPUS:-$OUT/train.txt}" --vocab-size 8192 --output "$TOKENIZER"
else
  TOKENIZER=$TEACHER
fi
if [ -n "$CORPUS" ]; then
  stage "Text -> datasets, 1 % of the lines held out" "$OUT/data" \
    python -m data.binarize --input "$CORPUS" --valid-fraction 0.01 --tokenizer "$TOKENIZER" \
    --max-length "$MAX_LENGTH" --output "$OUT/data"
else
  for part in train valid; do
    stage "Text -> dataset ($part)" "$OUT/data/$part" \
      python -m data.binarize --input "$OUT/$part.txt" --tokenizer "$TOKENIZER" --max-length "$MAX_LENGTH" \
      --output "$OUT/data/$part"
  done
fi

if [ -z "$TEACHER" ]; then
  printf '\n\033[1m== Its architecture\033[0m: %s holds a config.json and the tokenizer, so weights start at random\n' "$TOKENIZER"
  tee "$TOKENIZER/config.json" <<JSON
{"model_type": "bert", "vocab_size": $(grep -c "" "$TOKENIZER/vocab.txt"), "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
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

stage "What came of it" "" \
  python -m launch.showcase --teacher "$TEACHER" --before "$OUT/student-start" --after "$OUT/dilbert" \
  --run "$OUT/runs/student" --data "$OUT/data/valid" --train-data "$OUT/data/train"
cat <<END

everything is in $OUT/
  data/                 the datasets
  runs/                 logs, checkpoints     dilbert/   the student: pipeline("fill-mask", "$OUT/dilbert")
  teacher ...           $TEACHER
curves: tensorboard --logdir $OUT/runs
$((SECONDS - began)) s in all
END
