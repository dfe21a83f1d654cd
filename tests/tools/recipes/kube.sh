#!/usr/bin/env bash
# All of Kubernetes as one binary, since its parts share most of their code: kube/main.go.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../go.sh"
version=$(pin k8s.io/kubernetes)
minor=${version#v1.} minor=${minor%%.*}
flags=
# Without these, client and server take themselves for v0.0.0.
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
  flags+=" -X $package.gitTreeState=clean"
done
go_tool "kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl" "6 min" "$flags" .
