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
blob() { # FILE: moved among the blobs; prints its digest and size
  local digest size
  digest=$(sha256sum "$1" | cut -d ' ' -f 1) size=$(stat -c %s "$1")
  mv "$1" "$t/oci/blobs/sha256/$digest"
  echo "sha256:$digest $size"
}
tar -C "$t/files" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$t/layer" .
read -r layer layer_size < <(blob "$t/layer")
printf '{"architecture":"%s","os":"linux","config":{"User":"65532","Entrypoint":["/%s"],"Env":["PATH=/"]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
  "$architecture" "$(basename "$program")" "$layer" > "$t/config"
read -r config config_size < <(blob "$t/config")
media=application/vnd.oci.image
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"%s.layer.v1.tar","digest":"%s","size":%s}]}' \
  $media $media "$config" "$config_size" $media "$layer" "$layer_size" > "$t/manifest"
read -r manifest manifest_size < <(blob "$t/manifest")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json","digest":"%s","size":%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
  $media "$manifest" "$manifest_size" "$name" "${name##*:}" > "$t/oci/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' > "$t/oci/oci-layout"
tar -C "$t/oci" -cf "$archive" .
