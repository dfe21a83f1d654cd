#!/usr/bin/env bash
# What kube-apiserver keeps its objects in.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../go.sh"
go_tool etcd "20 s" "" go.etcd.io/etcd/server/v3
