/* Text to ids; see tokenizer.h. Added tokens are cut out first, the stretches between them go to
 * the model. What a user wrote never becomes markup: not as an added token, and not by way of a
 * piece of the model that spells the same. */
#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/own.h"
#include "tokenizer/unicode.h"

/* SentencePiece tokenizers strip what Python's str.strip does, which knows four separators more
 * than Unicode's White_Space, which byte-pair tokenizers strip. */
static bool is_white(const struct tokenizer *t, uint32_t c) {
    return unicode_class(c) == U_SPACE || (!t->vocab->bpe && c >= 0x1c && c <= 0x1f);
}

static size_t skip_white(const struct tokenizer *t, const char *text, size_t n, size_t at) {
    uint32_t c;
    while (at < n) {
        size_t length = utf8_next(text + at, n - at, &c);
        if (!is_white(t, c))
            break;
        at += length;
    }
    return at;
}

/* End of text[from..end) without its trailing white space. */
static size_t trim_white(const struct tokenizer *t, const char *text, size_t from, size_t end) {
    size_t keep = from;
    uint32_t c;
    for (size_t at = from; at < end;) {
        at += utf8_next(text + at, end - at, &c);
        if (!is_white(t, c))
            keep = at;
    }
    return keep;
}

/* SentencePiece: a stretch in which markup is text. A guarded content is cut after its first
 * character: no piece reaches across, so its id cannot come out. */
static err_t encode_guarded(const struct tokenizer *t, const char *text, size_t n, bool prefix,
                            struct sp_ids *ids) {
    const struct added_search s = {.text = text, .n = n, .markup = true, .which = ADDED_ALL};
    size_t from = 0, at, first = ids->n;
    uint32_t c;
    err_t e = E_OK;
    while (!e && added_find(&t->guards, &s, from, &at)) {
        at += utf8_next(text + at, n - at, &c);
        e = vocab_encode(t->vocab, text + from, at - from, prefix, ids);
        prefix = false;
        from = at;
    }
    if (!e)
        e = vocab_encode(t->vocab, text + from, n - from, prefix, ids);
    /* A model that rewrites characters can still compose one; its text is then refused. */
    for (size_t i = first; !e && t->guards.n > 0 && i < ids->n; i++)
        if (added_by_id(&t->guards, ids->v[i]))
            e = E_INVAL;
    return e;
}

/* text[from..end), which holds no added token that counts. */
static err_t encode_plain(const struct tokenizer *t, const struct added_search *s, size_t from,
                          size_t end, struct sp_ids *ids) {
    const char *text = s->text + from;
    size_t n = end - from;
    bool prefix = t->prefix_every || (t->prefix_first && from == 0);
    bool guarded = !s->markup || (s->trusted && memchr(s->trusted + from, 0, n));
    if (t->vocab->bpe)
        return bpe_encode(t->vocab->bpe, text, n, prefix, guarded ? t->closed : NULL, ids, NULL);
    return guarded ? encode_guarded(t, text, n, prefix, ids)
                   : vocab_encode(t->vocab, text, n, prefix, ids);
}

/* s->text[from..s->n): tokens of the kind s->which first, then what lies between them. */
static err_t encode_text(const struct tokenizer *t, const struct added_search *s, size_t from,
                         struct sp_ids *ids) {
    size_t at = 0;
    err_t e = E_OK;
    while (!e && from < s->n) {
        const struct added_token *token = added_find(&t->added, s, from, &at);
        size_t end = token ? at : s->n;
        if (token && token->lstrip)
            end = trim_white(t, s->text, from, end);
        if (end > from && s->which == ADDED_RAW) {
            struct added_search rest = *s;
            rest.n = end;
            rest.which = ADDED_NORMALIZED;
            e = encode_text(t, &rest, from, ids);
        } else if (end > from) {
            e = encode_plain(t, s, from, end, ids);
        } else if (token && !token->special && from == 0 && t->prefix_first && !t->vocab->bpe) {
            e = sp_encode(t->vocab->bare, UTF8_SPACE_MARK_TEXT, sizeof UTF8_SPACE_MARK_TEXT - 1,
                          ids);
        }
        if (!token)
            break;
        if (!e)
            e = sp_ids_add(ids, token->id);
        from = at + token->n;
        if (token->rstrip)
            from = skip_white(t, s->text, s->n, from);
    }
    return e;
}

static err_t add_all(struct sp_ids *ids, const struct around *around) {
    err_t e = E_OK;
    for (int i = 0; !e && i < around->n; i++)
        e = sp_ids_add(ids, around->ids[i]);
    return e;
}

err_t tokenizer_encode_mixed(const struct tokenizer *t, const char *text,
                             const unsigned char *trusted, size_t n, unsigned flags,
                             size_t max_bytes, int32_t max_ids, int32_t **ids, int32_t *n_ids,
                             struct why *why) {
    struct sp_ids found = {.cap_max = max_ids > 0 ? (size_t)max_ids : 0};
    const struct added_search s = {.text = text,
                                   .n = n,
                                   .trusted = trusted,
                                   .markup = flags & ENCODE_PARSE_SPECIAL,
                                   .which = t->vocab->bpe ? ADDED_RAW : ADDED_ALL};
    *ids = NULL;
    *n_ids = 0;
    if (n > max_bytes)
        return why_set(why, E_CONTEXT, "The prompt has %zu bytes; at most %zu are read.", n,
                       max_bytes);
    size_t valid = utf8_valid_prefix(text, n);
    if (valid < n)
        return why_set(why, E_INVAL, "The prompt is not UTF-8: byte %zu of %zu.", valid, n);
    /* Texts that cannot fit are refused before they cost anything. */
    err_t e = t->most_bytes_per_id && n / t->most_bytes_per_id > found.cap_max ? E_CONTEXT : E_OK;
    if (!e && (flags & ENCODE_SPECIAL_TOKENS))
        e = add_all(&found, &t->before);
    if (!e)
        e = encode_text(t, &s, 0, &found);
    if (!e && (flags & ENCODE_SPECIAL_TOKENS))
        e = add_all(&found, &t->after);
    if (!e && !found.v && !(found.v = malloc(sizeof *found.v)))
        e = E_NOMEM;
    if (e) {
        free(found.v);
        if (e == E_CONTEXT)
            return why_set(why, e, "The prompt has more than %d tokens.", max_ids);
        if (e == E_INVAL)
            return why_set(why, e, "The text spells a special token in other characters.");
        return why_set(why, e, "%s", err_sentence(e));
    }
    *ids = found.v;
    *n_ids = (int32_t)found.n;
    return E_OK;
}

err_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                       size_t max_bytes, int32_t max_ids, int32_t **ids, int32_t *n_ids,
                       struct why *why) {
    return tokenizer_encode_mixed(t, text, NULL, n, flags, max_bytes, max_ids, ids, n_ids, why);
}
