#!/usr/bin/env bash
# The layout of the Python, and mistakes in it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../wheel.sh"
pinned 0.17.6 ruff 0.17.6 https://docs.astral.sh/ruff/installation
