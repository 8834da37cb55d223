/* Products of rows with matrices in BF16. Sums are FP32.

   A token reads each weight once, so its products take as long as that. Where BF16 is multiplied as such matrices are
   packed in the order in which sixteen outputs at a time are summed from pairs of inputs, by AMX as well; where it is
   widened they are as they are. */

#include "products.h"

#ifdef __AVX512BF16__

enum { FEW = 1 << 16 }; /* pairs that are packed before another thread would have begun */

/* Rows [outs, ins] become those of a packed matrix from `first` on, a multiple of sixteen, as are `outs` of all but the
   last; whose last one stands in the place of those that it lacks. */
void glmchat_pack(const Matrix *matrix, const uint16_t *rows, ptrdiff_t first, ptrdiff_t outs) {
    const ptrdiff_t pairs = matrix->ins / 2, block = matrix->block;
#pragma omp parallel if (outs * pairs > FEW)
    {
        const Share share = share_of((outs + LANES - 1) / LANES);
        for (ptrdiff_t n = share.begin * LANES; n < share.end * LANES; n += LANES) {
            const uint32_t *from = (const uint32_t *)rows + n * pairs;
            uint32_t *to = packed_at(matrix, first + n);
            const ptrdiff_t some = least(outs - n, LANES);
            ptrdiff_t p = 0;
            for (; p + LANES <= pairs; p += LANES) turn(to + p * block, block, from + p, pairs, some);
            for (; p < pairs; p++)
                for (ptrdiff_t o = 0; o < LANES; o++) to[p * block + o] = from[least(o, some - 1) * pairs + p];
        }
    }
}

#else

void glmchat_pack(const Matrix *matrix, const uint16_t *rows, ptrdiff_t first, ptrdiff_t outs) {
    (void)matrix, (void)rows, (void)first, (void)outs; /* nothing is packed */
}

#endif

/* x [rows, ins] by each of the matrices [outs, ins]. Results come one after the other, [rows, outs] each. `ins` is
   the same in all, and even where they are packed; a block has 16 to 64 outputs. */
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

/* Rows of their own for each of the matrices, which are of one size: x [count, rows, ins] to `out` [count, rows,
   outs]. */
void glmchat_multiply_each(const uint16_t *x, const Matrix *matrices, ptrdiff_t count, ptrdiff_t rows, uint16_t *out) {
    Product products[count];
    for (ptrdiff_t n = 0; n < count; n++)
        products[n] = product_of(matrices + n, x + n * rows * matrices->ins, out + n * rows * matrices->outs, rows,
                                 n ? products[n - 1].end : 0);
#pragma omp parallel
    multiply_all(products, count);
}

/* x [rows, ins] by a matrix that is not packed, [outs, ins]: `out` [rows, outs], in FP32 if `exact`, else in BF16. */
void glmchat_multiply_plain(const uint16_t *x, const uint16_t *matrix, ptrdiff_t rows, ptrdiff_t outs, ptrdiff_t ins,
                            int exact, void *out) {
#pragma omp parallel
    {
        const Share share = share_of((outs + LANES - 1) / LANES);
        const ptrdiff_t end = least(share.end * LANES, outs);
        for (ptrdiff_t begin = share.begin * LANES; begin < end; begin += MOST_OUTS)
            for (ptrdiff_t row = 0; row < rows; row += LANES) {
                const ptrdiff_t high = least(rows - row, LANES), many = least(end - begin, MOST_OUTS);
                float sums[LANES * MOST_OUTS];
                dots(sums, MOST_OUTS, x + row * ins, matrix + begin * ins, ins, high, many);
                for (ptrdiff_t r = 0; r < high; r++)
                    for (ptrdiff_t o = 0; o < many; o += LANES) {
                        const ptrdiff_t to = (row + r) * outs + begin + o;
                        const Mask used = within(o, many);
                        const Floats sum = load_floats(sums + r * MOST_OUTS + o);
                        if (exact)
                            store_some_floats((float *)out + to, used, sum);
                        else
                            store((uint16_t *)out + to, used, sum);
                    }
            }
    }
}
