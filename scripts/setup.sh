#!/usr/bin/env bash
# Creates .venv from requirements.lock and checks that the server can run in it.
# INSTALL_PACKAGES=1 lets root install missing Debian packages; otherwise they are named with the command to run.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# install WHY PACKAGE...: installs Debian packages if that is allowed and possible, else says how and stops.
install() {
    local why=$1
    shift
    if [[ ${INSTALL_PACKAGES:-0} == 1 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        echo "setup: $why: installing $*"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
            >/dev/null && return
    fi
    local sudo=""
    [[ $(id -u) == 0 ]] || sudo="sudo "
    fail "$why" "install what is missing with:  ${sudo}apt-get update && ${sudo}apt-get install -y $*"
}

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        if "$candidate" -c "$supported" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

[[ $(uname -sm) == "Linux x86_64" ]] || fail "Linux on x86-64 is needed: the bundled server is built for nothing else"

if ! .venv/bin/python -c "$supported" 2>/dev/null; then
    rm -rf .venv
    if ! python=$(find_python); then
        install "Python 3.11 or 3.12 is needed, and ${PYTHON:-python3} is none" python3 python3-venv
        python=$(find_python) || fail "the distribution has no Python 3.11 or 3.12: set PYTHON to one"
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        install "$python cannot create virtual environments" "python$version-venv"
    fi
    echo "setup: creating .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

total=$(grep -c '==' requirements.lock)
echo "setup: installing $total packages (about 2 GB on disk, one to three minutes)"
log=.venv/install.log
show_progress() {
    local line count=0
    while IFS= read -r line; do
        case $line in
        Collecting* | Processing* | "Requirement already"*)
            count=$((count + 1))
            if ((count % 10 == 0 || count == total)); then echo "  $count of $total found"; fi
            ;;
        "Installing collected"*) echo "  unpacking" ;;
        esac
    done
}
.venv/bin/pip install --disable-pip-version-check --no-deps -r requirements.lock 2>&1 | tee "$log" | show_progress ||
    fail "pip failed; the end of $log:" "$(tail -n 5 "$log")"
.venv/bin/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .

reason=$(.venv/bin/python -c 'import torch' 2>&1) || fail "the installed torch does not import: ${reason##*$'\n'}" \
    "it is probably a build for CUDA: point pip at a CPU build (PIP_EXTRA_INDEX_URL), remove .venv and repeat"

packages=$(.venv/bin/python -m launcher check --packages)
if [[ -n $packages ]]; then
    # shellcheck disable=SC2086  # a list of packages
    install "the server misses shared libraries" $packages
fi
.venv/bin/python -m launcher check
