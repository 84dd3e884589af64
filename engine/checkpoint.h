/* A Hugging Face checkpoint folder: config.json, one or more safetensors files, and the fingerprint
 * that names a base exactly. Used for the base by the engine, and for base and fine-tune by the
 * tool. */
#ifndef ENGINE_CHECKPOINT_H
#define ENGINE_CHECKPOINT_H

#include <jansson.h>

#include "config/sha256.h"
#include "engine/hashing.h"
#include "engine/safetensors.h"
#include "kernels/kernels.h"

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3 };

struct rope_config {
    enum rope_kind kind;
    float theta, factor;
    float low_freq_factor, high_freq_factor; /* llama3 */
    int32_t original_context;                /* llama3, dynamic */
};

/* The fields of config.json that this project computes with. */
struct model_config {
    struct model_shape shape; /* max_vocab = vocab */
    int32_t context;          /* max_position_embeddings */
    bool tied;                /* tie_word_embeddings */
    struct rope_config rope;
    int32_t bos_id;           /* -1: none */
    int32_t eos_id[8], n_eos; /* generation_config.json wins over config.json */
};

/* Reads a model_config from config.json text. Architectures LlamaForCausalLM and
 * MistralForCausalLM; everything that would change the result and is not implemented (biases, other
 * activations, other RoPE kinds, quantised checkpoints) is refused by name. Both rope_parameters
 * and the older rope_theta + rope_scaling are read. */
err_t model_config_parse(struct model_config *c, const char *json, size_t n, struct why *why);
/* The same from parsed JSON; label names it in sentences. */
err_t model_config_from_json(struct model_config *c, const json_t *root, const char *label,
                             struct why *why);
/* Takes over what generation_config.json says (its EOS ids win over config.json's). */
err_t model_config_generation(struct model_config *c, const json_t *root, const char *label,
                              struct why *why);

/* E_WRONG_BASE naming every difference unless layers, dims and heads are equal; vocabulary, RoPE
 * and the like may differ. label names a in the sentence. */
err_t model_config_same_shape(const struct model_config *a, const struct model_config *base,
                              const char *label, struct why *why);

/* Where FP32 weights come from in place of the files: elements [first, first + n) of a tensor. */
struct checkpoint_overlay {
    err_t (*read)(void *arg, const char *name, float *dst, uint64_t first, size_t n,
                  struct why *why);
    void *arg;
};

struct checkpoint {
    char *dir; /* owned */
    struct model_config config;
    int32_t n_files;
    struct st_file *file;  /* [n_files] owned */
    int *fd;               /* [n_files] owned */
    bool bare;             /* the files' names lack "model.": saved without lm_head's wrapper */
    char *config_json;     /* config.json's text; owned */
    char *generation_json; /* generation_config.json's text, "{}" when there is none; owned */
    struct checkpoint_overlay overlay; /* read NULL: none. The tool merges adapters with it */
};

/* Opens the folder and every shard that its index names (or model.safetensors, or with neither
 * every .safetensors file), and checks that
 * exactly the tensors of the config are there, with their shapes (rotary_emb.inv_freq is tolerated;
 * lm_head may be absent when tied). Errors name file, tensor, what is wrong, what would be right.
 */
err_t checkpoint_open(struct checkpoint *c, const char *dir, struct why *why);
void checkpoint_close(struct checkpoint *c);

/* The tensor and its file; NULL when absent. */
const struct st_tensor *checkpoint_find(const struct checkpoint *c, const char *name,
                                        const struct st_file **file);
/* Reads a tensor as fp16 [n elements]. Values that are not finite or do not fit fp16: E_FORMAT,
 * with the tensor's name and the element. BF16 and F32 are rounded to nearest even. Any thread. */
err_t checkpoint_read_f16(const struct checkpoint *c, const char *name, uint16_t *dst, size_t n,
                          struct why *why);
/* The same in FP32, from the stored dtype without loss. */
err_t checkpoint_read_f32(const struct checkpoint *c, const char *name, float *dst, size_t n,
                          struct why *why);
/* Elements [first, first + n) alone, so that a large tensor need not be in memory whole. */
err_t checkpoint_read_f32_rows(const struct checkpoint *c, const char *name, float *dst,
                               uint64_t first, size_t n, struct why *why);

/* The same as they are stored, of a tensor in F16 or BF16 without an overlay. */
err_t checkpoint_read_half_rows(const struct checkpoint *c, const char *name, uint16_t *dst,
                                uint64_t first, size_t n, struct why *why);

/* Names of the parts: "model.layers.%d.self_attn.q_proj" and so on, without ".weight". */
void part_name(char *out, size_t n, int32_t layer, enum part p);
/* Name of norm i of 2L + 1: attention and FFN norm of each layer in turn, then the final norm. */
void norm_name(char *out, size_t n, const struct model_shape *s, int32_t i);

/* SHA-256 over the lines "name dtype [d0,d1] sha256-of-bytes\n" of all tensors in name order
 * (inv_freq buffers left out). Shards are hashed in parallel. progress may be NULL. */
err_t checkpoint_fingerprint(const struct checkpoint *c, unsigned char out[SHA256_BYTES],
                             hash_progress_fn *progress, void *arg, struct why *why);

#endif
