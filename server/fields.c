/* The fields that completions and chat have in common: one table for parser and document. */
#include <stdlib.h>
#include <string.h>

#include "server/surface.h"

static err_t read_model(struct params *p, json_t *v, struct why *why) {
    const char *s = json_string_value(v);
    size_t n = s ? json_string_length(v) : 0;
    if (n == 0)
        return why_set(why, E_INVAL, "'model' must be a name.");
    if (n >= sizeof p->model || strlen(s) != n)
        return why_set(why, E_NO_MODEL, "'model' is longer than any name here.");
    memcpy(p->model, s, n + 1);
    return E_OK;
}

static size_t count_chars(const char *text, size_t n) {
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)text[i] & 0xc0) != 0x80;
    return chars;
}

static err_t add_stop(struct params *p, const json_t *v, struct why *why) {
    size_t n = json_string_length(v);
    if (!json_is_string(v) || n == 0)
        return why_set(why, E_INVAL, "'stop' must hold non-empty strings.");
    if (p->n_stops == PARAMS_MAX_STOPS ||
        count_chars(json_string_value(v), n) > PARAMS_MAX_STOP_CHARS)
        return why_set(why, E_INVAL, "'stop' may hold %d strings of %d characters each.",
                       PARAMS_MAX_STOPS, PARAMS_MAX_STOP_CHARS);
    char *text = malloc(n);
    if (!text)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    memcpy(text, json_string_value(v), n);
    p->stop[p->n_stops++] = (struct stop_text){text, n};
    return E_OK;
}

static err_t read_stop(struct params *p, json_t *v, struct why *why) {
    err_t e = E_OK;
    if (!json_is_array(v))
        return add_stop(p, v, why);
    for (size_t i = 0; !e && i < json_array_size(v); i++)
        e = add_stop(p, json_array_get(v, i), why);
    return e;
}

static err_t read_stop_ids(struct params *p, json_t *v, struct why *why) {
    size_t n = json_array_size(v);
    if (!json_is_array(v) || n > GEN_MAX_STOP_IDS)
        return why_set(why, E_INVAL, "'stop_token_ids' must be an array of at most %d token ids.",
                       GEN_MAX_STOP_IDS);
    for (size_t i = 0; i < n; i++) {
        int64_t id = -1;
        if (!params_integer(json_array_get(v, i), 0, INT32_MAX, &id))
            return why_set(why, E_INVAL, "'stop_token_ids' element %zu is not a token id.", i);
        p->gen.stop_id[i] = (int32_t)id;
    }
    p->gen.n_stop_ids = (int32_t)n;
    return E_OK;
}

static err_t read_bias(struct params *p, json_t *v, struct why *why) {
    if (!json_is_object(v) || json_object_size(v) > GEN_MAX_BIAS)
        return why_set(why, E_INVAL, "'logit_bias' must be an object of at most %d token ids.",
                       GEN_MAX_BIAS);
    if (json_object_size(v) == 0)
        return E_OK;
    p->gen.bias = malloc(json_object_size(v) * sizeof *p->gen.bias);
    if (!p->gen.bias)
        return why_set(why, E_NOMEM, "%s", err_sentence(E_NOMEM));
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x) {
        size_t n = strlen(key);
        double bias = json_number_value(x);
        if (n == 0 || n > 9 || strspn(key, "0123456789") != n)
            return why_set(why, E_INVAL, "'logit_bias' keys must be token ids.");
        if (!json_is_number(x) || !(bias >= -100 && bias <= 100))
            return why_set(why, E_INVAL, "'logit_bias' values must be numbers from -100 to 100.");
        p->gen.bias[p->gen.n_bias++] =
            (struct gen_bias){(int32_t)strtol(key, NULL, 10), (float)bias};
    }
    return E_OK;
}

static err_t read_seed(struct params *p, json_t *v, struct why *why) {
    int64_t seed = 0;
    if (!params_integer(v, -9.3e18, 9.3e18, &seed))
        return why_set(why, E_INVAL, "'seed' must be an integer of 64 bits.");
    p->gen.seed = (uint64_t)seed;
    p->seeded = true;
    return E_OK;
}

static err_t read_stream_options(struct params *p, json_t *v, struct why *why) {
    if (!json_is_object(v))
        return why_set(why, E_INVAL, "'stream_options' must be an object.");
    const char *key;
    json_t *x;
    json_object_foreach(v, key, x) {
        bool *to = strcmp(key, "include_usage") == 0            ? &p->include_usage
                   : strcmp(key, "continuous_usage_stats") == 0 ? &p->continuous_usage
                                                                : NULL;
        if (!to)
            p->n_unknown++;
        else if (json_is_boolean(x))
            *to = json_is_true(x);
        else if (!json_is_null(x))
            return why_set(why, E_INVAL, "'stream_options.%s' must be true or false.", key);
    }
    return E_OK;
}

/* Checked, and then of no use here: nothing is kept of who asked. */
static err_t read_user(struct params *p, json_t *v, struct why *why) {
    (void)p;
    return json_is_string(v) ? E_OK : why_set(why, E_INVAL, "'user' must be a string.");
}

