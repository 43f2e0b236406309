#!/bin/sh
# Sees to it that the tests of the catalog find a real Chromium: one of this machine, or Debian's package where that may
# be installed, or else the one that Playwright, in the environment of the Python $1, downloads.
set -eu
python=$1
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done
if sh "$(dirname "$0")/package.sh" chromium; then
    exit 0
fi
echo "Installing Chromium for the tests, by Playwright."
if ! "$python" -m playwright install chromium >/dev/null; then
    {
        echo "There is no Chromium for the tests, and neither Debian's package nor Playwright's download could be"
        echo "installed. Install it (Debian or Ubuntu: sudo apt-get install chromium), so that it is on PATH, and run"
        echo "the same command again."
    } >&2
    exit 1
fi
