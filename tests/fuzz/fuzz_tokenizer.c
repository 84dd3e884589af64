/* Whatever bytes stand in a model file, in a tenant's tokenizer additions or in a text: a refusal
 * with a sentence, or a tokenizer whose promises hold (ids it knows, whole characters out). */
#include <sys/stat.h>
#include <unistd.h>

#include "config/clock.h"
#include "config/utf8.h"
#include "tests/check.h"
#include "tokenizer/additions.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocab.h"

void fuzz_tokenizer(const uint8_t *data, size_t n);

static void check(bool holds, const char *promise) {
    if (!holds) {
        fprintf(stderr, "broken: %s\n", promise);
        abort();
    }
}

/* A small but complete model: byte pieces, control pieces and a few merges, as protobuf bytes. */
static size_t small_model(unsigned char *out) {
    static const char *const pieces[] = {"<unk>",
                                         "<s>",
                                         "</s>",
                                         "\xe2\x96\x81",
                                         "a",
                                         "b",
                                         "ab",
                                         "\xe2\x96\x81"
                                         "a",
                                         "<",
                                         "|",
                                         "x",
                                         "<|",
                                         "<|x"};
    size_t used = 0;
    for (int i = 0; i < 13 + 256; i++) {
        char byte[8];
        const char *text = i < 13 ? pieces[i] : byte;
        snprintf(byte, sizeof byte, "<0x%02X>", (unsigned)(i - 13) & 255);
        size_t length = strlen(text);
        unsigned char type = i == 0 ? 2 : i < 3 ? 3 : i < 13 ? 1 : 6;
        float score = i < 13 ? -(float)i : 0;
        out[used++] = 0x0a; /* field 1: a piece */
        out[used++] = (unsigned char)(length + 9);
        out[used++] = 0x0a;
        out[used++] = (unsigned char)length;
        memcpy(out + used, text, length);
        used += length;
        out[used++] = 0x15;
        memcpy(out + used, &score, 4);
        used += 4;
        out[used++] = 0x18;
        out[used++] = type;
    }
    static const unsigned char specs[] = {0x12, 5, 0x18, 2, 0x98, 0x02, 1, /* BPE, byte fallback */
                                          0x1a, 4, 0x18, 1, 0x20, 0};      /* prefix, no squeeze */
    memcpy(out + used, specs, sizeof specs);
    return used + sizeof specs;
}

static void use(const struct tokenizer *t, const uint8_t *data, size_t n) {
    for (unsigned flags = 0; flags < 4; flags++) {
        int32_t *ids, n_ids;
        struct why why = {""};
        err_t e =
            tokenizer_encode(t, (const char *)data, n, flags, 1 << 16, 1 << 16, &ids, &n_ids, &why);
        if (e) {
            check(why.text[0] != 0, "a refusal has a sentence");
            continue;
        }
        size_t n_text, used = 0, n_piece;
        char *text, part[DETOK_MAX_BYTES];
        struct detok d;
        check(tokenizer_decode(t, ids, n_ids, false, &text, &n_text) == 0, "decode");
        detok_init(&d, t, false, false);
        for (int32_t i = 0; i <= n_ids; i++) {
            check(i == n_ids || tokenizer_piece(t, ids[i], &n_piece), "encode gives known ids");
            check(i == n_ids || (flags & ENCODE_PARSE_SPECIAL) ||
                      !tokenizer_is_special(t, ids[i]) || ids[i] == tokenizer_facts(t)->unk_id ||
                      ((flags & ENCODE_SPECIAL_TOKENS) && (i == 0 || i == n_ids - 1)),
                  "no special id of unparsed text");
            size_t got = i < n_ids ? detok_push(&d, ids[i], part) : detok_flush(&d, part);
            check(used + got <= n_text && memcmp(part, text + used, got) == 0,
                  "the stream adds up to decode");
            check(utf8_valid_prefix(part, got) == got, "whole characters");
            used += got;
        }
        check(used == n_text, "the stream is whole");
        free(text);
        free(ids);
    }
}

