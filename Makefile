.PHONY: demo test test-full mutants test-torch lint gpu-check clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# The tested version; set TORCH to choose another build of it, such as one for your GPU.
TORCH ?= torch==2.13.0
TRANSFORMERS ?= transformers
DEMO := demo-out
# Two workers with halves of the tests; one that is done takes from the other's end.
SHARED := -n 2 --dist worksteal

# Training first, on a model so small that quantizing weighs most; then what a step of a wider one takes,
# where a CPU can multiply integers with integers.
demo: .venv/installed
	@rm -rf $(DEMO); start=$$(date +%s); set -ex; \
	$(BIN)/qgraph convert preset:tiny-llama --policy nvfp4 --out $(DEMO)/model; \
	$(BIN)/qgraph train $(DEMO)/model --policy nvfp4 --baseline high --steps 100 --out $(DEMO)/run; \
	$(BIN)/qgraph bench --model preset:bench-llama,layers=1 --policy nvfp4_no_keep --policy int8 \
		--target native --rounds 7; \
	{ set +x; } 2>/dev/null; echo "the demo took $$(($$(date +%s) - start)) s, after installing"

# Of the tests marked full, the tenth that the commit draws: see tests/README.md.
test: .venv/installed
	$(BIN)/python -m pytest $(SHARED)

# All of them, and the mutants.
test-full: .venv/installed
	$(BIN)/python -m pytest $(SHARED) --full
	$(MAKE) mutants

# Breaks the code on purpose, a place at a time: does a test fail? See tests/README.md.
mutants: .venv/installed
	$(BIN)/python -m tests.harness.mutants

# The telling tests on another torch, in an environment of its own: see tests/README.md.
test-torch: OTHER = .venv-torch-$(subst torch==,,$(TORCH))
test-torch:
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" "$(TRANSFORMERS)"
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m tests.torch_versions

# On a machine with a GPU: numbers, training and times as one table. Elsewhere it says what it skips.
gpu-check: .venv/installed
	$(BIN)/python -m tests.gpu_check

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy qgraph tests

# torch comes first and exactly: from a range, pip takes the newest.
.venv/installed: pyproject.toml
	@start=$$(date +%s); set -ex; \
	test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"; \
	touch $@; \
	{ set +x; } 2>/dev/null; echo "installing took $$(($$(date +%s) - start)) s"

clean:
	rm -rf .venv .venv-torch-* $(DEMO) build *.egg-info
