/* Ids to text, one at a time or all at once; see tokenizer.h. Bytes are held back until they make a
 * character or cannot any more. */
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

enum { N_REPLACEMENT = sizeof UTF8_REPLACEMENT_TEXT - 1 };

_Static_assert(VOCAB_MAX_PIECE_BYTES + 4 * N_REPLACEMENT <= DETOK_MAX_BYTES,
               "one push emits at most the held-back bytes as U+FFFD and one piece");
_Static_assert((VOCAB_MAX_PIECE_BYTES + 3) * N_REPLACEMENT <= DETOK_MAX_BYTES,
               "or a piece of which every byte is a U+FFFD");

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special,
                bool continues_text) {
    *d = (struct detok){
        .t = t, .skip_special = skip_special, .at_start = !continues_text && tokenizer_prefixes(t)};
}

static size_t put(char *out, size_t used, const void *bytes, size_t n) {
    memcpy(out + used, bytes, n);
    return used + n;
}

/* How many of the held-back bytes, which start no whole character, one U+FFFD stands for. */
static size_t broken(const struct detok *d) {
    if (tokenizer_is_bytes(d->t))
        for (size_t n = (size_t)d->n_pending; n > 1; n--)
            if (utf8_may_grow(d->pending, n))
                return n;
    return 1;
}

/* Emits what the held-back bytes decide by now; `all`: nothing more can come. */
static size_t settle(struct detok *d, char *out, bool all) {
    size_t used = 0;
    uint32_t c;
    while (d->n_pending > 0) {
        size_t n = (size_t)d->n_pending;
        size_t length = utf8_next((const char *)d->pending, n, &c);
        if (length == 0 && !all && utf8_may_grow(d->pending, n))
            break;
        if (length > 0) {
            used = put(out, used, d->pending, length);
        } else {
            used = put(out, used, UTF8_REPLACEMENT_TEXT, N_REPLACEMENT);
            length = broken(d);
        }
        memmove(d->pending, d->pending + length, n - length);
        d->n_pending -= (int)length;
    }
    return used;
}

size_t detok_push(struct detok *d, int32_t id, char out[DETOK_MAX_BYTES]) {
    size_t n;
    const char *piece = tokenizer_piece(d->t, id, &n);
    bool special = tokenizer_is_special(d->t, id);
    if (!piece || (special && d->skip_special))
        return 0;
    size_t used = 0;
    if (!special && (tokenizer_is_bytes(d->t) || tokenizer_is_byte(d->t, id))) {
        d->at_start = false;
        for (size_t i = 0; i < n; i++) {
            d->pending[d->n_pending++] = (unsigned char)piece[i];
            used += settle(d, out + used, false);
        }
        return used;
    }
    used = settle(d, out, true);
    if (d->at_start && !special && piece[0] == ' ') {
        piece++;
        n--;
    }
    d->at_start = false;
    return put(out, used, piece, n);
}

size_t detok_flush(struct detok *d, char out[DETOK_MAX_BYTES]) {
    return settle(d, out, true);
}

err_t tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int32_t n, bool skip_special,
                       char **text, size_t *n_text) {
    struct detok d;
    detok_init(&d, t, skip_special, false);
    size_t used = 0, cap = DETOK_MAX_BYTES;
    char *out = malloc(cap + 1);
    *text = NULL;
    *n_text = 0;
    for (int32_t i = 0; out && i <= n; i++) {
        if (cap - used < DETOK_MAX_BYTES) {
            cap *= 2;
            char *grown = realloc(out, cap + 1);
            if (!grown)
                free(out);
            out = grown;
            if (!out)
                break;
        }
        used += i < n ? detok_push(&d, ids[i], out + used) : detok_flush(&d, out + used);
    }
    if (!out)
        return E_NOMEM;
    out[used] = 0;
    *text = out;
    *n_text = used;
    return E_OK;
}
