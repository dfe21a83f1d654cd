#!/usr/bin/env bash
# Definitions of other projects' resources, as files: $bin/crds/httproutes.yaml and podmonitors.yaml.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
k=$(key "$here"/crds/go.* "$0")
have "$k" && [ -d "$bin/crds" ] && exit
need go "install Go 1.26 or newer (https://go.dev/dl/)"

# MODULE: the folder that go has it in
folder() {
  local version
  version=$(sed -n "s|^[[:space:]]*$1 ||p" "$here/crds/go.mod")
  # With the version named, go checks the sum and needs nothing of what the module requires.
  (cd "$here/crds" && go mod download -json "$1@$version") | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p'
}

files=()
# MODULE FILE
definition() {
  local dir name=${2##*_}
  dir=$(folder "$1")
  [ -f "$dir/$2" ] || fail "$1 has no $2"
  install -m 644 "$dir/$2" "$bin/crds/$name"
  files+=("$name")
}

mkdir -p "$bin/crds"
definition sigs.k8s.io/gateway-api config/crd/standard/gateway.networking.k8s.io_httproutes.yaml
definition github.com/prometheus-operator/prometheus-operator \
  example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml
made "$k"
say "${files[*]}"
