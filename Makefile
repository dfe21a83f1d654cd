# The project's commands. `make` alone lists them; each can be run from a fresh clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Overridable: make run LISTEN=127.0.0.1:9000
LISTEN   ?= 127.0.0.1:8080
ADMIN    ?= 127.0.0.1:9090
DATA     ?= .data
EXAMPLES ?= examples
# An address of a nats-server that runs already (2.11 or newer, with JetStream); empty = start one.
NATS     ?=
RUN_ARGS ?=
# dev builds in about half the time and is shared with `make test`; release is for more than trying.
PROFILE  ?= dev
CARGO    ?= cargo
# 0 leaves the tests on a cluster with nodes out of `make test`; required makes it an error when they cannot run.
CLUSTER  ?=
# Nodes of `make cluster`.
NODES    ?= 3
# Passed to `cargo test`, for example: make test TEST_ARGS='-p sluice-channel'
TEST_ARGS ?= --workspace

TOOLS  := $(CURDIR)/.tools/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILT  := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
export SLUICE_TOOLS ?= $(TOOLS)
# A person sees cargo's progress; a log keeps the results only.
QUIET  := $(shell test -t 2 || echo --quiet)

# The cluster's tests are not among "all targets": no bare `cargo test` may run them on the cluster that somebody is logged in to.
clippy = $(CARGO) clippy --workspace --all-targets --locked $(QUIET) -- -D warnings && $(CARGO) clippy --workspace --test cluster --locked $(QUIET) -- -D warnings

