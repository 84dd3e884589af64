#include "server/tokenize.h"

#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "server/chat.h"
#include "server/json.h"
#include "server/params.h"
#include "server/server.h"
#include "server/surface.h"

/* One call, carried through two turns of a worker: read the body, then do the work with the model
 * that the loop thread looked up in between. */
struct job {
    struct server *server;
    struct exchange *x; /* NULL: the client left */
    bool decode;
    struct buf body; /* after it was read: that of a conversation, or nothing */
    json_t *request;
    struct served *model; /* one reference */
    char *reply;          /* malloc'ed JSON */
    size_t n_reply;
    err_t error;
    const char *field;
    struct why why;
    uv_work_t work;
};

static void job_free(struct job *j) {
    buf_free(&j->body);
    json_decref(j->request);
    served_unref(j->model);
    free(j->reply);
    free(j);
}

static void on_gone(struct exchange *x) {
    struct job *j = x->work;
    j->x = NULL;
}

static void finish(struct job *j) {
    struct exchange *x = j->x;
    if (x) {
        x->on_gone = NULL;
        if (j->error) {
            http_reply_error(x, j->error, j->field, &j->why);
        } else {
            http_reply(x, 200, "application/json", j->reply, j->n_reply);
            j->reply = NULL;
        }
    }
    job_free(j);
}

static bool is_known(const struct job *j, const char *key) {
    static const char *const text[] = {"model", "prompt", "add_special_tokens", "return_token_strs",
                                       NULL};
    static const char *const chat[] = {"model",
                                       "messages",
                                       "add_special_tokens",
                                       "return_token_strs",
                                       "add_generation_prompt",
                                       "continue_final_message",
                                       "chat_template_kwargs",
                                       NULL};
    static const char *const ids[] = {"model", "tokens", NULL};
    const char *const *known = j->decode ? ids : j->body.n ? chat : text;
    while (*known && strcmp(key, *known) != 0)
        known++;
    return *known;
}

/* Tells the client of the fields that nothing was done with. */
static void note_ignored(struct job *j) {
    const char *key;
    json_t *v;
    json_object_foreach(j->request, key, v) if (!is_known(j, key) && !json_is_null(v)) {
        j->server->metrics.unknown_fields++;
        params_note_ignored(j->x->ignored, key);
    }
}

/* A field that is true or false, or left out (then `other`). */
static err_t read_flag(struct job *j, const char *name, bool other, bool *out) {
    json_t *v = json_object_get(j->request, name);
    *out = v && !json_is_null(v) ? json_is_true(v) : other;
    if (!v || json_is_null(v) || json_is_boolean(v))
        return E_OK;
    j->field = name;
    return why_set(&j->why, E_INVAL, "'%s' must be true or false.", name);
}

/* The pieces of the ids as text. */
static json_t *token_strings(const struct tokenizer *t, const int32_t *ids, int32_t n) {
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++) {
        size_t size = 0;
        const char *piece = tokenizer_piece(t, ids[i], &size);
        json_t *text = piece ? json_stringn(piece, size) : NULL; /* NULL: part of a character */
        json_array_append_new(list, text ? text : json_string(UTF8_REPLACEMENT_TEXT));
    }
    return list;
}

static err_t encode_text(struct job *j, int32_t **ids, int32_t *n) {
    json_t *prompt = json_object_get(j->request, "prompt");
    bool special;
    err_t e = read_flag(j, "add_special_tokens", true, &special);
    if (e)
        return e;
    j->field = "prompt";
    if (!json_is_string(prompt))
        return why_set(&j->why, E_INVAL, "'prompt' must be a string, or 'messages' given.");
    unsigned flags = ENCODE_PARSE_SPECIAL | (special ? ENCODE_SPECIAL_TOKENS : 0u);
    return tokenizer_encode(j->model->tokenizer, json_string_value(prompt),
                            json_string_length(prompt), flags, j->server->options->max_prompt_bytes,
                            INT32_MAX, ids, n, &j->why);
}

/* The ids that /v1/chat/completions would give the engine, by its own reader. */
static err_t encode_chat(struct job *j, int32_t **ids, int32_t *n) {
    struct params p;
    err_t e = params_read(&p, &surface_chat, j->body.data, j->body.n, &j->field, &j->why);
    if (e)
        return e;
    e = chat_ids(&p, j->model, j->server->options->max_prompt_bytes, INT32_MAX, &j->field, &j->why);
    if (!e) {
        *ids = p.prompt[0].ids;
        *n = p.prompt[0].n_ids;
        p.prompt[0].ids = NULL;
    }
    params_free(&p);
    return e;
}

static err_t encode(struct job *j) {
    int32_t *ids = NULL, n = 0;
    bool strings;
    err_t e = read_flag(j, "return_token_strs", false, &strings);
    if (!e)
        e = j->body.n ? encode_chat(j, &ids, &n) : encode_text(j, &ids, &n);
    if (e)
        return e;
    json_t *tokens = json_array();
    for (int32_t i = 0; i < n; i++)
        json_array_append_new(tokens, json_integer(ids[i]));
    json_t *reply = json_pack("{s:i,s:i,s:o}", "count", (int)n, "max_model_len",
                              (int)j->model->info->context, "tokens", tokens);
    if (strings)
        json_object_set_new(reply, "token_strs", token_strings(j->model->tokenizer, ids, n));
    free(ids);
    j->reply = json_finish(reply, &j->n_reply);
    return j->reply ? E_OK : E_NOMEM;
}

