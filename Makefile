# Everything runs in .venv, which is made on demand with a Python from 3.11 on, and brought up to date
# when pyproject.toml changes. To choose the Python: make test PYTHON=/path/to/python

VENV ?= .venv
PYTHON ?=
WORKERS ?= 2

BIN = $(VENV)/bin
READY := $(VENV)/.ready
USE := $(VENV)/.ready-to-use
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup demo test gpu-test lowest lint bench fuzz clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install what the tests need, 7 GB; `make test` does it by itself

demo: $(USE) ## Train, export, verify and use a classifier
	PATH="$(abspath $(BIN)):$$PATH" bash demo/run.sh

# One thread per worker: each would otherwise start as many as there are cores, and they would slow each other down.
test: $(READY) ## Run all tests but those marked slow or gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lowest: VENV := .venv-lowest
lowest: ## Run the tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	@$(FIND_PYTHON)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --deselect tests/project/test_borders.py

gpu-test: $(READY) ## Run the tests marked gpu, which are skipped with the reason where there is none
	$(BIN)/python -m pytest -n 0 -m gpu

lint: $(READY) ## Check style, types and borders, as `make test` does among others
	$(BIN)/python -m pytest -q tests/project/test_borders.py

bench: $(READY) ## Measure side by side with what one would use instead
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks

fuzz: $(READY) ## Kill, mutate and race for MINUTES=30
	$(BIN)/python benchmarks/hostile.py --minutes $(or $(MINUTES),30) --repeat 1000 --results build/fuzz

clean: ## Remove caches and builds, keep the environment
	rm -rf build dist plugins/*/build plugins/*/dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamps are touched last, so that an interrupted installation is resumed. The demo needs less than the tests.
$(READY): EXTRAS := dev
$(READY): pyproject.toml
	@$(FIND_PYTHON)
	@echo 'Installing what the tests need into $(VENV) (7 GB on disk; minutes)'
	$(INSTALL)
	@touch $@ $(USE)

$(USE): EXTRAS := train,parquet
$(USE): pyproject.toml
	@$(FIND_PYTHON)
	@echo 'Installing PyTorch and what else training needs into $(VENV) (6 GB on disk, most of it CUDA; minutes)'
	$(INSTALL)
	@touch $@

# A line for each large package as pip fetches it, and one while it unpacks: neither hundreds nor silence.
define INSTALL
@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --editable '.[$(EXTRAS)]' || \
  echo FAILED; } | awk '\
    /^ *(Downloading|Using cached) .*[0-9] (MB|GB)\)/ { sub(/^ */, "  "); sub(/[^ ]*\//, ""); print; fflush() } \
    /^Installing collected/ { print "  Unpacking " NF - 3 " packages"; fflush() } \
    /^FAILED$$/ { exit 1 }'
endef

define FIND_PYTHON
$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
  for python in $(CANDIDATES); do \
    if "$$python" -c '$(USABLE)' 2>/dev/null; then \
      echo "Setting up $(VENV) with $$("$$python" --version)"; \
      exec "$$python" -m venv $(VENV); \
    fi; \
  done; \
  echo 'tlkit needs Python 3.11 or newer with its module venv, and found none among: $(CANDIDATES)' >&2; \
  echo 'Install one (Debian, Ubuntu: apt install python3-venv) or say where it is: make PYTHON=/path/to/python' >&2; \
  exit 1; \
}
endef
