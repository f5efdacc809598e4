.PHONY: demo test test-full lint gpu-check clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# The tested version; set TORCH to choose another build of it, such as one for your GPU.
TORCH ?= torch==2.13.0
DEMO := demo-out
# Two workers with halves of the tests; one that is done takes from the other's end.
SHARED := -n 2 --dist worksteal

demo: .venv/installed
	rm -rf $(DEMO)
	$(BIN)/qgraph convert preset:tiny-llama --policy nvfp4 --out $(DEMO)/model
	$(BIN)/qgraph train $(DEMO)/model --policy nvfp4 --baseline high --out $(DEMO)/run

# Of the tests marked full, the tenth that the commit draws: see tests/README.md.
test: .venv/installed
	$(BIN)/python -m pytest $(SHARED)

# All of them.
test-full: .venv/installed
	$(BIN)/python -m pytest $(SHARED) --full

# On a machine with a GPU: numbers, training and times as one table. Elsewhere it says what it skips.
gpu-check: .venv/installed
	$(BIN)/python -m tests.gpu_check

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy qgraph tests

# torch comes first and exactly: from a range, pip takes the newest.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf .venv $(DEMO) build *.egg-info
