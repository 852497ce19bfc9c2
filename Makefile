# Two commands: `make quickstart` and `make test`. Each sets up what it needs, once.
# An active virtual environment is used as it is; otherwise .venv is made here.

PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
READY := $(VENV)/.robust-ood-ready

.PHONY: help quickstart test lint format wheel-test clean

help:
	@echo "make quickstart   train and attack a plain and a robust detector on real images (about 5 minutes)"
	@echo "make test         run all tests"
	@echo "make lint         style, types and import rules"
	@echo "make wheel-test   build, install the wheel into a new environment, use it from an empty folder"

# Reinstalled only when pyproject.toml changes. Editable: the code in this folder is the code that runs.
$(READY): pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev,parity]'
	@touch $(READY)

quickstart: $(READY)
	$(RUN) -m robust_ood.quickstart

# One worker a core, each with one thread: the tests are many and small.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# Needs no network: the new environment borrows this one's libraries.
wheel-test: $(READY)
	$(RUN) tests/packaging/check_wheel.py

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
