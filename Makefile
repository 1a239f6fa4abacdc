# Each goal sets up what it needs in .venv, with the versions that constraints.txt pins.

PYTHON ?= python3
BIN := .venv/bin
# For every pip of this file, also the one that builds the package: nothing comes in another version
export PIP_CONSTRAINT := $(abspath constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# MkDocs Material advertises its successor on every build
export NO_MKDOCS_2_WARNING := 1
# Compiling what is never imported would take longer than the rest of the installation. What is imported gets compiled
# then, and that has to be kept, whatever the environment says
export PYTHONDONTWRITEBYTECODE :=
# Root needs no sudo, and may not have it
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.DEFAULT_GOAL := help
.PHONY: bench bench-circuits bench-peers browser check clean demo docs examples format generated help test test-slow torture

demo: .venv/demo.stamp ## Look inside a real model: fetches 93 MB the first time
	$(BIN)/interp-toolkit demo -o demo-output/report.html

test: .venv/dev.stamp browser ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

test-slow: .venv/dev.stamp browser ## Run the tests that are left out by default
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup -m slow

bench: .venv/dev.stamp ## Measure speed and memory
	$(BIN)/python benchmarks/readings.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/probes.py

bench-circuits: .venv/dev.stamp ## Measure how good and how fast circuit finding is; CIRCUITS=--help shows the choices
	$(BIN)/python benchmarks/circuits.py $(CIRCUITS)

# Two side by side, a thread each: faster than one after the other with two, and the same to the last digit
examples: .venv/dev.stamp ## Run the four applications on a real model, and write their pages
	printf '%s\n' factuality sycophancy refusal elicitation | \
		OMP_NUM_THREADS=1 xargs -P 2 -I NAME $(BIN)/python examples/NAME.py --output docs/examples

torture: .venv/dev.stamp ## Kill, damage and race activation stores, and count what is lost
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py $(TORTURE)

bench-peers: .venv-peers/peers.stamp ## Time sweeps against TransformerLens and nnsight, and reading against zarr and Arrow; PEERS=--help shows the choices
	TQDM_DISABLE=1 .venv-peers/bin/python benchmarks/peers.py $(PEERS)
	.venv-peers/bin/python benchmarks/store.py --only reading

check: .venv/dev.stamp ## Check format, lint, types and documentation; every warning is an error
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

generated: .venv/dev.stamp ## Write what the documentation measures: the table of families, the picture
	$(BIN)/python docs/generate.py

format: .venv/dev.stamp ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/dev.stamp ## Show the documentation at http://127.0.0.1:8000 while you write it
	$(BIN)/mkdocs serve

clean: ## Remove everything that make wrote, .venv included
	rm -rf .venv .venv-peers .hypothesis .mypy_cache .pytest_cache .ruff_cache build demo-output dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Views are tested in Chromium. Where it is missing and cannot be installed, those tests are skipped, and say so
browser:
	@command -v chromium >/dev/null || test -n "$$CHROMIUM" || { $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
		echo 'Chromium is missing; tests of views will be skipped' >&2

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}. Use: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/python.stamp
	$(PIP_INSTALL) --editable '.[demo]'
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/python.stamp
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ .venv/demo.stamp

# Beside us are libraries that the project itself does not need
.venv-peers/peers.stamp: pyproject.toml constraints.txt benchmarks/peers-constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --no-compile --constraint benchmarks/peers-constraints.txt \
		--editable '.[demo]' 'nnsight==0.8.*' 'transformer_lens==4.3.*' 'zarr==3.1.*'
	touch $@
