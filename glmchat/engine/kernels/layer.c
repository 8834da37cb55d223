/* Decoder layers, and what the MTP layer guesses: all of their steps in one call, as for a token alone it takes Python
   longer to ask for them one by one than it takes to do them. */

#include "kernels.h"
#include "vectors.h"

typedef struct {
    ptrdiff_t hidden, heads, groups, size;
    const uint16_t *before, *between;      /* weights of the norms before attention and after it, [hidden] */
    const uint16_t *query_norm, *key_norm; /* [size], or none */
    double before_eps, between_eps, query_eps, key_eps, scale;
    const Matrix *projections, *output; /* to query, key and value; of what attention makes */
    const Matrix *opening, *closing;    /* of the MLP, or of the shared experts: to gates and what passes them; back */
    ptrdiff_t experts, each;            /* routed ones, 0 if there are none; of which so many take a token */
    const uint16_t *router;             /* [experts, hidden] */
    const float *bias;                  /* [experts] */
    const Matrix *gates, *downs;        /* of each expert */
    double factor;                      /* of the experts' weights, */
    int32_t shared;                     /* which are out of 1 together */
} Layer;

typedef struct { /* where intermediate results are */
    uint16_t *even, *query, *attended, *made, *opened, *gated, *sorted;
    float *logits, *weights;
    int64_t *numbers, *places;
} Room;

/* Takes so many bytes more. */
INLINE void *take(char *at, ptrdiff_t *used, ptrdiff_t bytes) {
    char *const here = at + *used;
    *used += (bytes + 63) / 64 * 64;
    return here;
}

/* Lays it out from `at` on; returns its bytes. */
static ptrdiff_t lay_out(Room *room, const Layer *layer, ptrdiff_t rows, char *at) {
    const ptrdiff_t one = sizeof(uint16_t) * rows, all = rows * layer->each, inner = layer->closing->ins;
    const ptrdiff_t width = layer->heads * layer->size;
    ptrdiff_t used = 0;
    room->even = take(at, &used, one * layer->hidden);
    room->query = take(at, &used, one * (layer->heads + 2 * layer->groups) * layer->size);
    room->attended = take(at, &used, one * (width > layer->hidden ? width : layer->hidden));
    room->made = take(at, &used, one * layer->hidden);
    room->opened = take(at, &used, one * 2 * inner);
    room->gated = take(at, &used, one * inner);
    if (layer->experts) {
        room->sorted = take(at, &used, (ptrdiff_t)sizeof(uint16_t) * all * (layer->hidden + 3 * layer->downs->ins));
        room->logits = take(at, &used, (ptrdiff_t)sizeof(float) * rows * layer->experts);
        room->weights = take(at, &used, (ptrdiff_t)sizeof(float) * all);
        room->numbers = take(at, &used, (ptrdiff_t)sizeof(int64_t) * all);
        room->places = take(at, &used, (ptrdiff_t)sizeof(int64_t) * all);
    }
    return used;
}

/* x += y, of so many numbers. */
static void add(uint16_t *x, const uint16_t *y, ptrdiff_t count) {
#pragma omp parallel for schedule(static) if (count >= 1 << 16)
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const Mask used = within(i, count);
        store(x + i, used, plus(load(x + i, used), load(y + i, used)));
    }
}

/* What the MLP makes of the rows at `even`, at `made`. */
static void run_mlp(const Layer *layer, const Room *room, ptrdiff_t rows) {
    const ptrdiff_t inner = layer->closing->ins;
    glmchat_multiply(room->even, layer->opening, 2, rows, room->opened);
    glmchat_gate(room->opened, room->opened + rows * inner, inner, rows, inner, room->gated);
    glmchat_multiply(room->gated, layer->closing, 1, rows, room->made);
}

