#!/bin/sh
# compute-sanitizer over whole steps of every kind of tenant on a model of odd sizes: one prompt for
# each, then decode. Usage: sanitize.sh build/test-gpu
# racecheck leaves out the kernels that are fed by bulk copies: it needs minutes for them, and they
# have tests of their own. What it does not follow, and what orders the accesses there, is said in
# docs/kernels-cuda.md.
set -eu
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
[ -n "$tool" ] || { echo "skipped: no compute-sanitizer"; exit 0; }
run() {
    echo "== $*"
    "$tool" --target-processes all --error-exitcode 9 "$@" "$binary" gpu_steps_with_odd
}
binary=$1
"$binary" gpu_steps_with_odd | grep -q '^0 passed' && { echo "skipped: no CUDA device"; exit 0; }
run --tool memcheck
run --tool initcheck
run --tool synccheck
run --tool racecheck --kernel-name-exclude kernel_substring=linear_kernel \
    --kernel-name-exclude kernel_substring=wide_kernel \
    --kernel-name-exclude kernel_substring=attention_narrow_kernel
