#!/usr/bin/env bash
# The first process of every pod: pause/main.go.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../go.sh"
go_tool pause "5 s" "" .
