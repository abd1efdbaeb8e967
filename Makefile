# Every target works on a fresh clone with Python 3.11 and a package registry; nothing else has to be installed by hand.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
UV_VERSION := 0.13.8

# Of the many processes that the tests start, each would otherwise compile torch and diffusers anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup test demo report paper pages lint lock
.DEFAULT_GOAL := test

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(VENV)/.ready .weights/alexnet.ckpt ## set up .venv from the hash lock

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "The lock is for Python 3.11: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip sync --require-hashes requirements.txt
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.weights/alexnet.ckpt: $(VENV)/.ready src/topi/bench/runs/lpips_weights.txt
	$(BIN)/topi fetch-lpips
	touch $@

# One thread each: the tests are small, and two processes use two cores better than two threads.
WORKERS ?= 2
test: setup .quantised/.ready ## run all tests
	-@slurm/test_cluster/install.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# For one test; not in the environment, as it slows down every import of diffusers.
.quantised/.ready: tests/engine/quantised.txt $(VENV)/.ready
	$(UV) pip install --quiet --no-deps --require-hashes --target .quantised --requirement $<
	touch $@

demo: setup ## run the sweep of the README on the embedded model, with its table and page
	$(BIN)/topi run -m method=topi,toma tau=0.8,0.85,0.9

report: setup ## tables, figures and the page of the store results/
	$(BIN)/topi report

# Every table, figure and claim of the paper from results that are there; no model runs.
STORE ?= $(firstword $(wildcard experiments/results) results)
paper: setup ## every table, figure and claim of the paper from the committed results
	$(BIN)/topi report --store $(STORE) --out report

pages: setup ## the generated blocks of README.md and docs/
	$(BIN)/topi pages --store experiments/results README.md docs/*.md

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/.ready ## resolve requirements-dev.in into requirements.txt
	$(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate requirements-dev.in -o requirements.txt
