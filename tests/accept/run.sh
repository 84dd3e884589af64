#!/bin/sh
# tests/accept/run.sh BUILD_DIR [PART...]: what other people's programs make of the daemon. Parts, all by default:
#   clients  the openai client, langchain-openai           schema  schemathesis over /openapi.json
#   harness  lm-evaluation-harness, local-completions      load    inference-perf, four tenants
# They are installed from PyPI into BUILD_DIR/accept, a virtual environment of their own, once.
# Exit: 0 all passed; 75 they could not be installed, and nothing was tested; else something failed.
set -eu
cd "$(dirname "$0")/../.."
build=$(realpath "$1")
shift
parts=${*:-clients schema harness load}
here=tests/accept
export PYTHONDONTWRITEBYTECODE=1
venv=$build/accept
cannot() {
    echo "accept: NOT TESTED: $1" >&2
    exit 75
}
python3 -c 'import ensurepip, venv' 2>/dev/null || cannot "python3 with venv is needed (apt: python3-venv)"
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv" || cannot "no virtual environment can be made in $venv"
install() {
    "$venv/bin/pip" install -q --disable-pip-version-check "$@" >"$venv/log" 2>&1 && return
    tail -3 "$venv/log" >&2
    cannot "the programs could not be installed from PyPI (is there a network?)"
}
for part in $parts; do
    [ -f "$here/need/$part.txt" ] || { echo "accept: no part is called $part" >&2; exit 64; }
    cat "$here/need/$part"*.txt | cmp -s - "$venv/$part.done" && continue
    echo "accept: installing what '$part' needs"
    install -r "$here/need/$part.txt"
    [ ! -f "$here/need/$part-alone.txt" ] || install --no-deps --ignore-requires-python -r "$here/need/$part-alone.txt"
    cat "$here/need/$part"*.txt >"$venv/$part.done"
done
for part in $parts; do
    if ! BUILD=$build "$venv/bin/python" "$here/$part.py" >"$venv/$part.log" 2>&1; then
        cat "$venv/$part.log"
        echo "accept: $part FAILED" >&2
        exit 1
    fi
    grep '^pass' "$venv/$part.log"
done
