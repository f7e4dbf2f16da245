#!/usr/bin/env bash
# The Triton language, which the kernels in tandem/device are written in, into .cache/openai-triton: 286 MB to fetch and
# 1 GB on disk, so it is not among the packages of `make setup`. Where `import triton` works already, nothing is done.
#   kernel_packages.sh [--into-environment]     into .venv instead, where engines for GPUs are built
set -euo pipefail
cd "$(dirname "$0")/.."

target=.cache/openai-triton
wanted=$(sed -n 's/^kernels = \["\(triton==[0-9.]*\)"\].*/\1/p' pyproject.toml)
[[ -n $wanted ]] || { echo "kernels: pyproject.toml names no version of triton" >&2; exit 1; }
.venv/bin/python -c 'import triton.language' 2>/dev/null && exit 0
if [[ ${1:-} == --into-environment ]]; then
    echo "kernels: installing $wanted (286 MB)"
    exec .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps "$wanted"
fi
[[ -d $target/triton-${wanted#*==}.dist-info ]] && exit 0
echo "kernels: fetching $wanted (286 MB)"
rm -rf "$target"
.venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --target "$target.new" "$wanted"
mv "$target.new" "$target"
