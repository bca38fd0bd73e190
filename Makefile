# make demo      set-up, then the main job on real data: a table, and plots in demo-output/
# make test      set-up, then the whole suite
# make lint      ruff, docstrings, the import contracts and the types
# make coverage  the suite with branch coverage, against the floor in pyproject.toml
# make oldest    the parts of the suite in which torch compiles, with the oldest torch that lowbit takes
# make docs      the documentation site in site/, strictly
# make wheel     wheel and source archive in dist/, checked, and tried in a clean environment
# make setup     the environment in .venv, from the hashes in requirements/; done anew only when what it is made from changes
# make lock      requirements/ anew: the newest versions that fit pyproject.toml and constraints.txt
# The Python it is made with is the first of these that runs and is at least 3.11; `make PYTHON=... setup` chooses.

PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
BIN := .venv/bin
STAMP := .venv/.set-up
# What `make docs` and `make wheel` need, apart from everything that lowbit needs.
TOOLS := .venv-tools
# The oldest versions that lowbit takes, as pyproject.toml says.
OLDEST := .venv-oldest
TYPES := $(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --summary=none
# Processes of the suite, each on one thread.
JOBS ?= 2

.PHONY: demo test lint coverage oldest docs wheel setup lock
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/python demo/digits.py

test: $(STAMP)
	$(BIN)/lint-imports --no-cache
	$(TYPES)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(TYPES)

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term:skip-covered --cov-report=xml

oldest: $(OLDEST)/.set-up
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(JOBS) tests/quantizer tests/qat tests/train/test_train_loop.py -k "compil or export"

docs: $(TOOLS)/.set-up
	$(TOOLS)/bin/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

wheel: $(TOOLS)/.set-up
	$(TOOLS)/bin/python tools/wheel.py

setup: $(STAMP)

# Makes the environment $(1), if it is not there, with the first Python that is new enough.
define ENVIRONMENT
@enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
for python in $(or $(PYTHON),$(PYTHONS)); do \
    if $$python -c "$$enough" 2>/dev/null; then found=$$python; break; fi; \
done; \
if [ -z "$$found" ]; then \
    echo "lowbit needs Python 3.11 or newer: none of '$(or $(PYTHON),$(PYTHONS))' is one. Install it, or give its path: make PYTHON=/path/to/python3.11 setup" >&2; \
    exit 1; \
fi; \
if [ ! -x $(1)/bin/python ]; then echo "+ $$found -m venv $(1)"; "$$found" -m venv $(1); fi
endef

$(STAMP): pyproject.toml $(wildcard requirements/*.txt) constraints.txt tools/install.py tools/install_torch.py
	$(call ENVIRONMENT,.venv)
	$(BIN)/python tools/install.py
	@touch $@

$(TOOLS)/.set-up: requirements/tools.txt
	$(call ENVIRONMENT,$(TOOLS))
	$(TOOLS)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/tools.txt
	@touch $@

$(OLDEST)/.set-up: pyproject.toml
	$(call ENVIRONMENT,$(OLDEST))
	$(OLDEST)/bin/python -m pip install --quiet 'torch==2.11.*' 'torchvision==0.26.*' -e '.[train,export,allocate,demo,examples,dev]'
	@touch $@

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet uv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/lock.py
