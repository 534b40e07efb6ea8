# make demo: train a teacher, a baseline and a student on real data.   make test: the test suite.
# Both make .venv and install what they need; python3 (3.11 to 3.13) is all they ask for.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHELL = /bin/bash

.PHONY: demo test test-slow check docs clean

$(VENV)/.installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version.split()[0]'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo.run --workdir=runs/demo

test: $(VENV)/.installed check
	$(BIN)/python -m pytest -n 2 -m "not slow"

$(VENV)/.plan: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[plan,plan-gpu,gcs]'
	touch $@

test-slow: $(VENV)/.installed $(VENV)/.plan
	$(BIN)/python -m pytest -n 2 -m "slow"
	$(BIN)/python -m pytest -m "not slow" tests/storage

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

check: $(VENV)/.installed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
