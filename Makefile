.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
WORKERS ?= 2
PIP_FLAGS ?=
OUT ?= demo-output
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS)

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

demo: .venv/.core  ## set up, train on simulated quasars, predict, check, write demo-output/
	$(BIN)/consilience demo --out $(OUT)

test: lint  ## set up, check style and types, run every test and doctest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		--cov --cov-report=term --cov-fail-under=90

lint: .venv/.dev  ## style and types
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright

bench: .venv/.dev  ## one benchmark: make bench BENCH=name, results in build/bench/name
	@test -n "$(BENCH)" || { echo "Expected a benchmark; got none. Say make bench BENCH=gplvm_step." >&2; exit 2; }
	$(BIN)/python -m benchmarks.$(BENCH) --out build/bench/$(BENCH)

docs: .venv/.dev  ## run every example of the documentation, and the doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_docs.py src

clean:  ## remove what the commands above made
	rm -rf .venv build demo-output .coverage .hypothesis .pytest_cache .ruff_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Expected Python 3.11 or newer; got none. Say make PYTHON=/path/to/python3.11." >&2; exit 2; }
	$(PYTHON) -m venv .venv

# torch first: a build of torch that pip was told of is then not looked for again
.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/.core
	$(INSTALL) --editable '.[dev]'
	@touch $@
