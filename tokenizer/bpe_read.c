/* tokenizer.json's model, normalizer, pre-tokenizer and decoder into a struct bpe; see bpe.h. What
 * is not understood to the letter is refused by name: a tokenizer that is nearly right gives a
 * model text it was never trained on. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/bpe.h"
#include "tokenizer/vocab.h"

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static bool flag_of(const json_t *object, const char *key, bool absent) {
    const json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_is_true(value) : absent;
}

static err_t refuse(struct why *why, const char *what, const char *type) {
    return why_set(why, E_UNSUPPORTED, "tokenizer.json: the %s '%.60s' is not supported", what,
                   type);
}

/* Runs `read` over a component that may be null or a Sequence of several. */
static err_t each(struct bpe *b, const json_t *component, const char *list,
                  err_t (*read)(struct bpe *b, const json_t *one, struct why *why),
                  struct why *why) {
    size_t i;
    json_t *one;
    err_t e = E_OK;
    if (!component || json_is_null(component))
        return E_OK;
    if (strcmp(text_of(component, "type"), "Sequence") != 0)
        return read(b, component, why);
    json_array_foreach(json_object_get(component, list), i, one) {
        e = read(b, one, why);
        if (e)
            break;
    }
    return e;
}

static bool is_mark(const char *text) {
    return strcmp(text, UTF8_SPACE_MARK_TEXT) == 0;
}

static err_t read_normalizer(struct bpe *b, const json_t *one, struct why *why) {
    const char *type = text_of(one, "type");
    const json_t *pattern = json_object_get(one, "pattern");
    if (strcmp(type, "Prepend") == 0 && is_mark(text_of(one, "prepend"))) {
        b->prefix = BPE_PREFIX_EVERY;
    } else if (strcmp(type, "Replace") == 0 && is_mark(text_of(one, "content")) &&
               strcmp(text_of(pattern, "String"), " ") == 0) {
        b->marks = true;
    } else {
        return refuse(why, "normalizer", type);
    }
    return E_OK;
}

static err_t add_step(struct bpe *b, enum split split, struct why *why) {
    if (b->n_steps == BPE_MAX_STEPS)
        return why_set(why, E_UNSUPPORTED, "tokenizer.json: more than %d pre-tokenizers",
                       BPE_MAX_STEPS);
    b->steps[b->n_steps++] = split;
    return E_OK;
}

static err_t read_split(struct bpe *b, const json_t *one, struct why *why) {
    const char *regex = text_of(json_object_get(one, "pattern"), "Regex");
    const char *behavior = text_of(one, "behavior");
    bool invert = flag_of(one, "invert", false);
    int split = split_of_regex(regex);
    /* These expressions match everywhere, so keeping the matches alone is the same. */
    bool same = (strcmp(behavior, "Isolated") == 0 && !invert) ||
                (strcmp(behavior, "Removed") == 0 && invert);
    if (split < 0 || !same)
        return why_set(why, E_UNSUPPORTED,
                       "tokenizer.json: the pre-tokenizer 'Split' with the pattern '%.200s' "
                       "(behavior %.20s) is not supported",
                       regex, behavior);
    return add_step(b, (enum split)split, why);
}

static err_t read_metaspace(struct bpe *b, const json_t *one, struct why *why) {
    const char *scheme = text_of(one, "prepend_scheme");
    if (!*scheme) /* before there were schemes */
        scheme = flag_of(one, "add_prefix_space", true) ? "always" : "never";
    if (!is_mark(text_of(one, "replacement")) || b->prefix != BPE_PREFIX_NONE || b->n_steps)
        return refuse(why, "combination of pre-tokenizers around", "Metaspace");
    b->marks = b->keep_space = true;
    b->prefix = strcmp(scheme, "always") == 0  ? BPE_PREFIX_EVERY
                : strcmp(scheme, "first") == 0 ? BPE_PREFIX_FIRST
                                               : BPE_PREFIX_NONE;
    return flag_of(one, "split", true) ? add_step(b, SPLIT_MARK, why) : E_OK;
}

