# Two commands for a newcomer: `make demo` and `make test`. Each does all its own set-up in .venv/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: help setup setup-dev demo crash-test test check bench bench-peers bench-runtime bench-breaker bench-overload mutate soak dist lock golden system-deps clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/core.stamp  ## make .venv/ with what Kensho needs (about 40 packages, pinned by hash)

setup-dev: $(VENV)/dev.stamp  ## setup, and what tests and checks need

$(VENV)/core.stamp: requirements/core.lock requirements/build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Kensho needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make setup PYTHON=python3.11")'
	@echo "setup: making $(VENV)/ with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing the pinned dependencies (hashes checked) ..."
	@$(PIP) install --require-hashes -r requirements/core.lock -r requirements/build.lock
	@echo "setup: installing Kensho itself"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q src/kensho
	@touch $@
	@echo "setup: done. Try: $(BIN)/kensho demo"

$(VENV)/dev.stamp: $(VENV)/core.stamp requirements/dev.lock
	@echo "setup: installing what tests and checks need ..."
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

demo: setup  ## the whole story on real parts, in less than a minute
	@$(BIN)/kensho demo

crash-test: setup-dev  ## kill and fail at every system call of every operation; some minutes; needs strace
	@$(BIN)/python -m pytest tests/crash --full-sweep

test: setup-dev  ## all tests, real servers and processes included, and one run of the demo
	@$(BIN)/python -m pytest

check: setup-dev  ## format, lint, import rules, types, fast tests
	@$(BIN)/ruff format --check --quiet . || { echo "format: run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-logo >.import-rules.log 2>&1 || { cat .import-rules.log; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m pytest -m "not real and not store" -n 2

bench: setup-dev  ## delivery beside its peers, each against its bar (needs nginx-light aria2 zsync; 2.5 GB in build/)
	@for name in download verify repair tokenizer hosts interrupt startup; do $(BIN)/python bench/$$name.py || exit 1; echo; done

bench-peers: build/peers/peers.stamp  ## the engines that bench-runtime compares with (in build/peers/; llama.cpp is built: minutes)

build/peers/peers.stamp: requirements/peers.lock
	@mkdir -p build && $(PYTHON) -m venv build/peers
	@build/peers/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/peers.lock
	@touch $@

build/breaker-peers/peers.stamp: requirements/breaker-peers.in
	@mkdir -p build && $(PYTHON) -m venv build/breaker-peers
	@build/breaker-peers/bin/python -m pip --disable-pip-version-check --quiet install -r requirements/breaker-peers.in
	@touch $@

bench-breaker: setup-dev build/breaker-peers/peers.stamp  ## the circuit breaker beside seven others: cost, and what they let through
	@$(BIN)/python bench/breaker.py

bench-overload: setup-dev build/breaker-peers/peers.stamp  ## overload, simulated beside four peers and for real; a hang; kills (25 minutes)
	@$(BIN)/python bench/overload.py
	@echo; $(BIN)/python bench/hang.py
	@echo; $(BIN)/python bench/failover.py

mutate: setup-dev  ## change every line that decides, and see that a test fails (mutmut; half an hour)
	@$(BIN)/python bench/mutate.py

soak: setup-dev  ## the long forms: virtual days of faults, a thousand kills, models beside their references (15 minutes)
	@$(BIN)/python tests/resilience/breaker_walk.py 1000000
	@KENSHO_LONG=1 $(BIN)/python -m pytest tests/resilience/test_admission_model.py tests/resilience/test_breaker_model.py
	@$(BIN)/python bench/soak.py
	@$(BIN)/python bench/failover.py --kills 1000

bench-runtime: setup-dev  ## the runtime beside the peers that are there (20 minutes; 3 GB in build/)
	@for name in compile peers busy failures; do $(BIN)/python bench/runtime_$$name.py || exit 1; echo; done

dist: setup-dev  ## build a wheel and prove that it runs `kensho demo` with no checkout
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --wheel --outdir dist . >/dev/null
	@ls dist
	@rm -rf build/clean && $(PYTHON) -m venv build/clean
	@build/clean/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/core.lock
	@build/clean/bin/python -m pip --disable-pip-version-check --quiet install --no-deps dist/*.whl
	@cd build && clean/bin/kensho demo

lock: setup-dev  ## renew the lock files (needs `uv`); they hold hashes and no addresses
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -U requirements/build.in -o requirements/build.lock
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -U pyproject.toml -o requirements/core.lock
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -U requirements/dev.in -c requirements/core.lock -o requirements/dev.lock
	uv pip compile -q --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -U requirements/peers.in -o requirements/peers.lock

system-deps:  ## install the system programs that some tests use (Debian; needs root)
	@apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light strace util-linux >/dev/null

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .import-rules.log
