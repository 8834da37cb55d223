/* Attention of new tokens to a KV cache in BF16, on x86-64 with AVX512-BF16.

   The rows of a task are the new tokens of all query heads that share keys and values, sixteen to a vector where
   they are scored, so that what they share is read once. Up to twelve rows, as of a token alone, are four to a
   vector, each with four keys: that takes half as long, and then as long as memory takes to read the cache. Keys
   come in blocks; sums and maxima so far are kept for each row, and weighed anew when its maximum grows (the online
   softmax of FlashAttention, arXiv 2205.14135).
   Scores, sums and the softmax are FP32; weights are rounded to BF16 before they meet the values, as in torch's
   kernel.
   What a row comes to does not depend on the rows beside it.

   Needs no header of Python or torch. It runs on the OpenMP threads of the process, which torch has loaded. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "pairs.h"
#include "tile.h"

enum { VECTORS = 5, WIDTH = VECTORS * LANES, KEYS = 256, LEAST = 512, MAX_SIZE = 256 };
enum { SIDE = 4, SQUARES = 3, FEW = SQUARES * SIDE }; /* of rows and keys in a vector of few; such vectors; rows */
enum { AHEAD = 64 };                                  /* keys: so far is what is read next fetched */
#define UNSEEN (-0x1p100f) /* a score; a power of two, so that it is the same however it is scaled */

typedef struct {
    const uint16_t *query, *key, *value; /* [heads, rows, size], [groups, length, size] twice; BF16 */
    uint16_t *out;                       /* [rows, heads, size] */
    ptrdiff_t heads, groups, rows, length, size;
    ptrdiff_t query_head, query_row, key_group, key_row, value_group, value_row; /* strides, in elements */
    float scale;                                                                 /* in powers of two */
} Call;

typedef struct { /* of some keys, to a block of rows */
    float sums[WIDTH * MAX_SIZE]; /* [rows, size] */
    float peaks[WIDTH], totals[WIDTH];
} Part;

INLINE float power_of(float x) { return _mm512_cvtss_f32(power(_mm512_set1_ps(x))); }

INLINE void times(float *sums, ptrdiff_t size, float factor) {
    for (ptrdiff_t i = 0; i < size; i += LANES)
        _mm512_storeu_ps(sums + i, _mm512_mul_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(sums + i)));
}

/* A row of so many numbers, which will soon be read. */
INLINE void fetch(const uint16_t *at, ptrdiff_t size) {
    for (ptrdiff_t i = 0; i < size; i += 2 * LANES) _mm_prefetch(at + i, _MM_HINT_T0);
}

/* Scores [keys / 4, vectors, 4 rows, 4 keys] of query [pairs, vectors, 4 rows, 4 times the same] and so many keys,
   summed in the same order as by `multiply`. `vectors` is a constant here. */
INLINE void score_few(float *scores, const uint32_t *query, Pairs keys, ptrdiff_t count, ptrdiff_t pairs,
                      const int vectors) {
    const int groups = vectors > 1 ? 4 : 8; /* of four keys, whose sums are in registers */
    for (ptrdiff_t first = 0; first < count; first += SIDE * groups) {
        __m512 sum[8][SQUARES];
        UNROLL for (int g = 0; g < groups; g++)
            UNROLL for (int v = 0; v < vectors; v++) sum[g][v] = _mm512_setzero_ps();
        for (ptrdiff_t p = 0; p < pairs; p += LANES) {
            _Alignas(64) uint32_t turned[8][SIDE * LANES];
            UNROLL for (int g = 0; g < groups; g++) {
                const uint32_t *from[SIDE];
                UNROLL for (int i = 0; i < SIDE; i++) {
                    const ptrdiff_t k = first + g * SIDE + i;
                    _mm_prefetch(keys.at + (k + AHEAD) * keys.row + p, _MM_HINT_T0);
                    from[i] = keys.at + least(k, count - 1) * keys.row + p;
                }
                turn_four(turned[g], from);
            }
            asm volatile("" ::"r"(turned) : "memory"); /* a load repeats four numbers at no cost, a shuffle does not */
            UNROLL for (int i = 0; i < LANES; i++) {
                __m512bh rows[SQUARES];
                UNROLL for (int v = 0; v < vectors; v++)
                    rows[v] = (__m512bh)_mm512_loadu_si512(query + ((p + i) * vectors + v) * LANES);
                UNROLL for (int g = 0; g < groups; g++) {
                    const void *four = turned[g] + i % SIDE * LANES + i / SIDE * SIDE;
                    const __m512bh repeated = (__m512bh)_mm512_broadcast_i32x4(_mm_load_si128(four));
                    UNROLL for (int v = 0; v < vectors; v++)
                        sum[g][v] = _mm512_dpbf16_ps(sum[g][v], rows[v], repeated);
                }
            }
        }
        UNROLL for (int g = 0; g < groups; g++) UNROLL for (int v = 0; v < vectors; v++)
            _mm512_storeu_ps(scores + ((first / SIDE + g) * vectors + v) * LANES, sum[g][v]);
    }
}

