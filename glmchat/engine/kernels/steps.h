/* What is done to one row between two products. Rounded where torch rounds. */

#pragma once

#include "vectors.h"

/* 1 / (1 + e^-x), without an overflow */
INLINE Floats sigmoid(Floats x) {
    const Floats one = all(1.0f), e = power(times(absolute(x), all(-1.44269504f)));
    return over(if_negative(x, e, one), plus(one, e));
}

/* SiLU of gate [size], times up [size]. */
INLINE void gate_row(const uint16_t *gate, const uint16_t *up, ptrdiff_t size, uint16_t *out) {
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        const Mask used = within(i, size);
        const Floats x = load(gate + i, used);
        const Floats open = rounded(times(x, sigmoid(x)));
        store(out + i, used, times(open, load(up + i, used)));
    }
}

/* Columns `begin` to `end` of the sum of the rows of x [m, size] in so many places, by weights. */
INLINE void join_row(const uint16_t *x, const int64_t *places, const float *weights, ptrdiff_t count, ptrdiff_t size,
                     ptrdiff_t begin, ptrdiff_t end, uint16_t *out) {
    for (ptrdiff_t i = begin; i < end; i += LANES) {
        const Mask used = within(i, end);
        Floats sum = zeros();
        for (ptrdiff_t n = 0; n < count; n++)
            sum = times_plus(all(weights[n]), load(x + places[n] * size + i, used), sum);
        store(out + i, used, sum);
    }
}
