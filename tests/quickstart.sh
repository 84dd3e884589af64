#!/bin/bash
# tests/quickstart.sh BUILD_DIR: does what docs/quickstart.md says, block by block. A block "```sh" must succeed;
# every line of the "```text" behind it must be a line of what it printed. "terminal=1" goes on in the
# background. The addresses are moved to free ports, so that it can run beside a server.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "$1")
command -v jq >/dev/null || { echo "quickstart: skipped: jq is not installed"; exit 0; }
work=$(mktemp -d)
daemon=
cleanup() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    rm -rf "$work" build/quickstart demo/tenants/mine.bitdelta
}
trap cleanup EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
admin=$(free_port)
export BITDELTAD_LISTEN=127.0.0.1:$port BITDELTAD_ADMIN=127.0.0.1:$admin BITDELTA_URL=http://127.0.0.1:$port
rm -rf build/quickstart

# Blocks become files: NN.sh, NN.background, NN.text (of the block before).
awk -v to="$work" '
    /^```sh terminal=1$/ { out = sprintf("%s/%02d.background", to, ++n); next }
    /^```sh$/ { out = sprintf("%s/%02d.sh", to, ++n); next }
    /^```text$/ { out = sprintf("%s/%02d.text", to, n); next }
    /^```$/ { out = ""; next }
    out { print > out }' docs/quickstart.md

steps=0
for block in "$work"/*.sh "$work"/*.background; do echo "$block"; done | sort > "$work/list"
while read -r block; do
    sed -i "s,127.0.0.1:8000,127.0.0.1:$port,g; s,127.0.0.1:8001,127.0.0.1:$admin,g; s,\(^\| \)build/bitdelta,\1$build/bitdelta,g" "$block"
    steps=$((steps + 1))
    if [ "${block##*.}" = background ]; then
        sed -i '1s/^/exec /' "$block"
        : > "$work/daemon.log"
        bash -e "$block" 2> "$work/daemon.log" < /dev/null &
        daemon=$!
        for _ in $(seq 200); do
            grep -q stage=ready "$work/daemon.log" && break
            kill -0 "$daemon" 2>/dev/null || break
            sleep 0.1
        done
        grep -q stage=ready "$work/daemon.log" || { echo "quickstart: the server did not start"; cat "$work/daemon.log"; exit 1; }
        continue
    fi
    [ "$(cat "$block")" = "make all" ] && continue # whoever calls this has built it
    if ! bash -euo pipefail "$block" > "$work/said" 2>&1 < /dev/null; then
        echo "quickstart: this failed:"; cat "$block" "$work/said"; exit 1
    fi
    text=${block%.sh}.text
    [ -e "$text" ] || continue
    while IFS= read -r line; do
        grep -qxF -- "$line" "$work/said" && continue
        echo "quickstart: this block:"; cat "$block"
        echo "does not print the line: $line"; echo "but:"; cat "$work/said"
        exit 1
    done < "$text"
done < "$work/list"
[ "$steps" -ge 10 ] || { echo "quickstart: only $steps blocks found"; exit 1; }
echo "quickstart: $steps blocks done, all as written"
