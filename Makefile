# Everything a contributor types. The first `make` of any target creates the environment.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO ?= demo-output
DEMO_FLAGS ?=
ZOO ?= zoo-output
ZOO_FLAGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo demo-table zoo bench bench-gpu test test-avx2 check format schema manifests constraints clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */  make \1\t/' | expand -t 22

install: $(VENV)/installed  ## create the environment (about 6 GB: torch carries the CUDA libraries)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wsssbed-hub needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[stages,dev]'
	@touch $@

demo: install  ## images to mIoU on this machine, with a report at the end (about 10 minutes)
	$(BIN)/wsssbed-hub demo --to $(DEMO) $(DEMO_FLAGS)

demo-table: install  ## the numbers of `make demo` into docs/demo.json and the README
	cp $(DEMO)/summary.json docs/demo.json
	$(BIN)/python -m wsssbed_hub.report.summary docs/demo.json README.md

bench: install  ## every measurement at small sizes on the CPU: whether all of it works (minutes)
	$(BIN)/python -m benchmarks --device cpu --out build/bench

bench-gpu: install  ## what docs/performance.md has, on this GPU (at most 8 minutes)
	$(BIN)/python -m benchmarks --out build/bench-gpu

zoo: install  ## every stage on this machine, tables and picture into docs/ (more than an hour)
	$(BIN)/wsssbed-hub demo --to $(ZOO) --all --seeds 0,1,2 $(ZOO_FLAGS)
	cp $(ZOO)/summary.json docs/zoo.json
	cp $(ZOO)/maps.png docs/zoo.png
	$(BIN)/python -m wsssbed_hub.report.summary docs/zoo.json docs/zoo.md

test: install  ## every test
	$(BIN)/pytest --numprocesses 2 --dist worksteal

test-avx2: install  ## the numerical tests of the stages as a processor without AVX-512 computes
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
	  $(BIN)/pytest --numprocesses 2 --dist loadfile -m numerical tests/stages

check: install  ## lint, format, types, generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m wsssbed_hub.artifacts.schema --check manifests/manifest.schema.json
	$(BIN)/python -m wsssbed_hub.registry.release.manifests --check manifests
	$(BIN)/python -m wsssbed_hub.report.summary --check docs/demo.json README.md
	$(BIN)/python -m wsssbed_hub.report.summary --check docs/zoo.json docs/zoo.md

format: install  ## let ruff format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

schema: install  ## write the manifest's JSON schema
	$(BIN)/python -m wsssbed_hub.artifacts.schema manifests/manifest.schema.json

manifests: install  ## write the manifests of the WSSS-BED release
	$(BIN)/python -m wsssbed_hub.registry.release.manifests manifests

constraints: pyproject.toml  ## resolve every dependency anew and pin what came out
	rm -rf build/resolve && $(PYTHON) -m venv build/resolve
	build/resolve/bin/pip install --quiet '.[stages,dev]' setuptools
	(head -n 2 constraints.txt; build/resolve/bin/pip freeze --all | grep -vE '^(pip|wsssbed-hub)\b' | sort -f) > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## remove what the tools left behind (not the environment, not the demo's output)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

include docker/images.mk
