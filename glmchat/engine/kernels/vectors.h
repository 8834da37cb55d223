/* What all kernels are made of: sixteen numbers at a time, in FP32. */

#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* 2^x for x <= 0, to two in 10^7; 1 of 0 */
INLINE __m512 power(__m512 x) {
    const __m512 rest = _mm512_reduce_ps(x, 9); /* x - floor(x), which the last step takes for itself */
    __m512 y = _mm512_set1_ps(1.8671302e-3f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.0170298e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.5799913e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.4016444e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.9315130e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, x);
}

/* Sixteen numbers in BF16 as FP32. */
INLINE __m512 wide(__m256i few) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(few), 16); }

INLINE __m512 load(const uint16_t *from, __mmask16 used) { return wide(_mm256_maskz_loadu_epi16(used, from)); }

INLINE void store(uint16_t *to, __mmask16 used, __m512 x) {
    _mm256_mask_storeu_epi16(to, used, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Of the sixteen from `at` on, those that are among `count`. */
INLINE __mmask16 within(ptrdiff_t at, ptrdiff_t count) {
    return count - at >= LANES ? 0xffff : count <= at ? 0 : (__mmask16)((1u << (count - at)) - 1);
}
