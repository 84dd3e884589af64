/* Reads the one kind of pickle that torch.save writes for a flat dict of tensors, and nothing else.
 *
 * A pickle is a program. This reader never runs it: about twenty opcodes build values in an arena,
 * GLOBAL may name six things, and each of them is a tag here, not code. Everything is bounded by
 * the text's length; nothing recurses. Any other opcode, name or shape ends the reading with a
 * sentence.
 */
#ifndef COMPRESS_PICKLE_H
#define COMPRESS_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/safetensors.h"

enum { PT_MAX_DIMS = 4, PT_MAX_NAME = 256 };

struct pt_tensor {
    char *name;            /* owned */
    char storage[32];      /* member of the archive that holds the data: data/STORAGE */
    enum st_dtype dtype;   /* I32, F32, BF16 or F16 */
    uint64_t storage_size; /* elements in the storage */
    uint64_t offset;       /* elements */
    int32_t n_dims;
    int64_t dim[PT_MAX_DIMS], stride[PT_MAX_DIMS]; /* elements; every index lies in the storage */
};

struct pt_tensors {
    struct pt_tensor *tensor; /* [n] sorted by name, no duplicates; owned */
    int32_t n;
};

/* label names the text in sentences. Free with pt_tensors_free, also after an error. Errors:
 * E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
err_t pickle_read(struct pt_tensors *out, const unsigned char *text, size_t n, const char *label,
                  struct why *why);
void pt_tensors_free(struct pt_tensors *t);

#endif
