# shellcheck shell=bash
# Sourced by build.sh and by the recipes: where things are, and how to speak.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The recipe's name; of what it makes, the key is in $bin/.$tool.key.
tool=$(basename "$0" .sh)
bin=${SLUICE_TOOLS:-$(dirname "$(dirname "$here")")/.tools/bin}

say() { printf '%-6s %s\n' "$tool:" "$*"; }
fail() {
  say "error: $*" >&2
  exit 1
}

# PROGRAM HOW_TO_GET_IT
need() { command -v "$1" > /dev/null || fail "needs \`$1\`: $2"; }

# FILE...: what changes when one of them does
key() { cat "$@" | sha256sum | cut -d ' ' -f 1; }

# KEY PROGRAM...: whether the programs are there and of this key
have() {
  local program
  [ "$(cat "$bin/.$tool.key" 2> /dev/null)" = "$1" ] || return 1
  for program in "${@:2}"; do [ -x "$bin/$program" ] || return 1; done
}

# KEY: what was made is of this key
made() { echo "$1" > "$bin/.$tool.key"; }
