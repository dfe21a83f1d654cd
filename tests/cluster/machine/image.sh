#!/usr/bin/env bash
# image.sh NAME:TAG ARCHIVE PROGRAM: write an OCI archive of an image that holds one static program, its entry point.
set -euo pipefail
name=$1 archive=$2 program=$3
case $(uname -m) in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture=$(uname -m) ;; esac
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
mkdir -p "$t/files/tmp" "$t/oci/blobs/sha256"
chmod 1777 "$t/files/tmp"
install -m 755 "$program" "$t/files/$(basename "$program")"
# On one line and without indentation.
json() { sed 's/^ *//' | tr -d '\n'; }

# FILE: moved among the blobs; prints its digest and size
blob() {
  local digest size
  digest=$(sha256sum "$1" | cut -d ' ' -f 1) size=$(stat -c %s "$1")
  mv "$1" "$t/oci/blobs/sha256/$digest"
  echo "sha256:$digest $size"
}

tar -C "$t/files" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$t/layer" .
read -r layer layer_size < <(blob "$t/layer")

config() {
  json << EOF
    {
      "architecture":"$architecture",
      "os":"linux",
      "config":{"User":"65532","Entrypoint":["/$(basename "$program")"],"Env":["PATH=/"]},
      "rootfs":{"type":"layers","diff_ids":["$layer"]}
    }
EOF
}
config > "$t/config"
read -r config config_size < <(blob "$t/config")

media=application/vnd.oci.image
manifest() {
  json << EOF
    {
      "schemaVersion":2,
      "mediaType":"$media.manifest.v1+json",
      "config":{"mediaType":"$media.config.v1+json","digest":"$config","size":$config_size},
      "layers":[{"mediaType":"$media.layer.v1.tar","digest":"$layer","size":$layer_size}]
    }
EOF
}
manifest > "$t/manifest"
read -r manifest manifest_size < <(blob "$t/manifest")

index() {
  json << EOF
    {
      "schemaVersion":2,
      "manifests":[{
        "mediaType":"$media.manifest.v1+json",
        "digest":"$manifest",
        "size":$manifest_size,
        "annotations":{"io.containerd.image.name":"$name","org.opencontainers.image.ref.name":"${name##*:}"}
      }]
    }
EOF
}
index > "$t/oci/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' > "$t/oci/oci-layout"
tar -C "$t/oci" -cf "$archive" .
