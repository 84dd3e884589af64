/* A model and a tenant of a real size made of nothing: what a step costs does not depend on what
 * the weights say. For benches on a device, where no such model is at hand. */
#ifndef TESTS_BENCH_GPU_BIG_H
#define TESTS_BENCH_GPU_BIG_H

struct big_shape {
    const char *name;
    int layers, dim, heads, kv_heads, ffn, vocab, context;
};
extern const struct big_shape big_shapes[]; /* "llama-7b", "mistral-7b"; ended by name NULL */

/* Writes the folder's config and weights, FP16, and tenant.bitdelta with one plane for each linear,
 * unless they are there. Prints and exits on an error. */
void big_make(const char *dir, const struct big_shape *s);
/* t1.bitdelta .. tn.bitdelta in `dir`, of different signs, for the base in base_dir. */
void big_make_tenants(const char *dir, const char *base_dir, int n);

#endif
