#!/bin/sh
# compute-sanitizer over the CUDA backend: whole steps of every kind of tenant on a model of odd
# sizes (one prompt for each, then decode), then the small cases of the decode linear, also on a
# grid of three blocks, so that rings go round, and small cases of attention.
# Usage: sanitize.sh build/test-gpu [build/cuda/test_linear build/cuda/test_attention]
# racecheck of whole steps leaves out the kernels that are fed by bulk copies: it needs minutes for
# them, and they have tests of their own, of which small cases follow. What it does not follow, and
# what orders the accesses there, is said in docs/kernels-cuda.md.
set -eu
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
[ -n "$tool" ] || { echo "skipped: no compute-sanitizer"; exit 0; }
steps=$1 linear=${2:-} attention=${3:-}
"$steps" gpu_steps_with_odd | grep -q '^0 passed' && { echo "skipped: no CUDA device"; exit 0; }
run() {
    echo "== $*"
    "$tool" --target-processes all --error-exitcode 9 "$@"
}
for t in memcheck initcheck synccheck; do
    run --tool $t "$steps" gpu_steps_with_odd
done
run --tool racecheck --kernel-name-exclude kernel_substring=linear_kernel \
    --kernel-name-exclude kernel_substring=wide_kernel \
    --kernel-name-exclude kernel_substring=attention_narrow_kernel "$steps" gpu_steps_with_odd
[ -n "$linear" ] || exit 0
for t in memcheck initcheck synccheck; do
    run --tool $t "$linear" quick
    run --tool $t "$attention" quick
done
# The tool counts a kernel's barriers from its source, where these are an array: it is told. Some
# cases, with rings that go round: the whole set takes minutes.
run --tool racecheck --num-cuda-barriers 64 --kernel-name kernel_substring=linear_kernel \
    "$linear" quick "three parts"
for i in 4 7 8; do # a window, heads of 64; eight heads a group, 128; 256
    run --tool racecheck --num-cuda-barriers 128 \
        --kernel-name kernel_substring=attention_narrow_kernel "$attention" quick $i
done
