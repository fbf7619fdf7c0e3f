# make setup   install what relayctl and its tests need (root, once); idempotent
# make demo    start relay and transceivers, place a call, show the page; CHECK=1 exits after the report
# make demo-recovery   kill the relay of live calls, with Redis and without, and see the gaps (root, a minute)
# make test    everything that CI runs
# make examples   install what examples/ needs beside the project (pipecat, FastRTC: 1.4 GB) into .venv-examples
# make bench   measure this relay beside others (root, about 15 minutes); writes bench-results.json
# make check   lint, types, import contracts only
# make clean   remove the virtual environment and caches
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
# pipecat and FastRTC are heavy, and no part of relayctl.
EXAMPLES_VENV := .venv-examples
# Debian 12: BCC and the kernel's uapi headers; browsers and a Redis for the end-to-end tests; a C compiler and formatter for bpf/
PACKAGES := python3-venv python3-bpfcc linux-libc-dev chromium firefox-esr gcc libc6-dev clang-format iproute2 redis-server
TESTS_SIDE_BY_SIDE := 4
# Relays that `make bench` measures; one that is not there is a row without a number.
BENCH_PACKAGES := golang-go nginx libnginx-mod-stream coturn nftables
export DEBIAN_FRONTEND := noninteractive
# Debian starts what it installs; nobody asked for a redis or an nginx on this host.
WITHOUT_SERVICES = policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then printf '\#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; trap "rm -f $$policy" EXIT; fi

.PHONY: help setup demo demo-recovery examples bench test check pytest clean

help:
	@sed -n '/^SHELL/q;s/^# //p' Makefile

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml Makefile
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ]; then \
			echo "setup: Debian packages are missing ($$(echo $$missing)); run 'make setup' once as root" >&2; exit 1; \
		fi; \
		echo "setup: installing Debian packages:" $$missing; \
		$(WITHOUT_SERVICES); \
		apt-get update -qq; \
		apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
	@# /usr/bin/python3 and its site packages: BCC's Python module is Debian's
	@echo "setup: Python packages into $(VENV)"
	@/usr/bin/python3 -m venv --system-site-packages $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@echo "setup: done"

demo: setup
	@$(BIN)/relayctl demo $(if $(CHECK),--check)

demo-recovery: setup
	@$(BIN)/python -m bench recovery --only restart,takeover --rounds 1 --calls 2 --tabs 1

examples: $(EXAMPLES_VENV)/.complete

$(EXAMPLES_VENV)/.complete: examples/requirements.txt $(VENV)/.complete
	@echo "examples: Python packages into $(EXAMPLES_VENV)"
	@/usr/bin/python3 -m venv $(EXAMPLES_VENV)
	@$(EXAMPLES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable . --requirement $<
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m bench --out bench-results.json

$(VENV)/.bench: $(VENV)/.complete
	@missing=$$(for p in $(BENCH_PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then \
		echo "bench: installing Debian packages, without starting their services:" $$missing; \
		$(WITHOUT_SERVICES); \
		apt-get update -qq; \
		for p in $$missing; do \
			apt-get install -y -qq --no-install-recommends $$p >/dev/null || echo "bench: no $$p; its row will say so" >&2; \
		done; \
	fi
	@touch $@

test: check pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')

# Most of what takes long is waiting, so four processes gain on two cores, too (docs/testing.md). The files that take long
# come first, as tests/conftest.py sorts them. What needs the machine for itself runs even if something else has failed.
pytest: setup examples
	@export REQUIRE_EXAMPLES=1; status=0; \
	(set -x; $(BIN)/python -m pytest -n $(TESTS_SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder -m "not alone") || status=$$?; \
	(set -x; $(BIN)/python -m pytest -m alone) || status=$$?; \
	exit $$status

clean:
	rm -rf $(VENV) $(EXAMPLES_VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
