#!/usr/bin/env bash
# One small GPU: as launch/recipes/base.sh, which has all settings, with small batches, fp16, ZeRO stage 2, the
# optimizer in the host's memory, and a fiftieth of the lines.
#
#   CORPUS='texts/*.txt' bash launch/recipes/laptop.sh
#   CORPUS='texts/*.txt' bash launch/recipes/laptop.sh --time-limit 8:00:00    stops after a night, goes on in the next
#
# Hardware: one GPU of 4 GB (1.22 GB on paper, without CUDA's own); g++ and ninja, with which DeepSpeed builds its Adam.
# Duration: 2.15 hours on a T4, on paper (python -m launch.plan --gpu T4 --gpus-per-node 1 --mfu 0.3 --tokens 8e7
#           --deepspeed-config ds_configs/zero2_fp16_offload_laptop.json): 80 million tokens, three times.
# Disk:     3.92 GB beside the text, on paper.
# Result:   not run here. A fiftieth of the text teaches less than the published 77.0 of GLUE: how much less, a run must
#           tell.
set -euo pipefail
export DS_CONFIG=${DS_CONFIG:-ds_configs/zero2_fp16_offload_laptop.json} SAMPLE=${SAMPLE:-0.02} OUT=${OUT:-runs/laptop}
export LAUNCH=${LAUNCH:-deepspeed --num_gpus 1}
exec bash "$(dirname "$0")/base.sh" "$@"
