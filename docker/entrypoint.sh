#!/usr/bin/env bash
# What the containers run. The code lies in TANDEM_HOME, which nobody writes; what is made lies in TANDEM_DATA.
#   build [ARGUMENT ...]   bring the model repository up to date, then build the default engines, or what the
#                          arguments of `python -m build_engines` say
#   serve [ARGUMENT ...]   run the server on what `build` made; arguments go to `python -m launcher serve`
set -euo pipefail

home=${TANDEM_HOME:-/opt/tandem}
data=${TANDEM_DATA:-/var/lib/tandem}
state=${TANDEM_STATE:-$data/state} # log files and compiled code: all that a server writes
export PY=$home/.venv/bin/python

fail() {
    printf 'tandem: %s\n' "$@" >&2
    exit 1
}

writable() {
    [[ -d $1 && -w $1 ]] || fail "$1 is not a directory that user $(id -u) can write: mount a volume there"
}

# Engines are what `build` makes; everything else in the repository comes with the code.
is_current() {
    diff -rq --exclude=engine --exclude=drafter --exclude=__pycache__ "$home/model_repository" model_repository >/dev/null
}

# Take over the models of this version and drop those of others; engines stay. A model that did not change is not
# touched: a server may be running on it.
update_repository() {
    local model name
    mkdir -p model_repository
    for model in model_repository/*/; do
        [[ ! -d $model || -d $home/$model ]] || rm -rf "$model"
    done
    for model in "$home"/model_repository/*/; do
        name=model_repository/$(basename "$model")
        if diff -rq --exclude=engine --exclude=drafter --exclude=__pycache__ "$model" "$name" >/dev/null 2>&1; then
            continue
        fi
        mkdir -p "$name/1"
        find "$name" -mindepth 1 -maxdepth 1 ! -name 1 -exec rm -rf {} +
        find "$name/1" -mindepth 1 -maxdepth 1 ! -name engine ! -name drafter -exec rm -rf {} +
        tar -C "$model" --exclude=./1/engine --exclude=./1/drafter --exclude=__pycache__ -c . | tar -C "$name" -x
    done
    ln -sfn "$home/drafters" drafters # the drafter's weights: build_engines looks for them here
}

build() {
    writable "$data/model_repository"
    writable "$data/.cache"
    cd "$data"
    update_repository
    if (($#)); then
        exec "$PY" -m build_engines "$@"
    fi
    exec "$home/scripts/engines.sh"
}

serve() {
    mkdir -p "$state" 2>/dev/null || true
    writable "$state"
    cd "$data"
    if [[ ! -d model_repository ]] || ! is_current; then
        fail "the models in $data/model_repository are not of this version: run the build service first"
    fi
    # The container's own server, never that of the wheel, where both are.
    if [[ -z ${TANDEM_TRITONSERVER:-} && -x /opt/tritonserver/bin/tritonserver ]]; then
        export TANDEM_TRITONSERVER=/opt/tritonserver/bin/tritonserver
    fi
    export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$state/numba}
    # One log, and that of the run before: a server that is restarted again and again does not fill the disk.
    [[ ! -f $state/server.log ]] || mv -f "$state/server.log" "$state/server.previous.log"
    exec "$PY" -m launcher serve --host "${TANDEM_HOST:-0.0.0.0}" --model-repository "$data/model_repository" \
        --log "$state/server.log" --restrict-admin "$@"
}

case ${1:-} in
build | serve) "$@" ;;
*) fail "say \`build\` or \`serve\`, not \`${1:-nothing}\`" ;;
esac
