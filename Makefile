# Every target makes its own .venv when there is none. The first two are all that a reader needs:
#   make demo    ten branches of one answer, written at once by the shipped model
#   make test    the tests
# Others: lint, format, typecheck, docs, train, build, clean. See `make help`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# More options for pip, for instance a CPU build of torch where PyPI has the CUDA one:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Test processes, each with one thread: tiny models gain nothing from more.
JOBS   ?= 2
# Passed on to the command: make test ARGS="-k plan", make train ARGS="--steps 12000"
ARGS   ?=

SOURCES := $(wildcard langchain_pos tests training benchmarks examples docs)

.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:
.PHONY: demo test lint format typecheck docs train build clean help

demo: $(VENV)/.installed  ## answer the question that ships with the package, in parallel and sequentially
	$(BIN)/langchain-pos demo $(ARGS)

test: $(VENV)/.installed-dev  ## run the tests (no network)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.installed-dev  ## check style and which way imports go, change nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.installed-dev  ## mend style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

typecheck: $(VENV)/.installed-dev  ## strict mypy
	$(BIN)/mypy $(ARGS)

docs: $(VENV)/.installed-dev  ## the documentation in site/; fails on a broken link (no network)
	$(BIN)/python docs/make_architecture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

train: $(VENV)/.installed-dev  ## train the shipped model again; resumes where it stopped
	$(BIN)/python -m training.train --resume $(ARGS)

build: $(VENV)/.installed-dev  ## a wheel in dist/
	$(PIP) wheel --no-deps -w dist .

clean:  ## remove what these targets made
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Installed again when the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt $(PIP_ARGS) -e '.[test,lint,docs,train]'
	@touch $@
