#!/usr/bin/env bash
# A real SLURM on the hosts of hosts.sh: slurmctld on the first, a slurmd on each, a munged for all of them.
#
#   slurm.sh up           after `hosts.sh up N`; waits until every node is idle
#   slurm.sh COMMAND ...  run sbatch, squeue, scancel, scontrol ... on the first host, in the current folder
#   slurm.sh down         before `hosts.sh down`
#
# Debian 12's SLURM is 22.05: without a mounted /sys/fs/cgroup its slurmd aborts, unless cgroup.conf names cgroup/v1.
# Needs root, and Debian's slurm-wlm and munge; the machine's own munged is left alone.
set -euo pipefail
CLUSTER=${CLUSTER:?the folder that hosts.sh had}
HERE=$(cd "$(dirname "$0")" && pwd)
SLURM=$CLUSTER/slurm
export SLURM_CONF=$SLURM/slurm.conf
mapfile -t HOSTS < <(awk '{print $1}' "$CLUSTER/hostfile")

on() { bash "$HERE/hosts.sh" on "$1" env SLURM_CONF="$SLURM_CONF" "${@:2}"; }

configure() {
  mkdir -p "$SLURM"/{state,log,run}
  echo 'CgroupPlugin=cgroup/v1' >"$SLURM/cgroup.conf"
  touch "$SLURM"/gpu{0..7} # GPUs in name only
  echo "Name=gpu File=$SLURM/gpu[0-7]" >"$SLURM/gres.conf"
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=${HOSTS[0]}
AuthType=auth/munge
AuthInfo=socket=$SLURM/munge.socket
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$SLURM/state
SlurmdSpoolDir=$SLURM/spool.%n
SlurmctldPidFile=$SLURM/run/slurmctld.pid
SlurmdPidFile=$SLURM/run/slurmd.%n.pid
SlurmctldLogFile=$SLURM/log/slurmctld.log
SlurmdLogFile=$SLURM/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=10
MinJobAge=300
ReturnToService=2
JobRequeue=1
PropagateResourceLimits=NONE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  local host
  for host in "${HOSTS[@]}"; do
    mkdir -p "$SLURM/spool.$host"
    echo "NodeName=$host CPUs=16 RealMemory=4000 Gres=gpu:8 State=UNKNOWN" >>"$SLURM_CONF"
  done
}

up() {
  configure
  head -c 1024 /dev/urandom >"$SLURM/munge.key"
  chmod 600 "$SLURM/munge.key"
  munged --force --key-file "$SLURM/munge.key" --socket "$SLURM/munge.socket" --pid-file "$SLURM/run/munged.pid" \
    --log-file "$SLURM/log/munged.log" --seed-file "$SLURM/munge.seed" 2>/dev/null
  on "${HOSTS[0]}" slurmctld -i -f "$SLURM_CONF"
  local host
  for host in "${HOSTS[@]}"; do on "$host" slurmd -f "$SLURM_CONF" -N "$host"; done
  for _ in $(seq 100); do
    [ "$(on "${HOSTS[0]}" sinfo -h -t idle -o %D)" = "${#HOSTS[@]}" ] && return
    sleep 0.2
  done
  echo "SLURM did not come up: see $SLURM/log" >&2
  return 1
}

down() {
  local host
  # Process numbers are those of the host's namespace.
  for host in "${HOSTS[@]}"; do on "$host" kill "$(cat "$SLURM/run/slurmd.$host.pid")" || true; done
  on "${HOSTS[0]}" kill "$(cat "$SLURM/run/slurmctld.pid")" || true
  kill "$(cat "$SLURM/run/munged.pid")" || true
}

case ${1:-} in
up) up ;;
down) down ;;
'')
  sed -n '2,/^set/p' "$0" | sed '$d'
  exit 2
  ;;
*) on "${HOSTS[0]}" "$@" ;;
esac
