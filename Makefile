# Two commands matter: `make demo` (all set-up and the main job) and `make test` (all set-up and every test).
# Both work from a fresh clone on a Linux machine that has only Python 3.11+ (and iproute2, util-linux, as every distribution).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
DEMO_ARGS ?=
# Of `make unit`: half of the time is waiting for gateways, so three keep two cores busy.
UNIT_WORKERS ?= 3
E2E_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup cluster-binaries demo test lint types unit e2e signals lock crds bench-propagation bench-steady-state bench-ceiling bench-accounting audit-sensitivity clean

help:  ## This list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

# Debian without python3-venv leaves half of an environment behind: it is made anew.
$(STAMP): requirements/dev.txt pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

setup: $(STAMP)  ## Virtual environment with everything locked by hash

cluster-binaries: setup  ## Build the control plane, Prometheus, Helm and CoreDNS (about 8 minutes the first time)
	$(BIN)/tierwise cluster build

demo: setup  ## Set everything up and run the main job: make demo DEMO_ARGS="--minutes 3"
	$(BIN)/tierwise demo $(DEMO_ARGS)

# Side by side what a busy machine does not disturb. Tests on a cluster measure, and run alone.
test: setup cluster-binaries  ## Set everything up and run every test
	+$(MAKE) --no-print-directory --jobs=2 lint types unit signals
	+$(MAKE) --no-print-directory e2e E2E_ARGS=--ignore=e2e/test_operator_signals.py
	@echo "All checks and tests passed."

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

unit: setup  ## Fast unit and property tests
	$(PYTEST) tests --numprocesses=$(UNIT_WORKERS) --dist=loadfile

e2e: setup cluster-binaries  ## Whole-system tests on a real control plane, Envoy and Prometheus
	$(PYTEST) e2e --timeout=600 $(E2E_ARGS)

signals: setup cluster-binaries  ## Those of them that need a Prometheus and no cluster
	$(PYTEST) e2e/test_operator_signals.py

lock: setup  ## Renew the lock files (hashes, no addresses)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--extra devcluster --extra engine --group dev pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		pyproject.toml -o requirements/operator.txt

crds: setup  ## Write the CustomResourceDefinitions from the models
	$(BIN)/tierwise crds --output crds
	$(BIN)/tierwise crds --output charts/tierwise/crds

bench-propagation: setup cluster-binaries  ## Print how long a weight change takes to reach clients
	$(BIN)/python e2e/bench_propagation.py

bench-steady-state: setup cluster-binaries  ## Ten quiet minutes: print the operator's writes from the audit log
	TIERWISE_STEADY_SECONDS=600 $(PYTEST) e2e/test_operator_cluster.py -k at_rest --timeout=900 -s

bench-ceiling: setup  ## Print how long a budget's decision takes to reach clients
	TIERWISE_CEILING_TIMES=50 $(PYTEST) tests/envoy/test_ceiling_live.py -k "deny_answers or downgrade_prefers or at_once" -s

bench-accounting: setup  ## 10,000 mixed requests: print what upstreams say they cost beside what the gateway counted
	TIERWISE_ACCOUNTING_REQUESTS=10000 $(PYTEST) tests/envoy/test_accounting_live.py -k independent --timeout=900 -s

.PHONY: bench-outage
OUTAGE_SECONDS ?= 600
bench-outage: setup cluster-binaries  ## Ten minutes without Prometheus: print the provider's bill beside ledger, bound and rungs
	TIERWISE_OUTAGE_SECONDS=$(OUTAGE_SECONDS) $(PYTEST) e2e/test_budget_integrity_outage.py --timeout=1800 -s

.PHONY: bench-dataplane soak
bench-dataplane: setup  ## Print what each filter of the gateway costs against plain Envoy (5 minutes)
	$(BIN)/python tests/envoy/bench_dataplane.py

soak: setup cluster-binaries  ## Half an hour of 200 streams while everything moves: nobody may be hurt (test: two minutes)
	$(BIN)/python e2e/soak.py --minutes 30

audit-sensitivity: setup  ## Generate 100,000 policies and 1,000 violations for the checker of sensitivity (an hour)
	TIERWISE_AUDIT_POLICIES=100000 TIERWISE_AUDIT_VIOLATIONS=1000 $(PYTEST) tests/envoy/test_audit.py --timeout=14400 -s

clean:  ## Remove the virtual environment and results
	rm -rf $(VENV) demo-results

.PHONY: bench-economics
SCENARIOS ?=
DATA ?=
ECONOMICS_ARGS ?=
bench-economics: setup  ## The loop on published traces beside baselines and the offline bound: SCENARIOS=file DATA=directory
	$(BIN)/python -m tierwise.economics $(if $(SCENARIOS),--scenarios $(SCENARIOS)) $(if $(DATA),--data $(DATA)) $(ECONOMICS_ARGS)

.PHONY: bench-budget
bench-budget: setup  ## A month under ceilings on an injected clock: print what held, by how much, and what the ledger says
	$(BIN)/python tests/envoy/bench_budget.py

.PHONY: bench-simulate
bench-simulate: setup  ## A day of a million requests under the real planner: print how long the simulation takes
	$(BIN)/python tests/simulate/bench_simulate.py

.PHONY: bench-solver
bench-solver: setup  ## Print how long the optimiser takes: median and worst over random namespaces
	$(BIN)/python tests/core/bench_balance.py
