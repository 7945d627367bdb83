#!/usr/bin/env bash
# Eight nodes of eight GPUs under SLURM: two jobs, the second of which waits for the first; data, then training.
#
#   CORPUS='texts/*.txt' bash launch/recipes/eight_nodes_slurm.sh    on a login node
#
# Partitions, cores and time limits are those of launch/slurm/data.sbatch and launch/slurm/srun.sbatch: look there
# first. At its time limit the training saves, queues again, and goes on.
#
# Hardware: 2 nodes of 32 cores for the text, 64 GPUs with bf16; storage that all nodes share.
# Duration: on H100, on paper: 0.16 hours with 400 Gbit/s a node (python -m launch.plan --gpu H100 --nodes 8), of which
#           more than half is waiting; 0.08 hours with 3200 (python -m launch.plan --gpu H100 --nodes 8
#           --interconnect-gbps 3200).
# Disk:     12.38 GB beside the text, on paper.
# Result:   not run here; that of base.sh, on any number of nodes.
set -euo pipefail
cd "$(dirname "$0")/../.."

TEACHER=${TEACHER:-bert-base-uncased}
CORPUS=${CORPUS:-dump.txt}
OUT=${OUT:-runs/eight_nodes_slurm}
DS_CONFIG=${DS_CONFIG:-ds_configs/zero1_bf16.json}
LENGTH=${LENGTH:---epochs 3} # or --max-steps N

[ -d "$OUT/student" ] || python -m model.extract --teacher "$TEACHER" --output "$OUT/student"
after=()
if [ ! -d "$OUT/data" ]; then
  job=$(sbatch --parsable launch/slurm/data.sbatch --input "$CORPUS" --valid-fraction 0.001 --tokenizer "$TEACHER" \
    --output "$OUT/data")
  after=(--dependency "afterok:${job%%;*}")
fi
# shellcheck disable=SC2086
sbatch "${after[@]}" --nodes 8 launch/slurm/srun.sbatch "$OUT/run" --deepspeed_config "$DS_CONFIG" \
  --data "$OUT/data/train" --valid-data "$OUT/data/valid" --teacher "$TEACHER" --student "$OUT/student" $LENGTH "$@"

echo "once $OUT/run/DONE.json is there: python -m model.export $OUT/run --output $OUT/dilbert"
