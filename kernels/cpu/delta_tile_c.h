/* Tables and look-ups of the sign product in plain C: 4 columns a table. */
#ifndef KERNELS_CPU_DELTA_TILE_C_H
#define KERNELS_CPU_DELTA_TILE_C_H

/* table[j][i]: the sum of the q of nibble j, each with + where its bit of i is set, else -. */
static void delta_tables(const int16_t *q, int32_t *table) {
    for (int32_t j = 0; j < TILE_COLS / 4; j++, q += 4, table += 16)
        for (int32_t i = 0; i < 16; i++)
            table[i] = (i & 1 ? q[0] : -q[0]) + (i & 2 ? q[1] : -q[1]) + (i & 4 ? q[2] : -q[2]) +
                       (i & 8 ? q[3] : -q[3]);
}

/* One tile: adds s * (sum of the row) to acc[0..16). */
static void delta_tile(const uint32_t *bits, const int32_t *table, float s, float *acc) {
    int32_t sum[TILE_ROWS] = {0};
    for (int32_t w = 0; w < 8; w++)
        for (int32_t j = 0; j < 8; j++, table += 16)
            for (int32_t r = 0; r < TILE_ROWS; r++)
                sum[r] += table[bits[w * 16 + r] >> 4 * j & 15];
    for (int32_t i = 0; i < TILE_ROWS; i++)
        acc[i / 2 + 8 * (i % 2)] += s * (float)sum[i];
}

#endif
