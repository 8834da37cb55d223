/* What is done to one row between two products. Rounded where torch rounds. */

#pragma once

#include "vectors.h"

INLINE __m512 rounded(__m512 x) { return wide((__m256i)_mm512_cvtneps_pbh(x)); }

/* 1 / (1 + e^-x), without an overflow */
INLINE __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = power(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-1.44269504f)));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_blend_ps(negative, one, e), _mm512_add_ps(one, e));
}

/* SiLU of gate [size], times up [size]. */
INLINE void gate_row(const uint16_t *gate, const uint16_t *up, ptrdiff_t size, uint16_t *out) {
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        const __mmask16 used = within(i, size);
        const __m512 x = load(gate + i, used);
        const __m512 open = rounded(_mm512_mul_ps(x, sigmoid(x)));
        store(out + i, used, _mm512_mul_ps(open, load(up + i, used)));
    }
}

/* Columns `begin` to `end` of the sum of the rows of x [m, size] in so many places, by weights. */
INLINE void join_row(const uint16_t *x, const int64_t *places, const float *weights, ptrdiff_t count, ptrdiff_t size,
                     ptrdiff_t begin, ptrdiff_t end, uint16_t *out) {
    for (ptrdiff_t i = begin; i < end; i += LANES) {
        const __mmask16 used = within(i, end);
        __m512 sum = _mm512_setzero_ps();
        for (ptrdiff_t n = 0; n < count; n++)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[n]), load(x + places[n] * size + i, used), sum);
        store(out + i, used, sum);
    }
}
