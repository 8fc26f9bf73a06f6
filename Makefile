# make run | test | quick | check | bench      options: DATA=<data folder>  ARGS="--no-traffic"  TESTS="tests/index" JOBS=0
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH  ?= append freshness
TESTS  ?= tests
JOBS   ?= 3
# Threads that wait must not spin: tests share the cores with the processes they start.
TESTING := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

.PHONY: run test quick check bench lock clean

run: $(STAMP)
	$(BIN)/perseid up $(if $(DATA),--data $(DATA)) $(ARGS)

test: $(STAMP)
	$(TESTING) $(TESTS)

# Unit tests: without servers and whatever takes long.
quick: $(STAMP)
	$(TESTING) -m "not servers and not slow" $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py tests/test_layout.py

bench: $(STAMP)
	for name in $(BENCH); do $(BIN)/python -m tests.bench.$$name || exit 1; done

# Exact versions with hashes; the project itself is installed in place, without its dependencies.
$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard */*/*.cpp)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

lock:
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --extra dev --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .perseid
