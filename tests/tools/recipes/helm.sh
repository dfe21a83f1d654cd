#!/usr/bin/env bash
# Installs the chart.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../go.sh"
module=helm.sh/helm/v3
flags="-X $module/internal/version.version=$(pin $module)"
# Without these, helm takes the cluster for Kubernetes 1.20 and refuses charts that ask for a newer one.
version=$(pin k8s.io/kubernetes kube)
minor=${version#v1.} minor=${minor%%.*}
for package in chartutil lint/rules; do
  flags+=" -X $module/pkg/$package.k8sVersionMajor=1 -X $module/pkg/$package.k8sVersionMinor=$minor"
done
go_tool helm "1 min" "$flags" $module/cmd/helm
