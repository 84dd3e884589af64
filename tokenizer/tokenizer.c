/* The tokenizer's door: opening, and what an id stands for; see tokenizer.h. Owns its added tokens
 * and, if it was opened from a folder, the vocabulary that its extensions share. Whether that is
 * SentencePiece or byte pairs is decided here, once. */
#include "tokenizer/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "config/json.h"
#include "config/utf8.h"
#include "tokenizer/additions.h"
#include "tokenizer/own.h"

enum {
    MAX_VOCAB = 1 << 24, /* ids an opened folder may name; its config.json is read elsewhere */
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

/* Byte pairs: plain text is kept from being joined into a piece that is markup. A piece of one
 * symbol cannot be kept from anything. */
static err_t close_piece(struct tokenizer *t, const struct added_token *token, struct why *why) {
    const struct bpe *b = t->vocab->bpe;
    uint32_t c;
    bool is_symbol =
        b->byte_level ? token->n == 1 : utf8_next(token->content, token->n, &c) == token->n;
    if (is_symbol)
        return why_set(why, E_UNSUPPORTED,
                       "the added token %d is one character of the model's alphabet and special: "
                       "text could not hold that character any more",
                       token->id);
    t->closed[token->id >> 3] |= (unsigned char)(1 << (token->id & 7));
    return E_OK;
}

/* An added token over an ordinary piece must be that piece: else plain text could become it. Where
 * it is markup, plain text is kept from becoming it while encoding. */
static err_t guard_pieces(struct tokenizer *t, struct why *why) {
    if (t->vocab->bpe && !(t->closed = calloc((size_t)t->vocab->n_pieces / 8 + 1, 1)))
        return why_set(why, E_NOMEM, "no memory for the tokenizer");
    for (int32_t i = 0; i < t->added.n; i++) {
        const struct added_token *token = &t->added.tokens[i];
        if (token->id >= t->vocab->n_pieces)
            continue;
        const struct vocab_piece *p = &t->vocab->pieces[token->id];
        if (!p->text || (p->kind != SP_NORMAL && p->kind != SP_BYTE))
            continue;
        if (p->kind == SP_BYTE || p->n != token->n || memcmp(p->text, token->content, p->n) != 0)
            return why_set(why, E_FORMAT,
                           "the added token %d has the id of an ordinary piece of the model; text "
                           "could become it unasked",
                           token->id);
        err_t e = E_OK;
        if (token->markup)
            e = t->vocab->bpe ? close_piece(t, token, why) : added_put(&t->guards, token, why);
        if (e)
            return e;
    }
    return added_seal(&t->guards, why);
}

static void set_prefix_rules(struct tokenizer *t, const json_t *settings) {
    const struct bpe *b = t->vocab->bpe;
    bool legacy = flag_of(settings, "legacy", true), bounded = b ? b->bounded : !t->vocab->whole;
    t->prefix_every = b ? b->prefix == BPE_PREFIX_EVERY : legacy && t->vocab->rules.dummy_prefix;
    t->prefix_first =
        b ? b->prefix == BPE_PREFIX_FIRST : !legacy && flag_of(settings, "add_prefix_space", true);
    t->strips = b ? b->strips : t->prefix_every || t->prefix_first;
    t->most_bytes_per_id = bounded ? t->vocab->longest : 0;
    for (int32_t i = 0; i < t->added.n && t->most_bytes_per_id; i++) {
        const struct added_token *token = &t->added.tokens[i];
        if (token->n > t->most_bytes_per_id)
            t->most_bytes_per_id = token->n;
        if (token->lstrip || token->rstrip)
            t->most_bytes_per_id = 0;
    }
}

/* The ids put before (after) every text: as tokenizer.json lists them, or BOS (EOS) if the flag of
 * a SentencePiece folder says so. */
static err_t read_around(struct tokenizer *t, const json_t *list, bool flag, int32_t named,
                         struct around *out, struct why *why) {
    size_t i, n;
    json_t *id;
    if (!json_is_array(list)) {
        if (flag && named >= 0)
            out->ids[out->n++] = named;
        return E_OK;
    }
    json_array_foreach(list, i, id) {
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value > INT32_MAX || !tokenizer_piece(t, (int32_t)value, &n) ||
            out->n == MAX_AROUND)
            return why_set(why, E_FORMAT,
                           "the ids put around texts are more than %d, or not of this tokenizer",
                           MAX_AROUND);
        out->ids[out->n++] = (int32_t)value;
    }
    return E_OK;
}

