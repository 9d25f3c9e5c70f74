# make train    set up an environment, get Fashion-MNIST, train, print the result
# make test     the quick tests; make test-all adds the slow ones, which make test-slow runs alone
# make stress   killed, starved, besieged, fed garbage, spread over processes: a table of what survived (under twenty minutes)
# make check    formatter, linter, type checker, import direction
# make data     get Fashion-MNIST alone; needs no root
# make wheel    build the wheel, install it elsewhere, use it
# make model    train the model that comes in the package anew (twenty minutes), and let it in if it is no worse

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: train test test-all test-slow stress check data wheel model

train: $(VENV)/installed data
	$(BIN)/gingham train $(if $(wildcard runs/fast-0),--resume)
	$(BIN)/gingham evaluate runs/fast-0
	@echo
	@echo "What to try next (first: . $(BIN)/activate)"
	@echo "  gingham show                             look at the pictures"
	@echo "  gingham report runs/fast-0               everything about this run, on one page for a browser"
	@echo "  gingham summary article                  see why the network sees the whole picture"
	@echo "  gingham train --seed 1                   another seed: how much of that accuracy was luck?"
	@echo "  gingham train --recipe fast-85           two seconds instead of a minute; --recipe article for the article's own"
	@echo "  gingham evaluate runs/fast-0 --split test    the test pictures: every look is written into the run"

# A worker on each core; what needs a machine to itself (a browser, other processes, a besieged server) is in the slow tier, one after the other.
# The tests need no network: without Fashion-MNIST those of the real data are skipped, and pytest says so.
test: $(VENV)/tested
	@scripts/get-data $(BIN)/python || true
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal

test-all: test test-slow

test-slow: $(VENV)/tested data
	$(BIN)/python -m pytest -q -m slow

stress: $(VENV)/tested data
	$(BIN)/python stress

check: $(VENV)/tested
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

data: $(VENV)/installed
	@scripts/get-data $(BIN)/python

wheel: $(VENV)/tested data
	@scripts/try-wheel $(BIN)/python

model: $(VENV)/installed data
	$(BIN)/gingham train --recipe photo --seed 0 --out runs/photo-0 --resume
	$(BIN)/python benchmarks/package_model.py runs/photo-0

# Two stamps, so that training needs none of the development tools.
$(VENV)/installed: pyproject.toml
	@scripts/make-environment $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@
