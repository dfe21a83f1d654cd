#!/usr/bin/env bash
# check.sh: say on one line why a cluster cannot run on this machine and end with 1; end with 0 if it can.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
no() {
  echo "$*"
  exit 1
}
[ "$(uname -s)" = Linux ] || no "it needs Linux"
[ "$(id -u)" = 0 ] || no "it needs root (namespaces, mounts, cgroups)"
for c in unshare nsenter setsid ip flock; do
  command -v $c > /dev/null || no "it needs the command $c (Debian: util-linux, iproute2)"
done
unshare --net --mount --uts --ipc --pid --fork true 2> /dev/null || no "this machine does not allow new namespaces"
unshare --net sh -c 'ip link add br0 type bridge && ip link add v0 type veth' 2> /dev/null \
  || no "this kernel has no bridge or veth devices"
grep -qw overlay /proc/filesystems || modprobe overlay 2> /dev/null || no "this kernel has no overlay file system"
if is_cgroup2; then probe=/sys/fs/cgroup/$group.check; else probe=/sys/fs/cgroup/memory/$group.check; fi
{ mkdir "$probe" && rmdir "$probe"; } 2> /dev/null || no "cgroups cannot be made in $(dirname "$probe")"
has_packages() {
  local c
  for c in runc nft iptables openssl; do PATH=$PATH:/usr/sbin command -v $c > /dev/null || return 1; done
  [ -x /usr/lib/cni/bridge ]
}
command -v apt-get > /dev/null || has_packages \
  || no "runc, CNI plugins (in /usr/lib/cni), nftables, iptables or openssl are missing, and there is no apt-get"