/* Each number's neighbour, and what lies beside the two: thus four come together. */
INLINE __m512 neighbour(__m512 x) { return _mm512_permute_ps(x, 0xb1); }
INLINE __m512 other_two(__m512 x) { return _mm512_permute_ps(x, 0x4e); }

/* Weights 2^(score * scale - high), as pairs of keys [count / 2, width], of one vector of scores for each `side` keys,
   which lie `step` apart; and their sum for each row. A multiple of four keys. */
INLINE __m512 weigh(uint32_t *weights, ptrdiff_t width, const float *scores, ptrdiff_t step, ptrdiff_t count,
                    __m512 scale, __m512 high, const bool few) {
    __m512 total[SIDE];
    UNROLL for (int i = 0; i < SIDE; i++) total[i] = _mm512_setzero_ps();
    if (few) {
        for (ptrdiff_t k = 0; k < count; k += SIDE, scores += step, weights += 2 * width) {
            const __m512 weight = power(_mm512_fmsub_ps(_mm512_loadu_ps(scores), scale, high));
            const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
            const __m256i sorted = _mm256_permutevar8x32_epi32((__m256i)_mm512_cvtneps_pbh(weight), order);
            total[0] = _mm512_add_ps(total[0], weight);
            _mm_storeu_si128((void *)weights, _mm256_castsi256_si128(sorted));
            _mm_storeu_si128((void *)(weights + width), _mm256_extracti128_si256(sorted, 1));
        }
        const __m512 two = _mm512_add_ps(total[0], neighbour(total[0]));
        return _mm512_add_ps(two, other_two(two));
    }
    for (ptrdiff_t k = 0; k < count; k += SIDE, scores += SIDE * step, weights += 2 * width) {
        __m512 weight[SIDE];
        UNROLL for (int i = 0; i < SIDE; i++) {
            weight[i] = power(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i * step), scale, high));
            total[i] = _mm512_add_ps(total[i], weight[i]);
        }
        _mm512_storeu_si512(weights, rounded_beside(weight[0], weight[1]));
        _mm512_storeu_si512(weights + width, rounded_beside(weight[2], weight[3]));
    }
    return _mm512_add_ps(_mm512_add_ps(total[0], total[1]), _mm512_add_ps(total[2], total[3]));
}

/* Of some keys to a block of rows, of which there are `width`, the last not used if there are not so many. A vector
   of scores has sixteen of them, or four of `few`, a constant here. */
