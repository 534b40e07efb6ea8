# make demo: train a teacher, a baseline and a student on real data.   make test: the test suite.
# Both make .venv and install what they need; python3 (3.11 to 3.13) is all they ask for.
#
#   make test          the checks, and the tests that take less than about ten seconds each
#   make test-slow     the rest of what each push runs
#   make test-nightly  more cases of what each push checks by a few
#   make ci            all that a push runs, in one pass (.ci/run)
#   make check         lint, format, types, layers and docs
#   make docs          the documentation site, in docs/_build
#   make mutations     breaks promises one at a time, to see that the tests of a push notice

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHELL = /bin/bash
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --editable

# Two workers; a file stays in one, which makes its fixtures once. tests/conftest.py sorts the files.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-slow test-nightly mutations ci check docs clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version.split()[0]'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(VENV)/bin/python
	$(INSTALL) '.[test,docs]'
	touch $@

# Besides: the compilers for chips that are not here, and the client of gs://.
$(VENV)/.installed-all: setup.py pyproject.toml | $(VENV)/bin/python
	$(INSTALL) '.[test,docs,plan,plan-gpu,gcs]'
	touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo.run --workdir=runs/demo

test: check
	$(PYTEST) -m "not slow and not nightly"

test-slow: $(VENV)/.installed-all
	$(PYTEST) -m "slow and not nightly"

test-nightly: $(VENV)/.installed-all
	$(PYTEST) -m "nightly"

ci: $(VENV)/.installed-all
	$(MAKE) check
	$(PYTEST) -m "not nightly"

mutations: $(VENV)/.installed
	$(BIN)/python tests/mutations.py

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

check: $(VENV)/.installed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_architecture.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
