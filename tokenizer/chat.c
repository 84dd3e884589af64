/* Sets up a template's variables as transformers' apply_chat_template does; see chat.h. */
#include "tokenizer/chat.h"

#include <stdlib.h>
#include <string.h>

#include "config/utf8.h"
#include "tokenizer/jinja_value.h"
#include "tokenizer/own.h"

enum {
    MAX_MEMORY = 64 << 20, /* of one rendering's values */
    MAX_STEPS = 50000000,  /* about a second */
    MAX_VARIABLES = 64,
};

bool chat_is_role(const char *role) {
    static const char *const roles[] = {"system", "developer", "user",    "assistant",
                                        "tool",   "function",  "ipython", "environment"};
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(role, roles[i]) == 0)
            return true;
    return false;
}

bool chat_is_reserved(const char *name) {
    static const char *const names[] = {
        "messages",     "tools", "documents", "add_generation_prompt", "continue_final_message",
        "chat_template"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

bool chat_wants_parts(const struct tokenizer *t) {
    return t->jinja && jinja_loops_over(t->jinja, "content");
}

/* --- going on with the last message ----------------------------------------------------------- */

/* Put behind the last message's text, to be found again in what was rendered. */
static const char end_mark[] = "CONTINUE_FINAL_MESSAGE_TAG ";

static json_t *marked(const json_t *text) {
    size_t n = json_string_length(text);
    char *both = malloc(n + sizeof end_mark);
    if (!both)
        return NULL;
    memcpy(both, json_string_value(text), n);
    memcpy(both + n, end_mark, sizeof end_mark);
    json_t *out = json_stringn(both, n + sizeof end_mark - 1);
    free(both);
    return out;
}

/* A copy of the messages with the mark. *last: what the last one says; borrowed from `messages`. */
static err_t mark_last(const json_t *messages, json_t **out, const json_t **last, struct why *why) {
    size_t n = json_array_size(messages);
    json_t *copy = json_deep_copy(messages), *message = json_array_get(copy, n - 1);
    json_t *content = json_object_get(message, "content"), *text = NULL, *holder = message;
    const char *key = "content";
    *last = json_object_get(json_array_get(messages, n - 1), "content");
    for (size_t i = json_array_size(content); i > 0 && !text; i--) {
        holder = json_array_get(content, i - 1);
        text = json_object_get(holder, key = "text");
        *last = json_object_get(
            json_array_get(json_object_get(json_array_get(messages, n - 1), "content"), i - 1),
            "text");
    }
    if (json_is_string(content))
        text = content;
    *out = copy;
    if (!json_is_string(text)) {
        *last = NULL;
        return why_set(why, E_INVAL,
                       "'continue_final_message' is set, but the last message has no text.");
    }
    return json_object_set_new(holder, key, marked(text))
               ? why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM))
               : E_OK;
}

static size_t last_place(const struct jinja_text *t, const char *what, size_t n) {
    for (size_t at = t->n; at-- > 0;)
        if (t->n - at >= n && memcmp(t->text + at, what, n) == 0)
            return at;
    return SIZE_MAX;
}

static bool py_space_before(const char *text, size_t *end) {
    size_t at = *end;
    uint32_t c;
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    if (!utf8_next(text + at, *end - at, &c) || !is_py_space(c))
        return false;
    *end = at;
    return true;
}

/* Ends the text where the mark stands; where the template trimmed the message, trimmed. */
static err_t cut_at_mark(struct jinja_text *t, const json_t *last, struct why *why) {
    size_t n_mark = sizeof end_mark - 2, at = last_place(t, end_mark, n_mark);
    const char *said = json_string_value(last);
    size_t from = 0, end = json_string_length(last);
    uint32_t c;
    while (end > 0 && py_space_before(said, &end))
        ;
    for (size_t length;
         from < end && (length = utf8_next(said + from, end - from, &c)) && is_py_space(c);)
        from += length;
    bool there = end == from || memmem(t->text, t->n, said + from, end - from) != NULL;
    if (at == SIZE_MAX || !there)
        return why_set(why, E_INVAL,
                       "'continue_final_message' is set, but the chat template does not write the "
                       "last message as it is.");
    bool kept = t->n > at + n_mark && t->text[at + n_mark] == ' ';
    t->n = at;
    while (!kept && t->n > 0 && py_space_before(t->text, &t->n))
        ;
    t->text[t->n] = 0;
    return E_OK;
}

/* --- rendering -------------------------------------------------------------------------------- */

static size_t set_variables(const struct tokenizer *t, const struct chat *chat,
                            const json_t *messages, json_t *flag, json_t *none,
                            struct jinja_variable *v) {
    const char *name;
    json_t *value;
    size_t n = 0;
    v[n++] = (struct jinja_variable){"messages", messages, false, "role"};
    v[n++] = (struct jinja_variable){"tools", none, false, NULL};
    v[n++] = (struct jinja_variable){"documents", none, false, NULL};
    v[n++] = (struct jinja_variable){"add_generation_prompt", flag, false, NULL};
    json_object_foreach((json_t *)chat->kwargs, name, value) {
        if (n < MAX_VARIABLES)
            v[n++] = (struct jinja_variable){name, value, false, NULL};
    }
    json_object_foreach(t->named, name, value) {
        if (n < MAX_VARIABLES)
            v[n++] = (struct jinja_variable){name, value, true, NULL};
    }
    return n;
}

err_t chat_render(const struct tokenizer *t, const struct chat *chat, struct jinja_text *out,
                  struct why *why) {
    *out = (struct jinja_text){0};
    if (!t->jinja)
        return why_set(why, E_UNSUPPORTED, "%s",
                       t->facts.chat_error
                           ? t->facts.chat_error
                           : "This model has no chat template: use /v1/completions, "
                             "or give the tenant one.");
    if (json_object_size(chat->kwargs) > MAX_VARIABLES - 16)
        return why_set(why, E_INVAL, "'chat_template_kwargs' may hold %d values.",
                       MAX_VARIABLES - 16);
    struct jinja_variable variables[MAX_VARIABLES];
    struct jinja_limits limits = {.max_output = chat->max_bytes + sizeof end_mark,
                                  .max_memory = MAX_MEMORY,
                                  .max_steps = MAX_STEPS,
                                  .now_unix_s = chat->now_unix_s};
    json_t *copy = NULL, *none = json_null(), *flag = json_boolean(chat->add_generation_prompt);
    const json_t *last = NULL;
    err_t e = chat->continue_final ? mark_last(chat->messages, &copy, &last, why) : E_OK;
    if (!e) {
        size_t n = set_variables(t, chat, copy ? copy : chat->messages, flag, none, variables);
        e = jinja_render(t->jinja, variables, n, &limits, out, why);
    }
    if (!e && last)
        e = cut_at_mark(out, last, why);
    if (e)
        jinja_text_free(out);
    json_decref(copy);
    return e;
}

err_t chat_encode(const struct tokenizer *t, const struct chat *chat, int32_t max_ids,
                  int32_t **ids, int32_t *n_ids, struct why *why) {
    struct jinja_text text;
    *ids = NULL;
    *n_ids = 0;
    unsigned flags =
        ENCODE_PARSE_SPECIAL | (chat->add_special_tokens ? (unsigned)ENCODE_SPECIAL_TOKENS : 0u);
    err_t e = chat_render(t, chat, &text, why);
    if (!e)
        e = tokenizer_encode_mixed(t, text.text, text.trusted, text.n, flags, chat->max_bytes,
                                   max_ids, ids, n_ids, why);
    jinja_text_free(&text);
    return e;
}
