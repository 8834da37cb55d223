/* Products of rows with matrices in BF16, on x86-64 with AVX512-BF16.

   A token reads each weight once, so its products take as long as that. Matrices are as oneDNN has them packed,
   which is how sixteen outputs at a time are summed from pairs of inputs, by AMX as well. Sums are FP32. */

#include "products.h"

enum { DOTS = 4 }; /* rows, and outputs, of a plain matrix whose sums are in registers */

/* x [rows, ins] by each of the matrices [outs, ins]. Results come one after the other, [rows, outs] each. `ins` is
   the same in all, and even; a block has 16 to 64 outputs. */
void glmchat_multiply(const uint16_t *x, const Matrix *matrices, ptrdiff_t count, ptrdiff_t rows, uint16_t *out) {
    Product products[count];
    ptrdiff_t end = 0;
    for (ptrdiff_t n = 0; n < count; n++) {
        products[n] = product_of(matrices + n, x, out, rows, end);
        end = products[n].end;
        out += rows * matrices[n].outs;
    }
#pragma omp parallel
    multiply_all(products, count);
}

/* Sums of the products of x [rows, ins] with some outputs' weights [outs, ins]. All but `ins` are constants here. */
INLINE void dot(const uint16_t *x, const uint16_t *weights, ptrdiff_t ins, __m512 sum[DOTS][DOTS], const int rows,
                const int outs) {
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < outs; o++) sum[r][o] = _mm512_setzero_ps();
    for (ptrdiff_t i = 0; i < ins; i += 2 * LANES) {
        const __mmask32 used = ins - i >= 2 * LANES ? ~0u : (1u << (ins - i)) - 1;
        __m512bh weight[DOTS];
        UNROLL for (int o = 0; o < outs; o++)
            weight[o] = (__m512bh)_mm512_maskz_loadu_epi16(used, weights + o * ins + i);
        UNROLL for (int o = 0; o < outs; o++) _mm_prefetch(weights + (outs + o) * ins + i, _MM_HINT_T0);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512bh row = (__m512bh)_mm512_maskz_loadu_epi16(used, x + r * ins + i);
            UNROLL for (int o = 0; o < outs; o++) sum[r][o] = _mm512_dpbf16_ps(sum[r][o], weight[o], row);
        }
    }
}

/* x [rows, ins] by a matrix that is not packed, [outs, ins]: `out` [rows, outs], in FP32 if `exact`, else in BF16. */
void glmchat_multiply_plain(const uint16_t *x, const uint16_t *matrix, ptrdiff_t rows, ptrdiff_t outs, ptrdiff_t ins,
                            int exact, void *out) {
#pragma omp parallel for schedule(static)
    for (ptrdiff_t begin = 0; begin < outs; begin += DOTS)
        for (ptrdiff_t row = 0; row < rows; row += DOTS) {
            const int high = rows - row < DOTS ? (int)(rows - row) : DOTS;
            const int many = outs - begin < DOTS ? (int)(outs - begin) : DOTS;
            __m512 sum[DOTS][DOTS];
            if (many == DOTS && high == 1)
                dot(x + row * ins, matrix + begin * ins, ins, sum, 1, DOTS);
            else if (many == DOTS && high == DOTS)
                dot(x + row * ins, matrix + begin * ins, ins, sum, DOTS, DOTS);
            else
                for (int r = 0; r < high; r++)
                    for (int o = 0; o < many; o++) {
                        __m512 one[DOTS][DOTS];
                        dot(x + (row + r) * ins, matrix + (begin + o) * ins, ins, one, 1, 1);
                        sum[r][o] = one[0][0];
                    }
            for (int r = 0; r < high; r++)
                for (int o = 0; o < many; o++) {
                    const float whole = _mm512_reduce_add_ps(sum[r][o]);
                    const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(whole));
                    const ptrdiff_t to = (row + r) * outs + begin + o;
                    if (exact)
                        ((float *)out)[to] = whole;
                    else
                        ((uint16_t *)out)[to] = (uint16_t)_mm_extract_epi16((__m128i)rounded, 0);
                }
        }
}
