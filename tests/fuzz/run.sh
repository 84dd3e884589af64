#!/bin/sh
# Fuzzes every parser of outside bytes: tests/fuzz/run.sh SECONDS [NAME...]
# Each tests/fuzz/fuzz_NAME.c becomes a libFuzzer program with address and undefined-behaviour
# sanitizers and runs SECONDS, from the seeds of its test and from what earlier runs found. The
# corpus and anything that crashed lie in build/fuzz/corpus and build/fuzz/found.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:?usage: tests/fuzz/run.sh SECONDS [NAME...]}
shift
out=build/fuzz
clang=$(command -v clang-14 || command -v clang || { echo "fuzz: clang is missing"; exit 1; })
cxx=$(echo "$clang" | sed 's,clang\([^/]*\)$,clang++\1,')
san=-fsanitize=address,undefined
mkdir -p "$out/corpus" "$out/found"

# Library, server and tool under clang's sanitizers, as an archive: a target takes what it needs (no
# parser needs the CPU kernels, whose intrinsics are gcc's).
flags="-O1 -g -w $san -fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined"
CFLAGS="$flags -DFUZZER" CXXFLAGS="$flags" \
    make -s -j"$(nproc)" O="$out/lib" CC="$clang" CXX="$cxx" WARN= fuzz-objects
rm -f "$out/parts.a"
find "$out/lib" -name '*.o' ! -path '*/tests/*' -exec ar rcsP "$out/parts.a" {} +
make -s -j"$(nproc)" build/test
FUZZ_SEEDS=$PWD/$out/corpus build/test fuzz/ > "$out/seeds.log" || { cat "$out/seeds.log"; exit 1; }

[ $# -gt 0 ] || set -- $(ls tests/fuzz/fuzz_*.c | sed 's,.*/fuzz_,,; s,\.c$,,')
bad=0
for name; do
    mkdir -p "$out/corpus/fuzz_$name"
    "$cxx" $san -fsanitize=fuzzer -o "$out/fuzz_$name" "$out/lib/tests/fuzz/fuzz_$name.c.o" \
        "$out/lib/tests/fuzz/no_kernels.c.o" "$out/parts.a" -lmicrohttpd -luv -lzip -lcurl -ledit -ljansson -lcrypto -lsentencepiece -lpthread -ldl -lm
    printf '%-14s ' "$name"
    if "$out/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -max_len=65536 \
        -artifact_prefix="$out/found/$name-" -print_final_stats=1 "$out/corpus/fuzz_$name" \
        > "$out/$name.log" 2>&1; then
        grep -E 'number_of_executed_units' "$out/$name.log" | sed 's/.*: */runs: /'
    else
        bad=1
        echo "FOUND SOMETHING: $out/$name.log, $out/found/$name-*"
    fi
done
exit $bad
