/* The model that a tenant is made from or compared with: the folder of a full fine-tune, or of a
 * PEFT adapter, which is merged into the base as it is read. */
#ifndef COMPRESS_FINE_TUNE_H
#define COMPRESS_FINE_TUNE_H

#include "compress/lora.h"

struct fine_tune {
    struct checkpoint checkpoint; /* read it in FP32: an adapter's has no files */
    struct lora adapter;
};

/* base: borrowed until the close. Refuses what is not a fine-tune of it: E_WRONG_BASE. Close with
 * fine_tune_close, also after an error. */
err_t fine_tune_open(struct fine_tune *f, const char *dir, const struct checkpoint *base,
                     struct why *why);
void fine_tune_close(struct fine_tune *f);

#endif
