# make setup   install what relayctl and its tests need (root, once); idempotent
# make install   install relayctl on a server: Debian packages, virtual environment in PREFIX (/opt/relayctl), user,
#              configuration, systemd unit (root); starts nothing; run again to upgrade
# make uninstall   remove all of that but /etc/relayctl and /var/lib/relayctl (root)
# make demo    start relay and transceivers, place a call, show the page; CHECK=1 exits after the report
# make demo-recovery   kill the relay of live calls, with Redis and without, and see the gaps (root, a minute)
# make test    everything that CI runs
# make examples   install what examples/ needs beside the project (pipecat, FastRTC: 1.4 GB) into .venv-examples
# make bench   measure this relay beside others (root, about 15 minutes); writes bench-results.json
# make check   lint, types, import contracts only
# make vm-up   five virtual machines with a relay, transceivers, Redis and a client (root; Vagrant, libvirt)
# make vm-test  tests on them, or on the hosts of INVENTORY=FILE; writes vm-report.md and vm-report.xml
# make vm-down  remove the virtual machines
# make clean   remove the virtual environment and caches
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
# pipecat and FastRTC are heavy, and no part of relayctl.
EXAMPLES_VENV := .venv-examples
# Debian 12: BCC and the kernel's uapi headers
RUN_PACKAGES := python3-venv python3-bpfcc linux-libc-dev
# browsers and a Redis for the end-to-end tests; a C compiler and formatter for bpf/; systemd-analyze for deploy/
PACKAGES := $(RUN_PACKAGES) chromium firefox-esr gcc libc6-dev clang-format iproute2 redis-server shellcheck systemd
# What `vagrant validate` needs; vagrant/host installs the rest.
VM_CHECK_PACKAGES := vagrant vagrant-libvirt
TESTS_SIDE_BY_SIDE := 4
# Relays that `make bench` measures; one that is not there is a row without a number.
BENCH_PACKAGES := golang-go nginx libnginx-mod-stream coturn nftables
# Where `make install` puts things. The unit names /usr/local/bin/relayctl, /etc/relayctl and, by default, /var/lib/relayctl.
PREFIX := /opt/relayctl
# What is in a PREFIX with this file goes with `make uninstall`.
OURS = $(PREFIX)/.made-by-relayctl
LINK := /usr/local/bin/relayctl
CONFIG_DIR := /etc/relayctl
UNIT_DIR := /etc/systemd/system
SERVICE_USER := relayctl
# Nobody asked for a Redis or an nginx that runs on this host.
NEED_PACKAGES := source deploy/debian.sh; START_SERVICES=no need_packages
# $(1): who asks
define need_root
	if [ "$$(id -u)" != 0 ]; then echo "$(1): needs root; run 'sudo make $(1)'" >&2; exit 1; fi
endef

.PHONY: help setup install uninstall demo demo-recovery examples bench test check pytest vm-check vm-up vm-test vm-down clean

help:
	@sed -n '/^SHELL/q;s/^# //p' Makefile

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml Makefile
	@$(NEED_PACKAGES) "make setup" $(PACKAGES)
	@# /usr/bin/python3 and its site packages: BCC's Python module is Debian's
	@echo "setup: Python packages into $(VENV)"
	@/usr/bin/python3 -m venv --system-site-packages $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@echo "setup: done"

