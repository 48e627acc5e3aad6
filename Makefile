# `make demo` and `make test` need Python 3.11 or newer, make and a package index. Nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-all check format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llabel needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Use make PYTHON=python3.11 ...")'
	@echo "Making $(VENV) and installing what constraints.txt pins: a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## eight systems on 300 news articles, a verdict and a page: nine to ten minutes on two older cores
	$(BIN)/llabel compare --config examples/demo.yaml --out runs/demo

test: check  ## linters, types, import rules and the whole test suite, a file at a time on each of two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: check  ## the same with the tests that take minutes
	$(BIN)/python -m pytest -m 'not gpu'

check: $(READY)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench:  ## the engine beside its peers, in bench/.venv: hours (ARGS=--quick: a smoke run of minutes)
	$(PYTHON) -m venv bench/.venv
	bench/.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement bench/requirements.txt --editable .
	bench/.venv/bin/python bench/run_all.py $(ARGS)

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments and caches, keep runs
	rm -rf $(VENV) bench/.venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist src/*.egg-info
