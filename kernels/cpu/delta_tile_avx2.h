/* Tables and look-ups of the sign product on AVX2: a table of 8 sums of 3 columns is one register,
 * vpermd looks up 8 rows at once and reads only the low 3 bits of each index, so a shift is all the
 * unpacking there is: 3 instructions for 24 weights. A word of 32 columns is ten threes and a pair.
 * (Sixteen-entry tables need two vpermd and a blend for 32 weights: 7 instructions.) */
#ifndef KERNELS_CPU_DELTA_TILE_AVX2_H
#define KERNELS_CPU_DELTA_TILE_AVX2_H

enum { WORD_TABLES = 11 };

/* table[w][j][i]: sum of q[32w + 3j ..] with the signs of i. Reads 2 beyond q[255]: see
 * delta_block. */
static void delta_tables(const int16_t *q, int32_t *table) {
    const __m256i first = _mm256_setr_epi16(-1, -1, 1, -1, -1, 1, 1, 1, -1, -1, 1, -1, -1, 1, 1, 1);
    const __m256i third = _mm256_setr_epi16(-1, 0, -1, 0, -1, 0, -1, 0, 1, 0, 1, 0, 1, 0, 1, 0);
    for (int32_t w = 0; w < 8; w++, q += 32)
        for (int32_t j = 0; j < WORD_TABLES; j++, table += 8) {
            int32_t a, b;
            memcpy(&a, q + 3 * j, 4);
            memcpy(&b, q + 3 * j + 2, 4);
            __m256i sum = _mm256_madd_epi16(_mm256_set1_epi32(a), first);
            if (j < WORD_TABLES - 1)
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_set1_epi32(b), third));
            _mm256_storeu_si256((__m256i *)table, sum);
        }
}

/* One tile: adds s * (sum of the row) to acc[0..16). */
static void delta_tile(const uint32_t *bits, const int32_t *table, float s, float *acc) {
    __m256i sum0 = _mm256_setzero_si256(), sum1 = sum0;
#pragma GCC unroll 1
    for (int32_t w = 0; w < 8; w++) {
        __m256i b0 = _mm256_loadu_si256((const __m256i *)(bits + w * 16));
        __m256i b1 = _mm256_loadu_si256((const __m256i *)(bits + w * 16 + 8));
#pragma GCC unroll 11
        for (int32_t j = 0; j < WORD_TABLES; j++, table += 8) {
            __m256i t = _mm256_loadu_si256((const __m256i *)table);
            sum0 = _mm256_add_epi32(sum0,
                                    _mm256_permutevar8x32_epi32(t, _mm256_srli_epi32(b0, 3 * j)));
            sum1 = _mm256_add_epi32(sum1,
                                    _mm256_permutevar8x32_epi32(t, _mm256_srli_epi32(b1, 3 * j)));
        }
    }
    /* Lanes 2g, 2g+1 are rows g, g+8: even lanes to the left half, odd ones to the right. */
    const __m256i even_odd = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    sum0 = _mm256_permutevar8x32_epi32(sum0, even_odd);
    sum1 = _mm256_permutevar8x32_epi32(sum1, even_odd);
    __m256 low = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(sum0, sum1, 0x20));
    __m256 high = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(sum0, sum1, 0x31));
    __m256 scale = _mm256_set1_ps(s);
    _mm256_storeu_ps(acc, _mm256_fmadd_ps(low, scale, _mm256_loadu_ps(acc)));
    _mm256_storeu_ps(acc + 8, _mm256_fmadd_ps(high, scale, _mm256_loadu_ps(acc + 8)));
}

#endif