install:
	@$(call need_root,install)
	@if [ ! -e $(OURS) ] && [ -n "$$(ls -A $(PREFIX) 2>/dev/null)" ]; then \
		echo "install: $(PREFIX) has other files; PREFIX is a directory for relayctl alone, as /opt/relayctl" >&2; exit 1; \
	fi
	@install -d $(PREFIX) && touch $(OURS)
	@$(NEED_PACKAGES) "make install" $(RUN_PACKAGES)
	@echo "install: Python packages into $(PREFIX)"
	@umask 022; /usr/bin/python3 -m venv --system-site-packages $(PREFIX)
	@# setuptools builds in the tree, and would put into the wheel what an earlier build has left there
	@rm -rf build
	@umask 022; $(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check .
	@rm -rf build
	@if ! getent passwd $(SERVICE_USER) >/dev/null; then \
		echo "install: system user $(SERVICE_USER)"; \
		useradd --system --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin $(SERVICE_USER); \
		touch $(PREFIX)/.made-user; \
	fi
	@install -d $(dir $(LINK)) $(UNIT_DIR)
	@ln -sfn $(PREFIX)/bin/relayctl $(LINK)
	@if [ ! -d $(CONFIG_DIR) ]; then install -d -m 0755 $(CONFIG_DIR); fi
	@if [ ! -e $(CONFIG_DIR)/relayctl.toml ]; then \
		umask 022; $(LINK) init --user $(SERVICE_USER) $(CONFIG_DIR)/relayctl.toml >/dev/null; \
		echo "install: wrote $(CONFIG_DIR)/relayctl.toml"; \
	fi
	@install -m 0644 deploy/systemd/relayctl.service $(UNIT_DIR)/relayctl.service
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "install: $$($(LINK) --version). Next: edit $(CONFIG_DIR)/relayctl.toml, then 'systemctl enable --now relayctl';"
	@echo "install: a relay that runs goes over to this version, with its calls, by 'systemctl reload relayctl' or 'relayctl upgrade'"

uninstall:
	@$(call need_root,uninstall)
	@code=3; said="nothing runs"; if [ -x $(LINK) ]; then code=0; said=$$($(LINK) status 2>&1) || code=$$?; fi; \
	if [ $$code = 0 ] || { [ $$code = 3 ] && [[ $$said != *"nothing runs"* ]]; }; then \
		echo "uninstall: relayctl runs; end it first, with 'systemctl stop relayctl' or 'relayctl stop'" >&2; exit 1; \
	fi
	@if [ -d /run/systemd/system ] && [ -e $(UNIT_DIR)/relayctl.service ]; then systemctl disable --quiet relayctl; fi
	@rm -f $(UNIT_DIR)/relayctl.service
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@if [ -e $(PREFIX)/.made-user ]; then userdel $(SERVICE_USER); fi
	@if [ "$$(readlink $(LINK))" = $(PREFIX)/bin/relayctl ]; then rm $(LINK); fi
	@if [ -e $(OURS) ]; then rm -rf $(PREFIX); else echo "uninstall: $(PREFIX) is not one of 'make install': left"; fi
	@echo "uninstall: done; $(CONFIG_DIR) and /var/lib/relayctl, with keys, are left, and so are Debian packages"

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
	@if [ "$$(id -u)" = 0 ] && ! ($(NEED_PACKAGES) "make bench" $(BENCH_PACKAGES)); then \
		for package in $(BENCH_PACKAGES); do \
			($(NEED_PACKAGES) "make bench" $$package) || echo "bench: no $$package; its row will say so" >&2; \
		done; \
	fi
	@touch $@

test: check vm-check pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')
	shellcheck --external-sources --severity=warning $$(git grep -lE '^#!.*[/ ](ba)?sh$$')

# Most of what takes long is waiting, so four processes gain on two cores, too (docs/testing.md). The files that take long
# come first, as tests/conftest.py sorts them. What needs the machine for itself runs even if something else has failed.
pytest: setup examples
	@export REQUIRE_EXAMPLES=1 REQUIRE_SYSTEMD_ANALYZE=1; status=0; trap 'exit 130' INT; \
	(set -x; $(BIN)/python -m pytest -n $(TESTS_SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder -m "not alone") || status=$$?; \
	(set -x; $(BIN)/python -m pytest -m alone) || status=$$?; \
	exit $$status

# vagrant/README.md. RELAY_NIC_MODEL=e1000e: a network card without native XDP. vm-test takes the machines of vm-up by default.
vm-check:
	@$(NEED_PACKAGES) "make vm-check" $(VM_CHECK_PACKAGES)
	for model in virtio e1000e; do (cd vagrant && RELAY_NIC_MODEL=$$model vagrant validate); done

vm-up:
	@vagrant/host up

vm-test: setup
	@inventory=$(or $(INVENTORY),$$(vagrant/host inventory)); \
	$(BIN)/python -m pytest tests/vm --inventory "$$inventory" --report vm-report.md --junit-xml vm-report.xml

vm-down:
	@vagrant/host down

clean:
	rm -rf $(VENV) $(EXAMPLES_VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
