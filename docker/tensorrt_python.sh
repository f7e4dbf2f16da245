#!/usr/bin/env bash
# Installs the Python bindings of the TensorRT that is on this machine, as NGC's Triton image holds only its libraries.
# A plan runs on the version that built it and on no other, so the bindings must be of the very same.
#   tensorrt_python.sh [--print]     --print: only say which package would be installed
# PY is the Python to install for; TENSORRT_LIBRARIES the directories to look in.
set -euo pipefail

: "${PY:=.venv/bin/python}"
: "${TENSORRT_LIBRARIES:=/usr/lib/x86_64-linux-gnu /usr/lib/x86_64-linux-gnu/tensorrt /usr/local/tensorrt/lib /opt/tensorrt/lib}"

fail() {
    printf 'tensorrt: %s\n' "$@" >&2
    exit 1
}

version=
for directory in $TENSORRT_LIBRARIES; do
    for library in "$directory"/libnvinfer.so.*.*.*; do
        [[ ! -e $library ]] || version=${library##*/libnvinfer.so.}
    done
done
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "no libnvinfer.so.X.Y.Z in $TENSORRT_LIBRARIES"
[[ ${version%%.*} == 11 ]] || fail "this is TensorRT $version, and the build code is written for TensorRT 11"

package="tensorrt-cu13-bindings==$version.*"
cuda="cuda-bindings==13.*" # the CUDA runtime for Python
if [[ ${1:-} == --print ]]; then
    echo "$package $cuda"
    exit
fi
"$PY" -m pip install --disable-pip-version-check -q --no-deps "$package" "$cuda" cuda-pathfinder
found=$("$PY" -c 'from tandem import tensorrt_library; print(tensorrt_library.load().__version__)')
[[ $found == "$version".* || $found == "$version" ]] || fail "the libraries are $version, the bindings say $found"
echo "tensorrt: bindings $found"
