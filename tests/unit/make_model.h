/* A tiny Llama checkpoint made of nothing but a seed, so that tests need no files from outside. */
#ifndef TESTS_UNIT_MAKE_MODEL_H
#define TESTS_UNIT_MAKE_MODEL_H

#include "engine/checkpoint.h"

struct make_model {
    int32_t layers, dim, heads, kv_heads, ffn, vocab, context; /* 0: 2, 40, 4, 2, 72, 48, 64 */
    bool tied;
    enum st_dtype dtype; /* F16, BF16 or F32 */
    unsigned seed;
    float scale;              /* of the weights; 0: 0.05 */
    const char *extra_config; /* more members of config.json: ",\"x\":1", or NULL */
    /* Changes a tensor after it was drawn [n]; NULL: nothing. */
    void (*change)(const char *name, float *x, size_t n, void *arg);
    void *arg;
    const char *leave_out, *add; /* a tensor's name, or NULL */
    bool bare;                   /* names without "model.", as a model without its head is saved */
    const char *file;            /* NULL: model.safetensors */
};

/* Writes config.json, generation_config.json and model.safetensors into `dir`, which is made. */
void make_model(const char *dir, struct make_model m);
/* Makes of a made model's one file two shards with an index, its tensors in turns. */
void make_shards(const char *dir);
/* Writes a text file, or ends the test. */
void make_text(const char *dir, const char *name, const char *text);
/* Copies a file over another, or ends the test. */
void make_copy(const char *from, const char *to);

#endif
