# Needs a Python with its venv module, make and git; everything else is installed into .venv by pip.

PYTHON ?= python3
TESTS ?= tests
JOBS ?= 2
ROLES ?= udp-local udp-server tun2socks proxy-controller l3-tunnel

VENV = .venv
BIN = $(VENV)/bin
PIP = -m pip --quiet --disable-pip-version-check
WHEEL = build/wheel

# Says nothing unless the command fails.
quietly = $(1) >build/log 2>&1 || { cat build/log; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help venv demo test portable elsewhere check wheel format bench clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# One stamp for the environment and one for each extra; a change of the metadata installs anew.
$(VENV)/made:
	@echo "making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/test: $(VENV)/made setup.cfg pyproject.toml
	@echo "installing udptunnel and what its tests need into $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[test]'
	@touch $@

$(VENV)/check: $(VENV)/test
	@echo "installing the checkers into $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[test,check]'
	@touch $@

venv: $(VENV)/test ## set up .venv with an editable install

demo: $(VENV)/test ## show a datagram's way through both ends
	@$(BIN)/udptunnel demo

test: $(VENV)/test ## run the tests; TESTS=tests.wire.test_frame runs one module, JOBS=1 one after the other
	@echo "testing $(TESTS)"
	@$(BIN)/python -m twisted.trial -j $(JOBS) $(TESTS)

portable: $(VENV)/test ## run the tests without any kernel ability and with the select reactor
	@echo "testing $(TESTS) on the portable path"
	@UDPTUNNEL_OFFLOAD=none $(BIN)/python -m twisted.trial -j $(JOBS) --reactor select $(TESTS)

elsewhere: $(VENV)/test ## run the core suite without what Windows does not have
	@echo "testing what works everywhere, without what is not"
	@UDPTUNNEL_EXAMPLES=1 $(BIN)/python -m tests.elsewhere core

check: $(VENV)/check ## format, lint, types, layers, API docs, change fragments
	@echo "checking format and lint"
	@mkdir -p build
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/ruff check --quiet
	@echo "checking types"
	@$(BIN)/mypy --no-error-summary
	@echo "checking layers"
	@$(call quietly,$(BIN)/lint-imports --no-logo)
	@echo "checking API docs"
	@$(BIN)/pydoctor --quiet
	@echo "checking change fragments"
	@$(call quietly,$(BIN)/towncrier build --draft)

format: $(VENV)/check ## put code into the one format, and repair what ruff can
	@$(BIN)/ruff check --quiet --fix-only
	@$(BIN)/ruff format

# The wheel is built from the sdist, so that a file missing from the sdist shows. twistd runs in a folder of its own: it would
# otherwise find the plugins of this one. Asking each role for its help imports it, and so finds a package left out.
wheel: $(VENV)/check ## build the wheel, install it into an empty environment, look for every role there
	@rm -rf $(WHEEL)
	@mkdir -p $(WHEEL)/empty
	@echo "building the wheel"
	@$(call quietly,$(BIN)/python -m build --outdir $(WHEEL)/dist .)
	@echo "installing the wheel into an empty environment"
	@$(PYTHON) -m venv $(WHEEL)/venv
	@$(WHEEL)/venv/bin/python $(PIP) install $(WHEEL)/dist/*.whl
	@cd $(WHEEL)/empty && ../venv/bin/twistd --help >roles && ../venv/bin/udptunnel --help >help
	@for role in $(ROLES); do \
	    grep -q "^ *$$role " $(WHEEL)/empty/roles || { echo "twistd --help does not list $$role"; exit 1; }; \
	    (cd $(WHEEL)/empty && ../venv/bin/twistd $$role --help >$$role) || exit 1; \
	done
	@echo "twistd lists $(ROLES), and udptunnel --help works"

bench: $(VENV)/test ## run the benchmarks
	@$(BIN)/python -m bench

clean: ## remove everything that was made, .venv too
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .hypothesis .coverage*
	rm -rf .import_linter_cache .mypy_cache .ruff_cache
	find . -name .git -prune -o \( -name __pycache__ -o -name dropin.cache \) -prune -exec rm -rf {} +
