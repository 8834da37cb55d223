/* A layer's experts, from the rows that go to them to the sums of what they make of these, in one go. */

#include "products.h"
#include "steps.h"

enum { COLUMNS = 512 }; /* of a sum, by one thread */

/* The sum, by weights [rows, each], of the experts of these numbers [rows, each] for each row of x [rows, size]. Of
   each expert a matrix [2 * inner, size], of gates and what passes them, and one [size, inner]. Places [rows, each]
   and room [rows * each, size + 3 * inner] are there to be used; `out` is [rows, size]. False: a number is none. */
bool glmchat_experts(const uint16_t *x, const int64_t *numbers, const float *weights, ptrdiff_t rows, ptrdiff_t each,
                     const Matrix *gates, const Matrix *downs, ptrdiff_t experts, int64_t *places, uint16_t *room,
                     uint16_t *out) {
    const ptrdiff_t all = rows * each, size = gates->ins, inner = downs->ins;
    uint16_t *sorted = room, *made = sorted; /* what goes to them, and later what comes out */
    uint16_t *opened = room + all * size, *gated = opened + 2 * all * inner;
    ptrdiff_t ends[experts], count = 0; /* of each expert's rows; experts that have any */
    memset(ends, 0, sizeof ends);
    for (ptrdiff_t n = 0; n < all; n++) {
        if (numbers[n] < 0 || numbers[n] >= experts) return false;
        ends[numbers[n]]++;
    }
    for (ptrdiff_t e = 0; e < experts; e++) count += ends[e] > 0;
    Product opening[count], closing[count];
    ptrdiff_t begin = 0, last[2] = {0, 0};
    count = 0;
    for (ptrdiff_t e = 0; e < experts; e++) {
        const ptrdiff_t own = ends[e];
        ends[e] = begin; /* so far */
        if (!own) continue;
        opening[count] = product_of(gates + e, rows == 1 ? x : sorted + begin * size, opened + begin * 2 * inner, own,
                                    last[0]);
        closing[count] = product_of(downs + e, gated + begin * inner, made + begin * size, own, last[1]);
        last[0] = opening[count].end;
        last[1] = closing[count++].end;
        begin += own;
    }
    for (ptrdiff_t n = 0; n < all; n++) places[n] = ends[numbers[n]]++;

#pragma omp parallel
    {
        if (rows > 1) {
#pragma omp for schedule(static)
            for (ptrdiff_t n = 0; n < all; n++)
                memcpy(sorted + places[n] * size, x + n / each * size, sizeof *x * size);
        }
        multiply_all(opening, count);
#pragma omp for schedule(static)
        for (ptrdiff_t n = 0; n < all; n++)
            gate_row(opened + n * 2 * inner, opened + (2 * n + 1) * inner, inner, gated + n * inner);
        multiply_all(closing, count);
#pragma omp for schedule(static) collapse(2)
        for (ptrdiff_t row = 0; row < rows; row++)
            for (ptrdiff_t i = 0; i < size; i += COLUMNS)
                join_row(made, places + row * each, weights + row * each, each, size, i, least(i + COLUMNS, size),
                         out + row * size);
    }
    return true;
}
