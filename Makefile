# `make serve` and `make test` are all that a fresh clone needs. Both set up .venv/ first, from
# constraints.txt; the example model is built once, into .cache/. Nothing else is written.

SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:

BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
BENCHMARKS := lookup repeats transport serving load batching cut topk terabyte gpu ingress

.PHONY: help test serve lint types bench clean

help:
	@echo 'make serve   serve the example model on 4 shards: REST on 8501, gRPC on 8500'
	@echo 'make test    run the tests            ARGS="-k layout" chooses some'
	@echo 'make lint    ruff, import contracts'
	@echo 'make types   mypy'
	@echo 'make bench   run the benchmarks       NAME=lookup chooses one: $(BENCHMARKS)'
	@echo 'make clean   remove .venv/ and .cache/'

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 $(ARGS)

serve: .venv/.installed
	@$(BIN)/python -m examples.dlrm --out .cache/dlrm
	@exec $(BIN)/shardserve serve --model_name=dlrm --model_base_path=.cache/dlrm --shards=4 \
	  --port=8500 --rest_api_port=8501 $(ARGS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.installed
	$(BIN)/mypy

bench: .venv/.installed-bench
	@set -e; for name in $(or $(NAME),$(BENCHMARKS)); do $(BIN)/python -m benchmarks $$name $(ARGS); done

clean:
	rm -rf .venv .cache

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) '.[dev]'
	@touch $@

.venv/.installed-bench: .venv/.installed
	$(INSTALL) '.[dev,bench]'
	@touch $@

.venv/bin/pip:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	  if "$$python" -c '$(SUPPORTED)' 2> /dev/null; then \
	    echo "making .venv with $$($$python --version)"; \
	    exec "$$python" -m venv --clear .venv; \
	  fi; \
	done; \
	echo 'No Python from 3.11 to 3.13 with its venv module is on the PATH.' >&2; \
	echo 'Install one (on Debian: python3.11 and python3.11-venv), or name it: make PYTHON=...' >&2; \
	exit 1
