# The environment is made here: no tool but Python and make is presumed.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE  # what starts hundreds of processes must not compile in each of them
.PHONY: help run up kafka check test bench chaos clean

help: ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-6s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml uv.lock
	@echo "Making the environment in .venv; this happens once and whenever the lock changes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv sync --quiet --locked
	@touch $@

run: .venv/.ready ## Run the demo: a whole migration, from an empty machine to proven statistics
	@$(BIN)/esm demo

up: .venv/.ready ## Serve everything: both services, the worker, Dagster's UI and daemon (Ctrl-C stops)
	@$(BIN)/esm up

kafka: .venv/.ready ## Start a Kafka broker for development and print its address (Ctrl-C stops)
	@$(BIN)/python deploy/kafka/broker.py

check: .venv/.ready ## Format, lint, types, import direction and shape, in under 30 seconds
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy --num-workers auto || { test $$? = 2 && $(BIN)/mypy; }  # a crash of its workers is decided by one process
	@$(BIN)/pytest -q -p no:randomly tests/test_tidy.py

# Half of a test's time is waiting, so four processes fill two cores; conftest.py puts the long files first.
test: .venv/.ready ## Run every test that can run here; REQUIRE_BACKENDS=all turns a skip into a failure
	@$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not chaos"

bench: .venv/.ready ## Measure against a baseline of the same run
	@$(BIN)/python -m tests.benchmarks

chaos: .venv/.ready ## The long fault loops
	@$(BIN)/pytest -m chaos

clean: ## Remove the environment and the caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
