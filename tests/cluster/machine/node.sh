#!/usr/bin/env bash
# node.sh up|down I: start node I (again), its disk kept; or end it at once, as a power cut does.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
i=$2 name=node-$2 ip=$(node_ip "$2") state=$run/node-$2
case $1 in
  up) ! is_running "$name" || fail "$name runs already" ;;
  down)
    stop_host "$name"
    remove_cgroups "$group/$name"
    exit
    ;;
  *) fail "usage: node.sh up|down I" ;;
esac
mkdir -p "$state"/{lib-kubelet,lib-containerd,lib-cni,log-pods,log-containers,cni,mnt/pv}
mkdir -p /var/lib/{kubelet,containerd,cni} /var/log/{pods,containers}
# After a power cut some of these exist; the kernel keeps none of it.
start_host "$name"

# Network: one leg on the control plane's bridge. Pods of other nodes are behind these nodes. The control plane, where
# tests run, reaches Services through the first node, as a load balancer would.
in_net cp ip link add "v$i" type veth peer name eth0 netns "$(cat "$state/init.pid")"
in_net cp sh -ec "ip link set v$i master br0 up
  ip route replace $pod_net.$i.0/24 via $ip
  ip route replace $service_net via $(node_ip 1)"
in_net "$name" sh -ec "ip addr add $ip/24 dev eth0
  ip link set eth0 up
  ip route add default via $cp_ip
  sysctl -qw net.ipv4.ip_forward=1"
for j in 1 2 3 4 5 6 7 8 9; do
  [ "$j" = "$i" ] || in_net "$name" ip route add "$pod_net.$j.0/24" via "$(node_ip "$j")"
done
make_cgroups "$name"

# Files: a disk of its own. kubelet wants three settings of the kernel, and would set them for the whole machine; files
# laid over them let it find them set.
echo 1 > "$state/one"
echo 10 > "$state/ten"
: > "$state/resolv.conf"
in_host "$name" sh -ec "mount --make-rshared /; mount -t tmpfs tmpfs /run
  for d in lib-kubelet lib-containerd lib-cni log-pods log-containers; do
    mount --bind '$state'/\$d /var/\$(echo \$d | tr - /)
  done
  mount --bind '$state/mnt' /mnt
  for f in vm/overcommit_memory kernel/panic_on_oops; do mount --bind '$state/one' /proc/sys/\$f; done
  mount --bind '$state/ten' /proc/sys/kernel/panic"

cat > "$state/cni/10-sluice.conflist" << EOF
{"cniVersion": "1.0.0", "name": "sluice", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pod_net.$i.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
# restrict_oom_score_adj: without CAP_SYS_RESOURCE, which containers that build software often lack, no sandbox would
# start.
cat > "$state/containerd.toml" << EOF
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "sluice.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "${CNI_BIN:-/usr/lib/cni}"
    conf_dir = "$state/cni"
EOF
# Every node sees the whole machine. What is "reserved" leaves each a part of it to schedule pods on.
memory_mib=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
share_mib=$((memory_mib / 4 < 4096 ? memory_mib / 4 : 4096))
cat > "$state/kubelet.yaml" << EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/$name.crt
tlsPrivateKeyFile: $pki/$name.key
cgroupDriver: cgroupfs
cgroupRoot: /$group/$name
failCgroupV1: false
failSwapOn: false
systemReserved: {memory: $((memory_mib - share_mib))Mi}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [$dns_ip]
clusterDomain: cluster.local
resolvConf: $state/resolv.conf
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 5s
# How soon a changed ConfigMap reaches a running pod; 60 s unless set.
syncFrequency: 10s
EOF
# conntrack: its limits belong to the machine and cannot be set from a namespace.
cat > "$state/kube-proxy.yaml" << EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $name
clusterCIDR: $pod_net.0.0/16
clientConnection: {kubeconfig: $pki/kube-proxy.conf}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
EOF
daemon "$name" containerd --config "$state/containerd.toml"
wait_for 60 "containerd on $name" in_host "$name" ctr version
"$machine/load.sh" --only "$name" "$run/pause.tar"
daemon "$name" kubelet --config="$state/kubelet.yaml" --kubeconfig="$pki/$name.conf" \
  --hostname-override="$name" --node-ip="$ip"
daemon "$name" kube-proxy --config="$state/kube-proxy.yaml"
