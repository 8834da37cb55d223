/* Products of rows with matrices, several in one go. */

#pragma once

#include <omp.h>

#include "dots.h"
#include "kernels.h"

enum { MOST_OUTS = 64 };

typedef struct {
    ptrdiff_t begin, end;
} Share;

/* Of so many, what this thread of those of the parallel region has; as many as another, or one more. */
INLINE Share share_of(ptrdiff_t count) {
    const ptrdiff_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
    return (Share){count * mine / threads, count * (mine + 1) / threads};
}

/* `width` outputs of a block, from the one of number `begin` on: out [rows, outs] of x [rows, ins]. Where they were not
   met before their weights are `far`. */
INLINE void block_of(Tiles *tiles, const Matrix *matrix, const uint16_t *x, ptrdiff_t begin, ptrdiff_t width,
                     uint16_t *out, ptrdiff_t rows, bool far) {
    float sums[MOST_ROWS * MOST_OUTS];
#ifdef __AVX512BF16__
    const ptrdiff_t pairs = matrix->ins / 2, inside = begin % matrix->block;
    const uint32_t *packed = matrix->packed + (begin - inside) * (matrix->room / 2) + inside;
    Ahead none = {(const char *)packed, (const char *)packed};
    multiply(tiles, sums, width, (Pairs){(const uint32_t *)x, pairs, false}, (Pairs){packed, matrix->block, far}, rows,
             width / LANES, pairs, false, &none);
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
    ptrdiff_t end; /* of its outputs, in LANES, among those of this product and the ones before it */
} Product;

/* The next after some that end there. */
INLINE Product product_of(const Matrix *matrix, const uint16_t *x, uint16_t *out, ptrdiff_t rows, ptrdiff_t end) {
    return (Product){matrix, x, out, rows, end + (matrix->outs + LANES - 1) / LANES};
}

/* All of them, by all threads of the parallel region in which it is called. Each takes of its outputs at once what is
   in one block. */
INLINE void multiply_all(const Product *products, ptrdiff_t count) {
    const Share share = share_of(products[count - 1].end);
    ptrdiff_t number = 0, before = 0; /* of the product */
    Tiles tiles = 0;
    for (ptrdiff_t at = share.begin, some; at < share.end; at += some) {
        while (at >= products[number].end) before = products[number++].end;
        const Product *product = products + number;
        const Matrix *matrix = product->matrix;
        const ptrdiff_t begin = (at - before) * LANES;
        some = least(least(share.end, product->end) - at, (matrix->block - begin % matrix->block) / LANES);
        for (ptrdiff_t row = 0; row < product->rows; row += MOST_ROWS)
            block_of(&tiles, matrix, product->x + row * matrix->ins, begin, some * LANES,
                     product->out + row * matrix->outs, least(product->rows - row, MOST_ROWS), !row);
    }
    release(&tiles);
#pragma omp barrier
}
