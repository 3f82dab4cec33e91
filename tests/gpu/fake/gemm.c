/* gemm.c - op(a) and op(b) are packed as f32 in panels of 16 rows and 6 columns; a tile of 16 x 6
 * sums stays in registers. */
#include "gemm.h"

#include <stdlib.h>
#include <string.h>

#include "half.h"

enum { ROWS = 16, COLS = 6 };

typedef float v8 __attribute__((vector_size(32)));

static float element(const struct gemm_matrix *x, int64_t row, int64_t col)
{
    int64_t i = x->transposed ? col + row * x->ld : row + col * x->ld;
    if (x->type == GEMM_F32) return ((const float *)x->p)[i];
    uint16_t h = ((const uint16_t *)x->p)[i];
    return x->type == GEMM_F16 ? f16_to(h) : bf16_to(h);
}

/* Panels of `width` lines each, k steps long, zeros beyond the last line. */
static void pack(float *out, const struct gemm_matrix *x, int64_t lines, int64_t k, int width,
                 int is_b)
{
    for (int64_t first = 0; first < lines; first += width)
        for (int i = 0; i < width; i++)
            for (int64_t j = 0; j < k; j++)
                out[first * k + j * width + i] = first + i >= lines ? 0
                                                 : is_b             ? element(x, j, first + i)
                                                                    : element(x, first + i, j);
}

/* total += a[k][16]^T b[k][6] */
static void tile(float total[COLS][ROWS], const float *a, const float *b, int64_t k)
{
    v8 sum[COLS][2] = {0};
    for (int64_t i = 0; i < k; i++, a += ROWS, b += COLS) {
        v8 low, high;
        memcpy(&low, a, sizeof low);
        memcpy(&high, a + 8, sizeof high);
        for (int j = 0; j < COLS; j++) {
            sum[j][0] += low * b[j];
            sum[j][1] += high * b[j];
        }
    }
    for (int j = 0; j < COLS; j++)
        for (int i = 0; i < ROWS; i++)
            total[j][i] += sum[j][i / 8][i % 8];
}

static void store(const struct gemm *g, int64_t row, int64_t col, float sum)
{
    float v = g->alpha * sum;
    if (g->beta != 0) v += g->beta * element(&g->c, row, col);
    if (g->bias.p) v += element(&g->bias, row, 0);
    if (g->gelu) v = 0.5f * v * (1 + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    int64_t i = row + col * g->d_ld;
    if (g->d_type == GEMM_F32)
        ((float *)g->d)[i] = v;
    else
        ((uint16_t *)g->d)[i] = g->d_type == GEMM_F16 ? f16_of(v) : bf16_of(v);
}

int gemm_run(const struct gemm *g)
{
    int64_t rows = (g->m + ROWS - 1) / ROWS * ROWS, cols = (g->n + COLS - 1) / COLS * COLS,
            chunks = (g->k + g->k_chunk - 1) / g->k_chunk;
    float *a = malloc((size_t)(rows * g->k + 1) * sizeof *a),
          *b = malloc((size_t)(cols * g->k + 1) * sizeof *b);
    if (!a || !b) {
        free(a);
        free(b);
        return -1;
    }
    pack(a, &g->a, g->m, g->k, ROWS, 0);
    pack(b, &g->b, g->n, g->k, COLS, 1);
    for (int64_t col = 0; col < g->n; col += COLS)
        for (int64_t row = 0; row < g->m; row += ROWS) {
            float total[COLS][ROWS] = {{0}};
            for (int64_t i = 0; i < chunks; i++) {
                int64_t at = (g->backward ? chunks - 1 - i : i) * g->k_chunk,
                        length = g->k - at < g->k_chunk ? g->k - at : g->k_chunk;
                tile(total, a + row * g->k + at * ROWS, b + col * g->k + at * COLS, length);
            }
            for (int j = 0; j < COLS && col + j < g->n; j++)
                for (int i = 0; i < ROWS && row + i < g->m; i++)
                    store(g, row + i, col + j, total[j][i]);
        }
    free(a);
    free(b);
    return 0;
}
