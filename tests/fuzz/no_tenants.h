/* For targets of the server's tables under libFuzzer: there are no tenants, and nothing of the
 * engine is linked, whose kernels clang does not compile. */
#ifndef TESTS_FUZZ_NO_TENANTS_H
#define TESTS_FUZZ_NO_TENANTS_H

#include "engine/engine.h"

const struct tenant_info *tenant_info(const struct tenant *t) {
    (void)t;
    return NULL;
}

struct tenant *tenant_ref(struct tenant *t) {
    return t;
}

void tenant_unref(struct tenant *t) {
    (void)t;
}

#endif
