# shellcheck shell=bash
# Debian's packages, for the Makefile and the scripts.

# Print which of these are not installed.
missing_packages() {
	local package
	for package in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
	done
}

# Install these; with START_SERVICES=no Debian does not start the services among them. A machine that has just booted may be
# fetching lists of its own.
install_packages() (
	policy=/usr/sbin/policy-rc.d
	if [[ ${START_SERVICES:-yes} == no && ! -e $policy ]]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	fi
	for tries in 1 2 3 4 5; do
		if apt-get update -qq; then break; fi
		[[ $tries -lt 5 ]] && sleep 10
	done
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >/dev/null
)

# Install those that are missing. $1 is the command that needs them, as the user knows it.
need_packages() {
	local command=$1 missing
	mapfile -t missing < <(missing_packages "${@:2}")
	[[ ${#missing[@]} -gt 0 ]] || return 0
	if [[ $(id -u) != 0 ]]; then
		echo "$command: Debian packages are missing (${missing[*]}); run it once as root" >&2
		return 1
	fi
	echo "$command: installing Debian packages: ${missing[*]}" >&2
	install_packages "${missing[@]}"
}
