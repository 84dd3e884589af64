/* config.json and generation_config.json to struct model_config. A field that would change what the
 * model computes is either understood or refused by its name; fields that only concern training or
 * other software are ignored. Defaults of absent fields are those of transformers' LlamaConfig and
 * MistralConfig. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "config/json.h"
#include "engine/checkpoint.h"

enum {
    MAX_DEPTH = 16,
    MAX_VALUES = 100000,
    MAX_LAYERS = 4096,
    MAX_WIDTH = 1 << 20, /* of any matrix side but the vocabulary */
    MAX_VOCAB = 1 << 24,
    MAX_CONTEXT = 1 << 24,
};

struct reader {
    const json_t *root;
    const char *label;
    struct why *why;
    err_t e; /* first error; later calls do nothing */
};

#define REFUSE(r, code, ...) ((r)->e = (r)->e ? (r)->e : why_set((r)->why, code, __VA_ARGS__))

static const json_t *get(const json_t *object, const char *key) {
    const json_t *v = json_object_get(object, key);
    return json_is_null(v) ? NULL : v;
}

/* An integer in [lo, hi]; absent gives `absent`, or an error when that is INT_MIN. */
static int32_t get_int(struct reader *r, const json_t *object, const char *key, int32_t lo,
                       int32_t hi, int32_t absent) {
    const json_t *v = get(object, key);
    if (r->e || (!v && absent != INT_MIN))
        return absent;
    if (!v) {
        REFUSE(r, E_FORMAT, "%s: %s is missing", r->label, key);
        return 0;
    }
    if (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi) {
        REFUSE(r, E_FORMAT, "%s: %s must be a whole number in %d..%d", r->label, key, lo, hi);
        return 0;
    }
    return (int32_t)json_integer_value(v);
}

static float get_float(struct reader *r, const json_t *object, const char *key, double lo,
                       double hi, double absent) {
    const json_t *v = get(object, key);
    if (r->e || (!v && !isnan(absent)))
        return (float)absent;
    if (!v) {
        REFUSE(r, E_FORMAT, "%s: %s is missing", r->label, key);
        return 0;
    }
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= lo && x <= hi)) {
        REFUSE(r, E_FORMAT, "%s: %s must be a number in %g..%g", r->label, key, lo, hi);
        return 0;
    }
    return (float)x;
}

static bool get_bool(struct reader *r, const char *key, bool absent) {
    const json_t *v = get(r->root, key);
    if (!v)
        return absent;
    if (!json_is_boolean(v))
        REFUSE(r, E_FORMAT, "%s: %s must be true or false", r->label, key);
    return json_is_true(v);
}

/* Llama or Mistral; true for Mistral. */
static bool parse_architecture(struct reader *r) {
    const json_t *list = get(r->root, "architectures");
    const char *model = json_string_value(get(r->root, "model_type"));
    const char *arch = json_string_value(json_array_get(list, 0));
    if (list && (!arch || json_array_size(list) != 1))
        REFUSE(r, E_FORMAT, "%s: architectures must be a list of one name", r->label);
    if (model && strcmp(model, "llama") != 0 && strcmp(model, "mistral") != 0)
        REFUSE(r, E_UNSUPPORTED, "%s: model_type %.64s is not supported; llama and mistral are",
               r->label, model);
    if (arch && strcmp(arch, "LlamaForCausalLM") != 0 && strcmp(arch, "MistralForCausalLM") != 0)
        REFUSE(r, E_UNSUPPORTED,
               "%s: architecture %.64s is not supported; LlamaForCausalLM and MistralForCausalLM "
               "are",
               r->label, arch);
    if (!arch && !model)
        REFUSE(r, E_FORMAT, "%s: neither architectures nor model_type says what model this is",
               r->label);
    bool mistral =
        arch ? strcmp(arch, "MistralForCausalLM") == 0 : model && strcmp(model, "mistral") == 0;
    if (!r->e && arch && model && mistral != (strcmp(model, "mistral") == 0))
        REFUSE(r, E_FORMAT, "%s: architecture %.64s and model_type %.64s contradict each other",
               r->label, arch, model);
    return mistral;
}

static void refuse_unsupported(struct reader *r) {
    static const char *const must_be_false[] = {"attention_bias", "mlp_bias", "bias", "use_qk_norm",
                                                "qk_layernorm"};
    static const char *const must_be_absent[] = {"quantization_config", "compression_config",
                                                 "attn_logit_softcapping",
                                                 "final_logit_softcapping", "num_local_experts"};
    for (size_t i = 0; i < sizeof must_be_false / sizeof *must_be_false; i++)
        if (get_bool(r, must_be_false[i], false))
            REFUSE(r, E_UNSUPPORTED, "%s: %s is true, which is not supported", r->label,
                   must_be_false[i]);
    for (size_t i = 0; i < sizeof must_be_absent / sizeof *must_be_absent; i++)
        if (get(r->root, must_be_absent[i]))
            REFUSE(r, E_UNSUPPORTED, "%s: %s is set, which is not supported", r->label,
                   must_be_absent[i]);
    const json_t *act = get(r->root, "hidden_act");
    const char *name = json_string_value(act);
    if (act && (!name || (strcmp(name, "silu") != 0 && strcmp(name, "swish") != 0)))
        REFUSE(r, E_UNSUPPORTED, "%s: hidden_act %.64s is not supported; silu is", r->label,
               name ? name : "(not a string)");
}

