/* The sign state of a plane: made, set, packed into tiles, saved and taken up. One block of device
 * memory per plane; see signs.cuh. */
#include "kernels/cuda_train/signs.cuh"

#include <cstdlib>

#include "kernels/cuda_train/cuda_train.h"
#include "kernels/kernels.h"

/* A difference beyond three scales is a sure sign; the cap lets learning still turn it. */
static const float SIGN_CAP = 3;

static size_t reals_bytes(int32_t n, int32_t k) {
    return ((size_t)n * (size_t)k * sizeof(__half) + 3) / 4 * 4;
}

size_t cuda_train_signs_bytes(const struct train *t, int32_t n, int32_t k) {
    (void)t;
    return reals_bytes(n, k) + ((size_t)n + (size_t)k + 1) * sizeof(float);
}

err_t cuda_train_signs_make(struct train *t, int32_t n, int32_t k, void **signs) {
    *signs = NULL;
    struct signs *s = (struct signs *)malloc(sizeof *s);
    void *block = NULL;
    err_t e = s ? cuda_train_take(t, cuda_train_signs_bytes(t, n, k), &block) : E_NOMEM;
    if (e) {
        free(s);
        return e;
    }
    s->x = (__half *)block;
    s->row = (float *)((char *)block + reals_bytes(n, k));
    s->col = s->row + n;
    s->mean = s->col + k;
    *signs = s;
    return E_OK;
}

void cuda_train_signs_free(struct train *t, void *signs) {
    struct signs *s = (struct signs *)signs;
    if (s)
        cuda_train_give(t, s->x);
    free(s);
}

void cuda_train_signs_save(struct train *t, const void *signs, int32_t n, int32_t k, void *host) {
    cuda_train_get(t, host, ((const struct signs *)signs)->x, cuda_train_signs_bytes(t, n, k));
}

void cuda_train_signs_load(struct train *t, void *signs, int32_t n, int32_t k, const void *host) {
    cuda_train_put(t, ((struct signs *)signs)->x, host, cuda_train_signs_bytes(t, n, k));
}

/* A block has a row. */
__global__ void set_kernel(int32_t k, const float *d, const float *row, bool one_row,
                           const float *col, __half *x) {
    size_t at = (size_t)blockIdx.x * (size_t)k;
    float scale = expf(row[one_row ? 0 : blockIdx.x]);
    for (int32_t i = (int32_t)threadIdx.x; i < k; i += THREADS) {
        float size = scale * (col ? expf(col[i]) : 1.0f);
        float unit = size > 0 ? d[at + (size_t)i] / size : 0;
        unit = unit == 0 ? 0 : unit > SIGN_CAP ? SIGN_CAP : unit < -SIGN_CAP ? -SIGN_CAP : unit;
        x[at + (size_t)i] = __float2half_rn(unit);
    }
}

void cuda_train_signs_set(struct train *t, const struct train_plane *p, int32_t n, int32_t k,
                          const float *d) {
    struct cuda_train *c = cuda_train_of(t);
    struct signs *s = (struct signs *)p->signs;
    if (c->error || !n)
        return;
    set_kernel<<<(unsigned)n, THREADS, 0, c->stream>>>(k, d, p->row.x, p->row.n == 1,
                                                       p->col.n ? p->col.x : NULL, s->x);
    cuda_train_launched(c, "signs_set");
    cuda_train_zero(t, s->row, cuda_train_signs_bytes(t, n, k) - reals_bytes(n, k));
}

/* A warp makes a word: row blockIdx.x, 32 columns. The tiles' order is struct plane's. */
__global__ void tiles_kernel(int32_t n, int32_t k, int32_t tiles, const uint16_t *x,
                             uint32_t *out) {
    int32_t row = (int32_t)blockIdx.x, lane = (int32_t)threadIdx.x % 32;
    for (int32_t w = (int32_t)threadIdx.x / 32; w < tiles * (TILE_COLS / 32); w += THREADS / 32) {
        int32_t col = w * 32 + lane;
        bool plus = row < n && col < k && !sign_is_minus(x[(size_t)row * (size_t)k + (size_t)col]);
        uint32_t word = __ballot_sync(~0u, plus);
        int32_t r = row % TILE_ROWS, in = w % (TILE_COLS / 32);
        size_t tile = (size_t)(row / TILE_ROWS) * (size_t)tiles + (size_t)(w / (TILE_COLS / 32));
        if (lane == 0)
            out[tile * (TILE_BYTES / 4) + (size_t)((r % 8 * 4 + in % 4) * 4 + in / 4 * 2 + r / 8)] =
                word;
    }
}

void cuda_train_signs_get(struct train *t, const void *signs, int32_t n, int32_t k,
                          uint32_t *tiles) {
    struct cuda_train *c = cuda_train_of(t);
    size_t bytes = plane_bytes(n, k);
    uint32_t *out = (uint32_t *)cuda_train_scratch(c, SCRATCH_PARTS, bytes);
    if (out) {
        tiles_kernel<<<(unsigned)(tiles_of(n, TILE_ROWS) * TILE_ROWS), THREADS, 0, c->stream>>>(
            n, k, tiles_of(k, TILE_COLS), (const uint16_t *)((const struct signs *)signs)->x, out);
        cuda_train_launched(c, "signs_get");
    }
    cuda_train_get(t, tiles, out, bytes);
}
