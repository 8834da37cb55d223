/* The small steps of a layer, between its products. In torch each is a dozen operations, which take longer to begin
   than to do where a token is alone. Rounded where torch rounds. */

#include "vectors.h"

#define IN_PARALLEL _Pragma("omp parallel for schedule(static) if (rows * size >= 1 << 16)")

INLINE __m512 rounded(__m512 x) { return wide((__m256i)_mm512_cvtneps_pbh(x)); }

/* 1 / (1 + e^-x), without an overflow */
INLINE __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = power(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-1.44269504f)));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_blend_ps(negative, one, e), _mm512_add_ps(one, e));
}

/* RMSNorm of x [rows, size], scaled by weight [size]. */
void glmchat_norm(const uint16_t *x, const uint16_t *weight, ptrdiff_t rows, ptrdiff_t size, double eps,
                  uint16_t *out) {
    IN_PARALLEL
    for (ptrdiff_t row = 0; row < rows; row++) {
        const uint16_t *from = x + row * size;
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (ptrdiff_t i = 0; i < size; i += 2 * LANES)
            for (int j = 0; j < 2; j++) {
                const __m512 one = load(from + i + j * LANES, within(i + j * LANES, size));
                sums[j] = _mm512_fmadd_ps(one, one, sums[j]);
            }
        const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / (float)size;
        const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + (float)eps));
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            const __mmask16 used = within(i, size);
            const __m512 even = rounded(_mm512_mul_ps(load(from + i, used), scale));
            store(out + row * size + i, used, _mm512_mul_ps(load(weight + i, used), even));
        }
    }
}

/* Turns the first `turned` elements of x [rows, heads, size] by the angles of their rows, whose cos and sin are
   [rows, turned]: RoPE, with the halves of what is turned as pairs. In place. */
void glmchat_rotate(uint16_t *x, const uint16_t *cos, const uint16_t *sin, ptrdiff_t rows, ptrdiff_t heads,
                    ptrdiff_t size, ptrdiff_t turned) {
    const ptrdiff_t half = turned / 2;
    IN_PARALLEL
    for (ptrdiff_t n = 0; n < rows * heads; n++) {
        uint16_t *first = x + n * size, *second = first + half;
        const uint16_t *c = cos + n / heads * turned, *s = sin + n / heads * turned;
        for (ptrdiff_t i = 0; i < half; i += LANES) {
            const __mmask16 used = within(i, half);
            const __m512 a = load(first + i, used), b = load(second + i, used);
            store(first + i, used, _mm512_sub_ps(rounded(_mm512_mul_ps(a, load(c + i, used))),
                                                 rounded(_mm512_mul_ps(b, load(s + i, used)))));
            store(second + i, used, _mm512_add_ps(rounded(_mm512_mul_ps(b, load(c + half + i, used))),
                                                  rounded(_mm512_mul_ps(a, load(s + half + i, used)))));
        }
    }
}

/* SiLU of gate [rows, size], times up [rows, size]; the rows of both lie `step` elements apart. */
void glmchat_gate(const uint16_t *gate, const uint16_t *up, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t size,
                  uint16_t *out) {
    IN_PARALLEL
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            const __mmask16 used = within(i, size);
            const __m512 x = load(gate + row * step + i, used);
            const __m512 open = rounded(_mm512_mul_ps(x, sigmoid(x)));
            store(out + row * size + i, used, _mm512_mul_ps(open, load(up + row * step + i, used)));
        }
}

/* For each row the sum of x[places[row]], [each, size], by weights [rows, each]; places [rows, each]. */
void glmchat_join(const uint16_t *x, const int64_t *places, const float *weights, ptrdiff_t rows, ptrdiff_t each,
                  ptrdiff_t size, uint16_t *out) {
    IN_PARALLEL
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            const __mmask16 used = within(i, size);
            __m512 sum = _mm512_setzero_ps();
            for (ptrdiff_t n = row * each; n < (row + 1) * each; n++)
                sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[n]), load(x + places[n] * size + i, used), sum);
            store(out + row * size + i, used, sum);
        }
}

/* The `each` experts of a row whose sigmoid, with the bias [size] added, is greatest: their numbers and weights
   [rows, each], which are the sigmoids themselves times `scale`, out of 1 together if `shared`. Overwrites
   `logits` [rows, size] with sigmoids. */
void glmchat_choose(float *logits, const float *bias, ptrdiff_t rows, ptrdiff_t size, ptrdiff_t each, int shared,
                    double scale, int64_t *numbers, float *weights) {
    IN_PARALLEL
    for (ptrdiff_t row = 0; row < rows; row++) {
        float *score = logits + row * size, total = 1e-20f;
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            const __mmask16 used = within(i, size);
            _mm512_mask_storeu_ps(score + i, used, sigmoid(_mm512_maskz_loadu_ps(used, score + i)));
        }
        int64_t *number = numbers + row * each;
        for (ptrdiff_t n = 0; n < each; n++) {
            ptrdiff_t best = -1;
            for (ptrdiff_t i = 0; i < size; i++) {
                int taken = best >= 0 && !(score[i] + bias[i] > score[best] + bias[best]);
                for (ptrdiff_t m = 0; m < n && !taken; m++) taken = number[m] == i;
                if (!taken) best = i;
            }
            number[n] = best;
            total += score[best];
        }
        for (ptrdiff_t n = 0; n < each; n++)
            weights[row * each + n] = score[number[n]] / (shared ? total : 1.0f) * (float)scale;
    }
}
