/* The sign product on AMX (delta_body.h has the formula): the same integers from the tile
 * multiplier, int8 x int8 -> int32, 16 x 64 x 16 at a time, for several rows of x of one tenant.
 *
 *   q = 256 h + l, h in -128..127, l in 0..255;  sum = 256 (h x signs) + (l x signs)
 *   A = h or l of up to 16 rows of x [16, 64];  B = signs as +-1 [64, 16 output rows]
 *
 * Signs are widened by the look-up that the table way adds with (vpermd: 4 bits -> 4 bytes, in B's
 * order by itself), once for all rows of x. Up to 16 rows of x then cost 128 clocks of the
 * multiplier a tile, whatever their number: for one or two rows the tables are faster. Both ways
 * give equal bits. (Three digits of 7 bits let 5 rows share one multiplication, but many rows cost
 * twice.) */
#ifndef KERNELS_CPU_DELTA_AMX_H
#define KERNELS_CPU_DELTA_AMX_H

enum { AMX_ROWS = 16, AMX_MIN_ROWS = 4 };
_Static_assert(DELTA_ROWS == 2 * AMX_ROWS, "two groups of rows, with two accumulators each");

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0..3: sums of h and l of rows 0..15, then of rows 16..31; 4, 5: B; 6, 7: A. */
static void amx_configure(int32_t n_x) {
    struct tile_config config = {.palette = 1};
    for (int32_t i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = i == 4 || i == 5 || n_x > AMX_ROWS ? 16 : (uint8_t)n_x;
    }
    _tile_loadconfig(&config);
}

/* high[256], low[256] of one row. */
static void amx_halves(const int16_t *q, int8_t *high, int8_t *low) {
    for (int32_t i = 0; i < TILE_COLS; i += 32) {
        __m512i v = _mm512_loadu_si512(q + i);
        _mm256_storeu_si256((__m256i *)(low + i), _mm512_cvtepi16_epi8(v));
        _mm256_storeu_si256((__m256i *)(high + i), _mm512_cvtepi16_epi8(_mm512_srai_epi16(v, 8)));
    }
}

/* signs[k / 4][row][k % 4] of a tile: +1 where the bit is set, else -1. */
static void amx_signs(uint32_t *bits, int8_t *signs) {
    static const int8_t nibble[64] = {-1, -1, -1, -1, 1, -1, -1, -1, -1, 1, -1, -1, 1, 1, -1, -1,
                                      -1, -1, 1,  -1, 1, -1, 1,  -1, -1, 1, 1,  -1, 1, 1, 1,  -1,
                                      -1, -1, -1, 1,  1, -1, -1, 1,  -1, 1, -1, 1,  1, 1, -1, 1,
                                      -1, -1, 1,  1,  1, -1, 1,  1,  -1, 1, 1,  1,  1, 1, 1,  1};
    const __m512i table = _mm512_loadu_si512(nibble);
    const __m512i order = /* lanes 2g, 2g+1 are rows g, g+8 */
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    for (int32_t w = 0; w < 8; w++) {
        __m512i b = _mm512_permutexvar_epi32(order, _mm512_load_si512(bits + w * 16));
#pragma GCC unroll 8
        for (uint32_t j = 0; j < 8; j++, signs += 64)
            _mm512_store_si512(signs, _mm512_permutexvar_epi32(_mm512_srli_epi32(b, 4 * j), table));
    }
}

/* 64 columns: B from `signs`, A from rows [32, 256] of h and l. */
#define AMX_STEP(b, column)                                                                        \
    do {                                                                                           \
        _tile_loadd(b, signs + (column)*16, 64);                                                   \
        _tile_loadd(6, high + (column), TILE_COLS);                                                \
        _tile_dpbssd(0, 6, b);                                                                     \
        _tile_loadd(7, low + (column), TILE_COLS);                                                 \
        _tile_dpbusd(1, 7, b);                                                                     \
        if (two) {                                                                                 \
            _tile_loadd(6, high + AMX_ROWS * TILE_COLS + (column), TILE_COLS);                     \
            _tile_dpbssd(2, 6, b);                                                                 \
            _tile_loadd(7, low + AMX_ROWS * TILE_COLS + (column), TILE_COLS);                      \
            _tile_dpbusd(3, 7, b);                                                                 \
        }                                                                                          \
    } while (0)

/* cells: [2 groups][h, l][row of x][row of the tile]. */
static void amx_multiply(const int8_t *signs, const int8_t *high, const int8_t *low, bool two,
                         int32_t *cells) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    AMX_STEP(4, 0);
    AMX_STEP(5, 64);
    AMX_STEP(4, 128);
    AMX_STEP(5, 192);
    _tile_stored(0, cells, 64);
    _tile_stored(1, cells + 256, 64);
    if (two) {
        _tile_stored(2, cells + 512, 64);
        _tile_stored(3, cells + 768, 64);
    }
}

/* acc[0..16) += s * I of one row of x. */
static void amx_add(const int32_t *cells, float s, float *acc) {
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(cells), 8),
                                   _mm512_load_si512(cells + 256));
    _mm512_storeu_ps(
        acc, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(s), _mm512_loadu_ps(acc)));
}

/* One plane; the bytes of x stand ready. */
static void amx_plane(const struct delta_args *a, int32_t p, const float *scale,
                      struct scratch *s) {
    const int8_t *high = s->bytes, *low = s->bytes + DELTA_ROWS * TILE_COLS;
    for (int32_t t = 0; t < a->n_tiles; t++) {
        /* Two of each in turn, so that a tile's additions overlap the next one's product. */
        int8_t *signs = s->signs + t % 2 * TILE_ROWS * TILE_COLS;
        int32_t *cells = s->cells + t % 2 * 1024;
        float *acc = a->acc + (p * a->n_x * a->n_tiles + t) * TILE_ROWS;
        delta_words(a->bits[p] + (size_t)t * a->tile_stride, s->bits);
        if (a->next[p])
            delta_fetch(a->next[p] + (size_t)t * a->tile_stride);
        amx_signs(s->bits, signs);
        amx_multiply(signs, high, low, a->n_x > AMX_ROWS, cells);
        for (int32_t c = 0; c < a->n_x; c++, acc += a->n_tiles * TILE_ROWS)
            amx_add(cells + c / AMX_ROWS * 512 + c % AMX_ROWS * 16, scale[c], acc);
    }
}

static void delta_block_amx(const struct delta_args *a, struct scratch *s) {
    float scale[DELTA_ROWS];
    for (int32_t c = 0; c < a->n_x; c++) {
        int16_t q[TILE_COLS];
        int8_t *high = s->bytes + c * TILE_COLS;
        scale[c] = delta_quantise(a->x[c] + a->k0, a->col ? a->col + a->k0 : NULL, a->n_k, q);
        amx_halves(q, high, high + DELTA_ROWS * TILE_COLS);
    }
    amx_configure(a->n_x);
    for (int32_t p = 0; p < a->n_planes; p++)
        amx_plane(a, p, scale, s);
    _tile_release();
}

static void delta_block(const struct delta_args *a, struct scratch *s) {
    if (a->n_x < AMX_MIN_ROWS)
        delta_block_table(a, s);
    else
        delta_block_amx(a, s);
}

#endif
