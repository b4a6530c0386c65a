# Shortcuts for people who work on the code. Each target prepares .venv itself, through ./run.

BIN := .venv/bin
UV ?= uv
# Hashes, but no address: an index belongs to the machine that installs, not to the project.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

.PHONY: help check lint types layers shell deploy test test-all cover lock clean dev
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

check: lint types layers shell deploy ## everything that needs no test run (≤ 60 s)

lint: dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev ## mypy --strict
	$(BIN)/mypy

layers: dev ## import-linter: who may import whom
	$(BIN)/lint-imports

shell: dev ## shellcheck
	$(BIN)/shellcheck run .ci/run

deploy: dev ## Dockerfile and compose file
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

test: dev ## what CI runs
	$(BIN)/python -m pytest

test-all: dev ## the slow ones too
	$(BIN)/python -m pytest -m ''

cover: dev ## branch coverage of relay/
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

lock: ## make the locks anew, with the newest versions (needs uv)
	$(COMPILE) --upgrade --extra server -o requirements/server.lock pyproject.toml
	$(COMPILE) --upgrade --extra server --extra dev -c requirements/server.lock -o requirements/dev.lock pyproject.toml
	$(COMPILE) --upgrade -c requirements/dev.lock -o requirements/build.lock requirements/build.in
	@! grep -n '://' requirements/*.lock

clean: ## all that can be made again
	rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
		.coverage dist
	find relay tests -name __pycache__ -prune -exec rm -rf {} +

dev:
	@./run dev
