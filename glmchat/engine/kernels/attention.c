/* Attention of new tokens to a KV cache in BF16, on x86-64 with AVX512 or AVX2.

   The rows of a task are the new tokens of all query heads that share keys and values, so that what they share is
   read and put in place once. Keys come in blocks; sums and maxima so far are kept for each row, and weighed anew
   when its maximum grows (the online softmax of FlashAttention, arXiv 2205.14135). A long history is split, always
   at the same places, and what comes of its parts is put together in their order.
   Scores, sums and the softmax are FP32; weights are rounded to BF16 before they meet the values, as in torch's
   kernel.
   What a row comes to depends neither on the rows beside it nor on the number of threads.

   Needs no header of Python or torch. It runs on the OpenMP threads of the process, which torch has loaded. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "tile.h"

enum { WIDTH = 128, ROWS = 32, KEYS = 256, SPLIT = 1024 }; /* WIDTH: rows of a task; ROWS: at once */
enum { SOME = 2 * LANES, AHEAD = 64 }; /* keys come in such numbers; so far are values fetched ahead */
#define ALIGNED __attribute__((aligned(LINE)))
#define UNSEEN (-0x1p100f) /* a score; a power of two, so that it is the same however it is scaled */

typedef struct {
    const uint16_t *query, *key, *value; /* [heads, rows, size], [groups, length, size] twice; BF16 */
    uint16_t *out;                       /* [rows, heads, size] */
    ptrdiff_t heads, groups, rows, length, size;
    ptrdiff_t query_head, query_row, key_group, key_row, value_group, value_row; /* strides, in elements */
    float scale;                                                                 /* in powers of two */
} Call;

typedef struct { /* what some keys give to a block of rows */
    float *sums;           /* [rows, size] */
    float *peaks, *totals; /* [rows] */
} Part;

typedef struct { /* of a row, so far */
    float peak;
    Floats total; /* in sixteen parts */
} State;

/* That has its numbers at `room`, of which it takes `rows` * (size + 2). */
INLINE Part part_at(float *room, ptrdiff_t rows, ptrdiff_t size) {
    return (Part){room, room + rows * size, room + rows * (size + 1)};
}

INLINE float power_of(float x) { return first_of(power(all(x))); }

/* As many rows of the cache as a block has, the first so many behind `at`, from where on there are `left`; none if
   they have gaps. */
INLINE Ahead block_behind(const uint16_t *at, ptrdiff_t first, ptrdiff_t left, ptrdiff_t row, ptrdiff_t size) {
    const ptrdiff_t rows = row == size ? least(KEYS, left - first) : 0;
    return (Ahead){(const char *)(at + first * row), (const char *)(at + (first + rows) * row)};
}

/* Lines to fetch each of so many times, so that with `others` it is all. */
INLINE ptrdiff_t lines_each(const Ahead *ahead, ptrdiff_t others, ptrdiff_t times) {
    const ptrdiff_t lines = (ahead->end - ahead->at) / LINE - others;
    return lines <= 0 ? 0 : (lines + times - 1) / times;
}

/* Keys [count, pairs] of a group from `at` on become [pairs, KEYS], of which so many are `filled`. Meanwhile what is
   `ahead` is fetched, but for `others` of its lines. */
INLINE void put_keys(uint32_t *to, const Call *call, const uint16_t *key, ptrdiff_t count, ptrdiff_t filled,
                     Ahead *ahead, ptrdiff_t others) {
    const uint32_t *from = (const uint32_t *)key;
    const ptrdiff_t row = call->key_row / 2, pairs = call->size / 2;
    const ptrdiff_t lines = lines_each(ahead, others, filled / LANES * pairs / LANES);
    for (ptrdiff_t k = 0; k < filled; k += LANES)
        for (ptrdiff_t p = 0; p < pairs; p += LANES) {
            fetch(ahead, lines);
            if (k + LANES <= count)
                turn(to + p * KEYS + k, KEYS, from + k * row + p, row, LANES);
            else
                turn(to + p * KEYS + k, KEYS, from + k * row + p, row, count - k);
        }
}

