# Sourced by the scripts beside it: a scratch folder that goes away, the root of the repository, timed steps.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
had_egg_info=$(test -e basic_lite.egg-info && echo yes || echo no)
clean_up() {
    rm -rf "$scratch"
    if [ "$had_egg_info" = no ]; then rm -rf basic_lite.egg-info; fi
    find basic_lite kernels bench tests -name __pycache__ -prune -exec rm -rf {} +
}
trap clean_up EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1
export RUFF_CACHE_DIR="$scratch/ruff" MYPY_CACHE_DIR="$scratch/mypy"
export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -p no:cacheprovider"
# Only what the new environment holds may be found. Compiled modules are kept to the end: each process that compiles all
# of the tests and the package anew takes 7 s longer.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX

step() {
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    "$@"
    echo "== $name: $((SECONDS - started)) s"
}

# make_environment VERSION: a fresh virtual environment of that Python, activated. $PYTHON names another interpreter.
make_environment() {
    local python=${PYTHON:-python$1} chosen=${PYENV_VERSION:-}
    # A shim of pyenv runs only the versions that are switched on.
    if ! "$python" -c "" 2>/dev/null && command -v pyenv >/dev/null; then
        chosen=$(pyenv versions --bare | grep -m1 -E "^${1//./\\.}(\.[0-9]+)?$" || true)
    fi
    PYENV_VERSION=$chosen "$python" -m venv "$scratch/venv" || {
        echo "There is no Python $1: '$python' doesn't run. Install it, or set PYTHON to an interpreter of it." >&2
        exit 1
    }
    # shellcheck disable=SC1091
    source "$scratch/venv/bin/activate"
}
