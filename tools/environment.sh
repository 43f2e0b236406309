#!/bin/sh
# Makes the virtual environment $1 with the newest usable Python >= 3.11; $PYTHON names one to use instead.
# An environment that already works is kept.
set -eu
target=$1

works() { # a name on PATH may be a shim that refuses to run, so every candidate is tried
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

makes_environments() { # Debian ships Python without ensurepip until python3-venv is installed
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

find_python() { # prints the newest candidate for which $1 holds
    for candidate in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
        if works "$candidate" && "$1" "$candidate"; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

if [ -x "$target/bin/python" ] && works "$target/bin/python"; then
    "$target/bin/python" -m pip --version >/dev/null 2>&1 || "$target/bin/python" -m ensurepip >/dev/null
    exit 0
fi

if ! python=$(find_python makes_environments); then
    if ! bare=$(find_python works); then
        {
            echo "No Python 3.11 or newer was found${PYTHON:+ under the name $PYTHON}."
            echo "Install one (Debian or Ubuntu: sudo apt-get install python3 python3-venv; macOS: brew install python)"
            echo "or name it: make PYTHON=/path/to/python3.12 ..."
        } >&2
        exit 1
    fi
    package="python$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "$bare cannot make virtual environments yet: installing $package."
        apt-get update -qq || true
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null || true
    fi
    if ! python=$(find_python makes_environments); then
        {
            echo "$bare cannot make virtual environments: its module ensurepip is missing."
            echo "Install it (Debian or Ubuntu: sudo apt-get install $package) and run the same command again."
        } >&2
        exit 1
    fi
fi

echo "Making $target with $("$python" --version 2>&1)."
rm -rf "$target"
"$python" -m venv "$target"
