#include "server/completions.h"

#include <stdlib.h>
#include <string.h>

#include "server/json.h"
#include "server/registry.h"
#include "server/surface.h"

/* --- the prompt's four shapes --------------------------------------------------------------- */

static err_t read_ids(struct prompt *p, const json_t *list, struct why *why) {
    size_t n = json_array_size(list);
    if (n == 0 || n > INT32_MAX)
        return why_set(why, E_INVAL, "'prompt' holds an array of no token ids, or of too many.");
    p->ids = malloc(n * sizeof *p->ids);
    if (!p->ids)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    for (size_t i = 0; i < n; i++) {
        int64_t id = -1;
        if (!params_integer(json_array_get(list, i), 0, INT32_MAX, &id))
            return why_set(why, E_INVAL, "'prompt' element %zu is not a token id.", i);
        p->ids[i] = (int32_t)id;
    }
    p->n_ids = (int32_t)n;
    return E_OK;
}

static err_t read_text(struct prompt *p, const json_t *v, struct why *why) {
    p->n_text = json_string_length(v);
    p->text = malloc(p->n_text + 1);
    if (!p->text)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    memcpy(p->text, json_string_value(v), p->n_text + 1);
    return E_OK;
}

static err_t read_element(struct prompt *p, const json_t *v, struct why *why) {
    if (json_is_string(v))
        return read_text(p, v, why);
    if (json_is_array(v))
        return read_ids(p, v, why);
    return why_set(why, E_INVAL, "'prompt' mixes texts, token ids or other values.");
}

/* "text", [ids], ["text", ...] or [[ids], ...]. */
static err_t read_prompt(struct params *p, json_t *v, struct why *why) {
    json_t *first = json_array_get(v, 0);
    bool list = json_is_string(first) || json_is_array(first);
    if (!json_is_string(v) && json_array_size(v) == 0)
        return why_set(why, E_INVAL,
                       "'prompt' must be a string, a non-empty array of token ids, or a non-empty "
                       "array of these.");
    err_t e = params_add_prompts(p, list ? json_array_size(v) : 1, why);
    for (int i = 0; !e && i < p->n_prompts; i++)
        e = read_element(&p->prompt[i], list ? json_array_get(v, (size_t)i) : v, why);
    for (int i = 1; !e && i < p->n_prompts; i++)
        if (!p->prompt[i].text != !p->prompt[0].text)
            e = why_set(why, E_INVAL, "'prompt' mixes texts and arrays of token ids.");
    return e;
}

static const struct field fields[] = {
    SPECIAL_FIELD("prompt", read_prompt,
                  "{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"minItems\":1,\"items\":{"
                  "\"type\":\"string\"}},{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":"
                  "\"integer\",\"minimum\":0,\"maximum\":2147483647}},{\"type\":\"array\","
                  "\"minItems\":1,\"items\":{\"type\":\"array\",\"minItems\":1,\"items\":{\"type\":"
                  "\"integer\",\"minimum\":0,\"maximum\":2147483647}}}]}",
                  "A text, token ids, or a list of texts or of token ids. Texts begin with BOS, "
                  "ids are taken as they are."),
    INTEGER_FIELD("max_tokens", gen.max_tokens, 0, INT32_MAX, 16, "Most tokens of an answer."),
    INTEGER_FIELD("best_of", best_of, 1, PARAMS_MAX_N, 0,
                  "Draw this many and return the n of the highest log-probability a token. Not "
                  "with stream."),
    INTEGER_FIELD("logprobs", n_logprobs, 0, GEN_MAX_TOP, -1,
                  "Log-probabilities with this many alternatives."),
    BOOLEAN_FIELD("echo", echo, 0, "The text begins with the prompt."),
    BOOLEAN_FIELD("add_special_tokens", add_special_tokens, 1, "Texts get BOS."),
    REFUSED_FIELD("suffix", "\"\""),
    REFUSED_FIELD("prompt_embeds", NULL),
    ELSEWHERE_FIELD("messages", "conversations go to /v1/chat/completions."),
};

static err_t check(struct params *p, const char **field, struct why *why) {
    if (p->n_prompts == 0) {
        *field = "prompt";
        return why_set(why, E_INVAL, "'prompt' is required.");
    }
    *field = "best_of";
    if (p->best_of && p->best_of < p->n)
        return why_set(why, E_INVAL, "'best_of' is smaller than 'n'.");
    if (p->best_of > p->n && p->stream)
        return why_set(why, E_INVAL, "'best_of' larger than 'n' cannot be streamed.");
    *field = NULL;
    return E_OK;
}

