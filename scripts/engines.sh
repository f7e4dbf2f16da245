#!/usr/bin/env bash
# Builds the engines that the server loads, in the current directory; quick when they are up to date.
# `make engine` and the `build` services of docker-compose.yml run this. PY is the Python to use.
set -euo pipefail

: "${PY:=.venv/bin/python}"
"$PY" -m build_engines default
"$PY" -m build_engines drafter
