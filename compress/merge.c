#include "compress/merge.h"

#include "compress/parallel.h"
#include "kernels/f16.h"

struct merge {
    float *w;
    const struct delta *d;
    int32_t first, k;
};

static void merge_range(void *arg, int32_t from, int32_t end) {
    const struct merge *m = arg;
    const struct delta *d = m->d;
    int32_t k = m->k;
    for (int32_t r = from; r < end; r++) {
        float *w = m->w + (size_t)r * (size_t)k;
        int32_t n = m->first + r;
        for (int32_t i = 0; d->dense && i < k; i++)
            w[i] = half_to_float(d->dense[(size_t)n * (size_t)k + (size_t)i]);
        for (int32_t p = 0; p < d->n_planes; p++) {
            const struct plane *plane = &d->plane[p];
            for (int32_t i = 0; i < k; i++) {
                uint32_t word = plane->bits[plane_word(n, i, k)];
                float x = plane->col ? plane->row[n] * plane->col[i] : plane->row[n];
                w[i] += word >> i % 32 & 1 ? x : -x;
            }
        }
        for (int32_t j = 0; j < d->rank; j++) {
            float b = half_to_float(d->b[(size_t)n * (size_t)d->rank + (size_t)j]);
            const uint16_t *a = d->a + (size_t)j * (size_t)k; /* [k] */
            for (int32_t i = 0; i < k; i++)
                w[i] += b * half_to_float(a[i]);
        }
    }
}

void merge_rows(float *w, const struct delta *d, int32_t first, int32_t rows, int32_t k) {
    struct merge m = {.w = w, .d = d, .first = first, .k = k};
    parallel_rows(rows, TILE_ROWS, merge_range, &m);
}

void merge_vocab_rows(float *w, const struct vocab_matrix *v, int32_t first, int32_t rows,
                      int32_t base_rows, int32_t k) {
    if (v->dense) {
        struct delta dense = {.dense = v->dense};
        merge_rows(w, &dense, first, rows, k);
    } else if (first < base_rows) {
        merge_rows(w, &v->delta, first, first + rows < base_rows ? rows : base_rows - first, k);
    }
    for (int32_t i = 0; i < v->n_rows; i++) {
        int32_t r = v->row_id[i] - first;
        for (int32_t j = 0; r >= 0 && r < rows && j < k; j++)
            w[(size_t)r * (size_t)k + (size_t)j] =
                half_to_float(v->row[(size_t)i * (size_t)k + (size_t)j]);
    }
}
