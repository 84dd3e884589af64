/* Whether a checkpoint was trained from a base, asked before anything costs time. */
#ifndef COMPRESS_ORIGIN_H
#define COMPRESS_ORIGIN_H

#include "engine/checkpoint.h"

/* Compares some rows of every linear. E_WRONG_BASE when the whole differs by more than the base's
 * own size: the sentence says how far it is, how far a fine-tune would be, and which tensors
 * differ most. Both have the same shape. */
err_t origin_check(const struct checkpoint *base, const struct checkpoint *fine, struct why *why);

#endif
