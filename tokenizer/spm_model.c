/* Reads a few fields of a SentencePiece model (a protobuf message); see spm_model.h. Owns nothing
 * but the copy it returns. It does not read the pieces: the library does, and checks them. */
#include "tokenizer/spm_model.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Field numbers of sentencepiece_model.proto. */
enum {
    MODEL_TRAINER = 2,
    MODEL_NORMALIZER = 3,
    MODEL_SELF_TEST = 4,
    TRAINER_SPACE_AS_SUFFIX = 24,
    TRAINER_BYTE_FALLBACK = 35,
    NORMALIZER_CHARSMAP = 2,
    NORMALIZER_DUMMY_PREFIX = 3,
    NORMALIZER_SQUEEZE = 4,
    NORMALIZER_ESCAPE = 5,
};

struct field {
    uint32_t number, wire;
    uint64_t value;           /* wire 0 */
    const unsigned char *at;  /* wire 2: the bytes */
    size_t n;                 /* wire 2 */
    const unsigned char *end; /* first byte after the field */
};

static bool read_varint(const unsigned char **p, const unsigned char *end, uint64_t *v) {
    *v = 0;
    for (unsigned shift = 0; shift < 64 && *p < end; shift += 7) {
        unsigned char byte = *(*p)++;
        *v |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* Reads the field at p; false if it does not lie whole before end. */
static bool read_field(const unsigned char *p, const unsigned char *end, struct field *f) {
    uint64_t key, length = 0;
    if (!read_varint(&p, end, &key) || key >> 3 == 0 || key >> 3 > UINT32_MAX)
        return false;
    memset(f, 0, sizeof *f);
    f->number = (uint32_t)(key >> 3);
    f->wire = (uint32_t)(key & 7);
    switch (f->wire) {
    case 0:
        if (!read_varint(&p, end, &f->value))
            return false;
        break;
    case 1:
        length = 8;
        break;
    case 2:
        if (!read_varint(&p, end, &length))
            return false;
        break;
    case 5:
        length = 4;
        break;
    default:
        return false;
    }
    if (length > (uint64_t)(end - p))
        return false;
    f->at = p;
    f->n = (size_t)length;
    f->end = p + length;
    return true;
}

static bool read_trainer(const struct field *spec, struct spm_model *m, bool *suffix) {
    const unsigned char *end = spec->at + spec->n;
    struct field f;
    for (const unsigned char *p = spec->at; p < end; p = f.end) {
        if (!read_field(p, end, &f))
            return false;
        if (f.wire == 0 && f.number == TRAINER_SPACE_AS_SUFFIX)
            *suffix = f.value != 0;
        if (f.wire == 0 && f.number == TRAINER_BYTE_FALLBACK)
            m->byte_fallback = f.value != 0;
    }
    return true;
}

static bool read_normalizer(const struct field *spec, struct spm_model *m, bool *escape) {
    const unsigned char *end = spec->at + spec->n;
    struct field f;
    for (const unsigned char *p = spec->at; p < end; p = f.end) {
        if (!read_field(p, end, &f))
            return false;
        if (f.wire == 2 && f.number == NORMALIZER_CHARSMAP)
            m->rewrites = f.n != 0;
        if (f.wire == 0 && f.number == NORMALIZER_DUMMY_PREFIX)
            m->dummy_prefix = f.value != 0;
        if (f.wire == 0 && f.number == NORMALIZER_SQUEEZE)
            m->squeeze = f.value != 0;
        if (f.wire == 0 && f.number == NORMALIZER_ESCAPE)
            *escape = f.value != 0;
    }
    return true;
}

err_t spm_model_read(struct spm_model *m, const void *model, size_t n, struct why *why) {
    *m = (struct spm_model){.dummy_prefix = true, .squeeze = true}; /* the format's defaults */
    bool suffix = false, escape = true;
    const unsigned char *start = model, *end = start + n;
    struct field f;
    if (n == 0)
        return why_set(why, E_FORMAT, "the SentencePiece model is empty");
    for (const unsigned char *p = start; p < end; p = f.end) {
        bool whole = read_field(p, end, &f);
        if (whole && f.wire == 2 && f.number == MODEL_TRAINER)
            whole = read_trainer(&f, m, &suffix);
        else if (whole && f.wire == 2 && f.number == MODEL_NORMALIZER)
            whole = read_normalizer(&f, m, &escape);
        if (!whole)
            return why_set(why, E_FORMAT,
                           "not a SentencePiece model: the field at byte %zu of %zu is damaged",
                           (size_t)(p - start), n);
    }
    if (suffix || !escape)
        return why_set(why, E_UNSUPPORTED,
                       "this SentencePiece model %s; only models that mark a space at the "
                       "start of a piece are supported",
                       suffix ? "writes spaces as suffixes" : "does not escape spaces");
    return E_OK;
}

err_t spm_model_without_prefix(const void *model, size_t n, void **out, size_t *n_out,
                               struct why *why) {
    /* A later field of a protobuf message wins, so one more normaliser section is enough. */
    static const unsigned char no_prefix[] = {MODEL_NORMALIZER << 3 | 2, 2,
                                              NORMALIZER_DUMMY_PREFIX << 3, 0};
    const unsigned char *start = model, *end = start + n;
    unsigned char *copy = malloc(n + sizeof no_prefix);
    if (!copy)
        return why_set(why, E_NOMEM, "no memory for the SentencePiece model");
    size_t used = 0;
    struct field f;
    for (const unsigned char *p = start; p < end; p = f.end) {
        if (!read_field(p, end, &f)) {
            free(copy);
            return why_set(why, E_FORMAT, "not a SentencePiece model: damaged at byte %zu",
                           (size_t)(p - start));
        }
        if (f.number == MODEL_SELF_TEST) /* its samples expect the prefix */
            continue;
        memcpy(copy + used, p, (size_t)(f.end - p));
        used += (size_t)(f.end - p);
    }
    memcpy(copy + used, no_prefix, sizeof no_prefix);
    *out = copy;
    *n_out = used + sizeof no_prefix;
    return E_OK;
}
