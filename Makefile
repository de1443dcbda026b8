# The commands of the project: setup, run, test, check, bench, evidence, lock, cluster, cluster-test.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := setup
.PHONY: setup run test check bench evidence lock cluster cluster-test

# The first that runs and can make a virtual environment; `make setup PYTHON=…` takes another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13; do $$p -c 'import ensurepip, venv' 2>/dev/null && echo $$p && exit; done; echo python3)
BIN := .venv/bin
ONCE ?= $(CI)

# uv searches for wheels where pip does (such as a folder with a CPU build of torch).
ifneq ($(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS)),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

# A turn and the tests start a hundred processes: without bytecode each would compile all files again, a second or two.
unexport PYTHONDONTWRITEBYTECODE

# No tool phones home. `bellwether` sets the same for itself (flows/support/processes.py); these lines cover tests and benchmarks.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := true
export BENTOML_DO_NOT_TRACK := True
export EVIDENTLY_DISABLE_TELEMETRY := 1
export ORT_DISABLE_TELEMETRY := 1

# The cache is checked each time, in a second: a stamp would hide one that is incomplete or that others may write to.
# Everything under artifacts/ belongs to its user alone from the first folder on.
setup: .venv/.installed
	@umask 077; $(BIN)/python -c 'import sys; from pipelines.compiled import kernels_are_warm; sys.exit(not kernels_are_warm())' || $(BIN)/python -m bellwether.operations.compile_kernels

run: setup
	$(BIN)/bellwether run $(if $(filter-out 0 false,$(ONCE)),--once)

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python -m benchmarks

evidence: setup
	$(BIN)/python -m benchmarks.evidence

# dvc.lock and docs/results/dvc, committed with a release: every stage that changed runs again, one after the other.
lock: setup
	$(BIN)/bellwether data restore
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@git status --short -- dvc.lock docs/results/dvc

# As `make run`, with MLflow, Prefect and the ledger on PostgreSQL and files in an S3 store (docs/scale.md).
cluster: setup .venv/.cluster
	BELLWETHER_PROFILE=cluster $(BIN)/bellwether run $(if $(filter-out 0 false,$(ONCE)),--once)

cluster-test: setup .venv/.cluster
	$(BIN)/python -m pytest -n 0 tests/cluster

# PostgreSQL is the system's (Debian: apt install postgresql).
.venv/.cluster: .venv/.installed requirements-cluster.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-cluster.txt -c requirements.lock || echo 'cluster: requirements-cluster.txt could not be installed: its tests are skipped'
	touch $@

# torch for CPUs comes from PyTorch's own index, if that answers; else as the package index or the folder of wheels has it.
# With GPU=1 it is the package index's, with the CUDA libraries of requirements-gpu.lock: 2.5 GB more.
WANTS_GPU := $(filter-out 0 false,$(GPU))
ASKS_FOR_CPU_BUILD = UV_HTTP_TIMEOUT=15 UV_HTTP_RETRIES=0 $(BIN)/uv pip install --quiet --dry-run --no-deps --reinstall-package torch --python $(BIN)/python --torch-backend cpu $(shell grep '^torch==' requirements.lock)

# Bytecode is compiled here, on every core: otherwise the six services would each do it in their first start-up.
.venv/.installed: requirements.lock $(if $(WANTS_GPU),requirements-gpu.lock) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Bellwether needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d. Say which to use: make setup PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; print("setup: .venv has Python %d.%d.%d" % sys.version_info[:3], "of", sys.base_prefix)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@lock=requirements.lock; \
	if [ -n '$(WANTS_GPU)' ]; then build=; lock=requirements-gpu.lock; echo 'setup: torch with CUDA, as the package index has it'; \
	elif $(ASKS_FOR_CPU_BUILD) 2>/dev/null; then build='--torch-backend cpu'; echo 'setup: torch for CPUs'; \
	else build=; echo "setup: torch as the package index or the folder of wheels has it: PyTorch's own index does not answer"; fi; \
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $$build -r $$lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@
