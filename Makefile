# Everything a machine with Python, git and make needs: each target does its own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Test processes; each takes one core and up to 3 GB.
WORKERS ?= 2
# Python compiles a module when it is first imported; most of those installed never are, so pip need not.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

.PHONY: demo bert-tiny test test-slow check speed format clean

demo: .venv/installed  ## debias a real 135 M parameter model and show the table
	$(BIN)/debias run

bert-tiny: .venv/installed  ## make the demonstration masked model, once, in about ten minutes; then model=bert_tiny
	$(BIN)/python -m debias.models.bert_tiny

test: .venv/developer  ## all tests that take seconds, and the few longer ones that guard the main job
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal -m "not slow"

test-slow: .venv/developer  ## the tests that take minutes of CPU
	$(BIN)/python -m pytest -m slow

check: .venv/developer  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

speed: .venv/developer  ## tables of docs/performance.md: scoring and training on this machine, about an hour (of a GPU: benchmarks/gpu.py)
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/training.py --sentences 160

format: .venv/developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, caches and products
	rm -rf .venv outputs dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt assets.txt
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --no-deps --require-hashes --requirement assets.txt
	touch $@

# One pip for all: after that of `installed` it would work out the same versions again.
.venv/developer: pyproject.toml constraints.txt assets.txt
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	$(PIP) --no-deps --require-hashes --requirement assets.txt
	touch .venv/installed $@
