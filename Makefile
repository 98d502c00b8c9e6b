# make reproduce   install, run the quick suite, write the report           (no data set, no GPU needed)
# make test        install, check the style and the types, run all tests
# make test-all    the same and the tests that need environments of their own
# make clean       remove what the two made, but no results

PYTHON ?= python3
VENV ?= .venv
SCALE ?= quick
OUTPUT ?= reproduction/$(SCALE)
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: reproduce test test-all lint clean

reproduce: $(VENV)/.installed
	$(BIN)/reformer-lab reproduce --scale $(SCALE) --output $(OUTPUT)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q --durations=10

test-all: test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	$(BIN)/python -m pip check
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	$(BIN)/python -m pip check
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