static err_t read_tokens(struct job *j, int32_t **ids, int32_t *n) {
    json_t *tokens = json_object_get(j->request, "tokens");
    size_t count = json_array_size(tokens);
    j->field = "tokens";
    if (!json_is_array(tokens) || count > INT32_MAX)
        return why_set(&j->why, E_INVAL, "'tokens' must be an array of token ids.");
    *ids = malloc((count + 1) * sizeof **ids);
    if (!*ids)
        return E_NOMEM;
    for (size_t i = 0; i < count; i++) {
        int64_t id = -1;
        if (!params_integer(json_array_get(tokens, i), 0, j->model->info->vocab - 1, &id))
            return why_set(&j->why, E_TOKEN_RANGE,
                           "'tokens' element %zu is not a token id from 0 to %d.", i,
                           j->model->info->vocab - 1);
        (*ids)[i] = (int32_t)id;
    }
    *n = (int32_t)count;
    return E_OK;
}

static err_t decode(struct job *j) {
    int32_t *ids = NULL, n = 0;
    char *text = NULL;
    size_t n_text = 0;
    err_t e = read_tokens(j, &ids, &n);
    if (!e)
        e = tokenizer_decode(j->model->tokenizer, ids, n, false, &text, &n_text);
    if (!e) {
        j->reply =
            json_finish(json_pack("{s:o}", "prompt", json_stringn(text, n_text)), &j->n_reply);
        e = j->reply ? E_OK : E_NOMEM;
    }
    free(ids);
    free(text);
    return e;
}

static void work_convert(uv_work_t *w) {
    struct job *j = w->data;
    j->error = j->decode ? decode(j) : encode(j);
}

static void after_convert(uv_work_t *w, int status) {
    (void)status;
    finish(w->data);
}

static void work_read(uv_work_t *w) {
    struct job *j = w->data;
    j->error = json_read_object(j->body.data ? j->body.data : "", j->body.n, &j->request, &j->why);
    json_t *messages = json_object_get(j->request, "messages");
    if (j->decode || !messages || json_is_null(messages)) /* else it is read once more, as a chat */
        buf_free(&j->body);
}

static void after_read(uv_work_t *w, int status) {
    struct job *j = w->data;
    struct server *s = j->server;
    (void)status;
    json_t *name = json_object_get(j->request, "model");
    struct served *model = s->registry.base;
    if (!j->error && name && !json_is_null(name) && !json_is_string(name)) {
        j->field = "model";
        j->error = why_set(&j->why, E_INVAL, "'model' must be a name.");
    }
    if (j->error || !j->x) {
        finish(j);
        return;
    }
    if (j->x->scope[0]) /* the address has the last word */
        model = registry_find(&s->registry, j->x->scope);
    else if (json_is_string(name))
        model = registry_find(&s->registry, json_string_value(name));
    if (!model) {
        j->field = "model";
        j->error = E_NO_MODEL;
        finish(j);
        return;
    }
    note_ignored(j);
    j->model = served_ref(model);
    uv_queue_work(&s->loop, &j->work, work_convert, after_convert);
}

static void start(struct server *s, struct exchange *x, bool is_decode) {
    struct job *j = calloc(1, sizeof *j);
    if (!j) {
        http_reply_error(x, E_NOMEM, NULL, NULL);
        return;
    }
    j->server = s;
    j->x = x;
    j->decode = is_decode;
    j->body = http_take_body(x);
    j->work.data = j;
    x->work = j;
    x->on_gone = on_gone;
    uv_queue_work(&s->loop, &j->work, work_read, after_read);
}

void tokenize_handle(struct server *s, struct exchange *x) {
    start(s, x, false);
}

void detokenize_handle(struct server *s, struct exchange *x) {
    start(s, x, true);
}

static json_t *token_text(const struct tokenizer *t, int32_t id) {
    size_t n = 0;
    const char *text = id >= 0 ? tokenizer_piece(t, id, &n) : NULL;
    return text ? json_stringn(text, n) : json_null();
}

/* What evaluation harnesses ask for before they tokenise remotely. */
void tokenizer_info_handle(struct server *s, struct exchange *x) {
    const struct served *m = x->scope[0] ? registry_find(&s->registry, x->scope) : s->registry.base;
    if (!m) {
        http_reply_error(x, E_NO_MODEL, "model", NULL);
        return;
    }
    const struct tokenizer *t = m->tokenizer;
    const struct tokenizer_facts *f = tokenizer_facts(t);
    http_reply_json(x, 200,
                    json_pack("{s:o,s:o,s:o,s:s?}", "bos_token", token_text(t, f->bos_id),
                              "eos_token", token_text(t, f->eos_id), "pad_token",
                              token_text(t, f->pad_id), "chat_template", f->chat_template));
}
