/* Pairs are put where products want them: 32 bits each, two neighbours along what is summed over, in BF16. */

#include "vectors.h"

/* Columns become rows: of 16 x 16 pairs. Where there are fewer rows, the last one stands for those that are not. */
INLINE void turn(uint32_t *to, ptrdiff_t to_row, const uint32_t *from, ptrdiff_t from_row, ptrdiff_t rows) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i++)
        a[i] = _mm512_loadu_si512(from + (i < rows ? i : rows - 1) * from_row);
    UNROLL for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL for (int i = 0; i < 16; i += 8) UNROLL for (int j = 0; j < 4; j++) {
        b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
        b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
    UNROLL for (int j = 0; j < 8; j++) {
        const int row = j % 4 + (j >= 4 ? 4 : 0);
        _mm512_storeu_si512(to + row * to_row, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_si512(to + (row + 8) * to_row, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}

/* i, j, i + 1, j + 1 and so on. */
INLINE __m512i alternately(const int i, const int j) {
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_or_si512(count, _mm512_slli_epi32(count, 16)), _mm512_set1_epi32(i | j << 16));
}

/* Of the numbers of two rows in BF16 those from `i` on, sixteen of each. */
INLINE __m512i beside(__m512i a, __m512i b, const int i) {
    return _mm512_permutex2var_epi16(a, alternately(i, i + 32), b);
}