static err_t read_pre_tokenizer(struct bpe *b, const json_t *one, struct why *why) {
    const char *type = text_of(one, "type");
    if (b->byte_level)
        return refuse(why, "pre-tokenizer after ByteLevel,", type);
    if (strcmp(type, "Split") == 0)
        return read_split(b, one, why);
    if (strcmp(type, "Digits") == 0)
        return add_step(b, flag_of(one, "individual_digits", false) ? SPLIT_DIGIT : SPLIT_DIGITS,
                        why);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(b, one, why);
    if (strcmp(type, "ByteLevel") != 0 || b->marks)
        return refuse(why, "pre-tokenizer", type);
    b->byte_level = true;
    if (flag_of(one, "add_prefix_space", true)) {
        if (b->n_steps)
            return refuse(why, "pre-tokenizer", "ByteLevel with add_prefix_space after a split");
        b->prefix = BPE_PREFIX_EVERY;
        b->keep_space = true;
    }
    return flag_of(one, "use_regex", true) ? add_step(b, SPLIT_GPT2, why) : E_OK;
}

static err_t read_decoder(struct bpe *b, const json_t *one, struct why *why) {
    const char *type = text_of(one, "type");
    const json_t *start = json_object_get(one, "start");
    if (b->byte_level)
        return strcmp(type, "ByteLevel") == 0 ? E_OK : refuse(why, "decoder", type);
    if (strcmp(type, "ByteFallback") == 0 || strcmp(type, "Fuse") == 0)
        return E_OK;
    if (strcmp(type, "Replace") == 0 && strcmp(text_of(one, "content"), " ") == 0 &&
        is_mark(text_of(json_object_get(one, "pattern"), "String")))
        return E_OK;
    if (strcmp(type, "Metaspace") == 0) {
        b->strips = strcmp(text_of(one, "prepend_scheme"), "never") != 0;
        return E_OK;
    }
    if (strcmp(type, "Strip") == 0 && strcmp(text_of(one, "content"), " ") == 0 &&
        json_integer_value(start) == 1) {
        b->strips = true;
        return E_OK;
    }
    return refuse(why, "decoder", type);
}

/* --- the vocabulary --------------------------------------------------------------------------- */

/* The byte that a character of the byte alphabet stands for: printable ones are themselves, the
 * other 68 follow from U+0100 in order. -1: not of the alphabet. */
static int byte_of(uint32_t c) {
    static const unsigned char others[][2] = {{0, 32}, {127, 160}, {173, 173}};
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    uint32_t i = c - 256;
    for (size_t k = 0; c >= 256 && k < 3; k++) {
        uint32_t n = (uint32_t)others[k][1] - others[k][0] + 1;
        if (i < n)
            return (int)(others[k][0] + i);
        i -= n;
    }
    return -1;
}

/* A key of the vocabulary as symbols, to `to` (n bytes at least). Bytes written; SIZE_MAX: text
 * never gives it. */
static size_t to_symbols(const struct bpe *b, const char *key, size_t n, char *to) {
    uint32_t c;
    size_t used = 0;
    if (!b->byte_level) {
        memcpy(to, key, n);
        return n;
    }
    for (size_t at = 0, length; at < n; at += length) {
        length = utf8_next(key + at, n - at, &c);
        int byte = length ? byte_of(c) : -1;
        if (byte < 0)
            return SIZE_MAX;
        to[used++] = (char)byte;
    }
    return used;
}

static size_t power_above(size_t n) {
    size_t power = 16;
    while (power < n)
        power *= 2;
    return power;
}

static err_t check_vocab(struct bpe *b, const json_t *vocab, size_t *bytes, struct why *why) {
    const char *key;
    json_t *id;
    if (json_object_size(vocab) == 0)
        return why_set(why, E_FORMAT, "tokenizer.json: the model has no vocabulary");
    json_object_foreach((json_t *)vocab, key, id) {
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        size_t n = strlen(key);
        if (value < 0 || value >= BPE_MAX_PIECES || n == 0 || n > VOCAB_MAX_PIECE_BYTES)
            return why_set(why, E_FORMAT,
                           "tokenizer.json: the piece '%.40s' (%zu bytes) has the id %lld; pieces "
                           "of 1 to %d bytes with ids below %d are supported",
                           key, n, (long long)value, VOCAB_MAX_PIECE_BYTES, BPE_MAX_PIECES);
        if (value >= b->n_pieces)
            b->n_pieces = (int32_t)value + 1;
        *bytes += n;
    }
    if ((size_t)b->n_pieces > 16 * json_object_size(vocab) + 65536)
        return why_set(why, E_FORMAT, "tokenizer.json: the ids of the vocabulary have wide gaps");
    return E_OK;
}

