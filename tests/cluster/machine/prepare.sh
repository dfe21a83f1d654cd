#!/usr/bin/env bash
# prepare.sh: the images that the cluster's nodes are given, as archives in target/images: ours, and nats-server's under
# the name that the chart has for it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
IMAGE_PROFILE=${IMAGE_PROFILE:-dev} "$root/images/build.sh"
tag=$(sed -n '/^natsServer:/,$ s/^    tag: *//p' "$root/charts/sluice/values.yaml" | head -n 1)
"$machine/image.sh" "docker.io/library/nats:$tag" "$root/target/images/nats.oci.tar" "$bin/nats-server"
