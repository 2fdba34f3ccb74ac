# Every command of the project; `make help` lists them. VENV and PYTHON may be given:
# `make test-gpu PYTHON=python3` runs with an interpreter that has everything installed.

VENV    := .venv
PYTHON  ?= $(VENV)/bin/python
TORCH   := $(shell sed -n '/^torch==/p' constraints.txt)
# Installed once per content of these two files.
STAMP   := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
READY   := $(if $(filter $(VENV)/bin/python,$(PYTHON)),$(STAMP))
# Byte code is written on first import: most files are never imported.
PIP     := $(VENV)/bin/python -m pip install -qq --no-compile
PYTEST  := $(PYTHON) -m pytest
STACK   := $(PYTHON) -m slm_core.local_stack

.DEFAULT_GOAL := help
.PHONY: help install demo demo-short test test-gpu check lint-images format up down status deploy lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

install: $(READY) ## Create .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/pip || sh -c 'for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	    $$p -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && \
	    echo "creating $(VENV) with $$($$p --version)" && exec $$p -m venv $(VENV); done; \
	  echo "SLM Swap needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install one, then run make again." >&2; exit 1'
	@echo "installing into $(VENV): some minutes the first time"
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt -e '.[all]'
	@rm -f $(VENV)/.installed-* && touch $@

# The demo has its own Prefect home; its own lines are enough here. LOG_LEVEL=INFO shows all.
DEMO_ENV := PREFECT_HOME=$(CURDIR)/.slm/prefect DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false \
            PREFECT_LOGGING_LEVEL=$(or $(LOG_LEVEL),CRITICAL) \
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120

demo: $(READY) ## Run the whole loop on this machine (FRESH=1 starts over, SEED=n)
	@mkdir -p .slm/prefect
	@$(DEMO_ENV) $(PYTHON) -W ignore::FutureWarning -m flows.run_demo $(if $(FRESH),--fresh) $(if $(SEED),--seed $(SEED)) $(DEMO_ARGS)

demo-short: ## The same with fewer rows, for a quick look
	@$(MAKE) --no-print-directory demo DEMO_ARGS="--short $(DEMO_ARGS)"

test: $(READY) ## Run every test that needs no GPU, on a real PostgreSQL too
	$(PYTEST) -n 2 --dist loadfile -m 'not gpu and not hub' $(PYTEST_ARGS)

test-gpu: $(READY) ## Run the tests that need a GPU; fails where there is none
	$(PYTEST) -m gpu --require-gpu $(PYTEST_ARGS)

check: $(READY) ## Check format, lint, types, layers and images
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	@$(MAKE) --no-print-directory lint-images

lint-images: $(READY) ## Check Dockerfiles, scripts and the compose file
	$(VENV)/bin/hadolint docker/*.Dockerfile
	$(VENV)/bin/shellcheck .ci/run docker/*.sh deployments/*.sh
	$(VENV)/bin/docker-compose --profile '*' --file docker/compose.yaml config --quiet
	@said=$$($(VENV)/bin/caddy validate --config docker/Caddyfile 2>&1) || { echo "$$said" >&2; exit 1; }

format: $(READY) ## Format the code and mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

up: $(READY) ## Start PostgreSQL, a Prefect server and its workers on loopback
	$(STACK) up

down: $(READY) ## Stop what `make up` started; data and logs stay
	$(STACK) down

status: $(READY) ## Show what runs
	$(STACK) status

deploy: $(READY) ## Make the server of PREFECT_API_URL know pools and deployments (GPU=docker, CPU=docker, NOTIFY=off)
	$(PYTHON) -m tasks.deploy $(if $(GPU),--gpu $(GPU)) $(if $(CPU),--cpu $(CPU)) $(if $(filter off,$(NOTIFY)),--no-notify)

lock: $(READY) ## Write the versions in .venv to constraints.txt
	{ sed -n '/^#/p' constraints.txt; $(VENV)/bin/pip freeze --exclude-editable \
	    | sed -e '/ @ /d' -e 's/+c[pu0-9]*$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove caches; .venv and .slm stay
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find flows tasks slm_core tests -name __pycache__ -prune -exec rm -rf {} +
