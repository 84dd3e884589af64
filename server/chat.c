#include "server/chat.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/generation.h"
#include "server/json.h"
#include "server/registry.h"
#include "server/surface.h"
#include "tokenizer/chat.h"

enum { MESSAGE_BYTES = 64 }; /* as much work for the template as this much text */

/* --- messages --------------------------------------------------------------------------------- */

/* One element of a list of contents: {"type": "text", "text": ...}. */
static err_t check_part(const json_t *part, size_t i, struct why *why) {
    const char *type = json_string_value(json_object_get(part, "type"));
    if (type && strcmp(type, "text") != 0)
        return why_set(why, E_UNSUPPORTED,
                       "'messages[%zu]' holds a part of type '%.40s'; only text is supported.", i,
                       type);
    if (!type || !json_is_string(json_object_get(part, "text")))
        return why_set(why, E_INVAL,
                       "'messages[%zu].content' must be a string or a list of "
                       "{\"type\": \"text\", \"text\": ...}.",
                       i);
    return E_OK;
}

static err_t check_content(const json_t *content, size_t i, size_t *bytes, struct why *why) {
    size_t k;
    json_t *part;
    *bytes += json_string_length(content);
    if (json_is_string(content))
        return E_OK;
    if (json_array_size(content) == 0)
        return why_set(why, E_INVAL,
                       "'messages[%zu].content' must be a string or a list of text parts.", i);
    json_array_foreach(content, k, part) {
        err_t e = check_part(part, i, why);
        if (e)
            return e;
        *bytes += json_string_length(json_object_get(part, "text"));
    }
    return E_OK;
}

/* A message as the template sees it: what is null is not there. *bytes: of contents, added to. */
static err_t read_message(struct params *p, const json_t *given, size_t i, json_t *messages,
                          size_t *bytes, struct why *why) {
    static const char *const kept[] = {"role", "content", "name", "reasoning_content"};
    static const char *const unsupported[] = {"tool_calls", "function_call", "audio"};
    const char *role = json_string_value(json_object_get(given, "role"));
    if (!role || !chat_is_role(role))
        return why_set(why, E_INVAL,
                       "'messages[%zu].role' must be system, developer, user, assistant, tool, "
                       "function, ipython or environment.",
                       i);
    for (size_t k = 0; k < sizeof unsupported / sizeof *unsupported; k++) {
        const json_t *v = json_object_get(given, unsupported[k]);
        if (v && !json_is_null(v) && !(json_is_array(v) && json_array_size(v) == 0))
            return why_set(why, E_UNSUPPORTED, "'messages[%zu].%s' is not supported.", i,
                           unsupported[k]);
    }
    err_t e = check_content(json_object_get(given, "content"), i, bytes, why);
    if (e)
        return e;
    json_t *message = json_object();
    int bad = !message;
    for (size_t k = 0; k < sizeof kept / sizeof *kept; k++) {
        json_t *v = json_object_get(given, kept[k]);
        if (v && k >= 2 && !json_is_string(v) && !json_is_null(v))
            e = why_set(why, E_INVAL, "'messages[%zu].%s' must be a string.", i, kept[k]);
        if (v && !json_is_null(v))
            bad |= json_object_set(message, kept[k], v);
    }
    p->n_unknown += json_object_size(given) > json_object_size(message);
    bad |= json_array_append_new(messages, message);
    return bad ? why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM)) : e;
}

static err_t read_messages(struct params *p, json_t *v, struct why *why) {
    size_t i;
    json_t *message;
    if (json_array_size(v) == 0)
        return why_set(why, E_INVAL, "'messages' must be a non-empty array of messages.");
    err_t e = params_add_prompts(p, 1, why);
    p->messages = json_array();
    if (!e && !p->messages)
        e = why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    json_array_foreach(v, i, message) {
        if (e)
            break;
        p->prompt[0].n_text += MESSAGE_BYTES;
        e = read_message(p, message, i, p->messages, &p->prompt[0].n_text, why);
    }
    return e;
}

static err_t read_kwargs(struct params *p, json_t *v, struct why *why) {
    const char *key;
    json_t *x;
    if (!json_is_object(v))
        return why_set(why, E_INVAL, "'chat_template_kwargs' must be an object.");
    json_object_foreach(v, key, x) {
        if (chat_is_reserved(key))
            return why_set(why, E_INVAL, "'chat_template_kwargs' may not set '%s'.", key);
    }
    p->template_kwargs = json_incref(v);
    return E_OK;
}

