/* The small steps of a layer, between its products. In torch each is a dozen operations, which take longer to begin
   than to do where a token is alone. Rounded where torch rounds. */

#include "kernels.h"
#include "steps.h"

#define IN_PARALLEL _Pragma("omp parallel for schedule(static) if (rows * size >= 1 << 16)")

/* RMSNorm of x [rows, size], scaled by weight [size]. */
void glmchat_norm(const uint16_t *x, const uint16_t *weight, ptrdiff_t rows, ptrdiff_t size, double eps,
                  uint16_t *out) {
    IN_PARALLEL
    for (ptrdiff_t row = 0; row < rows; row++) {
        const uint16_t *from = x + row * size;
        Floats sums[2] = {zeros(), zeros()};
        for (ptrdiff_t i = 0; i < size; i += 2 * LANES)
            for (int j = 0; j < 2; j++) {
                const Floats one = load(from + i + j * LANES, within(i + j * LANES, size));
                sums[j] = times_plus(one, one, sums[j]);
            }
        const float mean = total_of(plus(sums[0], sums[1])) / (float)size;
        const Floats scale = all(1.0f / __builtin_sqrtf(mean + (float)eps));
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            const Mask used = within(i, size);
            const Floats even = rounded(times(load(from + i, used), scale));
            store(out + row * size + i, used, times(load(weight + i, used), even));
        }
    }
}

/* Turns the first `turned` elements of a head by the angles whose cos and sin are [turned]. */
INLINE void turn_head(uint16_t *x, const uint16_t *cos, const uint16_t *sin, ptrdiff_t turned) {
    const ptrdiff_t half = turned / 2;
    for (ptrdiff_t i = 0; i < half; i += LANES) {
        const Mask used = within(i, half);
        const Floats a = load(x + i, used), b = load(x + half + i, used);
        store(x + i, used, minus(rounded(times(a, load(cos + i, used))),
                                         rounded(times(b, load(sin + i, used)))));
        store(x + half + i, used, plus(rounded(times(b, load(cos + half + i, used))),
                                                rounded(times(a, load(sin + half + i, used)))));
    }
}

/* RoPE, with the halves of what is turned as pairs, in place: of query and key [rows, heads, size] by cos and sin
   [rows, turned]. */
void glmchat_rotate(uint16_t *query, uint16_t *key, const uint16_t *cos, const uint16_t *sin, ptrdiff_t rows,
                    ptrdiff_t query_heads, ptrdiff_t key_heads, ptrdiff_t size, ptrdiff_t turned) {
    const ptrdiff_t heads = query_heads + key_heads;
    IN_PARALLEL
    for (ptrdiff_t n = 0; n < rows * heads; n++) {
        const ptrdiff_t row = n / heads, head = n % heads;
        uint16_t *x = head < query_heads ? query + (row * query_heads + head) * size
                                         : key + (row * key_heads + head - query_heads) * size;
        turn_head(x, cos + row * turned, sin + row * turned, turned);
    }
}

/* SiLU of gate [rows, size], times up [rows, size]; the rows of both lie `step` elements apart. */
void glmchat_gate(const uint16_t *gate, const uint16_t *up, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t size,
                  uint16_t *out) {
    IN_PARALLEL
    for (ptrdiff_t row = 0; row < rows; row++) gate_row(gate + row * step, up + row * step, size, out + row * size);
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
            const Mask used = within(i, size);
            store_some_floats(score + i, used, sigmoid(load_some_floats(score + i, used)));
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
