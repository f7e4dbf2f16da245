#!/usr/bin/env bash
# What only tests need: a Redis server. INSTALL_PACKAGES=1 lets root install it; without it those tests are skipped.
set -euo pipefail

command -v redis-server >/dev/null && exit 0
if [[ ${INSTALL_PACKAGES:-0} == 1 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "tests: installing redis-server"
    # Of runlevel 1, so that the package starts no server of its own.
    apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends redis-server >/dev/null && exit 0
fi
echo "tests: redis-server is missing, its tests are skipped; install it with: apt-get install redis-server"