/* A folder with `data` as one of its settings files, read as the tool reads a fine-tune's. */
static void read_folder(const struct tokenizer *base, const char *name, const uint8_t *data,
                        size_t n) {
    char dir[64], path[128], *json;
    struct why why = {""};
    struct tokenizer *t;
    snprintf(dir, sizeof dir, "/tmp/fuzz-tokenizer-%d.folder", getpid());
    snprintf(path, sizeof path, "%s/%s", dir, name);
    mkdir(dir, 0700);
    FILE *f = fopen(path, "wb");
    check(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "a file");
    err_t e = tokenizer_additions(dir, &json, &why);
    unlink(path);
    rmdir(dir);
    check(e == 0 || why.text[0], "a refusal has a sentence");
    if (e)
        return;
    static const uint8_t text[] = "a <|y|> <|im_end|> ba </s> b";
    e = tokenizer_extend(&t, base, json, 300, &why);
    check(e == 0 || why.text[0], "a refusal has a sentence");
    free(json);
    if (e)
        return;
    use(t, text, sizeof text - 1);
    tokenizer_close(t);
}

/* First byte: what the rest is. 0: a model file; 1: additions; 3 to 5: a settings file of a folder;
 * else: a text. */
void fuzz_tokenizer(const uint8_t *data, size_t n) {
    static unsigned char model[8192];
    static size_t n_model;
    static char dir[64];
    struct why why = {""};
    struct vocab *v;
    if (n == 0)
        return;
    if (n_model == 0)
        n_model = small_model(model);
    if (data[0] == 0) {
        err_t e = vocab_open(&v, data + 1, n - 1, &why);
        check(e == 0 || why.text[0], "a refusal has a sentence");
        if (e)
            return;
        static const char text[] = "a \xe6\x97\xa5 ab<|x\n\xf0\x9f\x99\x82";
        struct sp_ids ids = {.cap_max = 1000};
        vocab_encode(v, text, sizeof text - 1, true, &ids);
        for (size_t i = 0; i < ids.n; i++)
            check(ids.v[i] >= 0 && ids.v[i] < v->n_pieces, "ids of the model");
        free(ids.v);
        vocab_close(v);
        return;
    }
    if (!dir[0]) {
        char path[128];
        snprintf(dir, sizeof dir, "/tmp/fuzz-tokenizer-%d", getpid());
        mkdir(dir, 0700);
        snprintf(path, sizeof path, "%s/tokenizer.model", dir);
        FILE *f = fopen(path, "wb");
        check(f && fwrite(model, 1, n_model, f) == n_model && fclose(f) == 0, "seed model");
    }
    static struct tokenizer *base, *tenant;
    if (!base) {
        char path[128];
        static const char added[] =
            "{\"added_tokens\": [{\"id\": 269, \"content\": \"<|y|>\", \"special\": true},"
            "{\"id\": 12, \"content\": \"<|x\", \"special\": true, \"lstrip\": true},"
            "{\"id\": 270, \"content\": \"ba\", \"rstrip\": true}], \"legacy\": false}";
        err_t e = tokenizer_open(&base, dir, &why);
        if (!e)
            e = tokenizer_extend(&tenant, base, added, 271, &why);
        if (e)
            fprintf(stderr, "%s\n", why.text);
        check(e == 0, "the small model opens");
        snprintf(path, sizeof path, "%s/tokenizer.model", dir);
        unlink(path);
        rmdir(dir);
    }
    static const char *const settings[] = {"tokenizer_config.json", "added_tokens.json",
                                           "special_tokens_map.json"};
    if (data[0] >= 3 && data[0] <= 5) {
        read_folder(base, settings[data[0] - 3], data + 1, n - 1);
        return;
    }
    if (data[0] != 1) {
        use(base, data + 1, n - 1);
        use(tenant, data + 1, n - 1);
        return;
    }
    char *json = malloc(n);
    check(json != NULL, "memory");
    memcpy(json, data + 1, n - 1);
    json[n - 1] = 0;
    struct tokenizer *t;
    err_t e = tokenizer_extend(&t, base, json, 300, &why);
    check(e == 0 || why.text[0], "a refusal has a sentence");
    free(json);
    if (e)
        return;
    static const uint8_t text[] = "a <|y|> <|x ba </s> b";
    use(t, text, sizeof text - 1);
    tokenizer_close(t);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_tokenizer(data, n);
    return 0;
}
#else
/* Bytes changed, cut out, doubled; for a protobuf also lengths: what mutations of structure are. */
static size_t mutate(uint8_t *data, size_t n, size_t cap, unsigned *seed) {
    for (unsigned times = 1 + test_random(seed) % 4; times > 0 && n > 4; times--) {
        size_t at = 1 + test_random(seed) % (n - 1), length = 1 + test_random(seed) % 16;
        if (length > n - at)
            length = n - at;
        switch (test_random(seed) % 4) {
        case 0:
            data[at] = (uint8_t)test_random(seed);
            break;
        case 1:
            memmove(data + at, data + at + length, n - at - length);
            n -= length;
            break;
        case 2:
            if (n + length <= cap) {
                memmove(data + at + length, data + at, n - at);
                n += length;
            }
            break;
        default:
            data[at] = (uint8_t)(data[at] + 1);
        }
    }
    return n;
}

