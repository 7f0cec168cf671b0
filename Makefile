# Every target does its own set-up: `make demo` and `make test` need only Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo up test quick check format lint imports types openapi lock bench bench-claim bench-decisions bench-heartbeats clean

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Convener needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q app worker_agent migrations examples
	@touch $(READY)

demo: $(READY)
	@$(BIN)/convener demo

up: $(READY)
	@$(BIN)/convener up

# One process for each processor, each with a PostgreSQL of its own. For a single file call pytest itself.
IN_PARALLEL := --numprocesses=logical --dist=worksteal

test: $(READY)
	@$(BIN)/pytest $(IN_PARALLEL)

quick: $(READY)
	@$(BIN)/pytest $(IN_PARALLEL) -m 'not slow'

check: lint imports types test

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lint: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

imports: $(READY)
	@$(BIN)/lint-imports

types: $(READY)
	@$(BIN)/mypy

openapi: $(READY)
	@$(BIN)/convener openapi --write openapi/openapi.json

bench: $(READY)
	@$(BIN)/python -m benchmarks.main_job

bench-claim: $(READY)
	@$(BIN)/python -m benchmarks.claim_cost

bench-decisions: $(READY)
	@$(BIN)/python -m benchmarks.decision_latency

bench-heartbeats: $(READY)
	@$(BIN)/python -m benchmarks.heartbeats

# The lock holds versions and hashes, no addresses.
COMPILE := .venv/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --extra embedded
lock:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet pip-tools
	$(PYTHON) -c "import tomllib; g = tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']; print('\n'.join(g['dev'] + g['build']))" > .venv/lock/dev.in
	$(COMPILE) -o requirements/run.txt pyproject.toml
	$(COMPILE) -o requirements/dev.txt pyproject.toml .venv/lock/dev.in

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
