# The two commands a user needs are `make demo` and `make test`. Each first installs what it needs and says so.
PYTHON ?= python3
VENV := .venv
SERVE := .venv-serve
# Compiled modules are kept: without them each process compiles 200 anew, a third of a server's start.
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
PACKAGES := benchmarks card cli client export models proto service study

# Where pip finds PyTorch's own builds, if not on PyPI. On Linux PyPI's torch brings CUDA's libraries, some gigabytes:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# takes the build for CPUs instead. It counts for the first installation.
TORCH_INDEX ?=

.PHONY: certificates demo study test compiled test-compiled bench docs fuzz chaos lint typecheck stubs install serve-only clean

# DEMO=NAME for one of the others.
demo: $(VENV)/installed
	$(BIN)/streamcell demo $(DEMO)

# ARGS goes to pytest: make test ARGS="-k session", ARGS="-m 'not slow'". JOBS is the number of processes that run tests:
# more than two cores need, for many tests wait.
JOBS ?= 4
test: $(VENV)/installed
	@.ci/programs prometheus promtool openssl nginx haproxy redis-server node kubectl chromium espeak-ng
	PATH="$(CURDIR)/build/node/links:$$PATH" $(BIN)/pytest -n $(JOBS) $(ARGS)

# The package as a wheel brings it, its hot path compiled (compiled/modules.py), below build/compiled/site. The sources'
# own environment stays interpreted. `make compiled && PYTHONPATH=build/compiled/site .venv/bin/streamcell serve …` runs it.
COMPILED := build/compiled/site
compiled: $(COMPILED)/made
$(COMPILED)/made: pyproject.toml setup.py $(wildcard compiled/*.py) $(shell find $(PACKAGES) package -name '*.py') | $(VENV)/installed
	@echo "== compiling the hot path: a minute or two"
	rm -rf $(COMPILED) build/compiled/wheel build/lib.* build/bdist.*
	STREAMCELL_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--wheel-dir build/compiled/wheel .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILED) build/compiled/wheel/*.whl
	@touch $@

# The served suites on the compiled package. Tests of the interpreted build alone are left out, and named at the end.
SERVED := tests/repo/test_compiled.py $(addprefix tests/service/,batching sessions protocols transport generation) \
	$(addprefix tests/end_to_end/,durable generation open_inference test_faults.py test_frames.py test_mistakes.py \
	test_session_pages.py test_shutdown.py test_wire.py)
test-compiled: $(COMPILED)/made
	PYTHONPATH="$(CURDIR)/$(COMPILED)" STREAMCELL_COMPILED=1 PATH="$(CURDIR)/build/node/links:$$PATH" \
		$(BIN)/pytest -n $(JOBS) -m "not slow and not alone" $(SERVED) $(ARGS)

# Broken messages at real servers beside honest clients, and the parsers under coverage-guided fuzzing, for FUZZ_S seconds
# in all (600 if not given). FUZZ_SEED repeats a round. Where there is no atheris, that is said and the parsers are left out.
fuzz: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --only-binary atheris atheris
	$(BIN)/python -m tests.hostile.fuzz

# Kills a server KILLS times with SIGKILL while sessions stream, in one process and with front ends; then for CLUSTER_S
# seconds kills, stops, pauses and cuts off what a cluster is made of, half of the time at each store level. Nothing
# acknowledged may be lost, nothing doubled, no client may see an error. CHAOS_SEED (1) gives the order. ARGS goes to pytest.
chaos: KILLS ?= 200
chaos: CLUSTER_S ?= 600
chaos: $(VENV)/installed
	KILLS=$(KILLS) CLUSTER_S=$(CLUSTER_S) $(BIN)/pytest --timeout 0 tests/end_to_end/durable/test_kill.py \
		tests/end_to_end/cluster/test_chaos.py $(ARGS)

# Measures everything and writes docs/benchmarks.md and benchmarks/results/latest.json. BENCH=--quick for a short one,
# PEER=pytriton for Triton with a Python back end beside it, PEER=triton for a Triton of your own with its ONNX Runtime
# back end: BENCH="--triton-server FILE --triton-backends FOLDER --perf-analyzer FILE".
bench: $(VENV)/installed
	$(BIN)/python -m streamcell.benchmarks $(if $(PEER),--peer $(PEER)) $(BENCH)

# Certificates and tokens for docker-compose.yml, into deploy/secrets: docs/secure-compose.md. NAMES="HOST ADDRESS" are further
# names of the server; what is there is kept but for RENEW=certificates, tokens or all.
certificates:
	@NAMES="$(NAMES)" DAYS="$(or $(DAYS),365)" RENEW="$(RENEW)" deploy/certificates

# The documentation as a site, in build/site: open build/site/index.html. A link that leads nowhere is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Measures what recurrence and depth do to gradients and writes docs/gradients.md: about ten minutes on two cores.
study: $(VENV)/installed
	$(BIN)/python -m streamcell.study

install: $(VENV)/installed

# The server and the client alone, without torch, in an environment of its own.
serve-only: $(SERVE)/installed
	@echo "== now: $(SERVE)/bin/streamcell serve --models FOLDER"

# constraints.txt pins what is tried and known to work.
$(VENV)/installed: EXTRA := dev
$(SERVE)/installed: EXTRA := serve
$(VENV)/installed $(SERVE)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "StreamCell needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(@D)/bin/pip || { .ci/programs venv && echo "== making $(@D)" && $(PYTHON) -m venv $(@D); }
	@echo "== installing streamcell[$(EXTRA)] into $(@D): a minute or more, as fast as the network brings it"
	$(@D)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$(EXTRA)]'
	@touch $@

# lint-imports takes the packages for its own roots only where `streamcell` is a mere namespace: links without `package/`.
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/imports/streamcell
	for package in $(PACKAGES); do ln -sfn ../../../$$package build/imports/streamcell/$$package; done
	PYTHONPATH=build/imports $(BIN)/lint-imports --no-logo
	$(BIN)/python client/generate.py --check
	$(BIN)/python cli/generate.py --check

# mypy finds packages by folder, and the folders are sub-packages of `streamcell`: link them as it expects.
typecheck: $(VENV)/installed
	mkdir -p build/typecheck/streamcell
	for package in $(PACKAGES); do ln -sfn ../../../$$package build/typecheck/streamcell/$$package; done
	ln -sfn ../../../package/__init__.py build/typecheck/streamcell/__init__.py
	$(BIN)/mypy --package streamcell

# Regenerates the committed stubs; `python proto/generate.py --check` fails where they are stale.
stubs:
	$(PYTHON) proto/generate.py

clean:
	rm -rf $(VENV) $(SERVE) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