static void parse_rope(struct reader *r, struct model_config *c) {
    const json_t *scaling = get(r->root, "rope_parameters"), *from = scaling;
    if (!scaling)
        scaling = get(r->root, "rope_scaling");
    if (scaling && !json_is_object(scaling)) {
        REFUSE(r, E_FORMAT, "%s: rope_parameters and rope_scaling must be objects", r->label);
        return;
    }
    /* Newer files keep theta with the rest; some converters leave it outside. */
    c->rope.theta =
        get_float(r, get(from, "rope_theta") ? from : r->root, "rope_theta", 1, 1e12, 10000);
    const json_t *kind_value = get(scaling, "rope_type");
    if (!kind_value)
        kind_value = get(scaling, "type");
    const char *kind = kind_value ? json_string_value(kind_value) : "default";
    c->rope.factor = 1;
    if (json_object_size(scaling) && !kind_value && scaling != from)
        REFUSE(r, E_FORMAT, "%s: rope_scaling has no rope_type", r->label);
    if (get_float(r, scaling, "partial_rotary_factor", 0, 1, 1) != 1 ||
        get_float(r, r->root, "partial_rotary_factor", 0, 1, 1) != 1)
        REFUSE(r, E_UNSUPPORTED, "%s: partial_rotary_factor other than 1 is not supported",
               r->label);
    if (r->e)
        return;
    if (!kind) {
        REFUSE(r, E_FORMAT, "%s: rope_type must be a string", r->label);
    } else if (strcmp(kind, "default") == 0) {
        c->rope.kind = ROPE_DEFAULT;
    } else if (strcmp(kind, "linear") == 0) {
        c->rope.kind = ROPE_LINEAR;
        c->rope.factor = get_float(r, scaling, "factor", 1, 1e6, NAN);
    } else if (strcmp(kind, "dynamic") == 0) {
        c->rope.kind = ROPE_DYNAMIC;
        c->rope.factor = get_float(r, scaling, "factor", 1, 1e6, NAN);
        c->rope.original_context =
            get_int(r, scaling, "original_max_position_embeddings", 1, MAX_CONTEXT, c->context);
    } else if (strcmp(kind, "llama3") == 0) {
        c->rope.kind = ROPE_LLAMA3;
        c->rope.factor = get_float(r, scaling, "factor", 1, 1e6, NAN);
        c->rope.low_freq_factor = get_float(r, scaling, "low_freq_factor", 1e-6, 1e6, NAN);
        c->rope.high_freq_factor = get_float(r, scaling, "high_freq_factor", 1e-6, 1e6, NAN);
        c->rope.original_context =
            get_int(r, scaling, "original_max_position_embeddings", 1, MAX_CONTEXT, INT_MIN);
        if (!r->e && c->rope.high_freq_factor <= c->rope.low_freq_factor)
            REFUSE(r, E_FORMAT, "%s: high_freq_factor must be larger than low_freq_factor",
                   r->label);
    } else {
        REFUSE(r, E_UNSUPPORTED,
               "%s: rope_type %.64s is not supported; default, linear, dynamic and llama3 are",
               r->label, kind);
    }
}

/* One id or a list of them. */
static void parse_eos(struct reader *r, struct model_config *c, const json_t *v) {
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > sizeof c->eos_id / sizeof *c->eos_id) {
        REFUSE(r, E_UNSUPPORTED, "%s: eos_token_id has %zu ids; at most 8 are supported", r->label,
               n);
        return;
    }
    c->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= c->shape.vocab) {
            REFUSE(r, E_FORMAT, "%s: eos_token_id must hold ids in 0..%d", r->label,
                   c->shape.vocab - 1);
            return;
        }
        c->eos_id[c->n_eos++] = (int32_t)json_integer_value(id);
    }
}

