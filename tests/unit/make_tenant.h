/* A tenant file with every kind of tensor, written by the tool's writer; or one that is whole as a
 * file, its hashes right, and wrong in one thing. */
#ifndef TESTS_UNIT_MAKE_TENANT_H
#define TESTS_UNIT_MAKE_TENANT_H

#include "engine/tenant_file.h"

enum tenant_fault {
    FAULT_NONE,
    FAULT_NAN_SCALE,
    FAULT_HUGE_SCALE,
    FAULT_NAN_COLUMN,
    FAULT_INFINITE_LORA,
    FAULT_INFINITE_DENSE,
    FAULT_NAN_NORM,
    FAULT_PADDING_ROW,
    FAULT_PADDING_COLUMN,
    FAULT_IDS_DESCEND,
    FAULT_ID_PAST_VOCAB,
    FAULT_ROW_BEYOND_BASE_MISSING,
    FAULT_NO_ROW_SCALE,
    FAULT_NO_NORM,
    FAULT_WRONG_SHAPE,
    FAULT_PLANE_GAP,
    FAULT_LORA_A_ALONE,
    FAULT_UNKNOWN_TENSOR,
    FAULT_KIND_MISSING,
    FAULT_KIND_WITHOUT_TENSORS,
    FAULT_ABSENT_EMBED_TOO_SMALL,
    FAULT_OTHER_LAYERS,
    N_FAULTS
};

/* base: an opened make_model() of default sizes; its tenant has 2 tokens more. */
void make_tenant(const char *path, const struct checkpoint *base, const char *fingerprint,
                 enum tenant_fault fault);
/* The fingerprint in hex. */
void make_fingerprint(const struct checkpoint *c, char out[SHA256_HEX]);

#endif