# $(call need,COMMAND,WHAT FOR,HOW TO GET IT): a clear end when a program is missing.
need = @command -v $(firstword $(1)) >/dev/null || { echo "$(firstword $(1)) was not found: it is needed $(2). $(3)" >&2; exit 1; }
rust   = $(call need,$(CARGO),to build,Install Rust 1.89 or newer: https://rustup.rs)
golang = $(call need,go,to build etcd and kube-apiserver for the tests,Install Go 1.26 or newer: https://go.dev/dl)

.PHONY: help
help: ## list these commands
	@echo "make run      start nats-server with JetStream, apply examples/, serve http://$(LISTEN)/channels/orders"
	@echo "make test     everything: format, lints, build, all tests on real servers (first time 30 to 60 min on 2 cores)"
	@echo "make cluster  a Kubernetes cluster with $(NODES) nodes on this machine, the product's images on them (needs root); make cluster-down"
	@echo "make cluster-test  the tests on such a cluster, about 10 minutes; make test runs them too where it can, CLUSTER=0 leaves them out"
	@echo "make lint     format and lints only"
	@echo "make crds     write crds/ and the chart's copy from the Rust types"
	@echo "make test-clients   browser, npm, PyPI, crates, Go, curl and five proxies against the real data plane (CLIENTS=... selects)"
	@echo "make bench    benchmarks: the parts, then load beside a floor and a peer; BENCH_SECONDS, BENCH_CONNECTIONS"
	@echo "make bench-scale  100,000 connections over several data planes, and what NATS does for them; BENCH_SECONDS, BENCH_CONNECTIONS"
	@echo "make images   container images as OCI archives in target/images, without a container engine; IMAGE_PROFILE=dev"
	@echo "make tools    obtain nats-server, etcd, kube-apiserver and helm into .tools/bin"
	@echo "make clean    remove build output and local data (tools stay)"
	@echo
	@echo "make run takes LISTEN=$(LISTEN) ADMIN=$(ADMIN) DATA=$(DATA) EXAMPLES=$(EXAMPLES) NATS=nats://host:4222 PROFILE=release"

# `exec`: the operator is the recipe's only process, so Ctrl-C reaches it and make ends when it has ended.
.PHONY: run
run: run-tools run-build ## the first command
	@exec $(BUILT)/sluice-operator local $(EXAMPLES) --listen $(LISTEN) --admin $(ADMIN) --data $(DATA) \
	  $(if $(NATS),--nats $(NATS),--nats-server $(SLUICE_TOOLS)/nats-server) $(RUN_ARGS)

.PHONY: run-tools
run-tools:
	@$(if $(NATS),echo "Using the NATS server at $(NATS).",tests/tools/build.sh nats)

.PHONY: run-build
run-build:
	$(rust)
	@echo "Building sluice-operator and sluice-dataplane (the first time 3 to 5 minutes on 2 cores, then seconds) ..."
	@$(CARGO) build --profile $(PROFILE) --locked --workspace --bins

.PHONY: test
test: ## everything
	$(rust)
	$(golang)
	@echo "== format"; $(CARGO) fmt --all --check
	@echo "== tools: nats-server, etcd, Kubernetes, helm (the first time about 7 minutes on 2 cores)"; tests/tools/build.sh all
	@echo "== lints"; $(clippy)
	@echo "== build"; $(CARGO) build --workspace --bins --locked $(QUIET)
	@# The cluster's tests run even if others have failed: a run shows all that is wrong.
	@code=0; \
	echo "== tests"; $(CARGO) test --locked --no-fail-fast $(TEST_ARGS) || code=$$?; \
	echo "== tests on a cluster with nodes"; \
	if [ "$(CLUSTER)" = 0 ]; then echo "left out: CLUSTER=0"; else QUIET=$(QUIET) CLUSTER=$(CLUSTER) tests/cluster/run.sh || code=$$?; fi; \
	exit $$code

.PHONY: cluster-test
cluster-test: ## the tests on a cluster with nodes
	$(rust)
	$(golang)
	@$(CARGO) build --workspace --bins --locked $(QUIET)
	@QUIET=$(QUIET) CLUSTER=$(or $(CLUSTER),required) tests/cluster/run.sh

.PHONY: cluster
cluster: ## a cluster with nodes, to work with
	$(rust)
	$(golang)
	@why=$$(tests/cluster/machine/check.sh) || { echo "A cluster cannot run here: $$why" >&2; exit 1; }
	@tests/tools/build.sh cluster
	@tests/cluster/machine/prepare.sh
	@tests/cluster/machine/up.sh $(NODES)
	@tests/cluster/machine/load.sh target/images/{sluice-operator,sluice-dataplane,nats}.oci.tar
	@echo
	@echo "Commands run in the cluster's network through tests/cluster/machine/exec.sh:"
	@echo "  tests/cluster/machine/exec.sh kubectl get nodes"
	@echo "  tests/cluster/machine/exec.sh helm install sluice charts/sluice -n sluice-system --create-namespace --set natsServer.enabled=true --wait"
	@echo "  tests/cluster/machine/exec.sh kubectl apply -f examples/orders.yaml"
	@echo "  tests/cluster/machine/exec.sh bash            (a shell with kubectl, helm and KUBECONFIG)"
	@echo "make cluster-down ends it."

.PHONY: cluster-down
cluster-down: ## end what make cluster has started
	@tests/cluster/machine/down.sh

.PHONY: lint
lint: ## format and lints
	$(rust)
	@$(CARGO) fmt --all --check
	@$(clippy)

# The generator prints to a file beside the target first: a failure must not leave half a CRD behind.
.PHONY: crds
crds: ## crds/ssechannels.yaml and the chart's copy
	$(rust)
	@mkdir -p crds charts/sluice/files
	@$(CARGO) run --quiet --locked -p sluice-operator -- crd > crds/.ssechannels.yaml.new
	@mv crds/.ssechannels.yaml.new crds/ssechannels.yaml
	@cp crds/ssechannels.yaml charts/sluice/files/ssechannels.yaml
	@echo "wrote crds/ssechannels.yaml and charts/sluice/files/ssechannels.yaml"

# Apart from `make test`: it needs a browser and two proxies from the system's packages, and about five minutes of waiting.
CLIENTS ?=
.PHONY: test-clients
test-clients: ## clients and proxies that people use
	$(rust)
	$(golang)
	@tests/tools/build.sh nats
	@$(CARGO) build --locked $(QUIET) --workspace --bins
	@tests/clients/run.sh $(CLIENTS) </dev/null

.PHONY: bench
bench: ## the parts, then the load
	$(rust)
	@tests/tools/build.sh nats
	@$(CARGO) build --release --locked $(QUIET) -p sluice-dataplane --bins
	@$(CARGO) bench --locked $(QUIET) -p sluice-dataplane --bench micro
	@$(CARGO) bench --locked $(QUIET) -p sluice-tests --bench load

.PHONY: bench-scale
bench-scale: ## more connections than one process can have
	$(rust)
	@tests/tools/build.sh nats
	@$(CARGO) build --release --locked $(QUIET) -p sluice-dataplane --bins
	@$(CARGO) bench --locked $(QUIET) -p sluice-tests --bench load -- scale

.PHONY: images
images: ## container images without a container engine
	$(rust)
	@images/build.sh

.PHONY: tools
tools: ## third-party servers for the tests
	$(golang)
	@tests/tools/build.sh all

.PHONY: clean
clean: ## build output and local data
	@$(CARGO) clean
	@rm -rf .data
