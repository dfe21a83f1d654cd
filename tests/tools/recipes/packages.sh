#!/usr/bin/env bash
# What the nodes of a cluster need of the machine.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
missing=()
[ -x /usr/sbin/runc ] || [ -x /usr/bin/runc ] || missing+=(runc)
[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
for program in nft:nftables iptables:iptables openssl:openssl; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${program%:*}" > /dev/null || missing+=("${program#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v apt-get > /dev/null || fail "missing: ${missing[*]} (names of Debian's packages);" \
  "there is no apt-get here, so install them by hand, the CNI plugins in /usr/lib/cni"
[ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
say "apt-get install ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } \
  > "$bin/.packages.log" 2>&1 < /dev/null; then
  tail -n 20 "$bin/.packages.log" >&2
  fail "apt-get failed (its last lines are above)"
fi
