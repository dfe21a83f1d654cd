#!/usr/bin/env bash
# exec.sh CMD...: run CMD (kubectl, helm, curl, a test) in the cluster's network, with an administrator's KUBECONFIG.
# There is no way out of that network: build before.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
is_running cp || fail "no cluster runs: make cluster"
export SLUICE_CLUSTER=$run
exec nsenter -t "$(cat "$run/cp/init.pid")" -n -- "$@"
