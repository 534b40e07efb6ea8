# make demo: train a teacher, a baseline and a student on real data.   make test: the test suite.
# Both make .venv and install what they need; python3 (3.11 to 3.13) is all they ask for.
#
#   make test          the checks, and the tests that take less than about ten seconds each
#   make test-slow     the rest of what each push runs
#   make test-nightly  more cases of what each push checks by a few
#   make ci            all that a push runs, in one pass (.ci/run)
#   make check         lint, format, types, layers and docs
#   make docs          the documentation site, in docs/_build
#   make lock          requirements/*.txt: every dependency with its hash, for each Python
#   make audit         looks for known vulnerabilities in what is locked
#   make sbom          dist/sbom.cdx.json: what is locked, in CycloneDX
#   make mutations     breaks promises one at a time, to see that the tests of a push notice

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHELL = /bin/bash
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --editable

# Two workers; a file stays in one, which makes its fixtures once. tests/conftest.py sorts the files.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# Tools that read requirements; in an environment of their own, for they have many dependencies.
TOOLS = $(VENV)-tools
PYTHONS = 3.11 3.12 3.13
LOCKED = requirements/$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt

.PHONY: demo test test-slow test-nightly mutations ci check docs lock audit sbom clean

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

$(TOOLS)/.installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check 'uv>=0.8' 'pip-audit>=2.9' 'cyclonedx-bom>=7'
	touch $@

lock: $(TOOLS)/.installed
	for version in $(PYTHONS); do \
	  $(TOOLS)/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate \
	    --python-version $$version --custom-compile-command 'make lock' \
	    --extra test --extra docs --extra gcs setup.py -o requirements/$$version.txt || exit 1; \
	done

audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --requirement $(LOCKED) --require-hashes --disable-pip

sbom: $(TOOLS)/.installed
	mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py requirements --output-format JSON --output-file dist/sbom.cdx.json $(LOCKED)

clean:
	rm -rf $(VENV) $(TOOLS) build dist *.egg-info .pytest_cache .ruff_cache
