/* Sixteen numbers in FP32 in one register, and those in BF16 that become such; with AVX512. */

#pragma once

#include "inline.h"

typedef __m512 Floats;
typedef __mmask16 Mask;

INLINE Floats zeros(void) { return _mm512_setzero_ps(); }
INLINE Floats all(float x) { return _mm512_set1_ps(x); }
INLINE Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
INLINE Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats over(Floats a, Floats b) { return _mm512_div_ps(a, b); }
INLINE Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats times_minus(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
INLINE Floats absolute(Floats x) { return _mm512_abs_ps(x); }
INLINE float total_of(Floats x) { return _mm512_reduce_add_ps(x); }

/* The same of each of four, added up in the same order. */
INLINE void totals_of_four(float *to, const Floats *x) {
    const Floats a = _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
    const Floats b = _mm512_add_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
    Floats all = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, all)));
}

INLINE float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
INLINE float first_of(Floats x) { return _mm512_cvtss_f32(x); }

/* From where on 2^x is taken for 0 is where it is that. */
INLINE Floats exponent_of(Floats x) { return x; }

/* x - floor(x) */
INLINE Floats fraction(Floats x) { return _mm512_reduce_ps(x, 9); }

/* y * 2^floor(x) for x <= 0 */
INLINE Floats times_power(Floats y, Floats x) { return _mm512_scalef_ps(y, x); }

/* a where x < 0, else b */
INLINE Floats if_negative(Floats x, Floats a, Floats b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
}

INLINE Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store_floats(float *to, Floats x) { _mm512_storeu_ps(to, x); }
INLINE Floats load_some_floats(const float *from, Mask used) { return _mm512_maskz_loadu_ps(used, from); }
INLINE void store_some_floats(float *to, Mask used, Floats x) { _mm512_mask_storeu_ps(to, used, x); }

#ifdef __AVX512BF16__

INLINE __m256i narrow(Floats x) { return (__m256i)_mm512_cvtneps_pbh(x); }

/* Thirty-two. */
INLINE void store_two(uint16_t *to, Floats one, Floats other) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(other, one));
}

#else

/* To the nearest, of two that are as near the even one. */
INLINE __m256i narrow(Floats x) {
    const __m512i bits = (__m512i)x, one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); /* not a number, which it stays */
    const __m512i kept = _mm512_mask_or_epi32(up, none, bits, _mm512_set1_epi32(1 << 22));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

/* Thirty-two. */
INLINE void store_two(uint16_t *to, Floats one, Floats other) {
    const __m512i low = _mm512_castsi256_si512(narrow(one));
    _mm512_storeu_si512(to, _mm512_inserti64x4(low, narrow(other), 1));
}

#endif

INLINE Floats wide(__m256i few) { return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(few), 16); }
INLINE Floats rounded(Floats x) { return wide(narrow(x)); }

/* In memory they are BF16. */
INLINE Floats load(const uint16_t *from, Mask used) { return wide(_mm256_maskz_loadu_epi16(used, from)); }
INLINE void store(uint16_t *to, Mask used, Floats x) { _mm256_mask_storeu_epi16(to, used, narrow(x)); }

/* The first or the second of each of sixteen pairs. */
INLINE Floats part_of(__m512i pairs, const int second) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
    return (Floats)(second ? _mm512_and_si512(pairs, high) : _mm512_slli_epi32(pairs, 16));
}

INLINE Floats load_part(const void *pairs, const int second) { return part_of(_mm512_loadu_si512(pairs), second); }

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

/* Two rows of thirty-two become as many pairs, of what is one above the other. */
INLINE void join(uint32_t *to, const uint16_t *one, const uint16_t *other) {
    const __m512i a = _mm512_loadu_si512(one), b = _mm512_loadu_si512(other);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, alternately(0, 32), b));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(a, alternately(LANES, LANES + 32), b));
}