static const struct field fields[] = {
    SPECIAL_FIELD(
        "messages", read_messages,
        "{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"object\",\"required\":[\"role\","
        "\"content\"],\"properties\":{\"role\":{\"enum\":[\"system\",\"developer\",\"user\","
        "\"assistant\",\"tool\",\"function\",\"ipython\",\"environment\"]},\"content\":{\"anyOf\":["
        "{\"type\":\"string\"},{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":\"object\","
        "\"required\":[\"type\",\"text\"],\"properties\":{\"type\":{\"const\":\"text\"},\"text\":{"
        "\"type\":\"string\"}}}}]},\"name\":{\"type\":[\"string\",\"null\"]},"
        "\"reasoning_content\":{\"type\":[\"string\",\"null\"]},\"tool_calls\":{\"type\":["
        "\"array\","
        "\"null\"],\"maxItems\":0},\"function_call\":{\"type\":\"null\"},\"audio\":{\"type\":"
        "\"null\"}}}}",
        "The conversation; contents are texts or lists of text parts."),
    INTEGER_FIELD("max_completion_tokens", max_completion_tokens, 0, INT32_MAX, -1,
                  "Most tokens of an answer; null: what the context leaves."),
    INTEGER_FIELD("max_tokens", gen.max_tokens, 0, INT32_MAX, -1,
                  "The older name of max_completion_tokens, which goes before it."),
    BOOLEAN_FIELD("logprobs", chat_logprobs, 0, "Log-probabilities of the answer's tokens."),
    INTEGER_FIELD("top_logprobs", top_logprobs, 0, GEN_MAX_TOP, -1,
                  "With this many alternatives; needs logprobs."),
    BOOLEAN_FIELD("add_generation_prompt", add_generation_prompt, 1,
                  "End the prompt with the head of the assistant's turn."),
    BOOLEAN_FIELD("continue_final_message", continue_final, 0,
                  "The last message is unfinished: go on inside it. Needs add_generation_prompt "
                  "false."),
    SPECIAL_FIELD("chat_template_kwargs", read_kwargs, "{\"type\":\"object\"}",
                  "More variables for the chat template; their texts are data."),
    BOOLEAN_FIELD("add_special_tokens", add_special_tokens, 0,
                  "Put BOS before what the template wrote, for templates that leave it to the "
                  "tokenizer."),
    REFUSED_FIELD("chat_template", NULL),
    REFUSED_FIELD("documents", NULL),
    REFUSED_FIELD("tool_choice", "\"none\""),
    REFUSED_FIELD("functions", "[]"),
    REFUSED_FIELD("function_call", "\"none\""),
    REFUSED_FIELD("modalities", "[\"text\"]"),
    REFUSED_FIELD("audio", NULL),
    REFUSED_FIELD("prediction", NULL),
    REFUSED_FIELD("web_search_options", NULL),
    REFUSED_FIELD("echo", "false"),
    REFUSED_FIELD("best_of", "1"),
    ELSEWHERE_FIELD("prompt", "texts go to /v1/completions."),
};

static err_t check(struct params *p, const char **field, struct why *why) {
    if (p->n_prompts == 0) {
        *field = "messages";
        return why_set(why, E_INVAL, "'messages' is required.");
    }
    if (p->top_logprobs >= 0 && !p->chat_logprobs) {
        *field = "top_logprobs";
        return why_set(why, E_INVAL, "'top_logprobs' needs 'logprobs': true.");
    }
    if (p->continue_final && p->add_generation_prompt) {
        *field = "continue_final_message";
        return why_set(why, E_INVAL,
                       "'continue_final_message' needs 'add_generation_prompt': false.");
    }
    p->n_logprobs = !p->chat_logprobs ? -1 : p->top_logprobs < 0 ? 0 : p->top_logprobs;
    if (p->max_completion_tokens >= 0)
        p->gen.max_tokens = p->max_completion_tokens;
    return E_OK;
}

/* Lists of parts as one text, a line each, for a template that takes texts alone. */
static err_t join_parts(json_t *message) {
    json_t *content = json_object_get(message, "content"), *part;
    struct buf text;
    size_t i;
    if (!json_is_array(content))
        return E_OK;
    buf_init(&text, SIZE_MAX / 4);
    json_array_foreach(content, i, part) {
        const json_t *t = json_object_get(part, "text");
        buf_add(&text, "\n", i > 0);
        buf_add(&text, json_string_value(t), json_string_length(t));
    }
    json_t *joined = text.error ? NULL : json_stringn(text.data ? text.data : "", text.n);
    buf_free(&text);
    return json_object_set_new(message, "content", joined) ? E_NOMEM : E_OK;
}

