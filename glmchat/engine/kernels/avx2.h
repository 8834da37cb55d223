/* Sixteen numbers in FP32 in two registers, and those in BF16 that become such; with AVX2 and FMA. */

#pragma once

#include "inline.h"

typedef struct {
    __m256 low, high;
} Floats;
typedef uint16_t Mask;

#define EACH(name, of) \
    INLINE Floats name(Floats a, Floats b) { return (Floats){of(a.low, b.low), of(a.high, b.high)}; }
EACH(plus, _mm256_add_ps)
EACH(minus, _mm256_sub_ps)
EACH(times, _mm256_mul_ps)
EACH(over, _mm256_div_ps)
EACH(larger, _mm256_max_ps)

INLINE Floats all(float x) { return (Floats){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE Floats zeros(void) { return (Floats){_mm256_setzero_ps(), _mm256_setzero_ps()}; }

INLINE Floats times_plus(Floats a, Floats b, Floats c) {
    return (Floats){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

INLINE Floats times_minus(Floats a, Floats b, Floats c) {
    return (Floats){_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}

INLINE Floats absolute(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (Floats){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

INLINE float first_of(Floats x) { return _mm256_cvtss_f32(x.low); }

/* Of eight. */
INLINE float total_of_half(__m256 x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

INLINE float total_of(Floats x) { return total_of_half(_mm256_add_ps(x.low, x.high)); }

INLINE float largest_of(Floats x) {
    const __m256 half = _mm256_max_ps(x.low, x.high);
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

/* x, or from where on 2^x is taken for 0 */
INLINE Floats exponent_of(Floats x) { return larger(all(-127), x); }

/* x - floor(x) */
INLINE Floats fraction(Floats x) {
    return minus(x, (Floats){_mm256_floor_ps(x.low), _mm256_floor_ps(x.high)});
}

/* y * 2^floor(x) for -127 <= x <= 0 */
INLINE __m256 times_power_half(__m256 y, __m256 x) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(x)), _mm256_set1_epi32(127));
    return _mm256_mul_ps(y, (__m256)_mm256_slli_epi32(exponent, 23));
}

INLINE Floats times_power(Floats y, Floats x) {
    return (Floats){times_power_half(y.low, x.low), times_power_half(y.high, x.high)};
}

/* a where x < 0, else b */
INLINE __m256 if_negative_half(__m256 x, __m256 a, __m256 b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}

INLINE Floats if_negative(Floats x, Floats a, Floats b) {
    return (Floats){if_negative_half(x.low, a.low, b.low), if_negative_half(x.high, a.high, b.high)};
}

INLINE Floats load_floats(const float *from) { return (Floats){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }

INLINE void store_floats(float *to, Floats x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}

/* For eight, from bit `first` on. */
INLINE __m256i lanes_of(Mask used, const int first) {
    const __m256i bits = _mm256_slli_epi32(_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), first);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(used), bits), bits);
}

INLINE Floats load_some_floats(const float *from, Mask used) {
    return (Floats){_mm256_maskload_ps(from, lanes_of(used, 0)), _mm256_maskload_ps(from + 8, lanes_of(used, 8))};
}

INLINE void store_some_floats(float *to, Mask used, Floats x) {
    _mm256_maskstore_ps(to, lanes_of(used, 0), x.low);
    _mm256_maskstore_ps(to + 8, lanes_of(used, 8), x.high);
}

/* Eight in BF16. */
INLINE __m256 wide_half(__m128i few) { return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(few), 16); }

/* Numbers as BF16, to the nearest, of two that are as near the even one; 32 bits each, of which the high ones are
   those. */
INLINE __m256i rounded_half(__m256 x) {
    const __m256i bits = (__m256i)x, one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i none = (__m256i)_mm256_cmp_ps(x, x, _CMP_UNORD_Q); /* not a number, which it stays */
    return _mm256_blendv_epi8(up, _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22)), none);
}

INLINE Floats rounded(Floats x) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    return (Floats){(__m256)_mm256_and_si256(rounded_half(x.low), high),
                    (__m256)_mm256_and_si256(rounded_half(x.high), high)};
}

INLINE __m256i narrow(Floats x) {
    const __m256i low = _mm256_srli_epi32(rounded_half(x.low), 16);
    const __m256i high = _mm256_srli_epi32(rounded_half(x.high), 16);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}

/* In memory they are BF16. Of a mask the first so many bits are set. */
INLINE __m256i load_bits(const uint16_t *from, Mask used) {
    if (used == 0xffff) return _mm256_loadu_si256((const void *)from);
    uint16_t room[LANES] = {0};
    memcpy(room, from, sizeof *room * (size_t)__builtin_popcount(used));
    return _mm256_loadu_si256((const void *)room);
}

INLINE Floats load(const uint16_t *from, Mask used) {
    const __m256i few = load_bits(from, used);
    return (Floats){wide_half(_mm256_castsi256_si128(few)), wide_half(_mm256_extracti128_si256(few, 1))};
}

INLINE void store(uint16_t *to, Mask used, Floats x) {
    if (used == 0xffff) {
        _mm256_storeu_si256((void *)to, narrow(x));
        return;
    }
    uint16_t room[LANES];
    _mm256_storeu_si256((void *)room, narrow(x));
    memcpy(to, room, sizeof *room * (size_t)__builtin_popcount(used));
}

/* Thirty-two. */
INLINE void store_two(uint16_t *to, Floats one, Floats other) {
    _mm256_storeu_si256((void *)to, narrow(one));
    _mm256_storeu_si256((void *)(to + LANES), narrow(other));
}

/* The first or the second of each of eight pairs. */
INLINE __m256 part_of(__m256i pairs, const int second) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    return (__m256)(second ? _mm256_and_si256(pairs, high) : _mm256_slli_epi32(pairs, 16));
}

/* Of sixteen. */
INLINE Floats load_part(const void *pairs, const int second) {
    const __m256i *from = pairs;
    return (Floats){part_of(_mm256_loadu_si256(from), second), part_of(_mm256_loadu_si256(from + 1), second)};
}

/* Columns become rows: of 8 x 8 pairs. */
INLINE void turn_part(uint32_t *to, ptrdiff_t to_row, const uint32_t *from, ptrdiff_t from_row, ptrdiff_t rows) {
    __m256i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = _mm256_loadu_si256((const void *)(from + (i < rows ? i : rows - 1) * from_row));
    UNROLL for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256((void *)(to + i * to_row), _mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
        _mm256_storeu_si256((void *)(to + (i + 4) * to_row), _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
    }
}

/* Columns become rows: of 16 x 16 pairs. Where there are fewer rows, the last one stands for those that are not. */
INLINE void turn(uint32_t *to, ptrdiff_t to_row, const uint32_t *from, ptrdiff_t from_row, ptrdiff_t rows) {
    for (int i = 0; i < 16; i += 8) {
        const ptrdiff_t first = least(i, rows - 1);
        for (int j = 0; j < 16; j += 8)
            turn_part(to + j * to_row + i, to_row, from + first * from_row + j, from_row, rows - first);
    }
}

/* Two rows of thirty-two become as many pairs, of what is one above the other. */
INLINE void join(uint32_t *to, const uint16_t *one, const uint16_t *other) {
    UNROLL for (int i = 0; i < 2 * LANES; i += LANES) {
        const __m256i a = _mm256_loadu_si256((const void *)(one + i));
        const __m256i b = _mm256_loadu_si256((const void *)(other + i));
        const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
        _mm256_storeu_si256((void *)(to + i), _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256((void *)(to + i + 8), _mm256_permute2x128_si256(low, high, 0x31));
    }
}
