# `make` shows this help. PYTHON chooses the interpreter, JOBS the test processes,
# ARGS goes to `perdure demo` or to pytest, e.g. `make demo ARGS=--quick`.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format types docs site check results bench build clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed ## Install and show the whole story on the embedded benchmark
	$(BIN)/perdure demo $(ARGS)

test: $(VENV)/installed-dev ## Install and run the tests
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

# The examples of the documentation are slow as well; `make docs` runs them.
test-slow: $(VENV)/installed-dev ## Tests with several processes and kills (ARGS="-k killed --kills 30")
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadgroup -m slow --ignore tests/docs $(ARGS)

lint: $(VENV)/installed-dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/installed-dev ## Check types
	$(BIN)/mypy

docs: $(VENV)/installed-dev ## Check that generated pages are current and that every example runs
	$(BIN)/python -m benchmarks.pages --check
	$(BIN)/python -m pytest tests/docs -m "slow or not slow" $(ARGS)

site: $(VENV)/installed-dev ## Build these pages and the API reference into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint types test docs site ## Everything a reviewer will run

results: $(VENV)/installed ## Write docs/results.md again (hours; resumable)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.results

bench: $(VENV)/installed ## Compare the cost of steps with the published codes' pattern (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.head
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.adapters
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.statistics
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.diagnosis
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.prompts
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reading
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sweep

build: $(VENV)/installed-dev ## Build the wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## Remove the virtual environment, caches and demo output
	rm -rf $(VENV) dist build site *.egg-info .mypy_cache .ruff_cache .pytest_cache perdure-demo