/* What the byte-pair reference does in ways that are not followed here. */
static err_t check_added(const struct tokenizer *t, struct why *why) {
    const struct bpe *b = t->vocab->bpe;
    for (int32_t i = 0; b && i < t->added.n; i++) {
        const struct added_token *token = &t->added.tokens[i];
        if (token->single_word)
            return why_set(why, E_UNSUPPORTED,
                           "the added token %d is 'single_word', which is not supported with "
                           "tokenizer.json",
                           token->id);
        if (token->normalized && b->marks && !b->keep_space)
            return why_set(why, E_UNSUPPORTED,
                           "the added token %d is 'normalized', which is not supported where a "
                           "normalizer rewrites texts",
                           token->id);
    }
    return E_OK;
}

/* The named special tokens by their content, as templates write them. */
static err_t read_named(struct tokenizer *t, const json_t *settings, struct why *why) {
    static const char *const named[][2] = {
        {"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}, {"pad_token", NULL}};
    int bad = !(t->named = json_object());
    for (size_t i = 0; !bad && i < sizeof named / sizeof named[0]; i++) {
        json_t *given = json_object_get(settings, named[i][0]);
        if (json_is_string(given))
            bad = json_object_set(t->named, named[i][0], given);
        else if (!given && named[i][1] && named_id(t, settings, named[i][0], named[i][1]) >= 0)
            bad = json_object_set_new(t->named, named[i][0], json_string(named[i][1]));
    }
    return bad ? why_set(why, E_NOMEM, "no memory for the tokenizer") : E_OK;
}

/* A template that cannot be used takes the chats of this model alone. */
static err_t read_template(struct tokenizer *t, const json_t *settings, struct why *why) {
    const json_t *given = json_object_get(settings, "chat_template");
    struct why bad = {""};
    if (!json_is_string(given))
        return E_OK;
    t->template = strdup(json_string_value(given));
    err_t e = t->template ? jinja_compile(&t->jinja, t->template, json_string_length(given), &bad)
                          : E_NOMEM;
    if (e && e != E_NOMEM && !(t->chat_error = strdup(bad.text)))
        e = E_NOMEM;
    t->facts.chat_template = t->template;
    t->facts.chat_error = t->chat_error;
    return e == E_NOMEM ? why_set(why, e, "no memory for the tokenizer") : E_OK;
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
        e = check_added(t, why);
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
        .pad_id = named_id(t, settings, "pad_token", NULL),
    };
    e = read_around(t, json_object_get(settings, "prefix_ids"),
                    flag_of(settings, "add_bos_token", true), t->facts.bos_id, &t->before, why);
    if (!e)
        e = read_around(t, json_object_get(settings, "suffix_ids"),
                        flag_of(settings, "add_eos_token", false), t->facts.eos_id, &t->after, why);
    if (e)
        return e;
    t->facts.add_bos = t->before.n > 0;
    t->facts.add_eos = t->after.n > 0;
    e = read_named(t, settings, why);
    if (!e)
        e = read_template(t, settings, why);
    if (!e && !(t->settings = json_dumps(settings, JSON_COMPACT)))
        e = why_set(why, E_NOMEM, "no memory for the tokenizer");
    return e;
}

/* The vocabulary of a folder's tokenizer.model. */
static err_t open_model(struct tokenizer *t, const char *dir, struct why *why) {
    char *model;
    size_t n;
    err_t e =
        additions_read_file(dir, "tokenizer.model", ADDITIONS_MAX_MODEL_BYTES, &model, &n, why);
    if (!e && !model)
        e = why_set(why, E_UNSUPPORTED, "%s has neither a tokenizer.model nor a tokenizer.json",
                    dir);
    if (!e && (e = vocab_open(&t->owned, model, n, why)))
        why_prefix(why, e, "%s/tokenizer.model", dir);
    free(model);
    return e;
}

err_t tokenizer_open(struct tokenizer **out, const char *dir, struct why *why) {
    *out = NULL;
    json_t *settings = NULL, *root = NULL;
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return why_set(why, E_NOMEM, "no memory for the tokenizer");
    err_t e = additions_read_json(dir, &root, why);
    if (!e && !root)
        e = open_model(t, dir, why);
    else if (!e && (e = vocab_open_json(&t->owned, root, why)))
        why_prefix(why, e, "%s", dir);
    t->vocab = t->owned;
    if (!e)
        e = additions_read_folder(dir, root, &settings, why);
    if (!e && (e = apply_settings(t, settings, MAX_VOCAB, why)))
        why_prefix(why, e, "%s", dir);
    json_decref(root);
    json_decref(settings);
    if (e) {
        tokenizer_close(t);
        return e;
    }
    *out = t;
    return E_OK;
}

/* Additions belong to the model they were read beside. */
static err_t check_model(const struct vocab *v, const json_t *own, struct why *why) {
    const char *hash = json_string_value(json_object_get(own, "model_hash"));
    const char *pieces = json_string_value(json_object_get(own, "pieces_hash"));
    char hex[SHA256_HEX];
    if (!hash || !*hash || strcmp(hash, v->model_hash) == 0)
        return E_OK;
    /* A tokenizer.json made of the base's SentencePiece model: the same pieces. */
    if (pieces && !v->bpe) {
        if (vocab_pieces_hash(v, hex))
            return why_set(why, E_NOMEM, "no memory for the tokenizer");
        if (strcmp(hex, pieces) == 0)
            return E_OK;
    }
    return why_set(why, E_WRONG_BASE,
                   "made with another tokenizer model (SHA-256 %.16s...; the base has %.16s...)",
                   hash, v->model_hash);
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
    if (!e)
        e = check_model(base->vocab, own, why);
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
    free(t->closed);
    free(t->chat_error);
    jinja_free(t->jinja);
    json_decref(t->named);
    free(t->settings);
    free(t->template);
    vocab_close(t->owned);
    free(t);
}

/* model_hash and, for a model of characters, pieces_hash of a tokenizer.json. */
static err_t hash_json(const char *dir, const json_t *root, json_t *settings, struct why *why) {
    struct vocab *v;
    char hex[SHA256_HEX];
    err_t e = vocab_open_json(&v, root, why);
    if (e)
        return why_prefix(why, e, "%s", dir);
    int bad = json_object_set_new(settings, "model_hash", json_string(v->model_hash));
    if (!v->bpe->byte_level)
        bad |= vocab_pieces_hash(v, hex) ||
               json_object_set_new(settings, "pieces_hash", json_string(hex));
    vocab_close(v);
    return bad ? why_set(why, E_NOMEM, "no memory for the tokenizer") : E_OK;
}

err_t tokenizer_additions(const char *dir, char **json, struct why *why) {
    json_t *settings = NULL, *root;
    *json = NULL;
    err_t e = additions_read_json(dir, &root, why);
    if (!e)
        e = additions_read_folder(dir, root, &settings, why);
    if (!e && root)
        e = hash_json(dir, root, settings, why);
    if (!e && !(*json = json_dumps(settings, JSON_COMPACT)))
        e = why_set(why, E_NOMEM, "no memory for the tokenizer");
    json_decref(root);
    json_decref(settings);
    return e;
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
    if (id < 0 || id >= t->vocab->n_pieces || added_by_id(&t->added, id))
        return false;
    const struct vocab_piece *p = &t->vocab->pieces[id];
    if (t->vocab->bpe && t->vocab->bpe->byte_level)
        return p->text && utf8_valid_prefix(p->text, p->n) < p->n;
    return p->kind == SP_BYTE;
}

bool tokenizer_is_bytes(const struct tokenizer *t) {
    return t->vocab->bpe && t->vocab->bpe->byte_level;
}

bool tokenizer_prefixes(const struct tokenizer *t) {
    return t->strips;
}

int32_t tokenizer_special_id(const struct tokenizer *t, const char *content) {
    const struct added_token *added = added_by_content(&t->added, content, strlen(content));
    return added ? added->id : -1;
}
