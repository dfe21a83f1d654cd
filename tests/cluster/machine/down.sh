#!/usr/bin/env bash
# down.sh: end this checkout's cluster and remove its state. What is ended is found by the ids that up.sh wrote down.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ -e "$run" ] || exit 0
if watcher=$(cat "$run/watcher.pid" 2> /dev/null) && [ "$watcher" != $$ ]; then
  # Its whole session, `tail` included; unless the id belongs to something else by now.
  if tr '\0' ' ' < "/proc/$watcher/cmdline" 2> /dev/null | grep -qF "$machine/down.sh"; then
    kill -TERM -- "-$watcher" 2> /dev/null || true
  fi
fi
pids=()
for dir in "$run"/*/; do
  stop_host "$(basename "$dir")" &
  pids+=($!)
done
for p in ${pids[@]+"${pids[@]}"}; do wait "$p"; done
remove_cgroups "$group"
if [ -n "${CLUSTER_LOGS:-}" ]; then
  mkdir -p "$CLUSTER_LOGS"
  for log in "$run"/*/*.log; do cp "$log" "$CLUSTER_LOGS/$(basename "$(dirname "$log")").$(basename "$log")"; done
fi
for _ in $(seq 50); do
  rm -rf "$run" 2> /dev/null && exit 0
  sleep 0.1
done
rm -rf "$run"
