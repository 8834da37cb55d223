/* What all kernels are made of: products in BF16 whose sums stay in registers while pairs of inputs go by. */

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { LANES = 16 };

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* sums[i][row] = sums[i][row] * factors[row], or 0 without factors, + the products of `pairs` pairs,
   left[i * left_step + p * left_pair] with right[p][row]. `many` and `vectors` are constants here. */
INLINE void multiply(float *sums, const float *factors, const uint32_t *left, ptrdiff_t left_step,
                     ptrdiff_t left_pair, const uint32_t *right, ptrdiff_t pairs, const int many,
                     const int vectors) {
    const ptrdiff_t width = vectors * LANES;
    __m512 sum[16][5];
    UNROLL for (int i = 0; i < many; i++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[i][v] = factors ? _mm512_mul_ps(_mm512_loadu_ps(factors + v * LANES),
                                                _mm512_loadu_ps(sums + i * width + v * LANES))
                                : _mm512_setzero_ps();
    for (ptrdiff_t p = 0; p < pairs; p++) {
        __m512bh beside[5];
        UNROLL for (int v = 0; v < vectors; v++)
            beside[v] = (__m512bh)_mm512_loadu_si512(right + p * width + v * LANES);
        UNROLL for (int i = 0; i < many; i++) {
            const __m512bh one = (__m512bh)_mm512_set1_epi32((int)left[i * left_step + p * left_pair]);
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], one, beside[v]);
        }
    }
    UNROLL for (int i = 0; i < many; i++)
        UNROLL for (int v = 0; v < vectors; v++) _mm512_storeu_ps(sums + i * width + v * LANES, sum[i][v]);
}
