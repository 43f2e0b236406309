#!/bin/sh
# Prints a new folder on a disk in memory for what the tests write, nothing where there is none with room. The product
# syncs whatever it commits, so that on a real disk the tests would wait for it ten thousand times, and test nothing more.
set -eu
disk=${1:-/dev/shm}
least_kb=4194304
free_kb=$(df -Pk "$disk" 2>/dev/null | awk 'NR == 2 {print $4}')
if [ -w "$disk" ] && [ "${free_kb:-0}" -ge "$least_kb" ]; then
    mktemp -d "$disk/featurestore-tests-XXXXXX"
fi