/* The same with what the routed experts make of them. False: a row goes to an expert that there is not. */
static bool run_experts(const Layer *layer, const Room *room, ptrdiff_t rows, uint16_t *out) {
    glmchat_multiply_plain(room->even, layer->router, rows, layer->experts, layer->hidden, true, room->logits);
    glmchat_choose(room->logits, layer->bias, rows, layer->experts, layer->each, layer->shared, layer->factor,
                   room->numbers, room->weights);
    if (!glmchat_experts(room->even, room->numbers, room->weights, rows, layer->each, layer->gates, layer->downs,
                         layer->experts, room->places, room->sorted, out))
        return false;
    run_mlp(layer, room, rows);
    add(out, room->made, rows * layer->hidden);
    return true;
}

/* Of x [rows, hidden], in place. Rows are tokens that come after `known` others, whose keys and values are in the
   cache [groups, tokens, size]; theirs are put there. `cos` and `sin` [rows, turned] are of their positions. False: a
   row goes to an expert that there is not. */
static bool run_layer(const Layer *layer, uint16_t *x, ptrdiff_t rows, const uint16_t *cos, const uint16_t *sin,
                      ptrdiff_t turned, uint16_t *keys, uint16_t *values, ptrdiff_t group, ptrdiff_t known, char *at) {
    const ptrdiff_t heads = layer->heads, groups = layer->groups, size = layer->size, width = heads * size;
    Room room;
    lay_out(&room, layer, rows, at);
    uint16_t *const query = room.query, *const key = query + rows * width, *const value = key + rows * groups * size;

    glmchat_norm(x, layer->before, rows, layer->hidden, layer->before_eps, room.even);
    glmchat_multiply(room.even, layer->projections, 3, rows, query);
    if (layer->query_norm) {
        glmchat_norm(query, layer->query_norm, rows * heads, size, layer->query_eps, query);
        glmchat_norm(key, layer->key_norm, rows * groups, size, layer->key_eps, key);
    }
    glmchat_rotate(query, key, cos, sin, rows, heads, groups, size, turned);
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t g = 0; g < groups; g++) {
            const ptrdiff_t to = g * group + (known + row) * size, from = (row * groups + g) * size;
            memcpy(keys + to, key + from, sizeof *key * size);
            memcpy(values + to, value + from, sizeof *value * size);
        }
    glmchat_attend(query, keys, values, room.attended, heads, groups, rows, known + rows, size, size, width, group,
                   size, group, size, layer->scale);
    glmchat_multiply(room.attended, layer->output, 1, rows, room.made);
    add(x, room.made, rows * layer->hidden);

    glmchat_norm(x, layer->between, rows, layer->hidden, layer->between_eps, room.even);
    if (layer->experts) {
        if (!run_experts(layer, &room, rows, room.attended)) return false; /* where nothing is needed any more */
        add(x, room.attended, rows * layer->hidden);
    } else {
        run_mlp(layer, &room, rows);
        add(x, room.made, rows * layer->hidden);
    }
    return true;
}

/* Bytes that a call for so many rows needs to work in. */
ptrdiff_t glmchat_layers_room(const Layer *const *layers, ptrdiff_t count, ptrdiff_t rows) {
    Room room;
    ptrdiff_t most = 0;
    for (ptrdiff_t n = 0; n < count; n++) {
        const ptrdiff_t bytes = lay_out(&room, layers[n], rows, NULL);
        if (most < bytes) most = bytes;
    }
    return most;
}

/* Of so many layers, one after the other, each with a cache of its own. */
bool glmchat_layers(const Layer *const *layers, ptrdiff_t count, uint16_t *x, ptrdiff_t rows, const uint16_t *cos,
                    const uint16_t *sin, ptrdiff_t turned, uint16_t *const *keys, uint16_t *const *values,
                    ptrdiff_t group, ptrdiff_t known, char *at) {
    bool done = true;
    glmchat_begin();
    for (ptrdiff_t n = 0; n < count && done; n++)
        done = run_layer(layers[n], x, rows, cos, sin, turned, keys[n], values[n], group, known, at);
    glmchat_end();
    return done;
}

