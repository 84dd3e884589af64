/* The model shared by a base and its tenants; see vocab.h.
 *
 * SentencePiece: the library's encoder costs n log n and falls out of the caches on long texts. A
 * text is therefore cut, without changing a single id, between two characters that stand side by
 * side in no piece: no merge can ever cross such a place. Runs without one (a million times 'a') go
 * in whole.
 */
#include "tokenizer/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"

enum {
    CUT_BYTES = 2048, /* a cut is sought from here on: 215 ns a byte, against 780 for 1 MB whole */
};

static uint64_t pair_key(uint32_t a, uint32_t b) {
    return ((uint64_t)a << 32 | b) + 1; /* 0 marks an empty slot */
}

static size_t pair_slot(const struct vocab *v, uint64_t key) {
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (v->n_slots - 1);
    while (v->pairs[at] && v->pairs[at] != key)
        at = (at + 1) & (v->n_slots - 1);
    return at;
}

/* The character at text, with a space as the mark that pieces have for it. */
static size_t marked_next(const char *text, size_t n, uint32_t *c) {
    size_t length = utf8_next(text, n, c);
    if (length == 1 && *c == ' ')
        *c = UTF8_SPACE_MARK;
    return length;
}

static err_t collect_pairs(struct vocab *v) {
    size_t n_chars = 0;
    for (int32_t id = 0; id < v->n_pieces; id++)
        n_chars += v->pieces[id].n;
    v->n_slots = 1024;
    while (v->n_slots < 2 * n_chars) /* at most half full: every piece has fewer pairs than bytes */
        v->n_slots *= 2;
    v->pairs = calloc(v->n_slots, sizeof *v->pairs);
    if (!v->pairs)
        return E_NOMEM;
    for (int32_t id = 0; id < v->n_pieces; id++) {
        const struct vocab_piece *p = &v->pieces[id];
        if (p->kind == SP_BYTE)
            continue;
        uint32_t before, c;
        size_t at = marked_next(p->text, p->n, &before);
        while (at < p->n) {
            at += marked_next(p->text + at, p->n - at, &c);
            uint64_t key = pair_key(before, c);
            v->pairs[pair_slot(v, key)] = key;
            before = c;
        }
    }
    return E_OK;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* Writes what a piece prints to `to` (at least n bytes); the bytes written, 0 if it is damaged. */
static size_t print_piece(const char *piece, size_t n, enum sp_kind kind, char *to) {
    if (kind == SP_BYTE) { /* <0xAB> */
        int high = n == 6 ? hex_digit(piece[3]) : -1, low = n == 6 ? hex_digit(piece[4]) : -1;
        if (high < 0 || low < 0)
            return 0;
        to[0] = (char)(high << 4 | low);
        return 1;
    }
    size_t used = 0, length;
    uint32_t c;
    for (size_t at = 0; at < n; at += length) {
        length = utf8_next(piece + at, n - at, &c);
        if (length == 0)
            return 0;
        if (c == UTF8_SPACE_MARK) {
            to[used++] = ' ';
        } else {
            memcpy(to + used, piece + at, length);
            used += length;
        }
    }
    return used;
}

static err_t read_pieces(struct vocab *v, struct why *why) {
    size_t bytes = 0, n;
    enum sp_kind kind;
    v->n_pieces = sp_size(v->bare);
    for (int32_t id = 0; id < v->n_pieces; id++) {
        if (!sp_piece(v->bare, id, &n, &kind))
            return why_set(why, E_FORMAT, "the SentencePiece model has no piece %d", id);
        bytes += n;
    }
    v->pieces = calloc((size_t)v->n_pieces + 1, sizeof *v->pieces);
    v->texts = malloc(bytes + 1);
    if (!v->pieces || !v->texts)
        return why_set(why, E_NOMEM, "no memory for %d pieces", v->n_pieces);
    size_t used = 0;
    for (int32_t id = 0; id < v->n_pieces; id++) {
        const char *piece = sp_piece(v->bare, id, &n, &kind);
        size_t printed = 0;
        if (n <= VOCAB_MAX_PIECE_BYTES)
            printed = print_piece(piece, n, kind, v->texts + used);
        if (printed == 0)
            return why_set(why, E_FORMAT,
                           "piece %d of the SentencePiece model (%zu bytes) is not a text of 1 to "
                           "%d bytes of UTF-8",
                           id, n, VOCAB_MAX_PIECE_BYTES);
        v->pieces[id] =
            (struct vocab_piece){.text = v->texts + used, .n = (uint32_t)printed, .kind = kind};
        used += printed;
        if (n > v->longest)
            v->longest = n;
    }
    return E_OK;
}

err_t vocab_open(struct vocab **out, const void *model, size_t n, struct why *why) {
    *out = NULL;
    void *stripped = NULL;
    size_t n_stripped = 0;
    struct vocab *v = calloc(1, sizeof *v);
    if (!v)
        return why_set(why, E_NOMEM, "no memory for the tokenizer");
    err_t e = spm_model_read(&v->rules, model, n, why);
    if (!e)
        e = spm_model_without_prefix(model, n, &stripped, &n_stripped, why);
    if (!e)
        e = sp_open(&v->bare, stripped, n_stripped, why);
    /* A model that rewrites or squeezes does so before its prefix; only it can do that right. */
    bool plain = !v->rules.rewrites && !v->rules.squeeze;
    if (!e && !plain)
        e = sp_open(&v->whole, model, n, why);
    if (!e)
        e = read_pieces(v, why);
    if (!e && plain && (e = collect_pairs(v)))
        why_set(why, e, "no memory for the tokenizer");
    free(stripped);
    if (e) {
        vocab_close(v);
        return e;
    }
    unsigned char digest[SHA256_BYTES];
    sha256_of(model, n, digest);
    sha256_hex(digest, v->model_hash);
    *out = v;
    return E_OK;
}

/* The bytes of each byte-pair piece; in a model of characters U+2581 prints as a space. */
static err_t print_bpe_pieces(struct vocab *v, struct why *why) {
    const struct bpe *b = v->bpe;
    size_t bytes = 0, used = 0;
    v->n_pieces = b->n_pieces;
    for (int32_t id = 0; id < b->n_pieces; id++)
        bytes += b->pieces[id].n;
    v->pieces = calloc((size_t)v->n_pieces + 1, sizeof *v->pieces);
    v->texts = malloc(bytes + 1);
    if (!v->pieces || !v->texts)
        return why_set(why, E_NOMEM, "no memory for %d pieces", v->n_pieces);
    for (int32_t id = 0; id < b->n_pieces; id++) {
        const struct bpe_piece *p = &b->pieces[id];
        if (!p->text)
            continue;
        bool is_byte = false;
        if (b->byte_fallback && !b->byte_level && p->n == 6)
            for (int byte = 0; byte < 256; byte++)
                is_byte |= b->byte_id[byte] == id;
        size_t printed = p->n;
        if (b->byte_level)
            memcpy(v->texts + used, p->text, p->n);
        else
            printed = print_piece(p->text, p->n, is_byte ? SP_BYTE : SP_NORMAL, v->texts + used);
        v->pieces[id] = (struct vocab_piece){
            .text = v->texts + used, .n = (uint32_t)printed, .kind = is_byte ? SP_BYTE : SP_NORMAL};
        used += printed;
        if (p->n > v->longest)
            v->longest = p->n;
    }
    return E_OK;
}

err_t vocab_open_json(struct vocab **out, const json_t *root, struct why *why) {
    *out = NULL;
    struct vocab *v = calloc(1, sizeof *v);
    if (!v)
        return why_set(why, E_NOMEM, "no memory for the tokenizer");
    err_t e = bpe_open(&v->bpe, root, why);
    if (!e)
        e = print_bpe_pieces(v, why);
    if (e) {
        vocab_close(v);
        return e;
    }
    memcpy(v->model_hash, v->bpe->hash, sizeof v->model_hash);
    *out = v;
    return E_OK;
}

void vocab_close(struct vocab *v) {
    if (!v)
        return;
    bpe_close(v->bpe);
    sp_close(v->bare);
    sp_close(v->whole);
    free(v->pieces);
    free(v->texts);
    free(v->pairs);
    free(v);
}

/* The first place from `from` on where a cut changes nothing; n if there is none. */
static size_t find_cut(const struct vocab *v, const char *text, size_t n, size_t from) {
    if (v->n_slots == 0 || from >= n)
        return n;
    while (from > 0 && ((unsigned char)text[from] & 0xc0) == 0x80)
        from--; /* to the start of a character */
    uint32_t before, c;
    size_t at = from + marked_next(text + from, n - from, &before);
    while (at < n) {
        size_t length = marked_next(text + at, n - at, &c);
        if (!v->pairs[pair_slot(v, pair_key(before, c))])
            return at;
        before = c;
        at += length;
    }
    return n;
}

/* A model without byte pieces writes a run of unknown characters as one id: also across a cut. */
static void merge_unknown(const struct vocab *v, struct sp_ids *ids, size_t joint) {
    if (v->rules.byte_fallback || joint == 0 || joint >= ids->n)
        return;
    int32_t unk = sp_unk(v->bare);
    if (ids->v[joint - 1] == unk && ids->v[joint] == unk) {
        memmove(ids->v + joint, ids->v + joint + 1, (ids->n - joint - 1) * sizeof *ids->v);
        ids->n--;
    }
}

static err_t encode_with_mark(const struct vocab *v, const char *text, size_t n,
                              struct sp_ids *ids) {
    const size_t n_mark = sizeof UTF8_SPACE_MARK_TEXT - 1;
    char *marked = malloc(n_mark + n);
    if (!marked)
        return E_NOMEM;
    memcpy(marked, UTF8_SPACE_MARK_TEXT, n_mark);
    memcpy(marked + n_mark, text, n);
    err_t e = sp_encode(v->bare, marked, n_mark + n, ids);
    free(marked);
    return e;
}

err_t vocab_encode(const struct vocab *v, const char *text, size_t n, bool prefix,
                   struct sp_ids *ids) {
    if (n == 0)
        return E_OK;
    if (v->whole)
        return sp_encode(prefix ? v->whole : v->bare, text, n, ids);
    size_t end = find_cut(v, text, n, CUT_BYTES);
    err_t e = prefix ? encode_with_mark(v, text, end, ids) : sp_encode(v->bare, text, end, ids);
    for (size_t at = end; !e && at < n; at = end) {
        end = find_cut(v, text, n, at + CUT_BYTES);
        size_t joint = ids->n;
        e = sp_encode(v->bare, text + at, end - at, ids);
        if (!e)
            merge_unknown(v, ids, joint);
    }
    return e;
}

/* The piece as it stands in the model; NULL: a gap. */
static const char *piece_of(const struct vocab *v, int32_t id, size_t *n) {
    enum sp_kind kind;
    if (!v->bpe)
        return sp_piece(v->bare, id, n, &kind);
    *n = v->bpe->pieces[id].n;
    return v->bpe->pieces[id].text;
}

int32_t vocab_find(const struct vocab *v, const char *content, size_t n) {
    size_t n_piece;
    for (int32_t id = 0; id < v->n_pieces; id++) {
        const char *piece = piece_of(v, id, &n_piece);
        if (piece && n_piece == n && memcmp(piece, content, n) == 0)
            return id;
    }
    return -1;
}

err_t vocab_pieces_hash(const struct vocab *v, char hex[SHA256_HEX]) {
    struct sha256 hash;
    unsigned char digest[SHA256_BYTES];
    err_t e = sha256_init(&hash);
    if (e)
        return e;
    for (int32_t id = 0; id < v->n_pieces; id++) {
        size_t n = 0;
        const char *piece = piece_of(v, id, &n);
        sha256_add(&hash, &n, sizeof n);
        sha256_add(&hash, piece, n);
    }
    sha256_end(&hash, digest);
    sha256_hex(digest, hex);
    return E_OK;
}
