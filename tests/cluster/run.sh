#!/usr/bin/env bash
# run.sh [TEST_ARGUMENTS]: build what is needed, start a cluster of three nodes, run the cluster's tests on it, and end
# it.
# Ends with 0 and one loud line where a cluster cannot run; CLUSTER=required makes that an error.
#   CLUSTER_NODES=3      how many nodes
#   CLUSTER_KEEP=1       leave the cluster running afterwards, to look at it
#   CLUSTER_LOGS=DIR     copy the logs of its programs there
#   IMAGE_PROFILE=dev    profile of the programs in the images: dev is what `make test` has built already
set -euo pipefail
machine=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/machine
# shellcheck source=machine/env.sh
. "$machine/env.sh"
cargo=${CARGO:-cargo}
if ! why=$("$machine/check.sh"); then
  echo "######## THE TESTS ON A CLUSTER WITH NODES DID NOT RUN: $why ########"
  [ "${CLUSTER:-}" != required ] || exit 1
  exit 0
fi
"$root/tests/tools/build.sh" cluster
cd "$root"
# The whole workspace is named, so that cargo chooses the same features as for the other tests and builds nothing twice.
"$cargo" test --locked --workspace --test cluster --no-run ${QUIET:+"$QUIET"}
"$machine/prepare.sh"
"$machine/traefik.sh"
# A second cluster of this checkout would share its state.
exec 9> "$bin/.cluster.lock"
flock -n 9 || fail "another run uses this checkout's cluster"
child='' with=()
if [ -z "${CLUSTER_KEEP:-}" ]; then
  # Whatever ends this script, SIGKILL too, ends the cluster.
  with=(--with $$)
  trap '"$machine/down.sh"' EXIT
fi
# The shell acts on a signal only between commands, or while it waits for a child.
trap '[ -z "$child" ] || kill -TERM "$child" 2> /dev/null; exit 143' TERM INT HUP
# 9>&-: what stays running must not hold the lock.
"$machine/up.sh" "${CLUSTER_NODES:-3}" "${with[@]}" 9>&-
"$machine/load.sh" "$root"/target/images/{sluice-operator,sluice-dataplane,nats}.oci.tar 9>&-
# Cargo ends with this script, and the tests with cargo.
"$machine/exec.sh" setpriv --pdeathsig KILL \
  "$cargo" test --locked --offline --workspace --test cluster -- "$@" < /dev/null 9>&- &
child=$!
wait "$child"
