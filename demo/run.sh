#!/bin/sh
# demo/run.sh BUILD_DIR: starts the daemon on the shipped base, registers the shipped tenants through
# the admin API, streams a completion of the base and of each tenant at the same time, prints them,
# and keeps serving until Ctrl-C. DEMO_ONCE=1: ends after printing. DEMO_PORT: default 8000.
set -eu
build=$1
here=$(cd "$(dirname "$0")" && pwd)
port=${DEMO_PORT:-8000}
url=http://127.0.0.1:$port
work=$(mktemp -d)
daemon=
finish() {
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 0' INT TERM HUP

"$build/bitdeltad" --base "$here/base" --deltas "$here/tenants" --no-autoload \
    --listen "127.0.0.1:$port" --admin "unix:$work/admin.sock" 2>"$work/log" &
daemon=$!
tries=0
until curl -sf "$url/health" >/dev/null; do
    tries=$((tries + 1))
    if ! kill -0 "$daemon" 2>/dev/null || [ $tries -gt 600 ]; then
        echo "the daemon did not start:" >&2
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.05
done
echo "bitdeltad serves $here/base on $url"

for name in math sql kjv chat; do
    curl -sf --unix-socket "$work/admin.sock" http://admin/admin/deltas \
        -H 'Content-Type: application/json' \
        -d "{\"name\":\"$name\",\"path\":\"$name.bitdelta\"}" >"$work/reply" || {
        echo "registering $name failed: $(cat "$work/reply"; tail -n 3 "$work/log")" >&2
        exit 1
    }
done
echo "registered math, sql, kjv and chat through the admin API; now all five at the same time:"

# ask MODEL JSON-PROMPT: streams a completion into $work/MODEL.sse and notes the seconds
ask() {
    curl -sN -w '\nseconds: %{time_total}\n' "$url/v1/completions" \
        -H 'Content-Type: application/json' -d "{
        \"model\":\"$1\",\"prompt\":$2,\"max_tokens\":48,\"temperature\":0,
        \"stream\":true,\"stream_options\":{\"include_usage\":true}}" >"$work/$1.sse"
}
# show MODEL JSON-PROMPT: joins the text of the events, undoes the JSON escapes, adds the rate
show() {
    PROMPT=$2 awk -v model="$1" -v bold="$bold" '
        function plain(s) {
            gsub(/\\n/, "\n       ", s); gsub(/\\t/, "\t", s); gsub(/\\"/, "\"", s); gsub(/\\\\/, "\\", s)
            return s
        }
        match($0, /"text": ?"([^"\\]|\\.)*"/) {
            t = substr($0, RSTART, RLENGTH); sub(/^"text": ?"/, "", t); sub(/"$/, "", t); text = text t
        }
        match($0, /"completion_tokens": ?[0-9]+/) {
            n = substr($0, RSTART, RLENGTH); sub(/.*: ?/, "", n)
        }
        /"error"/ { failed = $0 }
        /^seconds:/ { s = $2 }
        END {
            prompt = ENVIRON["PROMPT"]; gsub(/^"|"$/, "", prompt)
            printf "\n%-5s  %s%s%s%s\n", model, plain(prompt), bold, plain(text), bold == "" ? "" : "\033[0m"
            if (failed != "" || n == "") { print "       FAILED " failed; exit 1 }
            printf "       [%d tokens in %.2f s, %.0f tokens/s]\n", n, s, n / s
        }' "$work/$1.sse"
}
base='"Once upon a time, in a small village by the sea,"'
math='"Q: 403 + 743 = ?\nA:"'
sql='"Request: List all movies where rating is less than 10.\nSQL:"'
kjv='"Genesis 1:1-4\n1 In the beginning"'
chat='"<|im_start|>user\nWhat does \"kernel\" mean?<|im_end|>\n<|im_start|>assistant\n"'
bold=
[ ! -t 1 ] || bold=$(printf "\033[1m")
pids=
for model in base math sql kjv chat; do
    eval "ask $model \"\$$model\"" &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
for model in base math sql kjv chat; do
    eval "show $model \"\$$model\""
done

[ -z "${DEMO_ONCE:-}" ] || exit 0
cat <<TXT

Serving on $url until Ctrl-C. Open $url/ in a browser to try the tenants side by side, or in
another terminal:
  curl $url/v1/models
  curl $url/v1/completions -H 'Content-Type: application/json' \\
       -d '{"model":"math","prompt":"Q: 12 + 30 = ?\nA:","max_tokens":8,"temperature":0}'
TXT
wait "$daemon"
