# shellcheck shell=bash
# Sourced by the recipes of programs that are built from the Go module proxy.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# MODULE [TOOL]: its version in the tool's go.mod
pin() { sed -n "s#^\(require \)\?\s*$1 \(v[^ ]*\).*#\2#p" "$here/${2:-$tool}/go.mod"; }

# PROGRAMS HOW_LONG LDFLAGS PACKAGE...: build packages of module $here/$tool into $bin, unless the programs are there.
# A program that no package is named after is another name of $tool.
go_tool() {
  local programs k
  read -ra programs <<< "$1"
  k=$(module_key "$@")
  have "$k" "${programs[@]}" && return
  go_build "$2" "$3" "${@:4}"
  made "$k"
}

# ARGUMENT...: the key of a program covers its module, its recipe, how it is built and the Go version
module_key() {
  local files
  mapfile -t files < <(find "$here/$tool" -name 'go.*' -o -name '*.go' | sort)
  key "${files[@]}" "$0" "$here/go.sh" <(printf '%s\n' "$@") <(cd "$here/$tool" && go version 2> /dev/null)
}

# HOW_LONG LDFLAGS PACKAGE...: builds the programs and tells that it is alive
go_build() {
  need go "install Go 1.26 or newer (https://go.dev/dl/)"
  local log tmp pid program t0=$SECONDS next=15
  log=$(mktemp) tmp=$bin/.$tool.$$
  rm -rf "$tmp"
  mkdir "$tmp"
  say "building (cold: about $1 on 2 cores)"
  compile "$tmp" "${@:2}" < /dev/null > "$log" 2>&1 &
  pid=$!
  trap 'kill $pid 2> /dev/null || true; rm -rf "$tmp" "$log"' EXIT
  while kill -0 $pid 2> /dev/null; do
    sleep 0.5
    [ $((SECONDS - t0)) -ge $next ] || continue
    say "$(wc -l < "$log") steps, $((SECONDS - t0)) s"
    next=$((next + 15))
  done
  if ! wait $pid; then
    grep -v '^[a-zA-Z0-9_./~-]*$' "$log" | tail -n 30 >&2
    fail "go build failed (its last lines are above)"
  fi
  say "built in $((SECONDS - t0)) s, $(du -sm "$tmp" | cut -f 1) MiB"
  # Go calls a program after the last part of its path, which for etcd is not its name.
  [ ! -e "$tmp/server" ] || mv "$tmp/server" "$tmp/etcd"
  for program in "${programs[@]}"; do [ -e "$tmp/$program" ] || ln -s "$tool" "$tmp/$program"; done
  mv -f "$tmp"/* "$bin/"
  trap - EXIT
  rm -rf "$tmp" "$log"
}

# INTO LDFLAGS PACKAGE...: becomes go, so that its process can be ended
compile() {
  cd "$here/$tool" || exit
  export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
  # -v names each package on the log, which is what the progress counts.
  exec nice go build -v -trimpath -ldflags "-s -w $2" -o "$1/" "${@:3}"
}
