#!/usr/bin/env bash
# run.sh [TEST_ARGUMENTS]: the cluster's tests (tests/cluster) on a kind cluster: builds the images with Docker, starts
# three nodes, loads the images, runs the suite, and deletes the cluster.
#   KIND_KEEP=1        leave the cluster there afterwards
#   KIND_NODE_IMAGE=   node image of kind, such as kindest/node:v1.33.1; kind's own default unless given
#   KIND_IMAGES=docker docker builds the images from the Dockerfile | script takes them from `make images`
# It needs Linux, Docker on this machine, kind, kubectl, helm, curl, Rust, and sudo: Services and pods are reached from
# the first node's network. It was written where no container engine could run, and has not been run; README.md beside
# it says what was.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
name=sluice
fail() {
  echo "tests/kind: $*" >&2
  exit 1
}
for program in docker kind kubectl helm curl cargo nsenter; do
  command -v "$program" > /dev/null || fail "needs \`$program\`"
done
docker info > /dev/null 2>&1 || fail "Docker does not answer: is it started, and may you use it?"
# The network of a node is a namespace of this machine only where Docker itself runs on it.
[ "$(uname -s)" = Linux ] \
  || fail "needs Linux: elsewhere Docker's containers are in a virtual machine that the tests cannot reach"
! kind get clusters 2> /dev/null | grep -qx "$name" \
  || fail "a kind cluster called $name is there already: \`kind delete cluster --name $name\`"
as_root=(sudo)
[ "$(id -u)" != 0 ] || as_root=()

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
echo "== images"
case ${KIND_IMAGES:-docker} in
  docker)
    for program in operator dataplane; do docker build --target "$program" -t "sluice-$program:$version" .; done
    ;;
  script) images/build.sh ;;
  *) fail "KIND_IMAGES is docker or script" ;;
esac
echo "== tests"
cargo test --locked --workspace --test cluster --no-run
test=$(cargo test --locked --workspace --test cluster --no-run --message-format=json 2> /dev/null \
  | sed -n 's/.*"name":"cluster".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$test" ] || fail "cargo did not say where the test program is"

files=$(mktemp -d)
end() {
  [ -n "${KIND_KEEP:-}" ] || kind delete cluster --name "$name" || true
  rm -rf "$files"
}
trap end EXIT
trap 'exit 143' TERM INT HUP
echo "== cluster"
kind create cluster --config tests/kind/kind.yaml ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} \
  --kubeconfig "$files/outside.conf" --wait 180s
for program in operator dataplane; do
  case ${KIND_IMAGES:-docker} in
    docker) kind load docker-image "sluice-$program:$version" --name "$name" ;;
    script) kind load image-archive "target/images/sluice-$program.oci.tar" --name "$name" ;;
  esac
done
# Inside the first node's network the API server is where the certificate says; outside, on a port of Docker's.
kind get kubeconfig --internal --name "$name" \
  | sed "s#https://$name-control-plane:6443#https://127.0.0.1:6443#" > "$files/inside.conf"
mkdir "$files/tools"
for program in kubectl helm; do ln -s "$(command -v "$program")" "$files/tools/$program"; done

echo "== suite"
node=$(docker inspect --format '{{.State.Pid}}' "$name-control-plane")
"${as_root[@]}" nsenter --target "$node" --net \
  env "PATH=$PATH" "HOME=$files" "KUBECONFIG=$files/inside.conf" "SLUICE_TOOLS=$files/tools" "$test" "$@"
