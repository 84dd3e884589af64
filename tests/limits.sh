#!/bin/sh
# The size gate on the tail: a file of more than 800 lines, a function of more than 120 (a CUDA kernel
# file: 250), a Makefile of more than 150.
set -eu
cd "$(dirname "$0")/.."
git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs awk '
    FNR == 1 { start = 0; limit = FILENAME ~ /\.cuh?$/ ? 250 : 120 }
    FNR == 801 { print FILENAME ": more than 800 lines"; bad = 1 }
    /^[A-Za-z_].*\) *(const)? *\{ *$/ || /^\{/ { if ($0 !~ /^(struct|enum|union|extern|namespace)/) start = FNR }
    /^[A-Za-z_].*[(,]$/ { if (!start) open = FNR }
    /^ .*\) *\{ *$/ { if (!start && open && FNR - open < 8) { start = open } open = 0 }
    /^\}/ { if (start && FNR - start > limit) {
                print FILENAME ":" start ": a function of " FNR - start " lines (limit " limit ")"; bad = 1 }
            start = 0; open = 0 }
    END { exit bad }'
[ "$(wc -l < Makefile)" -le 150 ] || { echo "Makefile: more than 150 lines"; exit 1; }
