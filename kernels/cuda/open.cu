/* Opening and closing the CUDA backend, and the memory it takes: the packed base and everything a
 * step needs at open, the KV pool and what is left for tenants in kv_open. After that nothing is
 * allocated on the device again. */
#include <cstdlib>
#include <cstring>
#include <new>

#include "config/log.h"
#include "kernels/cuda/card.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

/* What the driver, graphs and libraries may still want after all is taken. */
static const size_t SPARE_BYTES = (size_t)512 << 20;
enum {
    MAX_DIM = 1 << 20,
    LONG_CONTEXT = 32768, /* positions that attention has scratch for, whatever the base has */
};

static size_t aligned(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

void cuda_note(struct cuda *c, err_t e, const char *what) {
    int none = 0;
    if (e && c->error.compare_exchange_strong(none, e))
        log_error("cuda", "call=\"%s\" error=%s device=\"%s\"", what, err_code(e),
                  cudaGetErrorString(cudaPeekAtLastError()));
}

void cuda_note_call(struct cuda *c, cudaError_t e, const char *what) {
    int none = 0;
    if (e != cudaSuccess && c->error.compare_exchange_strong(none, E_DEVICE))
        log_error("cuda", "call=\"%s\" device=\"%s\"", what, cudaGetErrorString(e));
}

/* ---- the device and the shape ---------------------------------------------------------------- */

static err_t find_device(struct cuda *c, struct why *why) {
    cudaDeviceProp p;
    err_t e = card_open(&p, c->description, sizeof c->description, why);
    if (e)
        return e;
    if (code_arch() < 800)
        return why_set(why, E_UNSUPPORTED,
                       "the CUDA backend was not built for compute capability %d.%d, which %s has; "
                       "it needs 8.0 or more, and CUDA_ARCH says for which it is built",
                       p.major, p.minor, p.name);
    c->n_thread_blocks = p.multiProcessorCount;
    return E_OK;
}

static err_t check_shape(const struct model_shape *m, int32_t max_rows, struct why *why) {
    const int32_t size[] = {m->n_layers, m->dim,     m->n_heads, m->n_kv_heads,
                            m->head_dim, m->ffn_dim, m->vocab,   max_rows};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        if (size[i] < 1 || size[i] > MAX_DIM)
            return why_set(why, E_UNSUPPORTED, "the CUDA backend cannot run a model of this shape");
    if (m->n_heads % m->n_kv_heads || m->head_dim % 2 || m->head_dim > 256)
        return why_set(why, E_UNSUPPORTED,
                       "the CUDA backend needs an even head size of at most 256 and as many query "
                       "heads per key-value head, not %d x %d over %d",
                       m->n_heads, m->head_dim, m->n_kv_heads);
    return E_OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Takes bytes from the block at *at; with base NULL it only counts. */
static void *carve(char *base, size_t *at, size_t bytes) {
    void *p = base ? base + *at : NULL;
    *at += aligned(bytes, 1024);
    return p;
}

static size_t carve_base(struct cuda *c, char *base) {
    const struct model_shape *m = &c->shape;
    size_t at = 0;
    for (int32_t i = 0; i < base_embed(m); i++)
        c->linear[i] =
            (const uint4 *)carve(base, &at, linear_packed_bytes(&c->linear_shape[i % N_LINEARS]));
    c->head = (const uint4 *)carve(base, &at, linear_packed_bytes(&c->head_shape));
    c->embed = (const __half *)carve(base, &at, base_matrix_bytes(m, base_embed(m)));
    return at;
}

/* Leading dimensions: whole tiles for each part, as wide rows have it. */
static int32_t lead(int32_t n) {
    return (n + 63) / 64 * 64;
}

static size_t carve_activations(struct cuda *c, char *base) {
    const struct model_shape *m = &c->shape;
    struct gpu_activations *a = &c->a;
    int32_t most = c->max_rows > SLICE_ROWS ? c->max_rows : SLICE_ROWS;
    size_t rows = (size_t)most, at = 0, narrow = SLICE_ROWS * sizeof(float);
    a->ld_h = lead(m->dim);
    a->ld_qkv = lead(c->linear_shape[LINEAR_QKV].first_tile[3] * TILE_ROWS);
    a->ld_ctx = lead(m->n_heads * m->head_dim);
    a->ld_gate_up = lead(c->linear_shape[LINEAR_GATE_UP].first_tile[2] * TILE_ROWS);
    c->ld_logits = lead(m->max_vocab > m->vocab ? m->max_vocab : m->vocab);
    a->h = (float *)carve(base, &at, rows * (size_t)a->ld_h * sizeof(float));
    a->qkv = (float *)carve(base, &at, (size_t)a->ld_qkv * narrow);
    a->ctx = (float *)carve(base, &at, (size_t)a->ld_ctx * narrow);
    a->gate_up = (float *)carve(base, &at, (size_t)a->ld_gate_up * narrow);
    a->qkv16 = (__half *)carve(base, &at, rows * (size_t)a->ld_qkv * 2);
    a->ctx16 = (__half *)carve(base, &at, rows * (size_t)a->ld_ctx * 2);
    a->gate_up16 = (__half *)carve(base, &at, rows * (size_t)a->ld_gate_up * 2);
    c->logits = (float *)carve(base, &at, (size_t)c->ld_logits * narrow);
    c->sample_workspace = carve(base, &at, sample_workspace_bytes(SLICE_ROWS, c->ld_logits));
    c->sampled = (struct sampled *)carve(base, &at, SLICE_ROWS * sizeof *c->sampled);
    return at;
}

static void fill_shapes(struct cuda *c) {
    const struct model_shape *m = &c->shape;
    for (int32_t w = 0; w < N_LINEARS; w++) {
        enum part first = linear_first_part((enum linear)w);
        int32_t rows[MAX_PARTS] = {0};
        for (int32_t i = 0; i < linear_n_parts((enum linear)w); i++)
            rows[i] = part_rows(m, (enum part)(first + i));
        c->linear_shape[w] =
            linear_shape_of(linear_n_parts((enum linear)w), rows, part_cols(m, first));
    }
    c->head_shape = linear_shape_of(1, &m->vocab, m->dim);
}

static size_t staging_bytes(const struct cuda *c) {
    size_t most = 0;
    for (int32_t i = 0; i < base_matrices(&c->shape); i++) {
        size_t bytes = base_matrix_bytes(&c->shape, i);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static err_t device_block(char **out, size_t bytes) {
    if (cudaMalloc((void **)out, bytes) != cudaSuccess) {
        cudaGetLastError(); /* said by the result */
        *out = NULL;
        return E_NOMEM;
    }
    return cudaMemset(*out, 0, bytes) == cudaSuccess ? E_OK : E_DEVICE;
}

static err_t open_memory(struct cuda *c, struct why *why) {
    size_t free_now = 0, total = 0;
    c->linear = (const uint4 **)calloc((size_t)base_embed(&c->shape), sizeof *c->linear);
    if (!c->linear || cudaMemGetInfo(&free_now, &total) != cudaSuccess)
        return why_set(why, c->linear ? E_DEVICE : E_NOMEM, "the CUDA device does not answer");
    fill_shapes(c);
    c->weights_bytes = carve_base(c, NULL);
    c->block_bytes = carve_activations(c, NULL);
    size_t staging = staging_bytes(c), want = c->weights_bytes + c->block_bytes + staging;
    err_t e = want + SPARE_BYTES > free_now ? E_NOMEM : E_OK;
    if (!e)
        e = device_block(&c->weights, c->weights_bytes);
    if (!e)
        e = device_block(&c->block, c->block_bytes);
    if (!e)
        e = device_block((char **)&c->staging, staging);
    if (e)
        return why_set(why, e,
                       "the base model needs %zu MiB and steps of %d rows %zu MiB of device "
                       "memory; %zu of %zu MiB are free",
                       (c->weights_bytes + staging) >> 20, c->max_rows, c->block_bytes >> 20,
                       free_now >> 20, total >> 20);
    carve_base(c, c->weights);
    carve_activations(c, c->block);
    return E_OK;
}

/* ---- the operators on memory ----------------------------------------------------------------- */

static err_t cuda_reserve(struct kernels *k, size_t bytes, void **device) {
    return arena_take(&cuda_of(k)->arena, bytes, device);
}
static void cuda_release(struct kernels *k, void *device, size_t bytes) {
    arena_give(&cuda_of(k)->arena, device, bytes);
}
static err_t cuda_stage(struct kernels *k, void *device, size_t bytes, void **window) {
    (void)device;
    return bytes > WINDOW_BYTES ? E_INVAL : windows_take(&cuda_of(k)->windows, window);
}
static err_t cuda_commit(struct kernels *k, void *device, void *window, size_t bytes) {
    return windows_send(&cuda_of(k)->windows, device, window, bytes);
}
static err_t cuda_settle(struct kernels *k) {
    return windows_settle(&cuda_of(k)->windows);
}

static size_t cuda_memory_used(const struct kernels *k) {
    struct cuda *c = cuda_of((struct kernels *)k);
    return c->weights_bytes + c->block_bytes + c->kv_bytes + c->attention_bytes + c->narrow.bytes +
           c->wide.bytes + job_tables_bytes(c->jobs) + prefill_bytes(c->prefill) +
           arena_bytes(&c->arena) - arena_free_bytes(&c->arena);
}

static size_t cuda_memory_free(const struct kernels *k) {
    struct cuda *c = cuda_of((struct kernels *)k);
    size_t here = 0, total = 0, arena = arena_free_bytes(&c->arena);
    if (c->kv)
        return arena;
    if (cudaMemGetInfo(&here, &total) != cudaSuccess || here < 2 * SPARE_BYTES)
        return arena;
    return here - 2 * SPARE_BYTES + arena;
}

static size_t cuda_kv_page_bytes(const struct kernels *k) {
    const struct model_shape *m = &cuda_of((struct kernels *)k)->shape;
    return (size_t)m->n_layers * attention_page_bytes(m->n_kv_heads, m->head_dim);
}

/* Copies and packing stand in one stream, so the next matrix may follow into the staging memory
 * without waiting. */
static err_t pack(struct cuda *c, const struct linear_shape *s, const uint4 *to,
                  const __half *from) {
    return linear_pack(s, from, (void *)to, c->windows.stream);
}

static err_t cuda_place_base(struct kernels *k, int32_t i, void *block) {
    struct cuda *c = cuda_of(k);
    size_t bytes = base_matrix_bytes(&c->shape, i);
    bool embed = i == base_embed(&c->shape);
    pthread_mutex_lock(&c->packing);
    err_t e = c->staging ? E_OK : E_INVAL;
    if (!e)
        e = windows_upload(&c->windows, embed ? (void *)c->embed : c->staging, block, bytes);
    if (!e && i < base_embed(&c->shape))
        e = pack(c, &c->linear_shape[i % N_LINEARS], c->linear[i], c->staging);
    else if (!e && (!embed || c->shape.tied))
        e = pack(c, &c->head_shape, c->head, embed ? c->embed : c->staging);
    pthread_mutex_unlock(&c->packing);
    host_block_free(block, bytes);
    return e;
}

/* What is left after all else becomes the arena's last slab. */
static err_t seal(struct cuda *c) {
    size_t here = 0, total = 0;
    if (cudaMemGetInfo(&here, &total) != cudaSuccess)
        return E_DEVICE;
    return arena_seal(&c->arena, here > SPARE_BYTES ? here - SPARE_BYTES : 0);
}

static err_t cuda_kv_open(struct kernels *k, int32_t n_pages) {
    struct cuda *c = cuda_of(k);
    if (n_pages < 1 || c->kv)
        return E_INVAL;
    err_t e = windows_settle(&c->windows);
    cudaFree(c->staging);
    c->staging = NULL;
    c->n_pages = n_pages;
    int64_t room = (int64_t)n_pages * KV_PAGE_TOKENS;
    c->max_context = c->max_context > LONG_CONTEXT ? c->max_context : LONG_CONTEXT;
    c->max_context = room < c->max_context ? (int32_t)room : c->max_context;
    c->kv_bytes = (size_t)n_pages * cuda_kv_page_bytes(k);
    c->attention_bytes =
        attention_workspace_bytes(SLICE_ROWS, c->max_context, c->shape.n_heads, c->shape.head_dim);
    if (!e)
        e = device_block((char **)&c->kv, c->kv_bytes);
    if (!e)
        e = device_block((char **)&c->attention_workspace, c->attention_bytes);
    if (!e)
        e = tables_open(&c->narrow, c, SLICE_ROWS, n_pages + SLICE_ROWS);
    if (!e)
        e = tables_open(&c->wide, c, c->max_rows, n_pages + c->max_rows);
    if (!e)
        e = pass_open(c);
    if (!e)
        e = graphs_open(c);
    return e ? e : seal(c);
}

/* ---- open and close -------------------------------------------------------------------------- */

static void cuda_close(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    graphs_close(c);
    pass_close(c);
    tables_close(&c->narrow);
    tables_close(&c->wide);
    prefill_close(c->prefill);
    job_tables_close(c->jobs);
    windows_close(&c->windows);
    arena_close(&c->arena);
    cudaFree(c->attention_workspace);
    cudaFree(c->kv);
    cudaFree(c->staging);
    cudaFree(c->block);
    cudaFree(c->weights);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    pthread_mutex_destroy(&c->packing);
    free(c->linear);
    delete c;
}

static const char *cuda_describe(const struct kernels *k) {
    return cuda_of((struct kernels *)k)->description;
}

static const struct kernels_ops *ops(void) {
    static struct kernels_ops o;
    o.name = "cuda";
    o.close = cuda_close;
    o.describe = cuda_describe;
    o.reserve = cuda_reserve;
    o.release = cuda_release;
    o.stage = cuda_stage;
    o.commit = cuda_commit;
    o.settle = cuda_settle;
    o.memory_used = cuda_memory_used;
    o.memory_free = cuda_memory_free;
    o.kv_page_bytes = cuda_kv_page_bytes;
    o.place_base = cuda_place_base;
    o.bind_tenant = cuda_bind_tenant;
    o.unbind_tenant = cuda_unbind_tenant;
    o.kv_open = cuda_kv_open;
    o.begin = cuda_begin;
    o.embed = cuda_embed;
    o.norm = cuda_norm;
    o.linear = cuda_linear;
    o.rope_append = cuda_rope_append;
    o.attention = cuda_attention;
    o.swiglu = cuda_swiglu;
    o.head = cuda_head;
    o.end = cuda_end;
    return &o;
}

static err_t open_parts(struct cuda *c, struct why *why) {
    err_t e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking) == cudaSuccess
                  ? E_OK
                  : E_DEVICE;
    if (!e)
        e = windows_open(&c->windows);
    if (!e)
        e = linear_setup();
    if (!e)
        e = attention_setup();
    if (e)
        return why_set(why, e, "the CUDA device does not answer: %s",
                       cudaGetErrorString(cudaGetLastError()));
    e = open_memory(c, why);
    if (e)
        return e;
    e = job_tables_open(&c->jobs, &c->shape);
    if (!e)
        e = prefill_open(&c->prefill, &c->shape, c->max_rows);
    return e ? why_set(why, e, "no device memory for the scratch of a step: %s", err_sentence(e))
             : E_OK;
}

extern "C" err_t kernels_cuda_open(struct kernels **out, const struct model_shape *shape,
                                   int32_t max_rows, int32_t threads, struct why *why) {
    (void)threads;
    struct cuda *c = new (std::nothrow) struct cuda();
    if (!c)
        return why_set(why, E_NOMEM, "no memory for the CUDA backend");
    c->base.ops = ops();
    c->shape = *shape;
    c->max_rows = max_rows;
    pthread_mutex_init(&c->packing, NULL);
    arena_open(&c->arena);
    err_t e = check_shape(shape, max_rows, why);
    if (!e)
        e = find_device(c, why);
    if (!e)
        e = open_parts(c, why);
    if (e) {
        cuda_close(&c->base);
        return e;
    }
    *out = &c->base;
    return E_OK;
}
