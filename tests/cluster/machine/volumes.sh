#!/usr/bin/env bash
# volumes.sh NODES: print a default StorageClass and two local volumes for each node: there is no provisioner.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cat << EOF
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
EOF
for i in $(seq "$1"); do
  for v in a b; do
    mkdir -p "$run/node-$i/mnt/pv/$v"
    chmod 1777 "$run/node-$i/mnt/pv/$v"
    cat << EOF
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: node-$i-$v}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: standard
  local: {path: /mnt/pv/$v}
  nodeAffinity:
    required:
      nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-$i]}]}]
EOF
  done
done
