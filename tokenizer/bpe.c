/* Words to ids; see bpe.h. Of a word's symbols the pair that was learnt first is joined, of equal
 * ones the leftmost, until none is left. A heap holds the candidates; one that a join has overtaken
 * is recognised when it comes out, so a word of n symbols costs n log n however it is built. */
#include "tokenizer/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"

struct symbol {
    int32_t id;
    uint32_t before, after; /* neighbours; NO_SYMBOL at the ends */
    bool gone;
};

struct candidate {
    int32_t rank;
    uint32_t at; /* the left one of the pair */
    int32_t id;  /* what the two become */
};

enum { NO_SYMBOL = UINT32_MAX };

/* What encoding one stretch needs; grows to its longest word. */
struct encoder {
    const struct bpe *bpe;
    const unsigned char *closed;
    struct sp_ids *ids;
    struct symbol *symbols;
    struct candidate *heap;
    size_t n_symbols, cap_symbols, n_heap, cap_heap;
    uint64_t work;
};

int32_t bpe_find(const struct bpe *b, const char *text, size_t n) {
    size_t at = bpe_hash(text, n) & (b->n_slots - 1);
    for (; b->slots[at]; at = (at + 1) & (b->n_slots - 1)) {
        const struct bpe_piece *p = &b->pieces[b->slots[at] - 1];
        if (p->n == n && memcmp(p->text, text, n) == 0)
            return b->slots[at] - 1;
    }
    return -1;
}

static bool is_closed(const struct encoder *e, int32_t id) {
    return e->closed && (e->closed[id >> 3] >> (id & 7) & 1);
}

static const struct bpe_merge *find_merge(const struct encoder *e, int32_t left, int32_t right) {
    const struct bpe *b = e->bpe;
    if (left < 0 || right < 0)
        return NULL;
    uint64_t pair = bpe_pair(left, right);
    size_t at = bpe_pair_hash(pair) & (b->n_merge_slots - 1);
    for (; b->merges[at].pair; at = (at + 1) & (b->n_merge_slots - 1))
        if (b->merges[at].pair == pair)
            return is_closed(e, b->merges[at].id) ? NULL : &b->merges[at];
    return NULL;
}

