#!/usr/bin/env bash
# up.sh [NODES=3] [--with PID]: start a cluster of real Kubernetes programs in private namespaces; return when every
# node and the cluster's DNS are ready. A cluster of this checkout that runs already is ended first.
# --with: end it when process PID ends, however that comes.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
nodes=3 owner=
while [ $# -gt 0 ]; do
  case $1 in
    --with)
      owner=$2
      shift 2
      ;;
    [1-9])
      nodes=$1
      shift
      ;;
    *) fail "usage: up.sh [1..9] [--with PID]" ;;
  esac
done
why=$("$machine/check.sh") || fail "cannot run here: $why"
for p in etcd kube-apiserver kubelet containerd coredns pause; do
  [ -x "$bin/$p" ] || fail "$p is missing: run tests/tools/build.sh cluster"
done
"$machine/down.sh"
mkdir -p "$run/cp/etcd"
started=$(date +%s%N)
say() { printf '%5s s  %s\n' "$(awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $started) / 1e9 }")" "$*"; }
kubectl() { in_net cp "$bin/kubectl" "$@"; }

# The watcher is outside of every host, so that it lives to end them.
if [ -n "$owner" ]; then
  setsid sh -c "tail --pid=$owner -f /dev/null; exec '$machine/down.sh'" < /dev/null > "$run/watcher.log" 2>&1 &
  echo $! > "$run/watcher.pid"
fi
trap '[ $? = 0 ] || tail -n 5 "$run"/*/*.log >&2 || true' EXIT

"$machine/keys.sh" "$nodes"
say "keys are made"
start_host cp
in_net cp sh -ec "ip link add br0 type bridge
  ip addr add $cp_ip/24 dev br0
  ip link set br0 up
  sysctl -qw net.ipv4.ip_forward=1"
daemon cp etcd --data-dir "$run/cp/etcd" --unsafe-no-fsync --log-level warn --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
# Pods leave a lost node after 30 s, and not after the 5 minutes that Kubernetes gives: a test does not wait so long.
daemon cp kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$cp_ip" --secure-port=6443 \
  --service-cluster-ip-range="$service_net" --allow-privileged \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
  --kubelet-certificate-authority="$pki/ca.crt" --kubelet-client-certificate="$pki/kubelet-client.crt" \
  --kubelet-client-key="$pki/kubelet-client.key" --kubelet-preferred-address-types=InternalIP \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
  --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- --enable-aggregator-routing \
  --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key" \
  --audit-policy-file="$root/tests/src/kube_api/audit-policy.yaml" \
  --audit-log-path="$run/cp/audit.log" --audit-log-maxsize=1000 \
  --default-not-ready-toleration-seconds=30 --default-unreachable-toleration-seconds=30
wait_for 90 "kube-apiserver" kubectl get --raw /readyz
say "kube-apiserver is ready"

# PROGRAM ARGUMENT...: one of the control plane's programs that act under an account of their own
act() {
  local account=$pki/$1.conf
  daemon cp "$1" --kubeconfig="$account" --authentication-kubeconfig="$account" \
    --authorization-kubeconfig="$account" --bind-address=127.0.0.1 --leader-elect=false "${@:2}"
}
act kube-controller-manager --use-service-account-credentials --root-ca-file="$pki/ca.crt" \
  --service-account-private-key-file="$pki/sa.key" \
  --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
  --node-monitor-grace-period=20s
act kube-scheduler

"$machine/image.sh" sluice.test/pause:1 "$run/pause.tar" "$bin/pause"
"$machine/image.sh" sluice.test/coredns:1 "$run/coredns.tar" "$bin/coredns"
pids=()
for i in $(seq "$nodes"); do
  "$machine/node.sh" up "$i" &
  pids+=($!)
done
for p in "${pids[@]}"; do wait "$p"; done
# shellcheck disable=SC2329 # wait_for calls it
all_ready() {
  [ "$(kubectl get nodes -o name | wc -l)" = "$nodes" ] \
    && kubectl wait --for=condition=Ready node --all --timeout=2s
}
wait_for 120 "$nodes ready nodes" all_ready
say "$nodes node(s) are ready"
"$machine/load.sh" "$run/coredns.tar"
sed "s/@DNS_IP@/$dns_ip/" "$machine/coredns.yaml" | kubectl apply -f - > /dev/null
"$machine/volumes.sh" "$nodes" | kubectl apply -f - > /dev/null
kubectl -n kube-system rollout status deploy/coredns --timeout=120s > /dev/null
say "DNS is ready"
wait_for 60 "the default service account" kubectl get serviceaccount default
