/* Any bytes as a PEFT adapter's adapter_model.safetensors: opened beside a base and, where it fits,
 * merged and read whole. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compress/lora.h"
#include "tests/check.h"
#include "tests/fuzz/mutate.h"

void fuzz_adapter(const uint8_t *data, size_t n);

static const char base_config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":10,"
    "\"max_position_embeddings\":16}";
static const char adapter_config[] =
    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"use_dora\":true,"
    "\"rank_pattern\":{\"v_proj\":1},\"trainable_token_indices\":{\"lm_head\":[3,9]}}";

static err_t read_base(void *arg, const char *name, float *dst, uint64_t first, size_t n,
                       struct why *why) {
    (void)arg, (void)name, (void)why;
    for (size_t i = 0; i < n; i++)
        dst[i] = (float)((first + i) % 7) / 8;
    return E_OK;
}

/* A folder of this process with the config in it; the weights' file is written anew for each run.
 */
static const char *folder(void) {
    static char dir[64];
    if (dir[0])
        return dir;
    snprintf(dir, sizeof dir, "/tmp/bitdelta-fuzz-%d", (int)getpid());
    mkdir(dir, 0700);
    char path[128];
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    FILE *f = fopen(path, "w");
    if (!f || fputs(adapter_config, f) < 0 || fclose(f) != 0)
        abort();
    return dir;
}

void fuzz_adapter(const uint8_t *data, size_t n) {
    struct checkpoint base = {.config_json = (char *)(uintptr_t)base_config,
                              .generation_json = (char *)(uintptr_t) "{}",
                              .overlay = {read_base, NULL}},
                      merged;
    struct lora l;
    struct why why = {{0}};
    if (model_config_parse(&base.config, base_config, sizeof base_config - 1, &why) != E_OK)
        abort();
    char path[128];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder());
    FILE *f = fopen(path, "w");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f) != 0)
        abort();
    err_t e = lora_open(&l, folder(), &base, &why);
    if (e && !why.text[0])
        abort();
    if (!e) {
        float *x = malloc((size_t)l.vocab * 12 * sizeof *x + 8 * 12 * sizeof *x);
        if (lora_checkpoint(&l, &merged, &why) != E_OK)
            abort();
        for (int32_t i = 0; x && i < l.n_modules; i++) {
            const struct lora_module *m = &l.module[i];
            char name[160];
            snprintf(name, sizeof name, "%s.weight", m->name);
            checkpoint_read_f32(&merged, name, x, (size_t)m->n * (size_t)m->k, &why);
        }
        checkpoint_close(&merged);
        free(x);
    }
    lora_close(&l);
}

#ifdef FUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_adapter(data, n);
    return 0;
}
#else
#include "engine/safetensors.h"

#define Q "base_model.model.model.layers.0.self_attn.q_proj"
#define V "base_model.model.model.layers.0.self_attn.v_proj"

TEST(fuzz_adapter_survives_damaged_tensors) {
    static const struct {
        const char *name;
        int64_t rows, cols;
    } piece[] = {{Q ".lora_A.weight", 2, 8},
                 {Q ".lora_B.weight", 8, 2},
                 {Q ".lora_magnitude_vector", 0, 8},
                 {V ".lora_A.default.weight", 1, 8},
                 {V ".lora_B.default.weight", 4, 1},
                 {V ".lora_magnitude_vector", 0, 4},
                 {"base_model.model.model.embed_tokens.weight", 12, 8},
                 {"base_model.model.lm_head.weight", 12, 8},
                 {"base_model.model.lm_head.token_adapter.trainable_tokens_delta", 2, 8},
                 {"base_model.model.model.norm.weight", 0, 8}};
    enum { N = sizeof piece / sizeof *piece };
    char path[300];
    struct st_writer *w;
    struct why why;
    snprintf(path, sizeof path, "%s/seed.safetensors", test_tmp());
    CHECK_OK(st_writer_open(&w, path, &why), why);
    for (int i = 0; i < N; i++)
        st_writer_tensor(w, piece[i].name, ST_F16, piece[i].rows ? 2 : 1,
                         piece[i].rows ? (int64_t[]){piece[i].rows, piece[i].cols}
                                       : (int64_t[]){piece[i].cols});
    CHECK_OK(st_writer_header(w, 8, &why), why);
    for (int i = 0; i < N; i++)
        for (int64_t j = 0; j < (piece[i].rows ? piece[i].rows : 1) * piece[i].cols; j++) {
            uint16_t x = (uint16_t)(0x3000 + j);
            CHECK_OK(st_writer_data(w, &x, sizeof x, &why), why);
        }
    CHECK_OK(st_writer_end(w, &why), why);
    /* The seed itself fits, or the merge would never be reached. */
    struct checkpoint base = {.config_json = (char *)(uintptr_t)base_config};
    struct lora l;
    CHECK_OK(model_config_parse(&base.config, base_config, sizeof base_config - 1, &why), why);
    char place[400];
    snprintf(place, sizeof place, "cp %s %s/adapter_model.safetensors", path, folder());
    CHECK_EQ(system(place), 0);
    CHECK_OK(lora_open(&l, folder(), &base, &why), why);
    CHECK_EQ(l.vocab, 12);
    lora_close(&l);
    fuzz_mutations_of_file("fuzz_adapter", fuzz_adapter, path, 20000);
    snprintf(place, sizeof place, "rm -r %s", folder());
    CHECK_EQ(system(place), 0);
}
#endif
