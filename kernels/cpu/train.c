/* Opening and closing the CPU for fitting, its memory, and its table of operators. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/train_closed.h"
#include "kernels/cpu/train_cpu.h"

enum { ALIGNMENT = 256, HUGE_PAGE = 2 << 20 };

/* Large blocks are asked for in huge pages: a matrix read row by row touches a page a row. */
static void *aligned(size_t bytes) {
    size_t alignment = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : ALIGNMENT;
    if (bytes > SIZE_MAX - alignment)
        return NULL;
    size_t whole = (bytes + alignment - 1) / alignment * alignment;
    void *p = aligned_alloc(alignment, whole ? whole : alignment);
    if (p && alignment == HUGE_PAGE)
        madvise(p, whole, MADV_HUGEPAGE); /* where the kernel has none, it stays as it is */
    return p;
}

float *train_cpu_work(struct train_cpu *c, size_t n) {
    if (n > c->n_work) {
        free(c->work);
        c->work = n <= SIZE_MAX / sizeof(float) ? aligned(n * sizeof(float)) : NULL;
        c->n_work = c->work ? n : 0;
        if (!c->work)
            c->error = c->error ? c->error : E_NOMEM;
    }
    return c->work;
}

static void close_cpu(struct train *t) {
    struct train_cpu *c = train_cpu(t);
    if (!c)
        return;
    for (int32_t i = 0; c->panels && i < pool_threads(c->pool); i++)
        free(c->panels[i]);
    free(c->panels);
    free(c->work);
    pool_close(c->pool);
    free(c);
}

static const char *describe(const struct train *t) {
    return ((const struct train_cpu *)t)->about;
}

static err_t take(struct train *t, size_t bytes, void **device) {
    (void)t;
    *device = aligned(bytes);
    if (*device)
        memset(*device, 0, bytes);
    return *device ? E_OK : E_NOMEM;
}

static void give(struct train *t, void *device) {
    (void)t;
    free(device);
}

static void put(struct train *t, void *device, const void *host, size_t bytes) {
    (void)t;
    memcpy(device, host, bytes);
}

static void get(struct train *t, void *host, const void *device, size_t bytes) {
    (void)t;
    memcpy(host, device, bytes);
}

static void zero(struct train *t, void *device, size_t bytes) {
    (void)t;
    memset(device, 0, bytes);
}

static size_t memory_free(const struct train *t) {
    (void)t;
    return memory_available();
}

static size_t memory_most(const struct train *t) {
    (void)t;
    return 0;
}

static err_t settle(struct train *t, struct why *why) {
    err_t e = train_cpu(t)->error;
    return e ? why_set(why, e, "There is not enough memory to fit on this machine.") : E_OK;
}

static size_t bytes_of(const struct train_weights *w) {
    return (size_t)w->n * (size_t)w->k * sizeof(float);
}

static void hold(struct train *t, int32_t place, const float *x, size_t n) {
    (void)t, (void)place, (void)x, (void)n; /* panels are packed by the block */
}

static void store(struct train *t, const float *x, struct train_weights *w) {
    (void)t;
    memcpy(w->w, x, bytes_of(w));
}

static void load(struct train *t, const struct train_weights *w, float *x) {
    (void)t;
    memcpy(x, w->w, bytes_of(w));
}

enum { WIDEN_TASK = 32768 };
struct widen_job {
    const struct train_isa *isa;
    enum train_number type;
    bool served;
    size_t n;
    const char *from;
    float *x;
};

static void widen_task(void *arg, int32_t task, int32_t thread) {
    (void)thread;
    const struct widen_job *j = arg;
    size_t at = (size_t)task * WIDEN_TASK, n = j->n - at < WIDEN_TASK ? j->n - at : WIDEN_TASK;
    j->isa->widen(j->type, j->served, n, j->from + at * train_number_bytes(j->type), j->x + at);
}

static void widen(struct train *t, enum train_number type, bool served, size_t n, const void *from,
                  float *x) {
    struct widen_job j = {train_cpu(t)->isa, type, served, n, from, x};
    pool_run(train_cpu(t)->pool, widen_task, &j, train_tasks(n, WIDEN_TASK));
}