static err_t prepare(struct params *p, const struct served *m, size_t max_bytes, const char **field,
                     struct why *why) {
    unsigned flags = ENCODE_PARSE_SPECIAL | (p->add_special_tokens ? ENCODE_SPECIAL_TOKENS : 0u);
    *field = "prompt";
    err_t e = E_OK;
    for (int i = 0; !e && i < p->n_prompts; i++) {
        struct prompt *one = &p->prompt[i];
        if (one->text)
            e = tokenizer_encode(m->tokenizer, one->text, one->n_text, flags, max_bytes,
                                 m->info->context, &one->ids, &one->n_ids, why);
    }
    return e;
}

/* --- log-probabilities: four lists of one length -------------------------------------------- */

enum { TOKENS, TOKEN_LOGPROBS, TOP_LOGPROBS, TEXT_OFFSET };
static const char *const list_names[CHOICE_LISTS] = {"tokens", "token_logprobs", "top_logprobs",
                                                     "text_offset"};

/* Whether key n is equal to one before it; keys[i], n_key[i]: where key i stands and its length. */
static bool is_repeated(const struct buf *out, const size_t *keys, const size_t *n_key, int n) {
    for (int i = 0; i < n; i++)
        if (n_key[i] == n_key[n] && memcmp(out->data + keys[i], out->data + keys[n], n_key[n]) == 0)
            return true;
    return false;
}

/* One object of alternatives, most likely first, the chosen id always among them. Two ids can have
 * the same text (a byte piece and a piece): the likelier one stays. */
static void put_top(const struct choice *c, struct buf *out, const struct gen_event *event) {
    size_t keys[GEN_MAX_TOP + 1], n_key[GEN_MAX_TOP + 1];
    int32_t n_top = event->n_top < c->params->n_logprobs ? event->n_top : c->params->n_logprobs;
    int n = 0;
    buf_text(out, "{");
    for (int32_t i = 0; i <= n_top; i++) {
        bool chosen = i == n_top;
        size_t before = out->n;
        if (n)
            buf_text(out, ",");
        keys[n] = out->n;
        choice_put_piece(c, out, chosen ? event->token : event->top_id[i]);
        n_key[n] = out->n - keys[n];
        if (out->error)
            return;
        if (is_repeated(out, keys, n_key, n)) {
            out->n = before;
            continue;
        }
        n++;
        buf_text(out, ":");
        choice_put_number(out, chosen ? event->logprob : event->top_logprob[i]);
    }
    buf_text(out, "}");
}

static err_t add_logprob(struct choice *c, const struct gen_event *event, int64_t offset,
                         bool scored) {
    struct buf *list = c->list;
    for (size_t i = 0; i < CHOICE_LISTS; i++)
        if (list[i].n)
            buf_text(&list[i], ",");
    choice_put_piece(c, &list[TOKENS], event->token);
    if (scored) {
        choice_put_number(&list[TOKEN_LOGPROBS], event->logprob);
        put_top(c, &list[TOP_LOGPROBS], event);
    } else {
        buf_text(&list[TOKEN_LOGPROBS], "null");
        buf_text(&list[TOP_LOGPROBS], "null");
    }
    buf_printf(&list[TEXT_OFFSET], "%lld", (long long)offset);
    for (size_t i = 0; i < CHOICE_LISTS; i++)
        if (list[i].error)
            return list[i].error;
    return E_OK;
}

static void put_choice(struct choice *c, struct buf *out, size_t from, size_t to, bool chunk) {
    buf_text(out, "\"text\":");
    json_put_string(out, c->text.data ? c->text.data + from : "", to - from);
    if (c->params->n_logprobs < 0 || (chunk && c->list[TOKENS].n == 0)) {
        buf_text(out, ",\"logprobs\":null");
        return;
    }
    for (int i = 0; i < CHOICE_LISTS; i++) {
        buf_printf(out, "%s\"%s\":", i ? "," : ",\"logprobs\":{", list_names[i]);
        choice_put_list(out, &c->list[i]);
    }
    buf_text(out, "}");
}

const struct surface surface_completions = {
    .id_prefix = "cmpl-",
    .object = "text_completion",
    .chunk_object = "text_completion",
    .fields = fields,
    .n_fields = sizeof fields / sizeof *fields,
    .check = check,
    .prepare = prepare,
    .add_logprob = add_logprob,
    .put_choice = put_choice,
};