/* Values [count, size] become [pairs of values, size], zeros where there is none. Meanwhile what is left of `values` is
   fetched, and of `keys` all but `others`. */
INLINE void put_values(uint32_t *to, const Call *call, const uint16_t *value, ptrdiff_t count, ptrdiff_t filled,
                       Ahead *values, Ahead *keys, ptrdiff_t others) {
    static const uint16_t none[SOME];
    const ptrdiff_t size = call->size, times = filled / 2;
    const ptrdiff_t of_values = lines_each(values, 0, times), of_keys = lines_each(keys, others, times);
    for (ptrdiff_t k = 0; k < filled; k += 2) {
        fetch(values, of_values);
        fetch(keys, of_keys);
        for (ptrdiff_t i = 0; i < size; i += SOME) {
            const uint16_t *one = value + k * call->value_row + i, *other = one + call->value_row;
            join(to + k / 2 * size + i, k < count ? one : none, k + 1 < count ? other : none);
        }
    }
}

/* Weights of the scores [count] of a row, of which it sees the first `seen`, and what they make of its state. Its
   sums [size] are weighed anew. */
INLINE State weigh(uint16_t *weights, float *scores, ptrdiff_t count, ptrdiff_t seen, float scale, State state,
                   float *sums, ptrdiff_t size) {
    for (ptrdiff_t k = seen < 0 ? 0 : seen / LANES * LANES; k < count; k += LANES)
        store_some_floats(scores + k, (Mask)~within(k, seen), all(UNSEEN));
    Floats peaks[2] = {load_floats(scores), load_floats(scores + LANES)};
    for (ptrdiff_t k = SOME; k < count; k += SOME)
        for (int i = 0; i < 2; i++) peaks[i] = larger(peaks[i], load_floats(scores + k + i * LANES));
    const float peak = largest_of(larger(peaks[0], peaks[1]));
    if (peak > state.peak) {
        const Floats factor = power(all((state.peak - peak) * scale));
        for (ptrdiff_t i = 0; i < size; i += LANES)
            store_floats(sums + i, times(factor, load_floats(sums + i)));
        state = (State){peak, times(state.total, factor)};
    }
    const Floats unit = all(scale), high = all(state.peak * scale);
    Floats total = zeros();
    for (ptrdiff_t k = 0; k < count; k += SOME) {
        const Floats one = power(times_minus(load_floats(scores + k), unit, high));
        const Floats other = power(times_minus(load_floats(scores + k + LANES), unit, high));
        state.total = plus(state.total, one);
        total = plus(total, other);
        store_two(weights + k, one, other);
    }
    state.total = plus(state.total, total);
    return state;
}

/* Of keys [begin, end) to the rows of a block that begins with row `first` of a group. Where rows come best in
   certain numbers, there are more of them, of which nothing is expected. */
