#!/usr/bin/env bash
# What only tests need: Redis, Prometheus and HAProxy. INSTALL_PACKAGES=1 lets root install it; without it the tests are
# skipped.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v promtool >/dev/null || missing+=(prometheus)
[[ -x /usr/sbin/haproxy ]] || missing+=(haproxy)
((${#missing[@]})) || exit 0
if [[ ${INSTALL_PACKAGES:-0} == 1 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "tests: installing ${missing[*]}"
    # Of runlevel 1, so that the packages start no servers of their own.
    apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null && exit 0
fi
echo "tests: missing, and the tests that need them skipped: ${missing[*]}; install with: apt-get install ${missing[*]}"
