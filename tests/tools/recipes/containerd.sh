#!/usr/bin/env bash
# What a node runs containers with.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../go.sh"
module=github.com/containerd/containerd/v2
go_tool "containerd containerd-shim-runc-v2 ctr" "1 min" "-X $module/version.Version=$(pin $module)" \
  $module/cmd/containerd $module/cmd/containerd-shim-runc-v2 $module/cmd/ctr
