/* The tokenizer's door: opening, encoding, and what an id stands for; see tokenizer.h. Owns its
 * added tokens and, if it was opened from a folder, the vocabulary that its extensions share.
 * Chat templates are only handed on; nothing here runs them. */
#include "tokenizer/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/utf8.h"
#include "tokenizer/added.h"
#include "tokenizer/additions.h"
#include "tokenizer/vocab.h"

enum { MAX_VOCAB = 1 << 24 }; /* ids an opened folder may name; its config.json is read elsewhere */

struct tokenizer {
    const struct vocab *vocab;
    struct vocab *owned; /* == vocab in a tokenizer opened from a folder, else NULL */
    struct added added;  /* control pieces of the model among them */
    struct added guards; /* markup that is an ordinary piece of the model, too */
    struct tokenizer_facts facts;
    char *settings;                  /* the JSON it was made of; owned */
    char *template;                  /* facts.chat_template; owned */
    bool prefix_every, prefix_first; /* a space before every stretch; before the first alone */
    size_t most_bytes_per_id;        /* 0: no bound */
};

static bool flag_of(const json_t *settings, const char *key, bool absent) {
    const json_t *value = json_object_get(settings, key);
    return json_is_boolean(value) ? json_is_true(value) : absent;
}

/* The id of the token that `key` names; absent: of `usual`. -1: none. */
static int32_t named_id(const struct tokenizer *t, const json_t *settings, const char *key,
                        const char *usual) {
    const json_t *value = json_object_get(settings, key);
    const char *content = value ? json_string_value(value) : usual;
    if (!content)
        return -1;
    const struct added_token *added = added_by_content(&t->added, content, strlen(content));
    return added ? added->id : vocab_find(t->vocab, content, strlen(content));
}

/* The model's own control pieces are special tokens, unless the settings rename their ids. */
static err_t add_control_pieces(struct tokenizer *t, struct why *why) {
    const struct added listed = t->added; /* sealed; t->added starts again */
    struct added all = {0};
    err_t e = E_OK;
    for (int32_t i = 0; !e && i < listed.n; i++)
        e = added_put(&all, &listed.tokens[i], why);
    for (int32_t id = 0; !e && id < t->vocab->n_pieces; id++) {
        const struct vocab_piece *p = &t->vocab->pieces[id];
        if ((p->kind != SP_CONTROL && p->kind != SP_UNKNOWN) || added_by_id(&listed, id) ||
            added_by_content(&listed, p->text, p->n))
            continue;
        struct added_token token = {
            .content = (char *)p->text, .n = p->n, .id = id, .special = true};
        e = added_put(&all, &token, why);
    }
    if (!e)
        e = added_seal(&all, why);
    added_free(&t->added);
    t->added = all;
    return e;
}

/* An added token over an ordinary piece must be that piece: else plain text could become it. Where
 * it is markup, plain text is kept from becoming it while encoding. */
static err_t guard_pieces(struct tokenizer *t, struct why *why) {
    for (int32_t i = 0; i < t->added.n; i++) {
        const struct added_token *token = &t->added.tokens[i];
        if (token->id >= t->vocab->n_pieces)
            continue;
        const struct vocab_piece *p = &t->vocab->pieces[token->id];
        if (p->kind != SP_NORMAL && p->kind != SP_BYTE)
            continue;
        if (p->kind == SP_BYTE || p->n != token->n || memcmp(p->text, token->content, p->n) != 0)
            return why_set(why, E_FORMAT,
                           "the added token %d has the id of an ordinary piece of the model; text "
                           "could become it unasked",
                           token->id);
        err_t e = token->markup ? added_put(&t->guards, token, why) : E_OK;
        if (e)
            return e;
    }
    return added_seal(&t->guards, why);
}

static void set_prefix_rules(struct tokenizer *t, const json_t *settings) {
    bool legacy = flag_of(settings, "legacy", true);
    t->prefix_every = legacy && t->vocab->rules.dummy_prefix;
    t->prefix_first = !legacy && flag_of(settings, "add_prefix_space", true);
    t->most_bytes_per_id = t->vocab->whole ? 0 : t->vocab->longest;
    for (int32_t i = 0; i < t->added.n && t->most_bytes_per_id; i++) {
        const struct added_token *token = &t->added.tokens[i];
        if (token->n > t->most_bytes_per_id)
            t->most_bytes_per_id = token->n;
        if (token->lstrip || token->rstrip)
            t->most_bytes_per_id = 0;
    }
}

