#!/usr/bin/env bash
# build.sh [operator|dataplane]...: container images as OCI archives, without a container engine or a registry.
#
#   target/images/sluice-operator.oci.tar     target/images/sluice-dataplane.oci.tar
#
# An image is one layer on nothing: the program, the certificate authorities for tls:// servers, and no shell. It runs
# as user 65532 on a read-only root. Load it with `ctr -n k8s.io images import FILE`, `kind load image-archive FILE` or
# `docker load -i FILE` (Docker 25 or newer). The same sources, compiler and authorities give the same bytes: no time,
# user or path of the building machine is in them.
#
#   IMAGE_PROFILE=release   release (static programs) | dev (the programs that `make test` has built, with their
#                           libraries: ready at once)
#   IMAGE_PROGRAMS=...      a folder with the programs, instead of building them; they may be dynamic
#   IMAGE_TAG=...           the workspace's version unless given
#   IMAGE_PREFIX=docker.io/library/   what Kubernetes puts before a short name such as the chart's sluice-operator:<version>
#   IMAGE_CA=...            PEM bundle of certificate authorities; the building machine's unless given
#   IMAGE_SOURCE=...        URL of the sources, for the label; none unless given
#   IMAGE_OUT=target/images where to
set -euo pipefail
umask 022
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
say() { printf 'images: %s\n' "$*"; }
fail() {
  say "error: $*" >&2
  exit 1
}
need() { command -v "$1" > /dev/null || fail "needs \`$1\`: $2"; }

programs=(operator dataplane)
[ $# -eq 0 ] || programs=("$@")
for program in "${programs[@]}"; do
  case $program in operator | dataplane) ;; *) fail "usage: $0 [operator|dataplane]..." ;; esac
done
cargo=${CARGO:-cargo}
need "$cargo" "install Rust 1.89 or newer (https://rustup.rs)"
need sha256sum "it is in coreutils"
tar --version 2> /dev/null | grep -q 'GNU tar' || fail "needs GNU tar"

profile=${IMAGE_PROFILE:-release}
tag=${IMAGE_TAG:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
prefix=${IMAGE_PREFIX-docker.io/library/}
out=${IMAGE_OUT:-target/images}
target_dir=${CARGO_TARGET_DIR:-target}
[ -n "$tag" ] || fail "no version in Cargo.toml"
ca=${IMAGE_CA:-}
for file in ${SSL_CERT_FILE:-} \
  /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
  [ -n "$ca" ] || { [ ! -s "$file" ] || ca=$file; }
done
[ -s "$ca" ] || fail "no certificate authorities found: name a PEM file with IMAGE_CA"

triple=$(rustc -vV | sed -n 's/^host: //p')
case $triple in
  x86_64-*-linux-gnu) architecture=amd64 ;;
  aarch64-*-linux-gnu) architecture=arm64 ;;
  *)
    fail "images hold programs for x86_64 or aarch64 Linux with glibc, and this compiler makes them for $triple;" \
      "use the Dockerfile"
    ;;
esac

binaries=()
for program in "${programs[@]}"; do binaries+=(-p "sluice-$program" --bin "sluice-$program"); done
if [ -n "${IMAGE_PROGRAMS:-}" ]; then
  built=$IMAGE_PROGRAMS profile=given
elif [ "$profile" = release ]; then
  # Where the sources lie must not be seen in the programs.
  "$cargo" fetch --locked --target "$triple" > /dev/null 2>&1 || fail "cargo fetch failed: run it to see why"
  registries=$(cd "${CARGO_HOME:-$HOME/.cargo}/registry/src" && pwd)
  mkdir -p "$target_dir"
  maps=("$root=/sluice" "$(cd "$target_dir" && pwd)=/sluice/target")
  for folder in "$registries"/*; do maps+=("$folder=/crates"); done
  flags=(-Ctarget-feature=+crt-static -Cstrip=debuginfo) cflags=()
  for map in "${maps[@]}"; do
    flags+=("--remap-path-prefix=$map")
    cflags+=("-ffile-prefix-map=$map")
  done
  say "building static release programs for $triple (the first time about 5 minutes on 2 cores)"
  # A --target of its own keeps build scripts and procedural macros, which cannot be static, free of these flags.
  export RUSTFLAGS="${RUSTFLAGS:-} ${flags[*]}" "CFLAGS_${triple//-/_}=${CFLAGS:-} ${cflags[*]}"
  "$cargo" build --release --locked --target "$triple" "${binaries[@]}"
  built=$target_dir/$triple/release
elif [ "$profile" = dev ]; then
  # All of the workspace's programs, as `make test` builds them: with fewer, cargo would choose other features and
  # build anew.
  "$cargo" build --locked --workspace --bins
  built=$target_dir/debug
else
  fail "IMAGE_PROFILE is release or dev, not $profile"
fi

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
media=application/vnd.oci.image

archive() { # FOLDER FILE
  tar --format=gnu --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$1" -cf "$2" .
}
# On one line and without indentation: the digests, and with them the images, stay those of earlier builds.
json() { sed 's/^ *//' | tr -d '\n'; }

