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

/* What so many rows cost, for each of some outputs: as much for every PIECE of them, and READ times that to read the
   weights. */
#ifdef __AMX_TILE__
enum { PIECE = 16, READ = 11 };
#elif defined __AVX512BF16__
enum { PIECE = MOST_ROWS, READ = 1 };
#else
enum { PIECE = DOT_ROWS, READ = 1 };
#endif

INLINE ptrdiff_t cost_of(ptrdiff_t rows) { return READ + (rows + PIECE - 1) / PIECE; }

#ifdef __AVX512BF16__

/* Where the weights of the output of this number begin, and those of others of its block beside them. */
INLINE uint32_t *packed_at(const Matrix *matrix, ptrdiff_t begin) {
    const ptrdiff_t inside = begin % matrix->block;
    return matrix->packed + (begin - inside) * (matrix->ins / 2) + inside;
}

/* As much of the block that begins with it as a near cache holds beside another. */
INLINE Ahead block_at(const Matrix *matrix, ptrdiff_t begin) {
    const char *at = (const char *)packed_at(matrix, begin);
    return (Ahead){at, at + least(sizeof(uint32_t) * matrix->block * matrix->ins / 2, 1 << 18)};
}

#else

INLINE Ahead block_at(const Matrix *matrix, ptrdiff_t begin) { return (void)matrix, (void)begin, (Ahead){NULL, NULL}; }

#endif

/* `width` outputs of a block, from the one of number `begin` on: out [rows, outs] of x [rows, ins]. Where they were not
   met before their weights are `far`; else what is ahead is fetched. */
INLINE void block_of(Tiles *tiles, const Matrix *matrix, const uint16_t *x, ptrdiff_t begin, ptrdiff_t width,
                     uint16_t *out, ptrdiff_t rows, bool far, Ahead *ahead) {
    float sums[MOST_ROWS * MOST_OUTS];
#ifdef __AVX512BF16__
    const ptrdiff_t pairs = matrix->ins / 2;
    multiply(tiles, sums, width, (Pairs){(const uint32_t *)x, pairs, false},
             (Pairs){packed_at(matrix, begin), matrix->block, far}, rows, width / LANES, pairs, false, ahead);
#else
    (void)tiles, (void)far, (void)ahead;
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
    ptrdiff_t end; /* of what its outputs cost, in LANES, behind the products before it */
} Product;

/* The next after some that end there. */
INLINE Product product_of(const Matrix *matrix, const uint16_t *x, uint16_t *out, ptrdiff_t rows, ptrdiff_t end) {
    return (Product){matrix, x, out, rows, end + (matrix->outs + LANES - 1) / LANES * cost_of(rows)};
}

/* All of them, by all threads of the parallel region in which it is called. To each thread goes what costs as much as
   another's: rows differ where matrices are experts. It takes of its outputs at once what is in one block. */
INLINE void multiply_all(const Product *products, ptrdiff_t count) {
    const Share share = share_of(products[count - 1].end);
    ptrdiff_t before = 0; /* what those before this one cost */
    Tiles tiles = 0;
    for (const Product *product = products; product < products + count; before = product++->end) {
        const Matrix *matrix = product->matrix;
        const ptrdiff_t cost = cost_of(product->rows), all = (product->end - before) / cost;
        const ptrdiff_t first = share.begin <= before ? 0 : least(all, (share.begin - before + cost - 1) / cost);
        const ptrdiff_t last = share.end <= before ? 0 : least(all, (share.end - before + cost - 1) / cost);
        for (ptrdiff_t at = first, some; at < last; at += some) {
            const ptrdiff_t begin = at * LANES;
            some = least(last - at, (matrix->block - begin % matrix->block) / LANES);
            Ahead ahead = at + some < last           ? block_at(matrix, begin + some * LANES)
                          : share.end > product->end ? block_at(product[1].matrix, 0)
                                                     : (Ahead){NULL, NULL};
            for (ptrdiff_t row = 0; row < product->rows; row += MOST_ROWS)
                block_of(&tiles, matrix, product->x + row * matrix->ins, begin, some * LANES,
                         product->out + row * matrix->outs, least(product->rows - row, MOST_ROWS), !row, &ahead);
        }
    }
    release(&tiles);
#pragma omp barrier
}
