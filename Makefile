# MedSSLSegment. `make` alone says what can be done.
#
#   VENV=dir        another place for the virtual environment
#   PYTHON=python3  the interpreter it is made with (3.11 or newer)
#   PIP_ARGS=...    more arguments for every `pip install`, for example an index with CPU-only builds of torch
#   JOBS=2          tests that run side by side

PYTHON   ?= $(shell command -v python3.11 || command -v python3)
VENV     ?= .venv
PIP_ARGS ?=
JOBS     ?= 2

PY    := $(VENV)/bin/python
PIP    = SAM2_BUILD_CUDA=0 $(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
CODE  := MedSSLSegment Testing
BROWSER := chromium
SYSTEM_LIBRARIES := libgl1 libgl1-mesa-dri libegl1 libxkbcommon0 libfontconfig1 libdbus-1-3 libglib2.0-0

.DEFAULT_GOAL := help
.PHONY: help install app demo test lint format bench screenshots clean

help:  ## Say what can be done
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 22

install: $(VENV)/.engine  ## Install the engine and the `medssl` command into .venv

app: $(VENV)/.app  ## Open the workstation in a browser (FILES=volume or DICOM folder, ARGS=...; without it, a phantom)
	@$(VENV)/bin/medssl app $(FILES) $(ARGS)

demo: $(VENV)/.engine  ## One annotated slice per organ becomes the organs (CT=file LABEL=file: of your own CT; OUT=folder)
	@$(VENV)/bin/medssl demo --out $(or $(OUT),demo_output) $(if $(CT),--ct "$(CT)") $(if $(LABEL),--label "$(LABEL)")

test: lint $(VENV)/.libraries  ## Lint and run every test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.dev  ## Check style, formatting and types
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy

format: $(VENV)/.dev  ## Format the code
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

bench: $(VENV)/.engine  ## Measure accuracy and speed (DATA=folder of labelled CTs; without it, of phantoms)
	$(PY) Testing/benchmarks/bench_propagation.py $(if $(DATA),--data "$(DATA)") $(ARGS)

screenshots: $(VENV)/.libraries  ## Take the pictures of the README and the tutorial
	$(PY) Testing/make_screenshots.py
	$(PY) Testing/web/take_screenshots.py

clean:  ## Remove the virtual environment, caches and the demo's output
	rm -rf $(VENV) demo_output bench_output .mypy_cache .ruff_cache .pytest_cache MedSSLSegment/*.egg-info
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "make: python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }

# torch comes first: sam2 is built from source and reads torch's version while it is built.
$(VENV)/.engine: $(PY) pyproject.toml constraints.txt
	@echo "Installing torch ..."
	@$(PIP) setuptools wheel torch
	@echo "Installing the other packages ..."
	@$(PIP) --no-build-isolation --editable '.[engine]'
	@touch $@

$(VENV)/.app: $(VENV)/.engine
	@echo "Installing the workstation ..."
	@$(PIP) --no-build-isolation --editable '.[engine,app]'
	@touch $@

$(VENV)/.dev: $(VENV)/.engine
	@echo "Installing what the tests need ..."
	@$(PIP) --no-build-isolation --editable '.[engine,dev]'
	@touch $@

# Qt and VTK draw off screen, but still load the system's OpenGL, font and keyboard libraries; the workstation's tests
# look at it in a browser.
$(VENV)/.libraries: $(VENV)/.dev
	@if ! $(PY) Testing/drawing_libraries.py || ! command -v $(BROWSER) >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends $(SYSTEM_LIBRARIES) $(BROWSER); \
	  else \
	    echo "The tests that draw will be skipped. To run them: apt-get install $(SYSTEM_LIBRARIES) $(BROWSER)"; \
	  fi; \
	fi
	@touch $@