static bool comes_first(const struct candidate *a, const struct candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* A pair that can be joined is put on the heap. */
static err_t consider(struct encoder *e, uint32_t left) {
    uint32_t right = left == NO_SYMBOL ? NO_SYMBOL : e->symbols[left].after;
    if (right == NO_SYMBOL)
        return E_OK;
    const struct bpe_merge *merge = find_merge(e, e->symbols[left].id, e->symbols[right].id);
    if (!merge)
        return E_OK;
    if (e->n_heap == e->cap_heap) {
        size_t cap = e->cap_heap ? 2 * e->cap_heap : 64;
        struct candidate *grown = realloc(e->heap, cap * sizeof *grown);
        if (!grown)
            return E_NOMEM;
        e->heap = grown;
        e->cap_heap = cap;
    }
    struct candidate c = {merge->rank, left, merge->id};
    size_t i = e->n_heap++;
    for (; i > 0 && comes_first(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2, e->work++)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
    return E_OK;
}

static struct candidate take_first(struct encoder *e) {
    struct candidate first = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < e->n_heap; i = child, e->work++) {
        if (child + 1 < e->n_heap && comes_first(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!comes_first(&e->heap[child], &last))
            break;
        e->heap[i] = e->heap[child];
    }
    e->heap[i] = last;
    return first;
}

static err_t merge_all(struct encoder *e) {
    err_t err = E_OK;
    e->n_heap = 0;
    for (size_t i = 0; !err && i + 1 < e->n_symbols; i++)
        err = consider(e, (uint32_t)i);
    while (!err && e->n_heap > 0) {
        struct candidate c = take_first(e);
        struct symbol *left = &e->symbols[c.at];
        if (left->gone || left->after == NO_SYMBOL)
            continue;
        struct symbol *right = &e->symbols[left->after];
        const struct bpe_merge *merge = find_merge(e, left->id, right->id);
        if (!merge || merge->id != c.id)
            continue; /* one of the two has become part of something else */
        left->id = merge->id;
        left->after = right->after;
        right->gone = true;
        if (left->after != NO_SYMBOL)
            e->symbols[left->after].before = c.at;
        err = consider(e, left->before);
        if (!err)
            err = consider(e, c.at);
        e->work++;
    }
    return err;
}

static void add_symbol(struct encoder *e, int32_t id) {
    uint32_t at = (uint32_t)e->n_symbols++;
    e->symbols[at] =
        (struct symbol){.id = id, .before = at ? at - 1 : NO_SYMBOL, .after = NO_SYMBOL};
    if (at)
        e->symbols[at - 1].after = at;
}

/* A character without an id: its bytes if the model falls back to them, else <unk>, else nothing.
 * fusing: the symbol before is an <unk> that this one joins. */
static void add_unknown(struct encoder *e, const char *text, size_t n, bool *fusing) {
    const struct bpe *b = e->bpe;
    bool bytes = b->byte_fallback;
    for (size_t i = 0; bytes && i < n; i++)
        bytes = b->byte_id[(unsigned char)text[i]] >= 0;
    if (bytes) {
        for (size_t i = 0; i < n; i++)
            add_symbol(e, b->byte_id[(unsigned char)text[i]]);
    } else if (b->unk >= 0 && !(*fusing && b->fuse_unk)) {
        add_symbol(e, b->unk);
        *fusing = true;
    }
}

static void add_symbols(struct encoder *e, const char *text, size_t n) {
    const struct bpe *b = e->bpe;
    bool fusing = false;
    uint32_t c;
    size_t length;
    for (size_t at = 0; at < n; at += length) {
        length = b->byte_level ? 1 : utf8_next(text + at, n - at, &c);
        int32_t id =
            b->byte_level ? b->byte_id[(unsigned char)text[at]] : bpe_find(b, text + at, length);
        if (id >= 0) {
            add_symbol(e, id);
            fusing = false;
        } else {
            add_unknown(e, text + at, length, &fusing);
        }
    }
}

static err_t encode_word(struct encoder *e, const char *text, size_t n) {
    const struct bpe *b = e->bpe;
    e->work += n;
    if (b->ignore_merges) {
        int32_t id = bpe_find(b, text, n);
        if (id >= 0 && !is_closed(e, id))
            return sp_ids_add(e->ids, id);
    }
    if (n >= NO_SYMBOL)
        return E_CONTEXT;
    if (n > e->cap_symbols) {
        free(e->symbols);
        e->cap_symbols = 0;
        e->symbols = malloc(2 * n * sizeof *e->symbols);
        if (!e->symbols)
            return E_NOMEM;
        e->cap_symbols = 2 * n;
    }
    e->n_symbols = 0;
    add_symbols(e, text, n);
    err_t err = merge_all(e);
    for (uint32_t i = 0; !err && i < e->n_symbols; i++)
        if (!e->symbols[i].gone)
            err = sp_ids_add(e->ids, e->symbols[i].id);
    return err;
}

/* Cuts text by the steps from number `step` on; what the last one leaves are words. */
static err_t cut(struct encoder *e, int step, const char *text, size_t n) {
    if (step == e->bpe->n_steps)
        return encode_word(e, text, n);
    err_t err = E_OK;
    for (size_t at = 0, length; !err && at < n; at += length) {
        length = split_next(e->bpe->steps[step], text + at, n - at);
        err = cut(e, step + 1, text + at, length);
    }
    e->work += n;
    return err;
}

/* The text as the pre-tokenizers see it: with its prefix, spaces as U+2581. *out: malloc'ed; NULL:
 * the text as it is will do. */
static err_t prepare(const struct bpe *b, const char *text, size_t n, bool prefix, char **out,
                     size_t *n_out) {
    const size_t n_mark = sizeof UTF8_SPACE_MARK_TEXT - 1;
    bool has_space =
        text[0] == ' ' || (b->marks && n >= n_mark && !memcmp(text, UTF8_SPACE_MARK_TEXT, n_mark));
    if (b->keep_space && has_space)
        prefix = false;
    *out = NULL;
    if (!prefix && !(b->marks && memchr(text, ' ', n)))
        return E_OK;
    char *to = malloc(n_mark * (n + 1));
    if (!to)
        return E_NOMEM;
    size_t used = 0;
    for (size_t i = 0; i < n + prefix; i++) {
        char c = i < prefix ? ' ' : text[i - prefix];
        if (c == ' ' && b->marks) {
            memcpy(to + used, UTF8_SPACE_MARK_TEXT, n_mark);
            used += n_mark;
        } else {
            to[used++] = c;
        }
    }
    *out = to;
    *n_out = used;
    return E_OK;
}

err_t bpe_encode(const struct bpe *b, const char *text, size_t n, bool prefix,
                 const unsigned char *closed, struct sp_ids *ids, uint64_t *work) {
    struct encoder e = {.bpe = b, .closed = closed, .ids = ids};
    char *prepared = NULL;
    size_t n_prepared = 0;
    if (n == 0)
        return E_OK;
    err_t err = prepare(b, text, n, prefix, &prepared, &n_prepared);
    if (!err)
        err = cut(&e, 0, prepared ? prepared : text, prepared ? n_prepared : n);
    if (work)
        *work += e.work;
    free(prepared);
    free(e.symbols);
    free(e.heap);
    return err;
}
