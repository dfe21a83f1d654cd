#!/usr/bin/env bash
# The cluster's DNS, with the plugins that it needs: coredns/main.go.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../go.sh"
go_tool coredns "1 min" "" .
