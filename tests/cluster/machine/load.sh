#!/usr/bin/env bash
# load.sh [--only NODE] ARCHIVE...: import OCI archives into the image stores of all running nodes, or of one.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
only=
if [ "${1:-}" = --only ]; then
  only=$2
  shift 2
fi
for dir in "$run"/node-*/; do
  node=$(basename "$dir")
  is_running "$node" || continue
  [ "${only:-$node}" = "$node" ] || continue
  for archive; do
    # Its warnings about the machine's kernel are of no use here.
    said=$(in_host "$node" ctr -n k8s.io images import --digests=false - < "$archive" 2>&1) \
      || fail "$archive on $node: $said"
  done
done