static void run(uint8_t kind, const void *seed_bytes, size_t n, double seconds) {
    static uint8_t data[16384];
    unsigned seed = 3;
    int64_t end = mono_us() + (int64_t)(seconds * 1e6);
    for (int i = 0; i < 4000 && mono_us() < end; i++) {
        data[0] = kind;
        memcpy(data + 1, seed_bytes, n);
        fuzz_tokenizer(data, i == 0 ? n + 1 : mutate(data, n + 1, sizeof data, &seed));
    }
}

TEST(fuzz_tokenizer_survives_damaged_models_additions_and_texts) {
    static unsigned char model[8192];
    static const char json[] =
        "{\"model_hash\": \"\", \"added_tokens\": [{\"id\": 270, \"content\": \"<|im_end|>\", "
        "\"special\": true, \"lstrip\": true}, {\"id\": 1, \"content\": \"<s>\", \"special\": "
        "true}], "
        "\"legacy\": true, \"add_bos_token\": true, \"bos_token\": \"<s>\", \"chat_template\": "
        "\"x\"}";
    static const char text[] = "a ab <|x <|y|> ba b\n\t\xe6\x97\xa5 \xf0\x9f\x99\x82 </s><s> x";
    if (!freopen("/dev/null", "w", stderr)) /* the library tells stderr of each refusal */
        test_fail(__FILE__, __LINE__, "no /dev/null");
    run(0, model, small_model(model), 1.0);
    run(1, json, sizeof json - 1, 0.7);
    static const char config[] =
        "{\"added_tokens_decoder\": {\"270\": {\"content\": \"<|im_end|>\", \"special\": true}, "
        "\"1\": {\"content\": \"<s>\"}}, \"bos_token\": {\"content\": \"<s>\"}, "
        "\"pad_token\": null, \"additional_special_tokens\": [\"<|im_end|>\"], "
        "\"chat_template\": [{\"name\": \"default\", \"template\": \"x\"}], \"legacy\": false}";
    static const char added_json[] = "{\"<|im_end|>\": 270, \"w\": 271}";
    run(3, config, sizeof config - 1, 0.5);
    run(4, added_json, sizeof added_json - 1, 0.2);
    run(5, config, sizeof config - 1, 0.2);
    run(2, text, sizeof text - 1, 0.7);
}
#endif
