/* The few calls of libsentencepiece that the tokenizer needs, behind a C door.
 *
 * Every call is bounds-checked and catches what the library throws: an id out of range ends a
 * process that asks the library itself (0.1.97). Read-only after sp_open: any thread. */
#ifndef TOKENIZER_SENTENCEPIECE_H
#define TOKENIZER_SENTENCEPIECE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "config/err.h" /* C functions, for the one C++ file too */

struct sp;

enum sp_kind { SP_NORMAL, SP_UNKNOWN, SP_CONTROL, SP_BYTE, SP_UNUSED };

/* A growing list of ids; v is malloc'ed. Never longer than cap_max. */
struct sp_ids {
    int32_t *v;
    size_t n, cap, cap_max;
};

/* model: the bytes of a .model file, copied. Errors: E_FORMAT, E_NOMEM. */
err_t sp_open(struct sp **out, const void *model, size_t n, struct why *why);
void sp_close(struct sp *s);

int32_t sp_size(const struct sp *s);
/* The piece as it stands in the model; borrowed. NULL for an id outside 0 .. size-1. */
const char *sp_piece(const struct sp *s, int32_t id, size_t *n, enum sp_kind *kind);
int32_t sp_unk(const struct sp *s);

/* Appends the ids of `text`. Errors: E_NOMEM, E_CONTEXT (more than cap_max ids), E_INTERNAL. */
err_t sp_encode(const struct sp *s, const char *text, size_t n, struct sp_ids *ids);
/* The library's own decoder, the oracle of the tests; *text is malloc'ed. */
err_t sp_decode(const struct sp *s, const int32_t *ids, size_t n, char **text, size_t *n_text);

err_t sp_ids_add(struct sp_ids *ids, int32_t id);

#ifdef __cplusplus
}
#endif

#endif
