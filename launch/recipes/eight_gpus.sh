#!/usr/bin/env bash
# Eight GPUs of one node: launch/recipes/base.sh, which has all settings, and refuses to start on fewer.
#
#   CORPUS='texts/*.txt' bash launch/recipes/eight_gpus.sh
#   CORPUS='texts/*.txt' DS_CONFIG=ds_configs/zero1_fp16.json bash launch/recipes/eight_gpus.sh    on V100, as published
#
# Hardware: one node of 8 GPUs.
# Duration: on paper 0.60 hours on H100 (python -m launch.plan --gpu H100 --gpus-per-node 8), and 7.00 hours on V100
#           (python -m launch.plan --gpu V100 --gpus-per-node 8 --mfu 0.3 --deepspeed-config
#           ds_configs/zero1_fp16.json). Published: 90 hours on 8 V100 of 16 GB (Sanh et al., 2019).
# Disk:     12.38 GB beside the text, on paper.
# Result:   not run here; that of base.sh, on any number of GPUs.
set -euo pipefail
GPUS=${GPUS:-8}
export LAUNCH="deepspeed --num_gpus $GPUS" OUT=${OUT:-runs/eight_gpus}
exec bash "$(dirname "$0")/base.sh" --ranks "$GPUS" "$@"
