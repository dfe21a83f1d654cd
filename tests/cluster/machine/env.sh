# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use what it sets
# Sourced by the scripts beside it: where things are, and how to start and enter the cluster's hosts.
#
# A host is a set of private namespaces (network, mounts, processes, name, IPC) held by one first process. When that
# process ends, the kernel ends everything in the host; so nothing can be left behind that is not found by its id.
machine=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$machine/../../.." && pwd)
bin=${SLUICE_TOOLS:-$root/.tools/bin}
run=${CLUSTER_RUN:-$root/.tools/cluster} # state of the running cluster: logs, ids, keys, disks
pki=$run/pki
# Two checkouts may each have a cluster: all that is shared by the machine is this name, made from the checkout's path.
group=sluice-$(printf %s "$run" | sha256sum | cut -c 1-8)
export PATH="$bin:$PATH:/usr/sbin:/sbin" KUBECONFIG=$pki/admin.conf

# One wire joins control plane and nodes: node I is $net.(1+I). Nothing leads out of it.
net=172.30.0 cp_ip=172.30.0.1
pod_net=10.244 service_net=10.96.0.0/16 api_ip=10.96.0.1 dns_ip=10.96.0.10
node_ip() { echo "$net.$((10 + $1))"; }

fail() {
  echo "cluster: $*" >&2
  exit 1
}

# SECONDS WHAT CMD...: until CMD succeeds
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "timed out waiting for $what; the logs are in $run/*/*.log"
    sleep 0.2
  done
}

# NAME
start_host() {
  local dir=$run/$1 outer inner=
  mkdir -p "$dir"
  setsid unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    sh -c "hostname $1 && ip link set lo up && exec sleep infinity" < /dev/null > "$dir/init.log" 2>&1 &
  outer=$!
  # shellcheck disable=SC2329 # wait_for calls it
  is_up() {
    inner=$(cat "/proc/$outer/task/$outer/children") && inner=${inner% } \
      && [ "$(cat "/proc/$inner/comm")" = sleep ]
  }
  wait_for 10 "host $1" is_up
  echo "$outer" > "$dir/unshare.pid"
  echo "$inner" > "$dir/init.pid"
}

# NAME: as a power cut, if it is still the one that was started
stop_host() {
  local dir=$run/$1 outer inner
  [ -e "$dir/init.pid" ] || return 0
  outer=$(cat "$dir/unshare.pid") inner=$(cat "$dir/init.pid")
  rm -f "$dir/unshare.pid" "$dir/init.pid"
  tr '\0' ' ' < "/proc/$outer/cmdline" 2> /dev/null | grep -q "hostname $1 " || return 0
  kill -KILL "$inner" "$outer" 2> /dev/null || true
  for _ in $(seq 100); do
    [ -e "/proc/$inner" ] || return 0
    sleep 0.1
  done
  fail "host $1 (process $inner) does not end"
}

# NAME
is_running() { [ -e "$run/$1/init.pid" ] && [ -e "/proc/$(cat "$run/$1/init.pid")" ]; }

# NAME CMD...
in_host() {
  local p
  p=$(cat "$run/$1/init.pid")
  shift
  nsenter -t "$p" -m -u -i -n -p -- "$@"
}

# NAME CMD...: in its network only
in_net() {
  local p
  p=$(cat "$run/$1/init.pid")
  shift
  nsenter -t "$p" -n -- "$@"
}

# NAME CMD...: leave CMD running in the host, its output in $run/NAME/CMD.log
daemon() {
  local p log=$run/$1/$2.log
  p=$(cat "$run/$1/init.pid")
  shift
  setsid nsenter -t "$p" -m -u -i -n -p -- "$@" < /dev/null >> "$log" 2>&1 &
}

is_cgroup2() { [ -e /sys/fs/cgroup/cgroup.controllers ]; }

# NAME: where the kubelet of host NAME puts its pods
make_cgroups() {
  local c d f
  if is_cgroup2; then
    mkdir -p "/sys/fs/cgroup/$group/$1"
    for d in /sys/fs/cgroup "/sys/fs/cgroup/$group" "/sys/fs/cgroup/$group/$1"; do
      # One at a time: the kernel takes all of a line or nothing.
      # shellcheck disable=SC2013 # they are words on one line
      for c in $(cat "$d/cgroup.controllers"); do
        echo "+$c" > "$d/cgroup.subtree_control" 2> /dev/null || true
      done
    done
    return
  fi
  for c in /sys/fs/cgroup/*/; do
    [ "$c" != /sys/fs/cgroup/unified/ ] || continue
    for d in "$c$group" "$c$group/$1"; do
      mkdir -p "$d"
      # A cpuset is born empty, and nothing can run in it.
      for f in cpuset.cpus cpuset.mems; do [ ! -e "$d/$f" ] || cat "$d/../$f" > "$d/$f"; done
    done
  done
}

# DIRECTORY below the hierarchies, once its processes are gone
remove_cgroups() {
  for _ in $(seq 50); do
    find "/sys/fs/cgroup/$1" /sys/fs/cgroup/*/"$1" -depth -type d -exec rmdir {} + 2> /dev/null || true
    [ -e "/sys/fs/cgroup/$1" ] || compgen -G "/sys/fs/cgroup/*/$1" > /dev/null || return 0
    sleep 0.1
  done
  echo "cluster: cgroups named $1 could not be removed" >&2
}
