# shellcheck shell=bash
# Debian's packages, for the scripts of this directory.

# Print which of these are not installed.
missing_packages() {
	local package
	for package in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
	done
}

# Install these. A machine that has just booted may be fetching lists of its own.
install_packages() {
	local tries
	for tries in 1 2 3 4 5; do
		if apt-get update -qq; then break; fi
		[[ $tries -lt 5 ]] && sleep 10
	done
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}
