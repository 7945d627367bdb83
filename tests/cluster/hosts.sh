#!/usr/bin/env bash
# Several hosts on one Linux machine: each is a network, PID, UTS and mount namespace with an sshd of its own, and all
# hang on one switch. They share the disk. The machine's own ssh stays as it is.
#
#   hosts.sh up N            bring up dilbert0 .. dilbert{N-1}
#   hosts.sh on HOST CMD...  run a command on a host, in the current folder
#   hosts.sh boot HOST       bring one of them up again
#   hosts.sh kill HOST       kill -9 everything on a host, and the host with it
#   hosts.sh cut HOST        take its network away: packets vanish, nobody is told
#   hosts.sh join HOST       give it back
#   hosts.sh down            remove them all
#
# $CLUSTER, a folder, receives keys, `hostfile` and sshd's logs. Needs root, and Debian's iproute2, util-linux,
# openssh-server and openssh-client.
set -euo pipefail
CLUSTER=${CLUSTER:?a folder for keys and logs}
NET=10.77.0 NAME=dilbert SWITCH=dilbert-switch

number() { echo "${1#"$NAME"}"; }

# The host's process 1 is the only child of its `unshare`.
first_process() { tr -d ' ' <"/proc/$1/task/$1/children"; }

on() {
  local process
  process=$(first_process "$(cat "$CLUSTER/$1.pid")")
  exec nsenter -t "$process" -n -m -u -p --wd="$PWD" -- "${@:2}"
}

configure() {
  mkdir -p "/etc/netns/$1/ssh"
  cp "$CLUSTER/hosts" "/etc/netns/$1/hosts"
  cat >"/etc/netns/$1/ssh/ssh_config" <<CONF
Host *
  IdentityFile $CLUSTER/id
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
CONF
  cat >"/etc/netns/$1/ssh/sshd_config" <<CONF
HostKey $CLUSTER/hostkey
AuthorizedKeysFile $CLUSTER/id.pub
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
PidFile none
CONF
}

boot() {
  local host=$1
  rm -rf /tmp/prte."$host".* # of an mpirun that was killed; process numbers begin anew
  # `ip netns exec` puts what is in /etc/netns/HOST over /etc.
  ip netns exec "$host" setsid unshare --uts --pid --fork --mount-proc --kill-child \
    sh -c "hostname $host; exec /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config" \
    >>"$CLUSTER/$host.sshd.log" 2>&1 </dev/null &
  echo $! >"$CLUSTER/$host.pid"
  for _ in $(seq 100); do
    (on "$host" bash -c ': </dev/tcp/127.0.0.1/22') 2>/dev/null && return
    sleep 0.1
  done
  echo "sshd on $host did not start: see $CLUSTER/$host.sshd.log" >&2
  return 1
}

connect() {
  local host=$1 i
  i=$(number "$host")
  ip netns add "$host"
  ip -n "$host" link add eth0 type veth peer name "port$i" netns "$SWITCH"
  ip -n "$SWITCH" link set "port$i" master br0 up
  ip -n "$host" addr add "$NET.$((i + 1))/24" dev eth0
  ip -n "$host" link set eth0 up
  ip -n "$host" link set lo up
}

up() {
  local i key
  down
  mkdir -p "$CLUSTER" /run/sshd
  for key in id hostkey; do ssh-keygen -q -t ed25519 -N '' -f "$CLUSTER/$key"; done
  { echo 127.0.0.1 localhost; for ((i = 0; i < $1; i++)); do echo "$NET.$((i + 1)) $NAME$i"; done; } >"$CLUSTER/hosts"
  for ((i = 0; i < $1; i++)); do echo "$NAME$i slots=1"; done >"$CLUSTER/hostfile"
  ip netns add "$SWITCH"
  ip -n "$SWITCH" link add br0 type bridge
  ip -n "$SWITCH" link set br0 up
  for ((i = 0; i < $1; i++)); do
    configure "$NAME$i"
    connect "$NAME$i"
    boot "$NAME$i"
  done
}

# By namespace, not by what $CLUSTER remembers: hosts of a test that was killed go, too.
down() {
  local host process
  for host in $(ip netns list | awk -v name="$NAME" '$1 ~ "^" name "([0-9]+|-switch)$" {print $1}'); do
    for process in $(ip netns pids "$host"); do kill -9 "$process" 2>/dev/null || true; done
    ip netns del "$host"
    rm -rf "/etc/netns/$host" /tmp/prte."$host".*
  done
}

case ${1:-} in
up) up "$2" ;;
on) on "${@:2}" ;;
boot) boot "$2" ;;
kill) kill -9 "$(cat "$CLUSTER/$2.pid")" ;;
cut) ip -n "$SWITCH" link set "port$(number "$2")" nomaster ;;
join) ip -n "$SWITCH" link set "port$(number "$2")" master br0 ;;
down) down ;;
*)
  sed -n '2,/^set/p' "$0" | sed '$d'
  exit 2
  ;;
esac