static void attend(const Call *call, Part part, ptrdiff_t group, ptrdiff_t first, ptrdiff_t begin, ptrdiff_t end) {
    const ptrdiff_t size = call->size, pairs = size / 2;
    const ptrdiff_t each = call->heads / call->groups, known = call->length - call->rows;
    const ptrdiff_t used = least(WIDTH, each * call->rows - first);
    const bool few = (int)EVEN == (int)LANES && 2 * used <= size; /* so that it is less to turn scores than keys */
    uint32_t query[WIDTH * pairs] ALIGNED;   /* [rows, pairs] */
    uint32_t keys[pairs * KEYS] ALIGNED;     /* [pairs, keys]; of few rows the query [pairs, rows] */
    uint32_t values[KEYS / 2 * size] ALIGNED; /* [pairs of keys, size] */
    float scores[ROWS * KEYS] ALIGNED;       /* [some rows, keys] */
    float across[KEYS * ROWS] ALIGNED;       /* [keys, some rows] */
    uint32_t weights[ROWS * KEYS / 2] ALIGNED; /* [some rows, pairs of keys] */
    State states[WIDTH];
    Tiles tiles = 0;
    ptrdiff_t reach = 0; /* keys before it are seen by some row */

    for (ptrdiff_t r = 0; r < used; r++) {
        const ptrdiff_t head = (first + r) / call->rows, row = (first + r) % call->rows;
        memcpy(query + r * pairs, call->query + (group * each + head) * call->query_head + row * call->query_row,
               sizeof *query * pairs);
        if (reach < known + row + 1) reach = known + row + 1;
        states[r] = (State){UNSEEN, zeros()};
    }
    memset(part.sums, 0, sizeof(float) * size * used);
    for (ptrdiff_t r = 0; r < used && few; r += LANES)
        for (ptrdiff_t p = 0; p < pairs; p += LANES)
            turn(keys + p * WIDTH + r, WIDTH, query + r * pairs + p, pairs, LANES);

    for (ptrdiff_t at = begin; at < least(end, reach); at += KEYS) {
        const ptrdiff_t count = least(least(end, reach) - at, KEYS), left = call->length - at;
        const ptrdiff_t filled = (count + SOME - 1) / SOME * SOME; /* with keys that none sees */
        const uint16_t *key = call->key + group * call->key_group + at * call->key_row;
        const uint16_t *value = call->value + group * call->value_group + at * call->value_row;
        Ahead next_keys = block_behind(key, KEYS, left, call->key_row, size);
        Ahead next_values = block_behind(value, AHEAD, left, call->value_row, size);
        if (!few) put_keys(keys, call, key, count, filled, &next_values, beside(used, filled / LANES, pairs));
        for (ptrdiff_t done = 0; done < used; done += ROWS) {
            const ptrdiff_t rows = least(used - done, ROWS), full = (rows + EVEN - 1) / EVEN * EVEN;
            if (few) {
                multiply(&tiles, across, ROWS, (Pairs){(const uint32_t *)key, call->key_row / 2, false},
                         (Pairs){keys + done, WIDTH, false}, count, full / LANES, pairs, false, &next_values);
                for (ptrdiff_t r = 0; r < full; r += LANES)
                    for (ptrdiff_t k = 0; k < filled; k += LANES)
                        turn((uint32_t *)(scores + r * KEYS + k), KEYS, (uint32_t *)(across + k * ROWS + r), ROWS,
                             LANES);
            } else
                multiply(&tiles, scores, KEYS, (Pairs){query + done * pairs, pairs, false},
                         (Pairs){keys, KEYS, false}, full, filled / LANES, pairs, false, &next_values);
            for (ptrdiff_t r = 0; r < rows; r++) {
                const ptrdiff_t row = done + r, seen = known + (first + row) % call->rows + 1 - at;
                states[row] = weigh((uint16_t *)(weights + r * KEYS / 2), scores + r * KEYS, filled, seen, call->scale,
                                    states[row], part.sums + row * size, size);
            }
            if (!done)
                put_values(values, call, value, count, filled, &next_values, &next_keys,
                           beside(used, size / LANES, filled / 2));
            multiply(&tiles, part.sums + done * size, size, (Pairs){weights, KEYS / 2, false},
                     (Pairs){values, size, false}, full, size / LANES, filled / 2, true, &next_keys);
        }
    }
    release(&tiles);
    for (ptrdiff_t r = 0; r < used; r++) {
        part.peaks[r] = states[r].peak;
        part.totals[r] = total_of(states[r].total);
    }
}

/* What another part, of later keys to the same rows, adds to this one. */
static void add(Part part, Part other, ptrdiff_t rows, ptrdiff_t size, float scale) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float peak = part.peaks[r] > other.peaks[r] ? part.peaks[r] : other.peaks[r];
        const float factor = power_of((part.peaks[r] - peak) * scale);
        const float share = power_of((other.peaks[r] - peak) * scale);
        part.peaks[r] = peak;
        part.totals[r] = part.totals[r] * factor + other.totals[r] * share;
        for (ptrdiff_t i = 0; i < size; i += LANES) {
            float *sum = part.sums + r * size + i;
            const Floats more = times(all(share), load_floats(other.sums + r * size + i));
            store_floats(sum, times_plus(all(factor), load_floats(sum), more));
        }
    }
}