err_t chat_ids(struct params *p, const struct served *m, size_t max_bytes, int32_t max_ids,
               const char **field, struct why *why) {
    const struct chat chat = {.messages = p->messages,
                              .kwargs = p->template_kwargs,
                              .add_generation_prompt = p->add_generation_prompt,
                              .continue_final = p->continue_final,
                              .add_special_tokens = p->add_special_tokens,
                              .max_bytes = max_bytes,
                              .now_unix_s = (int64_t)time(NULL)};
    err_t e = E_OK;
    *field = "messages";
    for (size_t i = 0; !e && !chat_wants_parts(m->tokenizer) && i < json_array_size(p->messages);
         i++)
        e = join_parts(json_array_get(p->messages, i));
    if (e)
        return why_set(why, e, "%s", err_sentence(e));
    return chat_encode(m->tokenizer, &chat, max_ids, &p->prompt[0].ids, &p->prompt[0].n_ids, why);
}

static err_t prepare(struct params *p, const struct served *m, size_t max_bytes, const char **field,
                     struct why *why) {
    return chat_ids(p, m, max_bytes, m->info->context, field, why);
}

/* --- the answer ---------------------------------------------------------------------------------
 */

/* The members that tell of one token. */
static void put_token(const struct choice *c, struct buf *out, int32_t id, float logprob) {
    size_t n = 0;
    const char *piece = tokenizer_piece(c->tokenizer, id, &n);
    buf_text(out, "\"token\":");
    choice_put_piece(c, out, id);
    buf_text(out, ",\"logprob\":");
    choice_put_number(out, logprob);
    buf_text(out, ",\"bytes\":[");
    for (size_t i = 0; piece && i < n; i++)
        buf_printf(out, i ? ",%u" : "%u", (unsigned)(unsigned char)piece[i]);
    buf_text(out, "]");
}

static err_t add_logprob(struct choice *c, const struct gen_event *event, int64_t offset,
                         bool scored) {
    struct buf *out = &c->list[0];
    int32_t n = event->n_top < c->params->n_logprobs ? event->n_top : c->params->n_logprobs;
    (void)offset;
    (void)scored; /* no prompt is echoed: something always comes before */
    buf_text(out, out->n ? ",{" : "{");
    put_token(c, out, event->token, event->logprob);
    buf_text(out, ",\"top_logprobs\":[");
    for (int32_t i = 0; i < n; i++) {
        buf_text(out, i ? ",{" : "{");
        put_token(c, out, event->top_id[i], event->top_logprob[i]);
        buf_text(out, "}");
    }
    return buf_text(out, "]}");
}

static void put_choice(struct choice *c, struct buf *out, size_t from, size_t to, bool chunk) {
    bool first = chunk && c->n_chunks == 0, logs = c->params->n_logprobs >= 0;
    buf_text(out, first   ? "\"delta\":{\"role\":\"assistant\",\"content\":"
                  : chunk ? "\"delta\":{"
                          : "\"message\":{\"role\":\"assistant\",\"content\":");
    if (chunk && !first && (to > from || c->list[0].n))
        buf_text(out, "\"content\":");
    if (!chunk || first || to > from || c->list[0].n)
        json_put_string(out, c->text.data ? c->text.data + from : "", to - from);
    buf_text(out, chunk ? "}" : ",\"refusal\":null}");
    if (!logs || first || (chunk && c->list[0].n == 0)) {
        buf_text(out, ",\"logprobs\":null");
        return;
    }
    buf_text(out, ",\"logprobs\":{\"content\":");
    choice_put_list(out, &c->list[0]);
    buf_text(out, ",\"refusal\":null}");
}

const struct surface surface_chat = {
    .id_prefix = "chatcmpl-",
    .object = "chat.completion",
    .chunk_object = "chat.completion.chunk",
    .fields = fields,
    .n_fields = sizeof fields / sizeof *fields,
    .apart = true,
    .anew = true,
    .check = check,
    .prepare = prepare,
    .add_logprob = add_logprob,
    .put_choice = put_choice,
};

void chat_handle(struct server *s, struct exchange *x) {
    generation_start(s, x, &surface_chat);
}
