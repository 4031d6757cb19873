# Every target sets up what it needs: a virtual environment in .venv with the exact versions of constraints.txt.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2> /dev/null)
STAMP := .venv/.installed
PEERS := .venv-peers/.installed

.PHONY: setup bench test test-slow lint perf perf-growth perf-ray perf-peers gpu-check ui clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
ifdef UV
	test -x $(BIN)/python || uv venv --python $(PYTHON) .venv
	uv pip install --quiet --python $(BIN)/python -e '.[dev]' -c constraints.txt
else
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
endif
	touch $@

bench: setup  ## the main job: MNIST then Fashion-MNIST, every strategy, tracked in out/
	$(BIN)/forgetbench run mnist-fashion

test: setup  ## the tests: offline, a few minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: setup  ## real data, services, packaging
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

perf: setup  ## seconds a run and epoch, against the notebook's loop, measured on this machine
	$(BIN)/python -m benchmark.perf

perf-growth: setup  ## how time and memory grow with runs, tasks and parameters
	$(BIN)/python -m benchmark.perf growth

perf-ray: setup  ## 64 runs through Ray beside the same on threads
	$(BIN)/python -m benchmark.perf ray

perf-peers: setup $(PEERS)  ## the same beside Avalanche, in an environment of its own that borrows PyTorch from .venv
	.venv-peers/bin/python -m benchmark.perf peers

$(PEERS): Makefile
	test -x .venv-peers/bin/python || $(BIN)/python -m venv .venv-peers
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check 'avalanche-lib==0.6.0' -c constraints.txt
	touch $@

gpu-check:  ## on a machine with a GPU: the CPU's numbers, the floors, a thousand runs; needs PyTorch and the data alone
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmark.perf.gpu

ui: setup  ## the MLflow UI on out/
	$(BIN)/forgetbench ui

clean:
	rm -rf .venv .venv-peers out dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