const struct field fields_common[] = {
    SPECIAL_FIELD("model", read_model, "{\"type\":\"string\",\"minLength\":1}",
                  "Name of the base, of a tenant or of an alias; base:tenant works, too."),
    INTEGER_FIELD("n", n, 1, PARAMS_MAX_N, 1, "Answers to each prompt."),
    INTEGER_FIELD("min_tokens", gen.min_tokens, 0, INT32_MAX, 0,
                  "No end of text and no stop before this many tokens."),
    INTEGER_FIELD("top_k", gen.top_k, -1, INT32_MAX, 0, "Draw from this many tokens; 0, -1: all."),
    NUMBER_FIELD("temperature", gen.temperature, 0, 2, 1, "0 takes the likeliest token."),
    NUMBER_FIELD("top_p", gen.top_p, 0, 1, 1, "Draw from the likeliest tokens of this much mass."),
    NUMBER_FIELD("min_p", gen.min_p, 0, 1, 0, "Drop tokens below this share of the likeliest one."),
    NUMBER_FIELD("presence_penalty", gen.presence, -2, 2, 0, "Against tokens generated before."),
    NUMBER_FIELD("frequency_penalty", gen.frequency, -2, 2, 0, "The same, for each time."),
    NUMBER_FIELD("repetition_penalty", gen.repetition, 0.01, 10, 1,
                 "Divides the logits of tokens of prompt and output."),
    INTEGER_FIELD("prompt_logprobs", prompt_logprobs, 0, GEN_MAX_TOP, -1,
                  "Log-probabilities of the prompt's tokens with this many alternatives."),
    BOOLEAN_FIELD("ignore_eos", gen.ignore_eos, 0, "Go on after the end of text."),
    BOOLEAN_FIELD("stream", stream, 0, "Reply with server-sent events."),
    BOOLEAN_FIELD("include_stop_str_in_output", include_stop, 0, "The text keeps its stop string."),
    BOOLEAN_FIELD("skip_special_tokens", skip_special_tokens, 1, "Special tokens are no text."),
    BOOLEAN_FIELD("return_token_ids", return_ids, 0, "Add token_ids and prompt_token_ids."),
    BOOLEAN_FIELD("return_tokens_as_token_ids", pieces_as_ids, 0,
                  "Log-probabilities name tokens as token_id:N."),
    SPECIAL_FIELD("stop", read_stop,
                  "{\"anyOf\":[{\"type\":\"string\",\"minLength\":1,\"maxLength\":256},{\"type\":"
                  "\"array\",\"maxItems\":16,\"items\":{\"type\":\"string\",\"minLength\":1,"
                  "\"maxLength\":256}}]}",
                  "Up to 16 texts of up to 256 characters that end the answer."),
    SPECIAL_FIELD(
        "stop_token_ids", read_stop_ids,
        "{\"type\":\"array\",\"maxItems\":32,\"items\":{\"type\":\"integer\",\"minimum\":0,"
        "\"maximum\":2147483647}}",
        "Tokens that end the answer."),
    SPECIAL_FIELD(
        "logit_bias", read_bias,
        "{\"type\":\"object\",\"maxProperties\":300,\"propertyNames\":{\"pattern\":\"^[0-9]{1,"
        "9}$\"},\"additionalProperties\":{\"type\":\"number\",\"minimum\":-100,\"maximum\":"
        "100}}",
        "Added to the logits of these tokens before drawing."),
    SPECIAL_FIELD("seed", read_seed,
                  "{\"type\":\"integer\",\"minimum\":-9223372036854775808,\"maximum\":"
                  "9223372036854775807}",
                  "The same seed gives the same draws; answer i of several uses seed + i."),
    SPECIAL_FIELD("stream_options", read_stream_options,
                  "{\"type\":\"object\",\"properties\":{\"include_usage\":{\"type\":[\"boolean\","
                  "\"null\"]},\"continuous_usage_stats\":{\"type\":[\"boolean\",\"null\"]}}}",
                  "With stream only."),
    SPECIAL_FIELD("user", read_user, "{\"type\":\"string\"}", "Accepted and not kept."),
    REFUSED_FIELD("use_beam_search", "false"),
    REFUSED_FIELD("length_penalty", "1"),
    REFUSED_FIELD("bad_words", "[]"),
    REFUSED_FIELD("allowed_token_ids", NULL),
    REFUSED_FIELD("truncate_prompt_tokens", NULL),
    REFUSED_FIELD("logits_processors", NULL),
    REFUSED_FIELD("response_format", "{\"type\":\"text\"}"),
    REFUSED_FIELD("structured_outputs", NULL),
    REFUSED_FIELD("guided_json", NULL),
    REFUSED_FIELD("guided_regex", NULL),
    REFUSED_FIELD("guided_choice", NULL),
    REFUSED_FIELD("guided_grammar", NULL),
    REFUSED_FIELD("tools", "[]"),
};
const int n_fields_common = sizeof fields_common / sizeof *fields_common;
_Static_assert(sizeof fields_common / sizeof *fields_common <= 64, "params.given has 64 bits");
