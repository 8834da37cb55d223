/* Products of rows with a plain matrix [outs, ins]: of each row with the weights of each output, which lie one after
   the other. However many rows and outputs there are, a sum is added up in the same order. */

#pragma once

#include "tile.h"

enum { MOST_DOTS = 4, SPAN = 2048 }; /* outputs at once; inputs, of which sums are in registers */

#ifdef __AVX512F__

enum { INPUTS = 32 }; /* at a time */
typedef __m512 Sum;
typedef __m512i Inputs;

INLINE Sum no_sum(void) { return _mm512_setzero_ps(); }

/* Of so many that are left. */
INLINE Inputs load_inputs(const uint16_t *from, ptrdiff_t left) {
    return _mm512_maskz_loadu_epi16(left >= INPUTS ? ~0u : (1u << left) - 1, from);
}

/* What each of so many sums is together. */
INLINE void sum_up(float *to, const Sum *sums, const int count) {
    if (count == 4)
        totals_of_four(to, sums);
    else
        UNROLL for (int i = 0; i < count; i++) to[i] = total_of(sums[i]);
}

#ifdef __AVX512BF16__

enum { DOT_ROWS = 4, DOT_OUTS = 4, PARTS = 1 }; /* rows and outputs whose sums are in registers; of inputs */
typedef __m512bh Part;

INLINE Part take(Inputs x, const int part) { return (void)part, (Part)x; }
INLINE Sum add_product(Part a, Part b, Sum sum) { return _mm512_dpbf16_ps(sum, a, b); }

#else

enum { DOT_ROWS = 6, DOT_OUTS = 4, PARTS = 2 };
typedef __m512 Part;

INLINE Part take(Inputs x, const int part) { return part_of(x, part); }
INLINE Sum add_product(Part a, Part b, Sum sum) { return _mm512_fmadd_ps(a, b, sum); }

#endif
#else

enum { DOT_ROWS = 4, DOT_OUTS = 2, INPUTS = 16, PARTS = 2 };
typedef __m256 Sum, Part;
typedef __m256i Inputs;

INLINE Sum no_sum(void) { return _mm256_setzero_ps(); }
INLINE Part take(Inputs x, const int part) { return part_of(x, part); }
INLINE Sum add_product(Part a, Part b, Sum sum) { return _mm256_fmadd_ps(a, b, sum); }
INLINE Inputs load_inputs(const uint16_t *from, ptrdiff_t left) { return load_bits(from, within(0, left)); }

INLINE void sum_up(float *to, const Sum *sums, const int count) {
    UNROLL for (int i = 0; i < count; i++) to[i] = total_of_half(sums[i]);
}

#endif

/* Of so many inputs that are left. */
INLINE void step(Sum sum[DOT_ROWS][MOST_DOTS], const uint16_t *x, const uint16_t *weights, ptrdiff_t ins,
                 ptrdiff_t gap, const int rows, const int outs, ptrdiff_t left) {
    Inputs weight[MOST_DOTS];
    UNROLL for (int o = 0; o < outs; o++) weight[o] = load_inputs(weights + o * gap * ins, left);
    UNROLL for (int part = 0; part < PARTS; part++) {
        Part some[MOST_DOTS];
        UNROLL for (int o = 0; o < outs; o++) some[o] = take(weight[o], part);
        UNROLL for (int r = 0; r < rows; r++) {
            const Part one = take(load_inputs(x + r * ins, left), part);
            UNROLL for (int o = 0; o < outs; o++) sum[r][o] = add_product(one, some[o], sum[r][o]);
        }
    }
}

/* sums [rows, outs] of the inputs from `begin` to `end`, a multiple of SPAN but for the last ones, or + those where
   some came before; of every `gap`th output. All but `rows` and `outs` may vary here. The outputs next to them are
   fetched, which come next. */
INLINE void dot(float *sums, ptrdiff_t sums_row, const uint16_t *x, const uint16_t *weights, ptrdiff_t ins,
                ptrdiff_t gap, ptrdiff_t begin, ptrdiff_t end, const int rows, const int outs) {
    for (ptrdiff_t i = begin; i < end; begin = i) {
        const ptrdiff_t stop = least(begin + SPAN, end);
        Sum sum[DOT_ROWS][MOST_DOTS];
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < outs; o++) sum[r][o] = no_sum();
        for (; i + INPUTS <= stop; i += INPUTS) {
            UNROLL for (int o = 0; o < outs; o++) _mm_prefetch(weights + (o * gap + 1) * ins + i, _MM_HINT_T0);
            step(sum, x + i, weights + i, ins, gap, rows, outs, INPUTS);
        }
        if (i < stop) step(sum, x + i, weights + i, ins, gap, rows, outs, stop - i);
        i = stop;
        UNROLL for (int r = 0; r < rows; r++) {
            float totals[MOST_DOTS];
            sum_up(totals, sum[r], outs);
            UNROLL for (int o = 0; o < outs; o++) {
                float *to = sums + r * sums_row + o * gap;
                *to = (begin ? *to : 0) + totals[o];
            }
        }
    }
}

/* The same for any number of outputs, by so many at a time. Those are far from each other: a processor fetches ahead
   within a page of memory, so it does more of it in several. */
INLINE void dot_outs(float *sums, ptrdiff_t sums_row, const uint16_t *x, const uint16_t *weights, ptrdiff_t ins,
                     ptrdiff_t begin, ptrdiff_t end, const int rows, ptrdiff_t outs, const int some) {
    const ptrdiff_t gap = outs / some;
    for (ptrdiff_t o = 0; o < gap; o++)
        dot(sums + o, sums_row, x, weights + o * ins, ins, gap, begin, end, rows, some);
    for (ptrdiff_t o = gap * some; o < outs; o++)
        dot(sums + o, sums_row, x, weights + o * ins, ins, 1, begin, end, rows, 1);
}

#define DOT_CASE(n) \
    case n: \
        if (n <= DOT_ROWS) \
            dot_outs(to, sums_row, from, weights, ins, begin, end, n <= DOT_ROWS ? n : 1, outs, DOT_OUTS); \
        break

/* sums [rows, outs] of x [rows, ins] by weights [outs, ins]. Few rows meet each weight once; of more some
   meet some weights while both are in a near cache. */
static void dots(float *sums, ptrdiff_t sums_row, const uint16_t *x, const uint16_t *weights, ptrdiff_t ins,
                 ptrdiff_t rows, ptrdiff_t outs) {
    if (rows == 1)
        dot_outs(sums, sums_row, x, weights, ins, 0, ins, 1, outs, MOST_DOTS);
    else if (rows == 2)
        dot_outs(sums, sums_row, x, weights, ins, 0, ins, 2, outs, MOST_DOTS);
    else {
        const ptrdiff_t times = (rows + DOT_ROWS - 1) / DOT_ROWS, some = (rows + times - 1) / times;
        for (ptrdiff_t begin = 0; begin < ins; begin += SPAN)
            for (ptrdiff_t row = 0; row < rows; row += some) {
                const ptrdiff_t end = least(begin + SPAN, ins);
                const uint16_t *from = x + row * ins;
                float *to = sums + row * sums_row;
                switch (least(rows - row, some)) {
                    DOT_CASE(1); DOT_CASE(2); DOT_CASE(3); DOT_CASE(4); DOT_CASE(5); DOT_CASE(6);
                }
            }
    }
}
