# The two commands a user needs are `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := benchmarks card cli client export models proto service study

.PHONY: demo study test bench fuzz lint typecheck stubs install clean

demo: $(VENV)/installed
	$(BIN)/streamcell demo $(DEMO)

test: $(VENV)/installed
	$(BIN)/pytest

# Broken messages at real servers beside honest clients, and the parsers under coverage-guided fuzzing, for FUZZ_S seconds
# in all (600 if not given). FUZZ_SEED repeats a round. Where there is no atheris, that is said and the parsers are left out.
fuzz: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --only-binary atheris atheris
	$(BIN)/python -m tests.hostile.fuzz

# Measures everything and writes docs/benchmarks.md and benchmarks/results/latest.json. BENCH=--quick for a short one,
# PEER=pytriton for Triton beside it.
bench: $(VENV)/installed
	$(BIN)/python -m streamcell.benchmarks $(if $(PEER),--peer $(PEER)) $(BENCH)

# Measures what recurrence and depth do to gradients and writes docs/gradients.md: about ten minutes on two cores.
study: $(VENV)/installed
	$(BIN)/python -m streamcell.study

install: $(VENV)/installed

# One environment for everything; constraints.txt pins what is tried and known to work.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds packages by folder, and the folders are sub-packages of `streamcell`: link them as it expects.
typecheck: $(VENV)/installed
	mkdir -p build/typecheck/streamcell
	for package in $(PACKAGES); do ln -sfn ../../../$$package build/typecheck/streamcell/$$package; done
	$(BIN)/mypy $(addprefix --package streamcell.,$(PACKAGES))

# Regenerates the committed stubs; `python proto/generate.py --check` fails where they are stale.
stubs:
	$(PYTHON) proto/generate.py

clean:
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
