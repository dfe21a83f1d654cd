#!/usr/bin/env bash
# keys.sh NODES: the cluster's keys, certificates and kubeconfigs, valid for 30 days.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
mkdir -p "$pki"
cd "$pki"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# NAME
authority() {
  key "$1"
  openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 30 -out "$1.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
}

# LINE: what a certificate may be used for, and one more line
extensions() { printf '%s\n' keyUsage=digitalSignature extendedKeyUsage=clientAuth,serverAuth "$1"; }

# NAME AUTHORITY SUBJECT [ALTERNATIVE_NAMES]
certificate() {
  key "$1"
  openssl req -new -key "$1.key" -subj "$3" \
    | openssl x509 -req -CA "$2.crt" -CAkey "$2.key" -days 30 -out "$1.crt" -set_serial "0x$(openssl rand -hex 8)" \
      -extfile <(extensions "${4:+subjectAltName=$4}") 2> /dev/null
}

# NAME: of NAME.crt
kubeconfig() {
  cat > "$1.conf" << EOF
apiVersion: v1
kind: Config
clusters: [{name: sluice, cluster: {server: "https://$cp_ip:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: sluice, context: {cluster: sluice, user: $1}}]
current-context: sluice
EOF
  chmod 600 "$1.conf"
}

authority ca
authority front-proxy-ca
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default
names+=,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
certificate apiserver ca /CN=kube-apiserver "IP:$cp_ip,IP:127.0.0.1,IP:$api_ip,$names"
certificate kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client
certificate front-proxy-client front-proxy-ca /CN=front-proxy-client
openssl genrsa -out sa.key 2048 2> /dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2> /dev/null
certificate admin ca /O=system:masters/CN=admin
kubeconfig admin
for name in kube-controller-manager kube-scheduler kube-proxy; do
  certificate $name ca "/CN=system:$name"
  kubeconfig $name
done
for i in $(seq "$1"); do
  certificate "node-$i" ca "/O=system:nodes/CN=system:node:node-$i" "IP:$(node_ip "$i"),DNS:node-$i"
  kubeconfig "node-$i"
done