/* Fills in all but vocab and owned. vocab_size: ids outside 0 .. vocab_size-1 are refused. */
static err_t apply_settings(struct tokenizer *t, const json_t *settings, int32_t vocab_size,
                            struct why *why) {
    err_t e = added_read(&t->added, json_object_get(settings, "added_tokens"), vocab_size, why);
    if (!e)
        e = added_seal(&t->added, why);
    if (!e)
        e = add_control_pieces(t, why);
    if (!e)
        e = guard_pieces(t, why);
    if (e)
        return e;
    set_prefix_rules(t, settings);
    t->facts = (struct tokenizer_facts){
        .pieces = t->vocab->n_pieces,
        .bos_id = named_id(t, settings, "bos_token", "<s>"),
        .eos_id = named_id(t, settings, "eos_token", "</s>"),
        .unk_id = named_id(t, settings, "unk_token", "<unk>"),
        .add_bos = flag_of(settings, "add_bos_token", true),
        .add_eos = flag_of(settings, "add_eos_token", false),
    };
    const char *template = json_string_value(json_object_get(settings, "chat_template"));
    t->template = template ? strdup(template) : NULL;
    t->facts.chat_template = t->template;
    t->settings = json_dumps(settings, JSON_COMPACT);
    return t->settings && (t->template || !template)
               ? E_OK
               : why_set(why, E_NOMEM, "no memory for the tokenizer");
}

err_t tokenizer_open(struct tokenizer **out, const char *dir, struct why *why) {
    *out = NULL;
    char *model = NULL;
    size_t n = 0;
    json_t *settings = NULL;
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return why_set(why, E_NOMEM, "no memory for the tokenizer");
    err_t e =
        additions_read_file(dir, "tokenizer.model", ADDITIONS_MAX_MODEL_BYTES, &model, &n, why);
    if (!e && !model)
        e = why_set(why, E_UNSUPPORTED,
                    "%s has no tokenizer.model: only SentencePiece tokenizers are supported", dir);
    if (!e && (e = vocab_open(&t->owned, model, n, why)))
        why_prefix(why, e, "%s/tokenizer.model", dir);
    t->vocab = t->owned;
    if (!e)
        e = additions_read_folder(dir, &settings, why);
    if (!e && (e = apply_settings(t, settings, MAX_VOCAB, why)))
        why_prefix(why, e, "%s", dir);
    free(model);
    json_decref(settings);
    if (e) {
        tokenizer_close(t);
        return e;
    }
    *out = t;
    return E_OK;
}

err_t tokenizer_extend(struct tokenizer **out, const struct tokenizer *base, const char *json,
                       int32_t vocab, struct why *why) {
    *out = NULL;
    json_t *settings = json_loads(base->settings, 0, NULL), *own = NULL;
    struct tokenizer *t = calloc(1, sizeof *t);
    err_t e = settings && t ? E_OK : why_set(why, E_NOMEM, "no memory for the tokenizer");
    if (!e)
        e = json_parse(&own, json, strlen(json), "the tokenizer's additions", ADDITIONS_MAX_DEPTH,
                       ADDITIONS_MAX_VALUES, why);
    if (!e && !json_is_object(own))
        e = why_set(why, E_FORMAT, "the tokenizer's additions are not a JSON object");
    const char *hash = e ? NULL : json_string_value(json_object_get(own, "model_hash"));
    if (hash && *hash && strcmp(hash, base->vocab->model_hash) != 0)
        e = why_set(why, E_WRONG_BASE,
                    "made with another tokenizer.model (SHA-256 %.16s...; the base has %.16s...)",
                    hash, base->vocab->model_hash);
    if (!e && json_object_update(settings, own))
        e = why_set(why, E_NOMEM, "no memory for the tokenizer");
    if (!e) {
        t->vocab = base->vocab;
        e = apply_settings(t, settings, vocab, why);
    }
    json_decref(settings);
    json_decref(own);
    if (e) {
        tokenizer_close(t);
        return e;
    }
    *out = t;
    return E_OK;
}

void tokenizer_close(struct tokenizer *t) {
    if (!t)
        return;
    added_free(&t->added);
    added_free(&t->guards);
    free(t->settings);
    free(t->template);
    vocab_close(t->owned);
    free(t);
}

err_t tokenizer_additions(const char *dir, char **json, struct why *why) {
    json_t *settings;
    *json = NULL;
    err_t e = additions_read_folder(dir, &settings, why);
    if (e)
        return e;
    *json = json_dumps(settings, JSON_COMPACT);
    json_decref(settings);
    return *json ? E_OK : why_set(why, E_NOMEM, "no memory for the tokenizer");
}

const char *tokenizer_model_hash(const struct tokenizer *t) {
    return t->vocab->model_hash;
}

