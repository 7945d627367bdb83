# Every target makes its own environment (.venv) first; nothing else needs to be installed but Python 3.11+ and g++.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup triton quickstart test test-slow test-all test-gpu test-cluster faults check format bench

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/installed  ## make .venv and install what constraints.txt pins

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group dev --constraint constraints.txt
	touch $@

triton: .venv/installed  ## add Triton, for the tests of the CUDA kernels on a CPU (with torch for CUDA it is there)
	$(BIN)/python -m pip install --quiet --group triton --constraint constraints.txt

# Stopped on request (75) is no failure.
quickstart: .venv/installed  ## a whole distillation in minutes: make quickstart [TEACHER=bert-base-uncased CORPUS=dump.txt]
	TEACHER="$(TEACHER)" CORPUS="$(CORPUS)" bash launch/quickstart.sh || [ $$? = 75 ]

test: .venv/installed  ## the default tests (under 15 minutes on 2 cores), JOBS=2 files at once
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not cluster"

test-slow: .venv/installed  ## the long tests alone
	$(BIN)/python -m pytest -m "slow and not gpu and not cluster"

test-all: .venv/installed  ## the long tests, too
	$(BIN)/python -m pytest -m "not gpu and not cluster"

test-gpu:  ## the tests that are for a GPU; by the PYTHON that has torch, where there is no .venv
	DILBERT_TEST_GPU=1 $(PYTHON) -m pytest -m gpu $(addprefix tests/test_,attention.py distillation.py gpu.py triton.py)

test-cluster: .venv/installed  ## two hosts and a SLURM of this machine's own (root; sshd, pdsh, slurm, munge installed)
	$(BIN)/python -m pytest -m cluster tests/cluster

faults: .venv/installed  ## kills, damage, full disks, odd input: is anything lost? (some 40 minutes; disks need root)
	$(BIN)/python -m tests.faults

check: .venv/installed  ## formatting, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: .venv/installed  ## write the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed  ## distilled against trained alone, on DATA=folder with dump.train.txt and dump.valid.txt
	$(BIN)/python -m tests.bench.bench_value --data "$(DATA)"
