// Definitions that clusters may have, as their projects publish them; only these pins are read, no program is built.
module sluice.dev/tests/tools/crds

go 1.26

require (
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.3
)
