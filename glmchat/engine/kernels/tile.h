/* What all kernels are made of: products of matrices in BF16, with sums in FP32, by what the CPU has for them.

   Two neighbours along what is summed over are a pair, in 32 bits. */

#include "vectors.h"

typedef ptrdiff_t Tiles; /* for how many rows a thread has configured them; 0: for none */

typedef struct { /* [rows, columns]; columns are neighbours, rows lie so many elements apart */
    const uint32_t *at;
    ptrdiff_t row;
    bool far; /* in memory, from which it has to be fetched ahead */
} Pairs;

/* Memory that will be needed soon, line by line. Many lines at once hold up what comes after them until they are there;
   one beside each step of a product takes no time. */
typedef struct {
    const char *at, *end;
} Ahead;

enum { LINE = 64 };

/* So many lines, if there are as many. */
INLINE void fetch(Ahead *ahead, ptrdiff_t lines) {
    for (; lines > 0 && ahead->at < ahead->end; lines--, ahead->at += LINE) _mm_prefetch(ahead->at, _MM_HINT_T1);
}

#ifdef __AMX_TILE__

enum { MOST_ROWS = 32, SOME_PAIRS = 16, EVEN = 16 }; /* in one go; pairs come in such numbers; rows best do */

/* Lines that are fetched beside a product. */
INLINE ptrdiff_t beside(ptrdiff_t rows, ptrdiff_t vectors, ptrdiff_t pairs) {
    return (void)rows, (void)vectors, (void)pairs, 0;
}

/* Tiles 0 to 3 hold sums. Of up to 16 rows tile 4 has the left, and the others four times sixteen columns. Of
   more 4 and 5 have the left, 6 and 7 twice sixteen columns. To configure takes as long as 20 products of tiles. */
INLINE void configure(Tiles *now, ptrdiff_t rows) {
    if (*now == rows || (*now == 32 && rows == 16)) return; /* as all tiles have sixteen rows then */
    *now = rows;
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    const uint8_t first = (uint8_t)least(rows, 16), second = (uint8_t)(rows - first);
    const uint8_t used[2][8] = {{first, first, first, first, first, 16, 16, 16},
                                {first, first, second, second, first, second, 16, 16}};
    memcpy(tiles.rows, used[second > 0], 8);
    for (int i = 0; i < 8; i++) tiles.bytes[i] = 64;
    asm volatile("" ::"r"(&tiles) : "memory"); /* gcc is told of the first eight bytes only */
    _tile_loadconfig(&tiles);
}

#define START(i, p) \
    if (add) \
        _tile_loadd(i, p, sums_row * 4); \
    else \
        _tile_zero(i)

