# Every target does its own set-up, once; it is repeated when pyproject.toml changes.
SHELL := /bin/bash
VENV ?= .venv
EXTRAS := sim,sources,train,tune,export,openvla,annotate-cpu,serve,dev
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# Set before MuJoCo is first imported, hence here: render headless with EGL.
export MUJOCO_GL ?= egl
export RAY_USAGE_STATS_ENABLED := 0
export PYTHONUNBUFFERED := 1

# Two processes, each with a Ray and a simulator of its own: one alone waits for starting processes half of the time.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check lint-fix bench gpu clean

help: ## Show these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  PYTHON=... chooses the interpreter (3.11 to 3.13), VENV=... the virtual environment ($(VENV))"

install: $(READY) ## Virtual environment, packages and OpenGL libraries

$(READY): pyproject.toml scripts/setup.sh vlaad_ray/envs/check_rendering.py
	@PYTHON="$(PYTHON)" scripts/setup.sh $(VENV) $(EXTRAS)
	@touch $@

demo: $(READY) ## Teacher to student on real LIBERO: runs/demo/report.html
	$(RUN) jobs/pipeline.py --out runs/demo

test: $(READY) ## All tests, on real LIBERO and real Ray
	$(RUN) -m pytest -q $(TWO)

test-slow: $(READY) ## What `make test` leaves out: a killed sweep, a study, a submitted annotation, a fresh deployment …
	$(RUN) -m pytest -q -m slow

check: $(READY) ## Lint, format, types and import contract
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

lint-fix: $(READY) ## Mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(READY) ## Control steps per second against LIBERO's stock environment
	$(RUN) jobs/bench.py rollout --out runs/bench

# vLLM for CUDA takes the place of the one for CPUs, where this installs. Only a whole run on a GPU comes to `cp`.
gpu: EXTRAS := $(subst annotate-cpu,annotate,$(EXTRAS))
gpu: $(READY) ## Every figure that needs an NVIDIA GPU, in ten minutes: docs/results/gpu.md; again: what is missing
	$(RUN) jobs/bench.py gpu --out runs/bench/gpu
	cp runs/bench/gpu/gpu.md docs/results/gpu.md

clean: ## Remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
