/* Attention of new tokens to a KV cache in BF16, on x86-64 with AVX512-BF16.

   The rows of a task are the new tokens of all query heads that share keys and values, sixteen to a vector where
   they are scored, so that what they share is read once. Keys come in blocks; sums and maxima so far are kept for
   each row, and weighed anew when its maximum grows (the online softmax of FlashAttention, arXiv 2205.14135).
   Scores, sums and the softmax are FP32; weights are rounded to BF16 before they meet the values, as in torch's
   kernel.
   What a row comes to does not depend on the rows beside it.

   Needs no header of Python or torch. It runs on the OpenMP threads of the process, which torch has loaded. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "tile.h"

enum { VECTORS = 5, WIDTH = VECTORS * LANES, KEYS = 256, LEAST = 512, MAX_SIZE = 256 };

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

#ifdef __AMX_TILE__
/* 16 x 16 pairs: what was a column becomes a row. */
INLINE void turn(uint32_t *to, ptrdiff_t to_row, const uint32_t *from, ptrdiff_t from_row) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_row);
    UNROLL for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL for (int i = 0; i < 16; i += 8) UNROLL for (int j = 0; j < 4; j++) {
        b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
        b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
    UNROLL for (int j = 0; j < 8; j++) {
        const int row = j % 4 + (j >= 4 ? 4 : 0);
        _mm512_storeu_si512(to + row * to_row, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_si512(to + (row + 8) * to_row, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}
#endif

/* Of some keys to a block of rows, of which there are `width`, a multiple of sixteen, and the last not used if
   there are not so many. */
static void attend(const Call *call, Part *part, ptrdiff_t group, ptrdiff_t first, ptrdiff_t begin, ptrdiff_t end,
                   ptrdiff_t width) {
    const ptrdiff_t size = call->size, pairs = size / 2;
    const ptrdiff_t each = call->heads / call->groups, known = call->length - call->rows;
    const ptrdiff_t used = least(width, each * call->rows - first);
    uint32_t query[MAX_SIZE / 2 * WIDTH]; /* [pairs, rows] */
    float scores[KEYS * WIDTH];           /* [keys, rows] */
    uint32_t weights[KEYS / 2 * WIDTH];   /* [pairs of keys, rows] */
    uint32_t values[KEYS / 2 * MAX_SIZE]; /* [pairs of keys, size] */
    float factors[WIDTH];                 /* of what was summed so far */
    int32_t last[WIDTH];                  /* key that a row attends to */
    ptrdiff_t reach = 0;

    for (ptrdiff_t r = 0; r < width; r++) {
        const ptrdiff_t row = r < used ? first + r : first;
        const uint16_t *from = call->query + (group * each + row / call->rows) * call->query_head +
                               row % call->rows * call->query_row;
        for (ptrdiff_t p = 0; p < pairs; p++) memcpy(&query[p * width + r], from + 2 * p, sizeof *query);
        last[r] = (int32_t)(known + row % call->rows);
        if (reach < last[r] + 1) reach = last[r] + 1;
        part->peaks[r] = -1e30f;
        part->totals[r] = 0;
    }
    memset(part->sums, 0, sizeof(float) * size * used);
    if (end > reach) end = reach;

    for (ptrdiff_t at = begin; at < end; at += KEYS) {
        const ptrdiff_t count = least(end - at, KEYS);
        const ptrdiff_t some = 2 * SOME_PAIRS, filled = (count + some - 1) / some * some; /* with keys of no weight */
        const uint16_t *key = call->key + group * call->key_group + at * call->key_row;
        const uint16_t *value = call->value + group * call->value_group + at * call->value_row;

        multiply(scores, width, (Pairs){(const uint32_t *)key, call->key_row / 2, 1}, (Pairs){query, width, 1},
                 count, width / LANES, pairs, false);

        for (ptrdiff_t v = 0; v < width; v += LANES) {
            float *score = scores + v;
            const __m512 scale = _mm512_set1_ps(call->scale), before = _mm512_loadu_ps(part->peaks + v);
            __m512 peak = before;
            if (at + count > known) { /* later than some row */
                const __m512i limit = _mm512_loadu_si512(last + v);
                for (ptrdiff_t k = 0; k < count; k++) {
                    const __mmask16 unseen = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32((int)(at + k)), limit);
                    _mm512_mask_storeu_ps(score + k * width, unseen, _mm512_set1_ps(-1e30f));
                }
            }
            for (ptrdiff_t k = 0; k < count; k++) peak = _mm512_max_ps(peak, _mm512_loadu_ps(score + k * width));
            const __m512 factor = power(_mm512_mul_ps(_mm512_sub_ps(before, peak), scale));
            __m512 total = _mm512_mul_ps(factor, _mm512_loadu_ps(part->totals + v));
            for (ptrdiff_t k = 0; k < filled; k += 2) {
                __m512 w[2];
                UNROLL for (int i = 0; i < 2; i++)
                    w[i] = k + i < count ? power(_mm512_mul_ps(
                                               _mm512_sub_ps(_mm512_loadu_ps(score + (k + i) * width), peak), scale))
                                         : _mm512_setzero_ps();
                total = _mm512_add_ps(total, _mm512_add_ps(w[0], w[1]));
                const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(w[0]));
                const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(w[1]));
                _mm512_storeu_si512(weights + k / 2 * width + v, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
            _mm512_storeu_ps(part->peaks + v, peak);
            _mm512_storeu_ps(part->totals + v, total);
            _mm512_storeu_ps(factors + v, factor);
        }

        for (ptrdiff_t k = 0; k < filled; k += 2)
            for (ptrdiff_t i = 0; i < size; i += LANES) {
                const uint16_t *pair = value + k * call->value_row + i;
                const __m256i none = _mm256_setzero_si256();
                const __m256i low = k < count ? _mm256_loadu_si256((const void *)pair) : none;
                const __m256i high =
                    k + 1 < count ? _mm256_loadu_si256((const void *)(pair + call->value_row)) : none;
                _mm512_storeu_si512(values + k / 2 * size + i,
                                    _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                                    _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
            }
        for (ptrdiff_t r = 0; r < used; r++) times(part->sums + r * size, size, factors[r]);
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
    const ptrdiff_t full = (heads / groups * rows + LANES - 1) / LANES; /* vectors of rows in a group */
    const ptrdiff_t blocks = (full + VECTORS - 1) / VECTORS, vectors = (full + blocks - 1) / blocks;
    const ptrdiff_t width = vectors * LANES, threads = omp_get_max_threads();
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
            attend(&call, part, group, first, begin, end, width);
            if (!parts) finish(&call, part, group, first, least(width, heads / groups * rows - first));
        }
        if (parts) {
#pragma omp for
            for (ptrdiff_t block = 0; block < groups * blocks; block++) {
                Part *part = parts + block * splits;
                const ptrdiff_t first = block % blocks * width, used = least(width, heads / groups * rows - first);
                for (ptrdiff_t i = 1; i < splits; i++) add(&call, part, part + i, used);
                finish(&call, part, block / blocks, first, used);
            }
        }
    }
    free(parts);
}