config() { # NAME LAYER_DIGEST
  local source=
  [ -z "${IMAGE_SOURCE:-}" ] || source=',"org.opencontainers.image.source":"'$IMAGE_SOURCE'"'
  json << EOF
    {
      "created":"1970-01-01T00:00:00Z",
      "architecture":"$architecture",
      "os":"linux",
      "config":{
        "User":"65532:65532",
        "Env":["SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
        "Entrypoint":["/$1"],
        "WorkingDir":"/",
        "Labels":{
          "org.opencontainers.image.title":"$1",
          "org.opencontainers.image.version":"$tag",
          "org.opencontainers.image.licenses":"Apache-2.0"
          $source
        }
      },
      "rootfs":{"type":"layers","diff_ids":["sha256:$2"]}
    }
EOF
}

manifest() { # CONFIG_DIGEST CONFIG_SIZE LAYER_DIGEST LAYER_SIZE
  json << EOF
    {
      "schemaVersion":2,
      "mediaType":"$media.manifest.v1+json",
      "config":{"mediaType":"$media.config.v1+json","digest":"sha256:$1","size":$2},
      "layers":[{"mediaType":"$media.layer.v1.tar","digest":"sha256:$3","size":$4}]
    }
EOF
}

# containerd and Docker name the image by the first annotation, others by the second.
index() { # NAME MANIFEST_DIGEST MANIFEST_SIZE
  json << EOF
    {
      "schemaVersion":2,
      "mediaType":"$media.index.v1+json",
      "manifests":[{
        "mediaType":"$media.manifest.v1+json",
        "digest":"sha256:$2",
        "size":$3,
        "platform":{"architecture":"$architecture","os":"linux"},
        "annotations":{
          "io.containerd.image.name":"$prefix$1:$tag",
          "org.opencontainers.image.ref.name":"$tag"
        }
      }]
    }
EOF
}

pack() { # PROGRAM
  local name=sluice-$1 layer=$tree/$1/root oci=$tree/$1/oci digest size library
  mkdir -p "$layer/etc/ssl/certs" "$oci/blobs/sha256" "$out"
  install -m 755 "$built/$name" "$layer/$name"
  install -m 644 "$ca" "$layer/etc/ssl/certs/ca-certificates.crt"
  # Of a static program ldd says that it is one, with 0 or with 1.
  while read -r library; do
    [ "$profile" != release ] || fail "$name is not static: it needs $library"
    install -D -m 755 "$library" "$layer$library"
  done < <({ ldd "$built/$name" 2> /dev/null || true; } | libraries)
  blob() { # FILE: moves it among the blobs; sets digest and size
    digest=$(sha256sum "$1" | cut -d ' ' -f 1) size=$(stat -c %s "$1")
    mv "$1" "$oci/blobs/sha256/$digest"
  }

  archive "$layer" "$tree/layer"
  blob "$tree/layer"
  local layer_digest=$digest layer_size=$size
  config "$name" "$layer_digest" > "$tree/config"
  blob "$tree/config"
  manifest "$digest" "$size" "$layer_digest" "$layer_size" > "$tree/manifest"
  blob "$tree/manifest"
  index "$name" "$digest" "$size" > "$oci/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' > "$oci/oci-layout"
  archive "$oci" "$tree/image.tar"
  mv "$tree/image.tar" "$out/$name.oci.tar"
  say "$prefix$name:$tag $architecture sha256:$digest, $((layer_size >> 20)) MiB: $out/$name.oci.tar"
}
# The paths in what ldd prints.
libraries() { sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p'; }

for program in "${programs[@]}"; do pack "$program"; done
