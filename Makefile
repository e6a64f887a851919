# Every command of this project. `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# Where it is set, every process compiles torch anew: seconds for each command, minutes for the tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-all bench docs clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with Saccade and its development tools; then: source .venv/bin/activate

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Saccade needs Python 3.11 or newer, this is {sys.version.split()[0]}; run: make PYTHON=python3.11"'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Saccade and its libraries into $(VENV) (torch is large: a few minutes the first time) ..."
	@# Compiling every file of every library is nearly half of the work; Python compiles those that it imports.
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-cache-dir --constraint constraints.txt --editable '.[dev,parity,export]'
	@touch $@

demo: $(STAMP)  ## train a classifier, a segmenter, detectors and a model of words; evaluate, predict, explain; writes runs/demo/report.html
	@$(BIN)/saccade demo --out runs/demo --overwrite

test: $(STAMP)  ## run all the tests
	@OMP_NUM_THREADS=1 $(PYTEST)

test-all: check test  ## everything: checks and all tests

check: $(STAMP)  ## format, lint, strict types, layers, fast tests; warnings are errors
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@OMP_NUM_THREADS=1 $(PYTEST) -m 'not slow'

bench: $(STAMP)  ## measure against the peers, side by side; rewrites benchmarks/RESULTS.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@$(BIN)/python benchmarks/run.py

docs: $(STAMP)  ## draw the pictures of the documentation again
	@$(BIN)/python docs/make_pictures.py

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) runs/demo
