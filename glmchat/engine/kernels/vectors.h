/* What all kernels are made of: sixteen numbers at a time, in FP32. */

#pragma once

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

/* 2^x for x <= 0, to two in 10^7; 1 of 0 */
INLINE Floats power(Floats x) {
    x = exponent_of(x);
    const Floats rest = fraction(x); /* floor(x) is what the last step takes */
    Floats y = all(1.8671302e-3f);
    y = times_plus(y, rest, all(9.0170298e-3f));
    y = times_plus(y, rest, all(5.5799913e-2f));
    y = times_plus(y, rest, all(2.4016444e-1f));
    y = times_plus(y, rest, all(6.9315130e-1f));
    y = times_plus(y, rest, all(1.0f));
    return times_power(y, x);
}

/* Of the sixteen from `at` on, those that are among `count`. */
INLINE Mask within(ptrdiff_t at, ptrdiff_t count) {
    return count - at >= LANES ? 0xffff : count <= at ? 0 : (Mask)((1u << (count - at)) - 1);
}
