# The commands of the project: setup, run, test, check, bench, evidence, lock.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := setup
.PHONY: setup run test check bench evidence lock

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
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

# Bytecode is compiled here, on every core: otherwise the six services would each do it in their first start-up.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Bellwether needs Python 3.11 or 3.12, and $(PYTHON) is %d.%d. Say which to use: make setup PYTHON=python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@