INLINE void attend(const Call *call, Part *part, ptrdiff_t group, ptrdiff_t first, ptrdiff_t begin, ptrdiff_t end,
                   ptrdiff_t width, const bool few) {
    const ptrdiff_t size = call->size, pairs = size / 2;
    const ptrdiff_t each = call->heads / call->groups, known = call->length - call->rows;
    const ptrdiff_t used = least(width, each * call->rows - first);
    const ptrdiff_t side = few ? SIDE : 1, lanes = width * side; /* keys in a vector; rows, times that */
    uint32_t query[MAX_SIZE / 2 * WIDTH]; /* [pairs, lanes] */
    float scores[KEYS * WIDTH];           /* [keys / side, lanes] */
    uint32_t weights[KEYS / 2 * WIDTH];   /* [pairs of keys, rows] */
    uint32_t values[KEYS / 2 * MAX_SIZE]; /* [pairs of keys, size] */
    float peaks[WIDTH], totals[WIDTH];    /* so far, of each lane's row */
    float factors[WIDTH];                 /* of what was summed so far */
    int32_t last[WIDTH];                  /* key that a row attends to, counted from the first of a vector */
    ptrdiff_t reach = 0;

    for (ptrdiff_t l = 0; l < lanes; l++) {
        const ptrdiff_t row = l / side < used ? first + l / side : first, limit = known + row % call->rows;
        const uint16_t *from = call->query + (group * each + row / call->rows) * call->query_head +
                               row % call->rows * call->query_row;
        for (ptrdiff_t p = 0; p < pairs; p++) memcpy(&query[p * lanes + l], from + 2 * p, sizeof *query);
        last[l] = (int32_t)(limit - l % side);
        if (reach < limit + 1) reach = limit + 1;
        peaks[l] = UNSEEN;
        totals[l] = 0;
    }
    memset(part->sums, 0, sizeof(float) * size * used);
    if (end > reach) end = reach;

    for (ptrdiff_t at = begin; at < end; at += KEYS) {
        const ptrdiff_t count = least(end - at, KEYS), some = 2 * SOME_PAIRS > SIDE ? 2 * SOME_PAIRS : SIDE;
        const ptrdiff_t filled = (count + some - 1) / some * some; /* with keys that none sees */
        const uint16_t *key = call->key + group * call->key_group + at * call->key_row;
        const uint16_t *value = call->value + group * call->value_group + at * call->value_row;
        const Pairs keys = {(const uint32_t *)key, call->key_row / 2, 1};

        if (!few)
            multiply(scores, width, keys, (Pairs){query, width, 1}, count, width / LANES, pairs, false);
        else if (width == SIDE)
            score_few(scores, query, keys, count, pairs, 1);
        else if (width == 2 * SIDE)
            score_few(scores, query, keys, count, pairs, 2);
        else
            score_few(scores, query, keys, count, pairs, SQUARES);

        for (ptrdiff_t v = 0; v < lanes; v += LANES) {
            const __m512 scale = _mm512_set1_ps(call->scale), before = _mm512_loadu_ps(peaks + v);
            __m512 peak = before;
            if (at + filled > known) { /* later than some row */
                const __m512i limit = _mm512_loadu_si512(last + v);
                for (ptrdiff_t k = 0; k < filled; k += side) {
                    const __mmask16 unseen = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32((int)(at + k)), limit);
                    _mm512_mask_storeu_ps(scores + k / side * lanes + v, unseen, _mm512_set1_ps(UNSEEN));
                }
            }
            for (ptrdiff_t k = 0; k < filled; k += side)
                peak = _mm512_max_ps(peak, _mm512_loadu_ps(scores + k / side * lanes + v));
            if (few) {
                peak = _mm512_max_ps(peak, neighbour(peak));
                peak = _mm512_max_ps(peak, other_two(peak));
            }
            const __m512 factor = power(_mm512_mul_ps(_mm512_sub_ps(before, peak), scale));
            const __m512 total = weigh(weights + v / side, width, scores + v, lanes, filled, scale,
                                       _mm512_mul_ps(peak, scale), few);
            _mm512_storeu_ps(peaks + v, peak);
            _mm512_storeu_ps(totals + v, _mm512_fmadd_ps(factor, _mm512_loadu_ps(totals + v), total));
            _mm512_storeu_ps(factors + v, factor);
        }

        for (ptrdiff_t k = 0; k < filled; k += 2) {
            for (ptrdiff_t i = k; i < k + 2; i++) {
                fetch(value + (i + AHEAD) * call->value_row, size);
                if (!few) fetch(key + (i + KEYS) * call->key_row, size);
            }
            for (ptrdiff_t i = 0; i < size; i += 2 * LANES) {
                const uint16_t *pair = value + k * call->value_row + i;
                const __m512i none = _mm512_setzero_si512();
                const __m512i one = k < count ? _mm512_loadu_si512(pair) : none;
                const __m512i other = k + 1 < count ? _mm512_loadu_si512(pair + call->value_row) : none;
                _mm512_storeu_si512(values + k / 2 * size + i, beside(one, other, 0));
                _mm512_storeu_si512(values + k / 2 * size + i + LANES, beside(one, other, LANES));
            }
        }
        for (ptrdiff_t r = 0; r < used; r++) times(part->sums + r * size, size, factors[r * side]);
#ifdef __AMX_TILE__
        uint32_t turned[KEYS / 2 * WIDTH]; /* [rows, pairs of keys] */
        for (ptrdiff_t r = 0; r < width; r += LANES)
            for (ptrdiff_t k = 0; k < filled / 2; k += LANES)
                turn(turned + r * KEYS / 2 + k, KEYS / 2, weights + k * width + r, width);
        const Pairs left = {turned, KEYS / 2, 1};
#else
        const Pairs left = {weights, 1, width};
#endif
        multiply(part->sums, size, left, (Pairs){values, size, 1}, used, size / LANES, filled / 2, true);
    }
    for (ptrdiff_t r = 0; r < used; r++) {
        part->peaks[r] = peaks[r * side];
        part->totals[r] = totals[r * side];
    }
}