const struct tokenizer_facts *tokenizer_facts(const struct tokenizer *t) {
    return &t->facts;
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *n) {
    const struct added_token *added = added_by_id(&t->added, id);
    if (added) {
        *n = added->n;
        return added->content;
    }
    if (id < 0 || id >= t->vocab->n_pieces)
        return NULL;
    *n = t->vocab->pieces[id].n;
    return t->vocab->pieces[id].text;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    const struct added_token *added = added_by_id(&t->added, id);
    return added && added->special;
}

bool tokenizer_is_byte(const struct tokenizer *t, int32_t id) {
    return id >= 0 && id < t->vocab->n_pieces && t->vocab->pieces[id].kind == SP_BYTE;
}

bool tokenizer_prefixes(const struct tokenizer *t) {
    return t->prefix_every || t->prefix_first;
}

int32_t tokenizer_special_id(const struct tokenizer *t, const char *content) {
    const struct added_token *added = added_by_content(&t->added, content, strlen(content));
    return added ? added->id : -1;
}

/* White space as Python's str.strip knows it: what lstrip and rstrip were tested with. */
static bool is_white(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static size_t skip_white(const char *text, size_t n, size_t at) {
    uint32_t c;
    while (at < n) {
        size_t length = utf8_next(text + at, n - at, &c);
        if (!is_white(c))
            break;
        at += length;
    }
    return at;
}

/* End of text[from..end) without its trailing white space. */
static size_t trim_white(const char *text, size_t from, size_t end) {
    size_t keep = from;
    uint32_t c;
    for (size_t at = from; at < end;) {
        at += utf8_next(text + at, end - at, &c);
        if (!is_white(c))
            keep = at;
    }
    return keep;
}

/* A stretch without added tokens. unparsed: special tokens in it are text. A guarded content is cut
 * after its first character: no piece reaches across, so its id cannot come out. */
static err_t encode_plain(const struct tokenizer *t, const char *text, size_t n, bool prefix,
                          bool unparsed, struct sp_ids *ids) {
    size_t from = 0, at, first = ids->n;
    const struct added_token *guard;
    uint32_t c;
    err_t e = E_OK;
    while (!e && unparsed && (guard = added_find(&t->guards, text, n, from, true, &at))) {
        at += utf8_next(text + at, n - at, &c);
        e = vocab_encode(t->vocab, text + from, at - from, prefix, ids);
        prefix = false;
        from = at;
    }
    if (!e)
        e = vocab_encode(t->vocab, text + from, n - from, prefix, ids);
    /* A model that rewrites characters can still compose one; its text is then refused. */
    for (size_t i = first; !e && unparsed && t->guards.n > 0 && i < ids->n; i++)
        if (added_by_id(&t->guards, ids->v[i]))
            e = E_INVAL;
    return e;
}

static err_t encode_text(const struct tokenizer *t, const char *text, size_t n, bool parse,
                         struct sp_ids *ids) {
    size_t from = 0, at = 0;
    err_t e = E_OK;
    while (!e && from < n) {
        const struct added_token *token = added_find(&t->added, text, n, from, parse, &at);
        size_t end = token ? at : n;
        if (token && token->lstrip)
            end = trim_white(text, from, end);
        bool prefix = t->prefix_every || (t->prefix_first && from == 0);
        if (end > from)
            e = encode_plain(t, text + from, end - from, prefix, !parse, ids);
        else if (token && !token->special && from == 0 && t->prefix_first)
            e = sp_encode(t->vocab->bare, UTF8_SPACE_MARK_TEXT, sizeof UTF8_SPACE_MARK_TEXT - 1,
                          ids);
        if (!token)
            break;
        if (!e)
            e = sp_ids_add(ids, token->id);
        from = at + token->n;
        if (token->rstrip)
            from = skip_white(text, n, from);
    }
    return e;
}

err_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                       size_t max_bytes, int32_t max_ids, int32_t **ids, int32_t *n_ids,
                       struct why *why) {
    struct sp_ids found = {.cap_max = max_ids > 0 ? (size_t)max_ids : 0};
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
    if (!e && (flags & ENCODE_SPECIAL_TOKENS) && t->facts.add_bos && t->facts.bos_id >= 0)
        e = sp_ids_add(&found, t->facts.bos_id);
    if (!e)
        e = encode_text(t, text, n, flags & ENCODE_PARSE_SPECIAL, &found);
    if (!e && (flags & ENCODE_SPECIAL_TOKENS) && t->facts.add_eos && t->facts.eos_id >= 0)
        e = sp_ids_add(&found, t->facts.eos_id);
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
