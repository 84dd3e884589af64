/* For libFuzzer's programs, which may need the engine but none of its kernels: clang does not
 * compile their intrinsics. */
#ifdef FUZZER
#include "kernels/kernels.h"

err_t kernels_cpu_open(struct kernels **out, const struct model_shape *shape, int32_t max_rows,
                       int32_t threads, struct why *why) {
    (void)out, (void)shape, (void)max_rows, (void)threads;
    return why_set(why, E_UNSUPPORTED, "no kernels are linked");
}
#endif
