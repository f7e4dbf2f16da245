#!/usr/bin/env bash
# The unit tests beside those against the real server, which wait for much of their time. What the former say comes last.
set -uo pipefail
cd "$(dirname "$0")/.."

mkdir -p .cache/logs
log=.cache/logs/unit-tests.log
.venv/bin/python -m pytest -q tests/unit >"$log" 2>&1 &
unit=$!
trap 'kill "$unit" 2>/dev/null' EXIT
echo "tests/unit runs, too: its output goes to $log and comes last"
.venv/bin/python -m pytest -q tests/server
server=$?
wait "$unit"
code=$?
cat "$log"
exit $((server ? server : code))