/* Up to 16 rows by `vectors` times sixteen columns, 4 at most. */
INLINE void low(float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t pairs, const int vectors,
                bool add) {
    START(0, sums);
    if (vectors > 1) { START(1, sums + LANES); }
    if (vectors > 2) { START(2, sums + 2 * LANES); }
    if (vectors > 3) { START(3, sums + 3 * LANES); }
    for (ptrdiff_t p = 0; p < pairs; p += SOME_PAIRS) {
        const uint32_t *b = right.at + p * right.row;
        UNROLL for (int i = SOME_PAIRS; i < 2 * SOME_PAIRS; i++)
            UNROLL for (int v = 0; v < vectors; v++) _mm_prefetch(b + i * right.row + v * LANES, _MM_HINT_T0);
        _tile_loadd(4, left.at + p, left.row * 4);
        _tile_loadd(5, b, right.row * 4);
        _tile_dpbf16ps(0, 4, 5);
        if (vectors > 1) {
            _tile_loadd(6, b + LANES, right.row * 4);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (vectors > 2) {
            _tile_loadd(7, b + 2 * LANES, right.row * 4);
            _tile_dpbf16ps(2, 4, 7);
        }
        if (vectors > 3) {
            _tile_loadd(5, b + 3 * LANES, right.row * 4);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, sums, sums_row * 4);
    if (vectors > 1) _tile_stored(1, sums + LANES, sums_row * 4);
    if (vectors > 2) _tile_stored(2, sums + 2 * LANES, sums_row * 4);
    if (vectors > 3) _tile_stored(3, sums + 3 * LANES, sums_row * 4);
}

/* 17 to 32 rows by sixteen columns, or twice as many. What is right of them is fetched `ahead`. */
INLINE void high(float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t pairs, const int vectors,
                 bool add, const bool ahead) {
    float *below = sums + 16 * sums_row;
    START(0, sums);
    START(2, below);
    if (vectors > 1) {
        START(1, sums + LANES);
        START(3, below + LANES);
    }
    for (ptrdiff_t p = 0; p < pairs; p += SOME_PAIRS) {
        const uint32_t *a = left.at + p, *b = right.at + p * right.row;
        if (ahead) UNROLL for (int i = 0; i < SOME_PAIRS; i++)
            UNROLL for (int v = 2; v < 4; v++) _mm_prefetch(b + i * right.row + v * LANES, _MM_HINT_T1);
        _tile_loadd(6, b, right.row * 4);
        _tile_loadd(4, a, left.row * 4);
        _tile_loadd(5, a + 16 * left.row, left.row * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        if (vectors > 1) {
            _tile_loadd(7, b + LANES, right.row * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, sums_row * 4);
    _tile_stored(2, below, sums_row * 4);
    if (vectors > 1) {
        _tile_stored(1, sums + LANES, sums_row * 4);
        _tile_stored(3, below + LANES, sums_row * 4);
    }
}

static void strip(float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t rows, ptrdiff_t vectors,
                  ptrdiff_t pairs, bool add, bool first) {
    while (vectors > 0) {
        const ptrdiff_t done = rows <= 16 && vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
        if (rows <= 16) switch (done) {
            case 4: low(sums, sums_row, left, right, pairs, 4, add); break;
            case 2: low(sums, sums_row, left, right, pairs, 2, add); break;
            default: low(sums, sums_row, left, right, pairs, 1, add);
            }
        else if (done == 1)
            high(sums, sums_row, left, right, pairs, 1, add, false);
        else if (first && vectors >= 4)
            high(sums, sums_row, left, right, pairs, 2, add, true);
        else
            high(sums, sums_row, left, right, pairs, 2, add, false);
        vectors -= done;
        sums += done * LANES;
        right.at += done * LANES;
    }
}

INLINE void release(Tiles *now) {
    if (*now) _tile_release();
    *now = 0;
}

/* sums [rows, vectors * 16] = left [rows, pairs] x right [pairs, vectors * 16], or + that, with `add`. The right is
   fetched ahead, far or not. The tiles are to be released when all is multiplied. */
static void multiply(Tiles *tiles, float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t rows,
                     ptrdiff_t vectors, ptrdiff_t pairs, bool add, Ahead *ahead) {
    (void)ahead;
    for (ptrdiff_t done = 0; done < rows; done += MOST_ROWS) {
        const ptrdiff_t some = least(rows - done, MOST_ROWS);
        configure(tiles, some);
        strip(sums + done * sums_row, sums_row, (Pairs){left.at + done * left.row, left.row, false}, right, some,
              vectors, pairs, add, !done);
    }
}

#elif defined __AVX512BF16__

enum { MOST_ROWS = 6, SOME_PAIRS = 1, EVEN = 1, FETCHED = 16 }; /* so many pairs ahead */

/* Lines that are fetched beside a product of a right that is near. */
INLINE ptrdiff_t beside(ptrdiff_t rows, ptrdiff_t vectors, ptrdiff_t pairs) {
    return (rows + MOST_ROWS - 1) / MOST_ROWS * ((vectors + 3) / 4) * pairs;
}

/* `rows` and `vectors` are constants here, and few enough for their sums to stay in registers. Of a near right a line
   of `next` is fetched with each pair, always the same if `line` is 0. */
INLINE void strip(float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, const int rows, const int vectors,
                  ptrdiff_t pairs, bool add, const bool far, const char *next, ptrdiff_t line) {
    __m512 sum[16][5];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[i][v] = add ? _mm512_loadu_ps(sums + i * sums_row + v * LANES) : _mm512_setzero_ps();
    for (ptrdiff_t p = 0; p < pairs; p++) {
        __m512bh beside[5];
        const uint32_t *ahead = right.at + (p + FETCHED) * right.row;
        UNROLL for (int v = 0; far && v < vectors; v++) _mm_prefetch(ahead + v * LANES, _MM_HINT_T0);
        if (!far) _mm_prefetch(next + p * line, _MM_HINT_T1);
        UNROLL for (int v = 0; v < vectors; v++)
            beside[v] = (__m512bh)_mm512_loadu_si512(right.at + p * right.row + v * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            const __m512bh one = (__m512bh)_mm512_set1_epi32((int)left.at[i * left.row + p]);
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], one, beside[v]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) _mm512_storeu_ps(sums + i * sums_row + v * LANES, sum[i][v]);
}

#define CASE(n) \
    case n: \
        if (n <= most) strip(sums, sums_row, left, right, n <= most ? n : 1, vectors, pairs, add, far, next, line); \
        break

INLINE void rows_of(float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t rows, const int vectors,
                    ptrdiff_t pairs, bool add, const bool far, Ahead *ahead) {
    const int most = vectors == 1 ? 16 : vectors == 2 ? 12 : vectors == 3 ? 8 : vectors == 4 ? 6 : 4;
    for (; rows > 0; rows -= most, sums += most * sums_row, left.at += most * left.row) {
        const char *next = ahead->at;
        const ptrdiff_t line = ahead->at < ahead->end ? LINE : 0;
        switch (least(rows, most)) {
            CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7); CASE(8);
            CASE(9); CASE(10); CASE(11); CASE(12); CASE(13); CASE(14); CASE(15); CASE(16);
        }
        ahead->at += pairs * line;
    }
}

INLINE void release(Tiles *now) { (void)now; }

INLINE void columns_of(float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t rows, ptrdiff_t vectors,
                       ptrdiff_t pairs, bool add, const bool far, Ahead *ahead) {
    while (vectors > 0) {
        const ptrdiff_t done = vectors > 5 ? 4 : vectors;
        switch (done) {
        case 1: rows_of(sums, sums_row, left, right, rows, 1, pairs, add, far, ahead); break;
        case 2: rows_of(sums, sums_row, left, right, rows, 2, pairs, add, far, ahead); break;
        case 3: rows_of(sums, sums_row, left, right, rows, 3, pairs, add, far, ahead); break;
        case 4: rows_of(sums, sums_row, left, right, rows, 4, pairs, add, far, ahead); break;
        default: rows_of(sums, sums_row, left, right, rows, 5, pairs, add, far, ahead);
        }
        vectors -= done;
        sums += done * LANES;
        right.at += done * LANES;
    }
}

/* sums [rows, vectors * 16] = left [rows, pairs] x right [pairs, vectors * 16], or + that, with `add`. */
static void multiply(Tiles *tiles, float *sums, ptrdiff_t sums_row, Pairs left, Pairs right, ptrdiff_t rows,
                     ptrdiff_t vectors, ptrdiff_t pairs, bool add, Ahead *ahead) {
    (void)tiles;
    if (right.far)
        columns_of(sums, sums_row, left, right, rows, vectors, pairs, add, true, ahead);
    else
        columns_of(sums, sums_row, left, right, rows, vectors, pairs, add, false, ahead);
}

#else

#ifdef __AVX512F__
enum { STRIP = 12, WIDE = 2 }; /* rows and vectors whose sums stay in registers */
#else
enum { STRIP = 5, WIDE = 1 };
#endif
enum { MOST_ROWS = 48, SOME_PAIRS = 1, EVEN = 1, MOST_PAIRS = 288 };
typedef float Row[2][MOST_PAIRS]; /* of the left, in FP32: the first and the second of each pair */

/* Lines that are fetched beside a product. */
INLINE ptrdiff_t beside(ptrdiff_t rows, ptrdiff_t vectors, ptrdiff_t pairs) {
    return (rows + STRIP - 1) / STRIP * ((vectors + WIDE - 1) / WIDE) * pairs;
}

/* `rows` and `vectors` are constants here. A line of `next` is fetched with each pair, always the same if `line`
   is 0. */
INLINE void strip(float *sums, ptrdiff_t sums_row, const Row *left, Pairs right, const int rows, const int vectors,
                  ptrdiff_t pairs, bool add, const char *next, ptrdiff_t line) {
    Floats sum[STRIP][WIDE];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = zeros();
    for (ptrdiff_t p = 0; p < pairs; p++) {
        _mm_prefetch(next + p * line, _MM_HINT_T1);
        UNROLL for (int second = 0; second < 2; second++) {
            Floats beside[WIDE];
            UNROLL for (int v = 0; v < vectors; v++)
                beside[v] = load_part(right.at + p * right.row + v * LANES, second);
            UNROLL for (int i = 0; i < rows; i++) {
                const Floats one = all(left[i][second][p]);
                UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = times_plus(one, beside[v], sum[i][v]);
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *to = sums + i * sums_row + v * LANES;
            store_floats(to, add ? plus(load_floats(to), sum[i][v]) : sum[i][v]);
        }
}

#define CASE(n) \
    case n: \
        if (n <= STRIP) strip(sums, sums_row, left, right, n <= STRIP ? n : 1, vectors, pairs, add, next, line); \
        break

INLINE void rows_of(float *sums, ptrdiff_t sums_row, const Row *left, Pairs right, ptrdiff_t rows, const int vectors,
                    ptrdiff_t pairs, bool add, Ahead *ahead) {
    const char *next = ahead->at;
    const ptrdiff_t line = ahead->at < ahead->end ? LINE : 0;
    switch (rows) {
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
        CASE(7); CASE(8); CASE(9); CASE(10); CASE(11); CASE(12);
    }
    ahead->at += pairs * line;
}

INLINE void release(Tiles *now) { (void)now; }

/* sums [rows, vectors * 16] = left [rows, pairs] x right [pairs, vectors * 16], or + that, with `add`. The right is
   near. Pairs are a multiple of 16, and at most MOST_PAIRS. Not inlined: else gcc leaves some of the sums in memory. */
static __attribute__((noinline, unused)) void multiply(Tiles *tiles, float *sums, ptrdiff_t sums_row, Pairs left,
                                                       Pairs right, ptrdiff_t rows, ptrdiff_t vectors,
                                                       ptrdiff_t pairs, bool add, Ahead *ahead) {
    Row few[STRIP];
    (void)tiles;
    for (; rows > 0; rows -= STRIP, left.at += STRIP * left.row, sums += STRIP * sums_row) {
        const ptrdiff_t some = least(rows, STRIP);
        for (ptrdiff_t i = 0; i < some; i++)
            for (ptrdiff_t p = 0; p < pairs; p += LANES)
                UNROLL for (int second = 0; second < 2; second++)
                    store_floats(few[i][second] + p, load_part(left.at + i * left.row + p, second));
        for (ptrdiff_t v = 0; v < vectors; v += WIDE) {
            const Pairs beside = {right.at + v * LANES, right.row, false};
            if (vectors - v >= WIDE)
                rows_of(sums + v * LANES, sums_row, few, beside, some, WIDE, pairs, add, ahead);
            else
                rows_of(sums + v * LANES, sums_row, few, beside, some, 1, pairs, add, ahead);
        }
    }
}

#endif
