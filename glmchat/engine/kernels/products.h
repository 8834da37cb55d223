/* Products of rows with matrices, several in one go. */

#pragma once

#include "dots.h"
#include "kernels.h"

enum { MOST_OUTS = 64 };

/* The block of outputs that begins with the one of number `begin`: out [rows, outs] of x [rows, ins]. Where it was
   not met before its weights are `far`. */
INLINE void block_of(Tiles *tiles, const Matrix *matrix, const uint16_t *x, ptrdiff_t begin, uint16_t *out,
                     ptrdiff_t rows, bool far) {
    const ptrdiff_t width = matrix->block;
    float sums[MOST_ROWS * MOST_OUTS];
#ifdef __AVX512BF16__
    const ptrdiff_t pairs = matrix->ins / 2;
    const uint32_t *packed = matrix->packed + begin * (matrix->room / 2);
    multiply(tiles, sums, width, (Pairs){(const uint32_t *)x, pairs, 1}, (Pairs){packed, width, 1}, rows,
             width / LANES, pairs, false, far);
#else
    (void)tiles, (void)far;
    dots(sums, width, x, (const uint16_t *)matrix->packed + begin * matrix->ins, matrix->ins, rows,
         least(matrix->outs - begin, width));
#endif
    for (ptrdiff_t v = 0; v < width; v += LANES) {
        const ptrdiff_t at = begin + v;
        const Mask used = within(at, matrix->outs);
        const Floats bias = matrix->bias ? load(matrix->bias + at, used) : zeros();
        for (ptrdiff_t r = 0; r < rows; r++)
            store(out + r * matrix->outs + at, used, plus(load_floats(sums + r * width + v), bias));
    }
}

typedef struct {
    const Matrix *matrix;
    const uint16_t *x; /* [rows, ins] */
    uint16_t *out;     /* [rows, outs] */
    ptrdiff_t rows;
    ptrdiff_t end; /* of its blocks, among those of this product and the ones before it */
} Product;

/* The next after some, of which `end` blocks are. */
INLINE Product product_of(const Matrix *matrix, const uint16_t *x, uint16_t *out, ptrdiff_t rows, ptrdiff_t end) {
    return (Product){matrix, x, out, rows, end + (matrix->outs + matrix->block - 1) / matrix->block};
}

/* All of them, by all threads of the parallel region in which it is called. */
INLINE void multiply_all(const Product *products, ptrdiff_t count) {
    ptrdiff_t number = 0, before = 0; /* of the task's product */
    Tiles tiles = 0;
#pragma omp for schedule(static) nowait
    for (ptrdiff_t task = 0; task < products[count - 1].end; task++) {
        while (task >= products[number].end) before = products[number++].end;
        const Product *product = products + number;
        const Matrix *matrix = product->matrix;
        for (ptrdiff_t row = 0; row < product->rows; row += MOST_ROWS)
            block_of(&tiles, matrix, product->x + row * matrix->ins, (task - before) * matrix->block,
                     product->out + row * matrix->outs, least(product->rows - row, MOST_ROWS), !row);
    }
    release(&tiles);
#pragma omp barrier
}
