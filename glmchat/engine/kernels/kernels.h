/* What the library has, for who puts it together. */

#pragma once

#include "inline.h"

typedef struct {
    uint32_t *packed;     /* [outs / block][ins / 2][block][2]; or [outs, ins] */
    const uint16_t *bias; /* [outs], or none */
    ptrdiff_t outs, ins, block;
} Matrix;

void glmchat_attend(const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
                    ptrdiff_t heads, ptrdiff_t groups, ptrdiff_t rows, ptrdiff_t length, ptrdiff_t size,
                    ptrdiff_t query_head, ptrdiff_t query_row, ptrdiff_t key_group, ptrdiff_t key_row,
                    ptrdiff_t value_group, ptrdiff_t value_row, double scale);
void glmchat_pack(const Matrix *matrix, const uint16_t *rows, ptrdiff_t first, ptrdiff_t outs);
void glmchat_multiply(const uint16_t *x, const Matrix *matrices, ptrdiff_t count, ptrdiff_t rows, uint16_t *out);
void glmchat_multiply_each(const uint16_t *x, const Matrix *matrices, ptrdiff_t count, ptrdiff_t rows, uint16_t *out);
void glmchat_multiply_plain(const uint16_t *x, const uint16_t *matrix, ptrdiff_t rows, ptrdiff_t outs, ptrdiff_t ins,
                            int exact, void *out);
bool glmchat_experts(const uint16_t *x, const int64_t *numbers, const float *weights, ptrdiff_t rows, ptrdiff_t each,
                     const Matrix *gates, const Matrix *downs, ptrdiff_t experts, int64_t *places, uint16_t *room,
                     uint16_t *out);
void glmchat_norm(const uint16_t *x, const uint16_t *weight, ptrdiff_t rows, ptrdiff_t size, double eps,
                  uint16_t *out);
void glmchat_rotate(uint16_t *query, uint16_t *key, const uint16_t *cos, const uint16_t *sin, ptrdiff_t rows,
                    ptrdiff_t query_heads, ptrdiff_t key_heads, ptrdiff_t size, ptrdiff_t turned);
void glmchat_gate(const uint16_t *gate, const uint16_t *up, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t size,
                  uint16_t *out);
void glmchat_choose(float *logits, const float *bias, ptrdiff_t rows, ptrdiff_t size, ptrdiff_t each, int shared,
                    double scale, int64_t *numbers, float *weights);
void glmchat_begin(void);
void glmchat_end(void);
