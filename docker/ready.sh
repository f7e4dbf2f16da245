#!/usr/bin/env bash
# The health check: whether every model of the server in this container is ready.
set -euo pipefail

url=http://127.0.0.1:${TANDEM_HTTP_PORT:-8000}/v2/health/ready
exec "${TANDEM_HOME:-/opt/tandem}/.venv/bin/python" -I -S -c '
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=5)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
' "$url"
