/* Tables and look-ups of the sign product on AVX-512: a table of the 16 sums of 4 columns is one
 * register, vpermd looks up 16 rows at once and reads only the low 4 bits of each index, so a shift
 * is all the unpacking there is: 3 instructions for 64 weights, 184 for a tile of 4096. Shifts run
 * on port 0, permutations on port 5, additions on either: about 92 clocks a tile, 44 weights a
 * clock. (Masked additions and zero-masked int16 multiply-adds reach about 10.) */
#ifndef KERNELS_CPU_DELTA_TILE_AVX512_H
#define KERNELS_CPU_DELTA_TILE_AVX512_H

/* table[j][i]: the sum of q[4j ..] with the signs of i, two products of +-1 at a time. */
static void delta_tables(const int16_t *q, int32_t *table) {
    static const int16_t signs[2][32] = {{-1, -1, 1, -1, -1, 1, 1, 1, -1, -1, 1, -1, -1, 1, 1, 1,
                                          -1, -1, 1, -1, -1, 1, 1, 1, -1, -1, 1, -1, -1, 1, 1, 1},
                                         {-1, -1, -1, -1, -1, -1, -1, -1, 1, -1, 1,
                                          -1, 1,  -1, 1,  -1, -1, 1,  -1, 1, -1, 1,
                                          -1, 1,  1,  1,  1,  1,  1,  1,  1, 1}};
    const __m512i first = _mm512_loadu_si512(signs[0]), last = _mm512_loadu_si512(signs[1]);
    for (int32_t j = 0; j < TILE_COLS / 4; j++, q += 4, table += 16) {
        int32_t a, b;
        memcpy(&a, q, 4);
        memcpy(&b, q + 2, 4);
        _mm512_store_si512(table, _mm512_add_epi32(_mm512_madd_epi16(_mm512_set1_epi32(a), first),
                                                   _mm512_madd_epi16(_mm512_set1_epi32(b), last)));
    }
}

/* One tile: adds s * (sum of the row) to acc[0..16). Loading a word one to three bytes late is a
 * shift by 8, 16 or 24 that costs no arithmetic port: what slides in from the next word stands
 * above the bits that are looked at. (The last such load reads 3 bytes past the tile: see struct
 * scratch.) */
static void delta_tile(const uint32_t *bits, const int32_t *table, float s, float *acc) {
    const char *at = (const char *)bits;
    __m512i sum0 = _mm512_setzero_si512(), sum1 = sum0;
#pragma GCC unroll 1 /* more, and the compiler spills what it has reordered */
    for (int32_t w = 0; w < 8; w++, at += 64)
#pragma GCC unroll 4
        for (int32_t byte = 0; byte < 4; byte++, table += 32) {
            __m512i b = _mm512_loadu_si512(at + byte);
            sum0 = _mm512_add_epi32(sum0, _mm512_permutexvar_epi32(b, _mm512_load_si512(table)));
            sum1 = _mm512_add_epi32(sum1, _mm512_permutexvar_epi32(_mm512_srli_epi32(b, 4),
                                                                   _mm512_load_si512(table + 16)));
        }
    /* Lanes 2g, 2g+1 are rows g, g+8. */
    const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m512 sum = _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(order, _mm512_add_epi32(sum0, sum1)));
    _mm512_storeu_ps(acc, _mm512_fmadd_ps(sum, _mm512_set1_ps(s), _mm512_loadu_ps(acc)));
}

#endif
