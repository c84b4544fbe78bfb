# make demo | test | test-slow | bench | gpu-check (gpu-test, gpu-bench) | lint | clean
#
#   PYTHON=python3.12     the interpreter to make .venv with (found by itself otherwise; 3.11 or newer)
#   VENV=/some/where      another place for it
#   CONSTRAINTS=file      versions to install (constraints.txt pins torch); CONSTRAINTS= for none
#   JOBS=4                processes that the tests are shared out to
#   CTM_FAST_CUDA=on      build the CUDA module too (auto where a GPU is visible; on needs nvcc)
#   GPU_RESULTS=dir       where gpu-check puts its results and logs
#
# pip's own settings hold. A machine without a GPU saves gigabytes by PyTorch's CPU wheels:
#   PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels> make demo

SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c '$(SUITABLE)' >/dev/null 2>&1 && echo $$p && break; done)
# Of the GPU's targets: the one whose torch sees it, venv or not.
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),python3,$(PYTHON))
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
JOBS ?= 2

PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# What an installed package is made of: a change rebuilds it.
SOURCES := $(shell find csrc -type f) $(wildcard CMakeLists.txt pyproject.toml README.md $(CONSTRAINTS))

.PHONY: demo test test-slow bench gpu-check gpu-test gpu-bench lint clean

demo: $(VENV)/demo
	$(PY) -m ctm_fast
	$(PY) -m bench --quick
	$(PY) -m tasks.parity train --preset quick --overwrite

test: $(VENV)/dev
	OMP_WAIT_POLICY=passive $(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/dev
	OMP_WAIT_POLICY=passive $(PY) -m pytest -m slow -n $(JOBS) $(ARGS)

bench: $(VENV)/demo
	$(PY) -m bench $(ARGS)

lint: $(VENV)/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu')

# These use the interpreter that is there, with its own CUDA build of torch, rather than a new .venv. Results and logs
# go to GPU_RESULTS where it is given.
gpu-check gpu-test gpu-bench:
	@$(GPU_PYTHON) python_tests/gpu_check.py $(@:gpu-%=%)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv found; name one with PYTHON=..."; exit 2; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "make: PYTHON=$(PYTHON) must be Python 3.11 or newer with venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Editable, so that tasks/ and bench/, which are not in the wheel, run against the same package.
$(VENV)/demo: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) -e '.[tasks,bench]'
	@touch $@

$(VENV)/dev: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/demo
