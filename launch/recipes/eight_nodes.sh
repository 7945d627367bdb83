#!/usr/bin/env bash
# Eight nodes of eight GPUs, by ssh and a hostfile: launch/recipes/base.sh, which has all settings.
#
#   CORPUS='texts/*.txt' HOSTFILE=hosts bash launch/recipes/eight_nodes.sh    (form: launch/hostfile.example)
#
# Hardware: 64 GPUs with bf16; ssh between the hosts, pdsh on the first; the same folders on all of them.
# Duration: on H100, on paper: 0.16 hours with 400 Gbit/s a node (python -m launch.plan --gpu H100 --nodes 8), of which
#           more than half is waiting; 0.08 hours with 3200 (python -m launch.plan --gpu H100 --nodes 8
#           --interconnect-gbps 3200).
# Disk:     12.38 GB beside the text, on paper.
# Result:   not run here; that of base.sh, on any number of nodes.
set -euo pipefail
cd "$(dirname "$0")/../.."

HOSTFILE=${HOSTFILE:-hosts}
python -m launch.doctor --hostfile "$HOSTFILE"
export LAUNCH="python -m launch.start --hostfile $HOSTFILE" OUT=${OUT:-runs/eight_nodes}
exec bash launch/recipes/base.sh "$@"
