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
# Words of the names of tests that `make unit` and `make test-SUITE` run; empty = all.
FILTER ?=
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

# A line of help is what follows `##` behind a target's name; a line of its own that begins with `##:` is printed as it stands.
.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z][a-z_-]*:.*## / { printf "make %-15s %s\n", $$1, $$2 } /^##:/ { print substr($$0, 5) }' $(MAKEFILE_LIST)

# `exec`: the operator is the recipe's only process, so Ctrl-C reaches it and make ends when it has ended.
.PHONY: run
run: run-tools run-build ## start nats-server with JetStream, apply examples/, serve http://127.0.0.1:8080/channels/orders
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
test: ## everything: format, lints, build, all tests on real servers (first time 30 to 60 min on 2 cores)
	$(rust)
	$(golang)
	@echo "== format"; $(CARGO) fmt --all --check
	@echo "== lints of dependencies, shell and Python"; $(MAKE) lint-deny lint-shell lint-python
	@echo "== tools: nats-server, etcd, Kubernetes, helm (the first time about 7 minutes on 2 cores)"; tests/tools/build.sh all
	@echo "== lints"; $(clippy)
	@echo "== build"; $(CARGO) build --workspace --bins --locked $(QUIET)
	@# The cluster's tests run even if others have failed: a run shows all that is wrong.
	@code=0; \
	echo "== tests"; $(CARGO) test --locked --no-fail-fast $(TEST_ARGS) || code=$$?; \
	echo "== tests on a cluster with nodes"; \
	if [ "$(CLUSTER)" = 0 ]; then echo "left out: CLUSTER=0"; else QUIET=$(QUIET) CLUSTER=$(CLUSTER) tests/cluster/run.sh || code=$$?; fi; \
	exit $$code

.PHONY: unit
unit: ## unit tests only: no servers, no tools, seconds once it is built
	$(rust)
	@$(CARGO) test --locked $(QUIET) --workspace --exclude sluice-tests --lib --bins -- $(FILTER)

# One for each test program of the tests crate, so that a shell completes them.
SUITES := stream hostile operator local docs jetstream source chart tidy fuzz soak
.PHONY: $(SUITES:%=test-%)
$(SUITES:%=test-%): test-%:
	$(rust)
	@case " stream hostile local docs jetstream source fuzz soak " in *" $* "*) tests/tools/build.sh nats ;; " tidy ") ;; *) tests/tools/build.sh all ;; esac
	@$(CARGO) build --workspace --bins --locked $(QUIET)
	@$(CARGO) test --locked $(QUIET) --workspace --test $* -- $(FILTER)

# Seconds of each target, and the seed of a run to repeat.
FUZZ_TIME ?= 60
SEED      ?=
.PHONY: fuzz
fuzz: ## fuzz targets, FUZZ_TIME=60 seconds for each; SEED=N repeats a run, FILTER=query selects; a failing input is kept in tests/fuzz/corpus/
	$(rust)
	@FUZZ_SECONDS=$(FUZZ_TIME) FUZZ_SEED=$(SEED) $(CARGO) test --locked $(QUIET) --workspace --test fuzz -- --nocapture --test-threads 1 $(FILTER)

# A run takes about a minute more than SECONDS. The logs of one that finds something are kept, and it says where.
SECONDS ?= 300
.PHONY: soak
soak: ## everything fails at random for SECONDS=300 while 300 subscribers read; SEED=N repeats the faults of a run, PROFILE=release
	$(rust)
	@tests/tools/build.sh nats
	@$(CARGO) build --profile $(PROFILE) --locked $(QUIET) --workspace --bins
	@SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) SLUICE_TEST_PROGRAMS=$(abspath $(BUILT)) \
	  $(CARGO) test --locked $(QUIET) --workspace --test soak -- --nocapture every_acknowledged_event

.PHONY: hostile
hostile: ## messages, requests, frames and floods that no well-behaved client sends, about 30 minutes; SEED=N repeats a run, FILTER=requests selects
	$(rust)
	@tests/tools/build.sh nats
	@$(CARGO) build --profile release --locked $(QUIET) --workspace --bins
	@HOSTILE_LONG=1 HOSTILE_SEED=$(SEED) SLUICE_TEST_PROGRAMS=$(abspath $(TARGET))/release $(CARGO) test --locked $(QUIET) --workspace --test hostile -- --nocapture --test-threads 1 $(FILTER)

# Needs about 4 GB of memory and 10 minutes on two cores; `make test` has the same with 24 channels and without bounds on time.
CHANNELS ?= 1000
.PHONY: scale-operator
scale-operator: ## the operator with CHANNELS=1000 on a real API server, a tenth of them with pods that say nothing: a table of times, memory and requests
	$(rust)
	$(golang)
	@tests/tools/build.sh all
	@$(CARGO) build --workspace --bins --locked $(QUIET)
	@SCALE_CHANNELS=$(CHANNELS) $(CARGO) test --locked $(QUIET) --workspace --test operator -- --nocapture scale::

