#!/bin/sh
# Sees to it that the tests find wrk, with which benchmarks load a server; where it cannot be installed, the tests of
# those benchmarks see that they say so.
set -eu
command -v wrk >/dev/null 2>&1 && exit 0
sh "$(dirname "$0")/package.sh" wrk || echo "wrk could not be installed: benchmarks over HTTP are not tried."
