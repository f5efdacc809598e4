.PHONY: demo test lint clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# The CPU build is small and enough everywhere; set TORCH to choose another build of torch 2.13.
TORCH ?= torch==2.13.0
DEMO := demo-out

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/qgraph convert preset:tiny-llama --policy nvfp4 --out $(DEMO)/model
	$(BIN)/qgraph train $(DEMO)/model --policy nvfp4 --baseline high --out $(DEMO)/run

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy qgraph tests

# torch comes first: asked for as a range, pip may choose a build for GPUs that are not here.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf .venv $(DEMO) build *.egg-info
