# Every target sets up .venv by itself; all that is needed is Python 3.11 to 3.14 with venv, and make.
#   make run PYTHON=python3.12                   another Python
#   make run PIP_FLAGS='--extra-index-url URL'   another package index, as for PyTorch's CPU build

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: run report test test-slow lint format bench results golden clean

run: $(VENV)/installed
	$(BIN)/smidgen run; status=$$?; [ $$status -ge 2 ] || $(BIN)/smidgen report runs; exit $$status

report: $(VENV)/installed
	$(BIN)/smidgen report runs

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/installed
	$(BIN)/smidgen bench

# The runs behind docs/results.md: about an hour on 2 cores. Repeating it does what is missing.
results: $(VENV)/installed
	$(BIN)/python docs/results.py

golden: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/test_golden.py --overwrite

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "smidgen needs Python 3.11 or newer, and $(PYTHON) is older; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard native/*.cpp native/*.h) native/CMakeLists.txt

$(VENV)/installed: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	@echo "installing smidgen into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt $(NATIVE) | $(VENV)/bin/python
	@echo "installing smidgen and its test tools into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/installed $@
