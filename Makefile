# Everything runs in .venv, made from hashed locks; Python 3.11 or newer is all it needs.
PYTHON ?= python3
BIN := .venv/bin
# With it set, each start-up compiles every module again and takes twice as long.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: build test lint docs bench drill lock clean

build: .venv/runtime  ## load the demo's source systems, build, publish a release, write the site
	@$(BIN)/python -m demo -- $(BIN)/tarn run

test: .venv/dev  ## run the tests
	@$(BIN)/pytest

lint: .venv/dev  ## check style, types and the dbt project; offline, in seconds
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/sqlfluff lint --disable-progress-bar --nocolor models tests/singular
	@$(BIN)/dbt parse --quiet && $(BIN)/dbt-bouncer run --only manifest_checks

bench: .venv/dev  ## measure each claim of speed beside its peer; two hours
	@for each in mart merge build star_join postgres read_csv streams stream_marts; do $(BIN)/python -m benchmarks.$$each || exit 1; done

drill: .venv/dev  ## kill, fill, race, fall silent and turn back the clock; most of an hour
	@$(BIN)/python -m tests.drills

docs: .venv/runtime  ## write the site again
	@$(BIN)/tarn docs

lock:  ## resolve the requirement locks anew (needs uv)
	uv pip compile --quiet $(LOCK) --group demo --group install -o requirements.lock pyproject.toml
	uv pip compile --quiet $(LOCK) --group demo --group install --group dev \
		-c requirements.lock -o requirements-dev.lock pyproject.toml

LOCK := --universal --generate-hashes --python-version 3.11 --no-emit-index-url --no-header

clean:  ## delete what can be made again; the lake stays
	rm -rf .tarn target site logs demo/.run

.venv/runtime: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements-dev.lock .venv/runtime
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes -r requirements-dev.lock
	@touch $@
