PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CHARTS := .venv/.charts
CCXT := .venv/ccxt/.installed
ZOHO := .venv/zoho/.installed
# When this was asked for: the demo counts the set-up too.
SINCE := $(shell date +%s)

.PHONY: help setup demo test chaos soak bench lint clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo          the main job against fake APIs that fail (KEEP=1 leaves it up)'
	@echo 'make test          lint, types and all tests but the long ones'
	@echo 'make chaos         the long fault runs, with their figures'
	@echo 'make soak          everything at work for 20 minutes, with faults: nothing may grow (MINUTES=3, DATABASE=postgres)'
	@echo 'make bench         every target beside its peer (ONLY=launch, QUICK=1, WRITE=1)'
	@echo 'make setup         .venv with the pinned packages; every target does this first'
	@echo 'make lint          ruff and mypy alone'
	@echo 'make clean         remove everything that make has made'
	@echo 'PYTHON=python3.12  takes another Python than python3 for a new .venv'

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Penstock needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another, as in make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/pip || { echo 'Making .venv'; rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo 'Installing the pinned packages into .venv'
	@# Every pin is in the file, so nothing has to be resolved; what is imported gets compiled then.
	@$(BIN)/pip install -qq --no-compile --no-deps --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@found=$$($(BIN)/pip check --disable-pip-version-check) || { echo "$$found"; exit 1; }
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m tests.demo --since $(SINCE) $(if $(KEEP),--keep)

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

# Apart from the other packages: it pins a dozen of them to one version each, and needs none for what we use.
$(CCXT): $(STAMP) tests/ccxt.txt
	@$(BIN)/pip install -qq --no-compile --no-deps --disable-pip-version-check --require-hashes --upgrade --target $(@D) -r tests/ccxt.txt
	@touch $@

# Apart too: nothing but one way to one collector's rows needs it, and the rest is tested without.
$(ZOHO): $(STAMP) tests/zoho.txt
	@$(BIN)/pip install -qq --no-compile --no-deps --disable-pip-version-check --require-hashes --upgrade --target $(@D) -r tests/zoho.txt
	@touch $@

test: lint $(CCXT) $(ZOHO)
	@$(BIN)/pytest -q -n 2 --dist worksteal -m 'not chaos'

chaos: $(STAMP)
	@$(BIN)/pytest -q -s -m chaos

soak: $(STAMP)
	@$(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(DATABASE),--database $(DATABASE))

$(CHARTS): $(STAMP) tests/benchmarks/requirements.txt
	@$(BIN)/pip install -qq --no-compile --no-deps --disable-pip-version-check --require-hashes -r tests/benchmarks/requirements.txt
	@touch $@

bench: $(CHARTS)
	@$(BIN)/python -m tests.benchmarks $(ONLY) $(if $(QUICK),--quick) $(if $(WRITE),--write)

clean:
	rm -rf .venv .penstock-demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
