#!/usr/bin/env bash
# The layout of the shell scripts. The wheel's version is not the program's.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../wheel.sh"
pinned 3.14.1 shfmt-py 4.2.0 "go install mvdan.cc/sh/v3/cmd/shfmt@v3.14.1"