static err_t read_vocab(struct bpe *b, const json_t *vocab, struct why *why) {
    const char *key;
    json_t *value;
    size_t bytes = 0, used = 0;
    err_t e = check_vocab(b, vocab, &bytes, why);
    if (e)
        return e;
    b->n_slots = power_above(2 * json_object_size(vocab));
    b->pieces = calloc((size_t)b->n_pieces, sizeof *b->pieces);
    b->texts = malloc(bytes + 1);
    b->slots = calloc(b->n_slots, sizeof *b->slots);
    if (!b->pieces || !b->texts || !b->slots)
        return why_set(why, E_NOMEM, "no memory for %d pieces", b->n_pieces);
    json_object_foreach((json_t *)vocab, key, value) {
        int32_t id = (int32_t)json_integer_value(value);
        size_t n = strlen(key), written = to_symbols(b, key, n, b->texts + used);
        struct bpe_piece *p = &b->pieces[id];
        if (p->text)
            return why_set(why, E_FORMAT, "tokenizer.json: two pieces have the id %d", id);
        p->reachable = written != SIZE_MAX;
        if (!p->reachable)
            memcpy(b->texts + used, key, written = n);
        p->text = b->texts + used;
        p->n = (uint32_t)written;
        used += written;
        size_t at = bpe_hash(p->text, written) & (b->n_slots - 1);
        while (p->reachable && b->slots[at])
            at = (at + 1) & (b->n_slots - 1);
        if (p->reachable)
            b->slots[at] = id + 1;
    }
    return E_OK;
}

static err_t read_byte_ids(struct bpe *b, struct why *why) {
    int found = 0;
    for (int byte = 0; byte < 256; byte++) {
        char name[8], one = (char)byte;
        size_t n = (size_t)snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        b->byte_id[byte] = b->byte_level ? bpe_find(b, &one, 1) : bpe_find(b, name, n);
        found += b->byte_id[byte] >= 0;
    }
    if (found < 256 && (b->byte_fallback || b->byte_level))
        return why_set(why, E_UNSUPPORTED,
                       "tokenizer.json: the vocabulary has %d of the 256 bytes; a vocabulary that "
                       "cannot spell every text is not supported",
                       found);
    return E_OK;
}

static void put_merge(struct bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id) {
    uint64_t pair = bpe_pair(left, right);
    size_t at = bpe_pair_hash(pair) & (b->n_merge_slots - 1);
    while (b->merges[at].pair && b->merges[at].pair != pair)
        at = (at + 1) & (b->n_merge_slots - 1);
    b->merges[at] = (struct bpe_merge){pair, rank, id}; /* one listed twice: the last counts */
}

/* One merge: "left right" or ["left", "right"]. */
static err_t read_merge(struct bpe *b, const json_t *entry, int32_t rank, struct sha256 *hash,
                        struct why *why) {
    char left[VOCAB_MAX_PIECE_BYTES + 1], both[2 * VOCAB_MAX_PIECE_BYTES + 2];
    const char *text = json_string_value(entry);
    const char *first = text ? text : json_string_value(json_array_get(entry, 0));
    const char *space = text ? strchr(text, ' ') : NULL;
    const char *second =
        text ? (space ? space + 1 : NULL) : json_string_value(json_array_get(entry, 1));
    size_t n_first = !first ? 0 : space ? (size_t)(space - first) : strlen(first);
    size_t n_second = second ? strlen(second) : 0;
    if (n_first == 0 || n_second == 0 || n_first > VOCAB_MAX_PIECE_BYTES ||
        n_second > VOCAB_MAX_PIECE_BYTES || (space && strchr(second, ' ')))
        return why_set(why, E_FORMAT, "tokenizer.json: merge %d is not a pair of pieces", rank);
    size_t n_left = to_symbols(b, first, n_first, left);
    size_t n_right = n_left == SIZE_MAX ? SIZE_MAX : to_symbols(b, second, n_second, both + n_left);
    int32_t ids[3] = {-1, -1, -1};
    if (n_right != SIZE_MAX) {
        memcpy(both, left, n_left);
        ids[0] = bpe_find(b, left, n_left);
        ids[1] = bpe_find(b, both + n_left, n_right);
        ids[2] = bpe_find(b, both, n_left + n_right);
    }
    if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0)
        return why_set(why, E_FORMAT,
                       "tokenizer.json: merge %d ('%.*s' and '%.40s') is not of pieces of the "
                       "vocabulary",
                       rank, n_first < 40 ? (int)n_first : 40, first, second);
    sha256_add(hash, ids, sizeof ids);
    put_merge(b, ids[0], ids[1], rank, ids[2]);
    return E_OK;
}