static void parse_shape(struct reader *r, struct model_config *c, bool mistral) {
    struct model_shape *s = &c->shape;
    s->n_layers = get_int(r, r->root, "num_hidden_layers", 1, MAX_LAYERS, INT_MIN);
    s->dim = get_int(r, r->root, "hidden_size", 1, MAX_WIDTH, INT_MIN);
    s->ffn_dim = get_int(r, r->root, "intermediate_size", 1, MAX_WIDTH, INT_MIN);
    s->n_heads = get_int(r, r->root, "num_attention_heads", 1, MAX_WIDTH, INT_MIN);
    /* MistralConfig's default is 8, LlamaConfig's is the number of heads: too easy to get wrong. */
    s->n_kv_heads =
        get_int(r, r->root, "num_key_value_heads", 1, MAX_WIDTH, mistral ? INT_MIN : s->n_heads);
    s->vocab = s->max_vocab = get_int(r, r->root, "vocab_size", 1, MAX_VOCAB, INT_MIN);
    c->context = get_int(r, r->root, "max_position_embeddings", 1, MAX_CONTEXT, INT_MIN);
    s->norm_eps = get_float(r, r->root, "rms_norm_eps", 0, 1, 1e-6);
    if (r->e)
        return;
    if (s->n_heads % s->n_kv_heads)
        REFUSE(r, E_FORMAT,
               "%s: num_attention_heads %d is not a multiple of "
               "num_key_value_heads %d",
               r->label, s->n_heads, s->n_kv_heads);
    if (!get(r->root, "head_dim") && s->dim % s->n_heads)
        REFUSE(r, E_FORMAT,
               "%s: hidden_size %d is not a multiple of num_attention_heads %d, and "
               "head_dim is not given",
               r->label, s->dim, s->n_heads);
    s->head_dim = get_int(r, r->root, "head_dim", 1, MAX_WIDTH, s->dim / s->n_heads);
    if (!r->e && s->head_dim % 2)
        REFUSE(r, E_FORMAT, "%s: head_dim %d is odd; RoPE needs pairs", r->label, s->head_dim);
    if (!r->e && (int64_t)s->n_heads * s->head_dim > MAX_WIDTH)
        REFUSE(r, E_FORMAT, "%s: num_attention_heads x head_dim is larger than %d", r->label,
               MAX_WIDTH);
    /* Llama's code has no window, whatever the file says. Mistral without the key has 4096. */
    if (mistral)
        s->sliding_window = json_is_null(json_object_get(r->root, "sliding_window"))
                                ? 0
                                : get_int(r, r->root, "sliding_window", 1, INT_MAX, 4096);
}

err_t model_config_from_json(struct model_config *c, const json_t *root, const char *label,
                             struct why *why) {
    struct reader r = {.root = root, .label = label, .why = why};
    memset(c, 0, sizeof *c);
    if (!json_is_object(root))
        return why_set(why, E_FORMAT, "%s: not a JSON object", label);
    bool mistral = parse_architecture(&r);
    refuse_unsupported(&r);
    parse_shape(&r, c, mistral);
    if (r.e)
        return r.e;
    c->tied = get_bool(&r, "tie_word_embeddings", false);
    parse_rope(&r, c);
    /* An explicit null means none; an absent key means the class's default. */
    c->bos_id = get_int(&r, root, "bos_token_id", 0, c->shape.vocab - 1,
                        json_object_get(root, "bos_token_id") || c->shape.vocab < 2 ? -1 : 1);
    const json_t *eos = json_object_get(root, "eos_token_id");
    if (eos && !json_is_null(eos)) {
        parse_eos(&r, c, eos);
    } else if (!eos && c->shape.vocab > 2) {
        c->eos_id[0] = 2;
        c->n_eos = 1;
    }
    return r.e;
}

err_t model_config_parse(struct model_config *c, const char *json, size_t n, struct why *why) {
    json_t *root;
    err_t e = json_parse(&root, json, n, "config.json", MAX_DEPTH, MAX_VALUES, why);
    if (!e)
        e = model_config_from_json(c, root, "config.json", why);
    json_decref(root);
    return e;
}

err_t model_config_generation(struct model_config *c, const json_t *root, const char *label,
                              struct why *why) {
    struct reader r = {.root = root, .label = label, .why = why};
    if (!json_is_object(root))
        return why_set(why, E_FORMAT, "%s: not a JSON object", label);
    const json_t *eos = get(root, "eos_token_id");
    if (eos)
        parse_eos(&r, c, eos);
    return r.e;
}

err_t model_config_same_shape(const struct model_config *a, const struct model_config *base,
                              const char *label, struct why *why) {
    const struct {
        const char *name;
        int32_t have, want;
    } fields[] = {
        {"num_hidden_layers", a->shape.n_layers, base->shape.n_layers},
        {"hidden_size", a->shape.dim, base->shape.dim},
        {"intermediate_size", a->shape.ffn_dim, base->shape.ffn_dim},
        {"num_attention_heads", a->shape.n_heads, base->shape.n_heads},
        {"num_key_value_heads", a->shape.n_kv_heads, base->shape.n_kv_heads},
        {"head_dim", a->shape.head_dim, base->shape.head_dim},
    };
    char differences[400] = "";
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        size_t n = strlen(differences);
        if (fields[i].have != fields[i].want)
            snprintf(differences + n, sizeof differences - n, "%s%s is %d, but the base has %d",
                     n ? "; " : "", fields[i].name, fields[i].have, fields[i].want);
    }
    return differences[0] ? why_set(why, E_WRONG_BASE, "%s: %s", label, differences) : E_OK;
}