typedef struct {
    const Layer *layer;
    const uint16_t *table;                                /* embeddings of tokens, [vocabulary, hidden] */
    const uint16_t *token_norm, *state_norm, *last_norm; /* weights, [hidden] */
    double token_eps, state_eps, last_eps;
    const Matrix *joining, *head; /* of token and state beside each other; to logits, or none if that is */
    const uint16_t *plain;        /* [vocabulary, hidden] */
    ptrdiff_t vocabulary;
} Drafter;

typedef struct {
    uint16_t *both, *x, *state, *logits;
    char *rest; /* for the layer */
} Desk;

static ptrdiff_t lay_out_desk(Desk *desk, const Drafter *drafter, ptrdiff_t rows, char *at) {
    const ptrdiff_t one = (ptrdiff_t)sizeof(uint16_t) * drafter->layer->hidden;
    ptrdiff_t used = 0;
    desk->both = take(at, &used, 2 * rows * one);
    desk->x = take(at, &used, rows * one);
    desk->state = take(at, &used, one);
    desk->logits = take(at, &used, (ptrdiff_t)sizeof(uint16_t) * drafter->vocabulary);
    desk->rest = take(at, &used, glmchat_layers_room(&drafter->layer, 1, rows));
    return used;
}

INLINE float widened(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* The likeliest token after this state. */
static int64_t choose_token(const Drafter *drafter, const Desk *desk) {
    if (drafter->head)
        glmchat_multiply(desk->state, drafter->head, 1, 1, desk->logits);
    else
        glmchat_multiply_plain(desk->state, drafter->plain, 1, drafter->vocabulary, drafter->layer->hidden, false,
                               desk->logits);
    ptrdiff_t best = 0;
    for (ptrdiff_t i = 1; i < drafter->vocabulary; i++)
        if (widened(desk->logits[i]) > widened(desk->logits[best])) best = i;
    return best;
}

ptrdiff_t glmchat_draft_room(const Drafter *drafter, ptrdiff_t rows) {
    Desk desk;
    return lay_out_desk(&desk, drafter, rows, NULL);
}

/* `count` guesses of what follows the last of the tokens `ids` [rows], each of which follows a token whose state
   [rows, hidden] the trunk gave; after the first guess the layer's own states take their place. The rest is as for
   run_layer. */
bool glmchat_draft(const Drafter *drafter, const int64_t *ids, const uint16_t *states, ptrdiff_t rows,
                   ptrdiff_t count, const uint16_t *cos, const uint16_t *sin, ptrdiff_t turned, uint16_t *keys,
                   uint16_t *values, ptrdiff_t group, ptrdiff_t known, char *at, int64_t *guesses) {
    const ptrdiff_t hidden = drafter->layer->hidden;
    Desk desk;
    lay_out_desk(&desk, drafter, rows, at);
    for (ptrdiff_t n = 0; n < count; n++) {
        for (ptrdiff_t row = 0; row < rows; row++) {
            uint16_t *to = desk.both + 2 * row * hidden;
            glmchat_norm(drafter->table + ids[row] * hidden, drafter->token_norm, 1, hidden, drafter->token_eps, to);
            glmchat_norm(states + row * hidden, drafter->state_norm, 1, hidden, drafter->state_eps, to + hidden);
        }
        glmchat_multiply(desk.both, drafter->joining, 1, rows, desk.x);
        if (!run_layer(drafter->layer, desk.x, rows, cos, sin, turned, keys, values, group, known, desk.rest))
            return false;
        glmchat_norm(desk.x + (rows - 1) * hidden, drafter->last_norm, 1, hidden, drafter->last_eps, desk.state);
        guesses[n] = choose_token(drafter, &desk);
        known += rows;
        cos += rows * turned;
        sin += rows * turned;
        ids = guesses + n;
        states = desk.state;
        rows = 1;
    }
    return true;
}