.PHONY: cluster-test
cluster-test: ## the tests on a cluster with nodes, about 10 minutes; make test runs them too where it can, CLUSTER=0 leaves them out
	$(rust)
	$(golang)
	@$(CARGO) build --workspace --bins --locked $(QUIET)
	@QUIET=$(QUIET) CLUSTER=$(or $(CLUSTER),required) tests/cluster/run.sh

.PHONY: cluster
cluster: ## a Kubernetes cluster with NODES=3 nodes on this machine, the images on them (needs root)
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

# Each check is a command of its own, so that one can be run alone; shfmt reads .editorconfig, ruff tests/clients/ruff.toml.
.PHONY: lint
lint: lint-rust lint-deny lint-shell lint-python ## format and lints of Rust, dependencies, shell and Python

.PHONY: lint-rust
lint-rust: ## rustfmt and clippy
	$(rust)
	@$(CARGO) fmt --all --check
	@$(clippy)

.PHONY: lint-tools
lint-tools:
	@tests/tools/build.sh lint

# Advisories need a copy of the RustSec database, which is no package: a clone of it is named by ADVISORY_DB.
.PHONY: lint-deny
lint-deny: lint-tools ## licences, bans and sources of dependencies; advisories too with ADVISORY_DB=DIR (a folder that holds a clone of the RustSec advisory-db)
	@$(SLUICE_TOOLS)/cargo-deny --log-level error --locked check --hide-inclusion-graph bans licenses sources
	@$(if $(ADVISORY_DB),$(SLUICE_TOOLS)/cargo-deny --log-level error --locked check --disable-fetch advisories,echo "advisories: not checked; ADVISORY_DB names no copy of the database")

.PHONY: lint-shell
lint-shell: lint-tools ## shellcheck and shfmt
	@$(SLUICE_TOOLS)/shellcheck $$(git ls-files '*.sh' .ci/run)
	@$(SLUICE_TOOLS)/shfmt -d $$(git ls-files '*.sh' .ci/run)

.PHONY: lint-python
lint-python: lint-tools ## ruff, the linter and the formatter
	@git ls-files -z '*.py' | xargs -0 $(SLUICE_TOOLS)/ruff check --no-cache --quiet
	@git ls-files -z '*.py' | xargs -0 $(SLUICE_TOOLS)/ruff format --no-cache --quiet --check

# The generator prints to a file beside the target first: a failure must not leave half a CRD behind.
.PHONY: crds
crds: ## write crds/ and the chart's copy from the Rust types
	$(rust)
	@mkdir -p crds charts/sluice/files
	@$(CARGO) run --quiet --locked -p sluice-operator -- crd > crds/.ssechannels.yaml.new
	@mv crds/.ssechannels.yaml.new crds/ssechannels.yaml
	@cp crds/ssechannels.yaml charts/sluice/files/ssechannels.yaml
	@echo "wrote crds/ssechannels.yaml and charts/sluice/files/ssechannels.yaml"

# Apart from `make test`: it needs a browser and two proxies from the system's packages, and about five minutes of waiting.
CLIENTS ?=
.PHONY: test-clients
test-clients: ## browser, npm, PyPI, crates, Go, curl and five proxies against the real data plane (CLIENTS=... selects)
	$(rust)
	$(golang)
	@tests/tools/build.sh nats
	@$(CARGO) build --locked $(QUIET) --workspace --bins
	@tests/clients/run.sh $(CLIENTS) </dev/null

.PHONY: bench
bench: ## benchmarks: the parts, then load beside a floor and a peer; BENCH_SECONDS, BENCH_CONNECTIONS, BENCH_BEFORE=<another build of sluice-dataplane>
	$(rust)
	@tests/tools/build.sh nats
	@$(CARGO) build --release --locked $(QUIET) -p sluice-dataplane --bins
	@$(CARGO) bench --locked $(QUIET) -p sluice-dataplane --bench micro
	@$(CARGO) bench --locked $(QUIET) -p sluice-tests --bench load

.PHONY: bench-scale
bench-scale: ## 100,000 connections over several data planes, and what NATS does for them; BENCH_SECONDS, BENCH_CONNECTIONS
	$(rust)
	@tests/tools/build.sh nats
	@$(CARGO) build --release --locked $(QUIET) -p sluice-dataplane --bins
	@$(CARGO) bench --locked $(QUIET) -p sluice-tests --bench load -- scale

.PHONY: images
images: ## container images as OCI archives in target/images, without a container engine; IMAGE_PROFILE=dev
	$(rust)
	@images/build.sh

.PHONY: tools
tools: ## obtain nats-server, etcd, kube-apiserver, helm and the linters into .tools/bin
	$(golang)
	@tests/tools/build.sh all

.PHONY: clean
clean: ## remove build output and local data (tools stay)
	@$(CARGO) clean
	@rm -rf .data

##:
##: make test-SUITE runs one suite: stream, hostile, operator, local, docs, jetstream, source, chart, tidy, fuzz or soak.
##: It and make unit take FILTER='words of the names of tests'.
##: make run takes LISTEN=127.0.0.1:8080 ADMIN=127.0.0.1:9090 DATA=.data EXAMPLES=examples NATS=nats://host:4222 PROFILE=release