static void finish(const Call *call, Part part, ptrdiff_t group, ptrdiff_t first, ptrdiff_t rows) {
    const ptrdiff_t each = call->heads / call->groups;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const ptrdiff_t row = first + r, head = group * each + row / call->rows;
        uint16_t *to = call->out + (row % call->rows * call->heads + head) * call->size;
        const Floats share = all(1.0f / part.totals[r]);
        for (ptrdiff_t i = 0; i < call->size; i += LANES) {
            const Floats sum = load_floats(part.sums + r * call->size + i);
            store(to + i, 0xffff, times(sum, share));
        }
    }
}

/* Query [heads, rows, size], where rows are the last of `length` tokens, each of which attends to itself and
   those before it. Key and value [groups, length, size]. Size is a multiple of 32 and at most 576, as
   three times as much has to fit on a stack; elements of a row are neighbours, strides are even. `out` [rows, heads, size] has no gaps. */
void glmchat_attend(const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
                    ptrdiff_t heads, ptrdiff_t groups, ptrdiff_t rows, ptrdiff_t length, ptrdiff_t size,
                    ptrdiff_t query_head, ptrdiff_t query_row, ptrdiff_t key_group, ptrdiff_t key_row,
                    ptrdiff_t value_group, ptrdiff_t value_row, double scale) {
    const Call call = {query, key, value, out, heads, groups, rows, length, size, query_head, query_row,
                       key_group, key_row, value_group, value_row, (float)(scale * 1.4426950408889634)};
    const ptrdiff_t all = heads / groups * rows; /* of a group */
    const ptrdiff_t blocks = (all + WIDTH - 1) / WIDTH, splits = (length + SPLIT - 1) / SPLIT;
    const ptrdiff_t width = (least(all, WIDTH) + EVEN - 1) / EVEN * EVEN, step = width * (size + 2);
    const bool apart = splits > 1 && groups * blocks < 4 * omp_get_max_threads(); /* a task for each split */
    float *parts = apart ? malloc(sizeof(float) * groups * blocks * splits * step) : NULL;
    const ptrdiff_t tasks = groups * blocks * (parts ? splits : 1), turns = 4 * omp_get_max_threads();
    const ptrdiff_t some = parts && tasks > turns ? tasks / turns : 1; /* neighbours, fetched from one into the next */

#pragma omp parallel
    {
#pragma omp for schedule(dynamic, some)
        for (ptrdiff_t task = 0; task < tasks; task++) {
            const ptrdiff_t block = parts ? task / splits : task, group = block / blocks;
            const ptrdiff_t first = block % blocks * WIDTH, used = least(WIDTH, all - first);
            if (parts) {
                const ptrdiff_t begin = task % splits * SPLIT;
                attend(&call, part_at(parts + task * step, width, size), group, first, begin,
                       least(begin + SPLIT, length));
                continue;
            }
            float room[2][WIDTH * (size + 2)];
            const Part whole = part_at(room[0], width, size), part = part_at(room[1], width, size);
            attend(&call, whole, group, first, 0, least(SPLIT, length));
            for (ptrdiff_t begin = SPLIT; begin < length; begin += SPLIT) {
                attend(&call, part, group, first, begin, least(begin + SPLIT, length));
                add(whole, part, used, size, call.scale);
            }
            finish(&call, whole, group, first, used);
        }
        if (parts) {
#pragma omp for
            for (ptrdiff_t block = 0; block < groups * blocks; block++) {
                const Part whole = part_at(parts + block * splits * step, width, size);
                const ptrdiff_t first = block % blocks * WIDTH, used = least(WIDTH, all - first);
                for (ptrdiff_t i = 1; i < splits; i++)
                    add(whole, part_at(parts + (block * splits + i) * step, width, size), used, size, call.scale);
                finish(&call, whole, block / blocks, first, used);
            }
        }
    }
    free(parts);
}