static void factor(struct train *t, int32_t n, float *a, size_t ld, float damp, float *inverse) {
    (void)t;
    closed_cpu_factor(n, a, ld, damp, inverse);
}

static void feedback(struct train *t, const struct train_delta *x, int32_t first, int32_t width,
                     const float *l, const float *pushed, float *d, float *const *value) {
    closed_cpu_feedback(train_cpu(t)->pool, x, first, width, l, pushed, d, value);
}

static void row_dots(struct train *t, int32_t n, int32_t k, const float *a, const float *b,
                     float *out) {
    closed_cpu_row_dots(train_cpu(t)->pool, n, k, a, b, out);
}

static void row_zeros(struct train *t, int32_t n, int32_t k, const float *x, int32_t *out) {
    closed_cpu_row_zeros(train_cpu(t)->pool, n, k, x, out);
}

static void times(struct train *t, size_t n, const float *y, float *x) {
    closed_cpu_times(train_cpu(t)->pool, n, y, x);
}

static const struct train_ops ops = {
    .name = "cpu",
    .weight_bytes = sizeof(float),
    .close = close_cpu,
    .describe = describe,
    .take = take,
    .give = give,
    .put = put,
    .get = get,
    .copy = put,
    .zero = zero,
    .memory_free = memory_free,
    .memory_most = memory_most,
    .settle = settle,
    .widen = widen,
    .store = store,
    .load = load,
    .merge = train_cpu_merge,
    .unmerge = train_cpu_unmerge,
    .hold = hold,
    .product = train_cpu_product,
    .product_dx = train_cpu_product_dx,
    .product_dw = train_cpu_product_dw,
    .gemm = train_cpu_gemm,
    .embed = train_cpu_embed,
    .embed_back = train_cpu_embed_back,
    .norm = train_cpu_norm,
    .norm_back = train_cpu_norm_back,
    .rope = train_cpu_rope,
    .swiglu = train_cpu_swiglu,
    .swiglu_back = train_cpu_swiglu_back,
    .attention = train_cpu_attention,
    .attention_back = train_cpu_attention_back,
    .axpy = train_cpu_axpy,
    .decode_attention = train_cpu_decode_attention,
    .draw = train_cpu_draw,
    .distil = train_cpu_distil,
    .adam = train_cpu_adam,
    .signs_make = train_cpu_signs_make,
    .signs_free = train_cpu_signs_free,
    .signs_set = train_cpu_signs_set,
    .plane_back = train_cpu_plane_back,
    .signs_bytes = train_cpu_signs_bytes,
    .signs_save = train_cpu_signs_save,
    .signs_load = train_cpu_signs_load,
    .signs_get = train_cpu_signs_get,
    .scales_fit = train_cpu_scales_fit,
    .factor = factor,
    .feedback = feedback,
    .row_dots = row_dots,
    .row_zeros = row_zeros,
    .times = times,
};

static const struct train_isa *best_isa(void) {
    static const struct train_isa *const all[] = {&train_isa_avx512, &train_isa_avx2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->runs_here())
            return all[i];
    return &train_isa_c;
}

err_t train_cpu_open(struct train **out, int32_t threads, struct why *why) {
    struct train_cpu *c = calloc(1, sizeof *c);
    err_t e = c ? pool_open(&c->pool, threads) : E_NOMEM;
    if (!e) {
        c->t.ops = &ops;
        c->isa = best_isa();
        c->panels = calloc((size_t)pool_threads(c->pool), sizeof *c->panels);
        for (int32_t i = 0; c->panels && i < pool_threads(c->pool); i++)
            if (!(c->panels[i] = aligned(TRAIN_PANELS * sizeof(float))))
                e = E_NOMEM;
        e = c->panels ? e : E_NOMEM;
        snprintf(c->about, sizeof c->about, "CPU, %s, %d threads, FP32", c->isa->name,
                 pool_threads(c->pool));
    }
    if (!e) {
        *out = &c->t;
        return E_OK;
    }
    if (c && c->pool)
        close_cpu(&c->t);
    else
        free(c);
    return why_set(why, e, "There is not enough memory or threads to fit on this machine.");
}