static err_t read_merges(struct bpe *b, const json_t *merges, struct sha256 *hash,
                         struct why *why) {
    size_t i;
    json_t *entry;
    if (!json_is_array(merges))
        return why_set(why, E_FORMAT, "tokenizer.json: the model has no merges");
    b->n_merge_slots = power_above(2 * json_array_size(merges));
    b->merges = calloc(b->n_merge_slots, sizeof *b->merges);
    if (!b->merges)
        return why_set(why, E_NOMEM, "no memory for %zu merges", json_array_size(merges));
    json_array_foreach(merges, i, entry) {
        err_t e = read_merge(b, entry, (int32_t)i, hash, why);
        if (e)
            return e;
    }
    return E_OK;
}

/* The rules and the vocabulary as bytes that mean the same however the file spells them. */
static void hash_rules(const struct bpe *b, struct sha256 *hash) {
    int32_t rules[9 + BPE_MAX_STEPS] = {b->byte_level,    b->byte_fallback,   b->fuse_unk,
                                        b->ignore_merges, b->marks,           b->keep_space,
                                        b->unk,           (int32_t)b->prefix, b->n_steps};
    for (int i = 0; i < b->n_steps; i++)
        rules[9 + i] = (int32_t)b->steps[i];
    sha256_add(hash, rules, sizeof rules);
    for (int32_t id = 0; id < b->n_pieces; id++) {
        sha256_add(hash, &b->pieces[id].n, sizeof b->pieces[id].n);
        sha256_add(hash, b->pieces[id].text, b->pieces[id].n);
    }
}

static err_t read_model(struct bpe *b, const json_t *model, struct why *why) {
    const char *type = text_of(model, "type");
    const json_t *unk = json_object_get(model, "unk_token");
    const json_t *dropout = json_object_get(model, "dropout");
    if (!json_is_object(model) || (*type && strcmp(type, "BPE") != 0) ||
        (!*type && !json_object_get(model, "merges")))
        return refuse(why, "model", *type ? type : "without a type");
    if (*text_of(model, "continuing_subword_prefix") || *text_of(model, "end_of_word_suffix"))
        return refuse(why, "model option", "continuing_subword_prefix or end_of_word_suffix");
    if (json_number_value(dropout) != 0)
        return refuse(why, "model option", "dropout");
    b->byte_fallback = flag_of(model, "byte_fallback", false);
    b->fuse_unk = flag_of(model, "fuse_unk", false);
    b->ignore_merges = flag_of(model, "ignore_merges", false);
    err_t e = read_vocab(b, json_object_get(model, "vocab"), why);
    if (!e)
        e = read_byte_ids(b, why);
    if (e)
        return e;
    b->unk =
        json_is_string(unk) ? bpe_find(b, json_string_value(unk), json_string_length(unk)) : -1;
    if (json_is_string(unk) && b->unk < 0)
        return why_set(why, E_FORMAT, "tokenizer.json: unk_token '%.40s' is not in the vocabulary",
                       json_string_value(unk));
    b->bounded = b->byte_level || b->byte_fallback || (b->unk >= 0 && !b->fuse_unk);
    struct sha256 hash;
    e = sha256_init(&hash);
    if (e)
        return why_set(why, e, "no memory for the tokenizer");
    hash_rules(b, &hash);
    e = read_merges(b, json_object_get(model, "merges"), &hash, why);
    unsigned char digest[SHA256_BYTES];
    sha256_end(&hash, digest);
    sha256_hex(digest, b->hash);
    return e;
}

err_t bpe_open(struct bpe **out, const json_t *root, struct why *why) {
    *out = NULL;
    struct bpe *b = calloc(1, sizeof *b);
    if (!b)
        return why_set(why, E_NOMEM, "no memory for the tokenizer");
    b->unk = -1;
    const json_t *decoder = json_object_get(root, "decoder");
    err_t e = each(b, json_object_get(root, "normalizer"), "normalizers", read_normalizer, why);
    if (!e)
        e = each(b, json_object_get(root, "pre_tokenizer"), "pretokenizers", read_pre_tokenizer,
                 why);
    if (!e && !json_is_object(decoder))
        e = refuse(why, "decoder", "null");
    if (!e)
        e = each(b, decoder, "decoders", read_decoder, why);
    if (!e && b->byte_level && b->marks)
        e = refuse(why, "normalizer before ByteLevel,", "Replace");
    if (!e)
        e = read_model(b, json_object_get(root, "model"), why);
    if (e) {
        bpe_close(b);
        return e;
    }
    *out = b;
    return E_OK;
}

void bpe_close(struct bpe *b) {
    if (!b)
        return;
    free(b->pieces);
    free(b->texts);
    free(b->slots);
    free(b->merges);
    free(b);
}