INLINE void finish(const Call *call, const Part *part, ptrdiff_t group, ptrdiff_t first, ptrdiff_t rows) {
    const ptrdiff_t each = call->heads / call->groups;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const ptrdiff_t row = first + r, head = group * each + row / call->rows;
        uint16_t *to = call->out + (row % call->rows * call->heads + head) * call->size;
        const __m512 share = _mm512_set1_ps(1.0f / part->totals[r]);
        for (ptrdiff_t i = 0; i < call->size; i += LANES) {
            const __m512 sum = _mm512_loadu_ps(part->sums + r * call->size + i);
            _mm256_storeu_si256((void *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sum, share)));
        }
    }
}

/* What another part, of other keys to the same rows, adds to this one. */
INLINE void add(const Call *call, Part *part, const Part *other, ptrdiff_t rows) {
    const ptrdiff_t size = call->size;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float peak = part->peaks[r] > other->peaks[r] ? part->peaks[r] : other->peaks[r];
        const float factor = power_of((part->peaks[r] - peak) * call->scale);
        const float share = power_of((other->peaks[r] - peak) * call->scale);
        part->peaks[r] = peak;
        part->totals[r] = part->totals[r] * factor + other->totals[r] * share;
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            float *sum = part->sums + r * size + i;
            const __m512 more = _mm512_mul_ps(_mm512_set1_ps(share), _mm512_loadu_ps(other->sums + r * size + i));
            _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_set1_ps(factor), _mm512_loadu_ps(sum), more));
        }
    }
}

/* Query [heads, rows, size], where rows are the last of `length` tokens, each of which attends to itself and
   those before it. Key and value [groups, length, size]. Size is a multiple of 32 and at most 256, elements of
   a row are neighbours, strides are even. `out` [rows, heads, size] has no gaps. */
void glmchat_attend(const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
                    ptrdiff_t heads, ptrdiff_t groups, ptrdiff_t rows, ptrdiff_t length, ptrdiff_t size,
                    ptrdiff_t query_head, ptrdiff_t query_row, ptrdiff_t key_group, ptrdiff_t key_row,
                    ptrdiff_t value_group, ptrdiff_t value_row, double scale) {
    const Call call = {query, key, value, out, heads, groups, rows, length, size, query_head, query_row,
                       key_group, key_row, value_group, value_row, (float)(scale * 1.4426950408889634)};
    const ptrdiff_t all = heads / groups * rows, full = (all + LANES - 1) / LANES; /* of a group; vectors */
    const ptrdiff_t blocks = (full + VECTORS - 1) / VECTORS, vectors = (full + blocks - 1) / blocks;
    const bool few = all <= FEW && SOME_PAIRS == 1;
    const ptrdiff_t width = few ? (all + SIDE - 1) / SIDE * SIDE : vectors * LANES, threads = omp_get_max_threads();
    ptrdiff_t splits = (2 * threads + groups * blocks - 1) / (groups * blocks);
    if (splits > length / LEAST) splits = length / LEAST;
    Part *parts = splits > 1 ? malloc(sizeof(Part) * groups * blocks * splits) : NULL;
    if (!parts) splits = 1;
    const ptrdiff_t share = ((length + splits - 1) / splits + KEYS - 1) / KEYS * KEYS;

#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (ptrdiff_t task = 0; task < groups * blocks * splits; task++) {
            const ptrdiff_t block = task / splits, group = block / blocks, first = block % blocks * width;
            const ptrdiff_t begin = task % splits * share;
            const ptrdiff_t end = begin + share < length ? begin + share : length;
            Part own, *part = parts ? parts + task : &own;
            if (few)
                attend(&call, part, group, first, begin, end, width, true);
            else
                attend(&call, part, group, first, begin, end, width, false);
            if (!parts) finish(&call, part, group, first, least(width, all - first));
        }
        if (parts) {
#pragma omp for
            for (ptrdiff_t block = 0; block < groups * blocks; block++) {
                Part *part = parts + block * splits;
                const ptrdiff_t first = block % blocks * width, used = least(width, all - first);
                for (ptrdiff_t i = 1; i < splits; i++) add(&call, part, part + i, used);
                finish(&call, part, block / blocks, first, used);
            }
        }
    }
    free(parts);
}
