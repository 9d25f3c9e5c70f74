# make train      create the environment, get Fashion-MNIST, train and evaluate
# make test       run the quick tests
# make test-slow  run the slow tests
# make test-all   run both
# make stress     run the stress tests: kills, scarce resources, several processes, fuzzing and server load (under twenty minutes)
# make check      run the formatter, linter and type checker, check the direction of imports and the public names
# make data       only get Fashion-MNIST; needs no root
# make wheel      build the wheel, install it into a separate environment and use it
# make site       build the documentation site into site/
# make model      train the packaged model again (an hour), and replace it if the new one is about as good

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: train test test-all test-slow stress check data wheel site model

train: $(VENV)/installed data
	$(BIN)/gingham train $(if $(wildcard runs/fast-0),--resume)
	$(BIN)/gingham evaluate runs/fast-0
	@echo
	@echo "Next steps (activate the environment first: . $(BIN)/activate)"
	@echo "  gingham show                             look at the images"
	@echo "  gingham report runs/fast-0               everything about this run on one HTML page"
	@echo "  gingham summary article                  see why the network sees the whole image"
	@echo "  gingham train --seed 1                   another seed: how much of that accuracy was luck?"
	@echo "  gingham train --recipe fast-85           two seconds instead of a minute; --recipe article is that of the article"
	@echo "  gingham evaluate runs/fast-0 --split test    use the test images; each use is recorded in the run"

# One worker per core. Tests that need the machine to themselves (a browser, other processes, a server under load) are in the slow tier, which
# runs one test after the other. The tests need no network: without Fashion-MNIST, those that need it are skipped, and pytest says so.
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
	$(BIN)/python scripts/check_api.py

data: $(VENV)/installed
	@scripts/get-data $(BIN)/python

wheel: $(VENV)/tested data
	@scripts/try-wheel $(BIN)/python

site: $(VENV)/tested
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

model: $(VENV)/installed data
	$(BIN)/gingham train --recipe photo --seed 0 --out runs/photo-0 --resume
	$(BIN)/gingham train --recipe photo --seed 0 --from runs/photo-0 --out runs/photo-1 --resume --epochs 10 \
		--set learning_rate=0.3 --set photo_share=0.3 --set outlier_share=0.1
	$(BIN)/gingham train --recipe photo --seed 0 --from runs/photo-1 --out runs/photo-2 --resume --epochs 26 \
		--set learning_rate=0.4 --set photo_share=0.4 --set outlier_share=0.1
	$(BIN)/python benchmarks/package_model.py runs/photo-2

# Two stamp files, so that training needs no development tools.
$(VENV)/installed: pyproject.toml
	@scripts/make-environment $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@
