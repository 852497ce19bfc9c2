# Two commands: `make quickstart` and `make test`. Each sets up what it needs, once.
# An active virtual environment is used as it is; otherwise .venv is made here.

PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(VENV)/bin/python
READY := $(VENV)/.robust-ood-ready
TESTS ?= tests
BENCHMARKS ?= training_step two_processes memory evaluation_memory metrics startup loader pgd evaluation certificates_cost

.PHONY: help quickstart test coverage lint format wheel-test minimum-test robustbench-test docker-test docs bench clean

help:
	@echo "make quickstart   train and attack a plain and a robust detector on real images (about 5 minutes)"
	@echo "make test         run all tests; a part of them: make test TESTS=tests/unit"
	@echo "make coverage     run them and say which lines of robust_ood/ they do not reach"
	@echo "make lint         style, types and import rules"
	@echo "make minimum-test run all tests with the oldest versions allowed"
	@echo "make robustbench-test  RobustBench's own package with random weights"
	@echo "make docker-test  lint the Dockerfiles and execute their RUN lines in an empty folder"
	@echo "make bench        measure speed and memory side by side, on a quiet machine; a part: make bench BENCHMARKS=metrics"
	@echo "make docs         the documentation as a site in site/, links checked"
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
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto $(TESTS)

# Of all processes: the tests' workers, and the commands and runs that the tests start.
coverage: $(READY)
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(RUN) -m coverage run -m pytest -n auto $(TESTS)
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# Needs no network: the new environment borrows this one's libraries.
wheel-test: $(READY)
	$(RUN) tests/packaging/check_wheel.py

# An environment of its own: .venv-minimum.
minimum-test: .venv-minimum/ready
	OMP_NUM_THREADS=1 .venv-minimum/bin/python -m pytest -n auto $(TESTS)

.venv-minimum/ready: pyproject.toml constraints/minimum.txt
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	.venv-minimum/bin/python -m pip install --quiet --constraint constraints/minimum.txt --editable '.[dev,parity]'
	@touch $@

# An environment of its own, .venv-robustbench: the library pins versions that others do not get along with.
robustbench-test: .venv-robustbench/ready
	OMP_NUM_THREADS=1 .venv-robustbench/bin/python -m pytest tests/parity/test_robustbench.py

.venv-robustbench/ready: pyproject.toml
	test -x .venv-robustbench/bin/python || $(PYTHON) -m venv .venv-robustbench
	.venv-robustbench/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[robustbench]'
	.venv-robustbench/bin/python -m pip install --quiet --disable-pip-version-check hypothesis pytest pytest-timeout
	@touch $@

# An environment of its own, .venv-docs: reading docstrings needs none of the libraries. Building needs no network.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/ready: docs/requirements.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	@touch $@

docker-test: $(READY)
	$(VENV)/bin/hadolint --config docker/hadolint.yaml docker/cpu.Dockerfile docker/cuda.Dockerfile docker/serve.Dockerfile
	$(RUN) tests/packaging/check_docker.py

# One after the other, each with a page of its own; one that fails leaves the others their turn.
bench: $(READY)
	@failed=; for name in $(BENCHMARKS); do \
	  echo "benchmarks/$$name.py"; \
	  $(RUN) benchmarks/$$name.py --output docs/performance/$$name.md || failed="$$failed $$name"; \
	done; $(RUN) benchmarks/performance.py; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf build dist site .coverage* *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
