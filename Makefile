# make setup   a virtual environment with everything pinned; EXTRAS=dev,dali adds DALI, 0.6 GB, and stays so
# make demo    a small web-like data set, packed, trained plain and gated, evaluated, reported
# make test    all tests
# make bench-setup  a second environment with the loaders that wv-bench compares with, 7 GB
# make check   everything a reviewer would look at: style, types, walls between rooms, tests
# make gpu-check  on a machine with a GPU: the tests that need one, tables, and a verdict: does the loader keep it fed?
#              SHARDS=… on data of your own, GPU_CHECK=… where the tables go
# make clean   what the others made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH_VENV ?= .venv-bench
DEMO ?= demo
GPU_CHECK ?= gpu-check
# Extras of pyproject.toml; where they are not given, those of the last time.
EXTRAS ?= $(or $(shell cat $(VENV)/.extras 2>/dev/null),dev)

# Tests go in so many processes, which take over from one another: many wait for processes of their own.
TEST_PROCESSES ?= 2

# Tests and the demo use one thread per process where they start several.
export PYTHONUNBUFFERED := 1
# They start hundreds of Pythons, of which each would compile all our modules again: bytecode is kept, whatever a shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: always setup bench-setup demo test check lint types walls test-stock-pillow gpu-check clean

setup: $(VENV)/.ready
	@sh tools/setup_pillow_simd.sh $(VENV)
	@sh tools/setup_turbo.sh $(VENV)

# Changes when EXTRAS do.
$(VENV)/.extras: always
	@[ "$$(cat $@ 2>/dev/null)" = "$(EXTRAS)" ] || { mkdir -p $(VENV) && echo "$(EXTRAS)" >$@; }

# Bytecode is left to whoever first imports a module: pip would compile all of it, for most of a minute. Pillow-SIMD is
# built on another core meanwhile; should that fail, setup tries again and says why.
$(VENV)/.ready: pyproject.toml constraints.txt $(VENV)/.extras
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "wv-toolkit needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "the venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt 'setuptools>=77' wheel
	@echo "installing torch, 5 GB, then .[$(EXTRAS)] ..."
	@sh tools/setup_heavy.sh $(VENV)
	@sh tools/setup_pillow_simd.sh $(VENV) wheel >/dev/null 2>&1 & \
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'; \
	code=$$?; wait; exit $$code
	@touch $@

bench-setup: $(BENCH_VENV)/.ready

$(BENCH_VENV)/.ready: bench/constraints.txt tools/setup_bench.sh
	$(PYTHON) -m venv $(BENCH_VENV)
	@sh tools/setup_bench.sh $(BENCH_VENV)
	@touch $@

demo: setup
	$(BIN)/python tools/demo.py $(DEMO)

test: setup
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist worksteal

# One environment holds one PIL: where Pillow-SIMD is in, the tests of images run once more on stock Pillow.
test-stock-pillow: setup
	@sh tools/test_stock_pillow.sh $(VENV)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

walls: setup
	$(BIN)/lint-imports

# Tables are made though a test fails; what failed decides in the end. An environment that has DALI is left as it is.
gpu-check:
	@$(MAKE) --no-print-directory setup EXTRAS=$(if $(findstring dali,$(EXTRAS)),$(EXTRAS),$(EXTRAS),dali)
	@$(BIN)/wv-bench gpu-check --ready
	@tests=0; WV_REQUIRE_GPU=1 WV_REQUIRE_DALI=1 $(BIN)/python -m pytest -q -m gpu || tests=$$?; \
	$(BIN)/wv-bench gpu-check $(SHARDS) --out $(GPU_CHECK) || tests=$$?; \
	[ ! -f $(GPU_CHECK)/gpu-check.html ] || echo "tables and charts: $(GPU_CHECK)/gpu-check.html and beside it"; \
	exit $$tests

# The tests wait for processes, disks and one another: types and the rest go beside them.
check: lint
	@$(MAKE) --no-print-directory -j 3 test types walls test-stock-pillow

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(DEMO) $(GPU_CHECK) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
