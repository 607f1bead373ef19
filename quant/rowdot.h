/* The skeleton of a product: n input rows against panels of sixteen outputs, some rows at a time.
 *
 * A codec's kernel gives ROWDOT_BLOCK(w, in, r0, panel, acc, R): the sums of rows r0 .. r0 + R - 1 with one panel, R a
 * constant from 1 to V16_ROWS (8; 1 in plain C) so that the accumulators stay in registers. All blocks are the same code, so a row's sum
 * does not depend on how many others are there. The panel's weights stay in the first-level cache while all rows pass.
 */
#ifndef WRING_QUANT_ROWDOT_H
#define WRING_QUANT_ROWDOT_H

#include "quant/input.h"
#include "quant/vec16.h"

enum { ROWDOT = V16_ROWS };

#define ROWDOT_INLINE static inline __attribute__((always_inline))

typedef void rowdot_fn(const struct weight *w, const struct input *in, int r0, int panel, v16 *acc,
                       int rows);

/* Sums to y, with the bias; the last panel may be partly empty. */
ROWDOT_INLINE void rowdot_store(const struct weight *w, const float *bias, float *y, size_t ldy,
                                int panel, const v16 *acc, int rows)
{
    int row = panel * CODEC_PANEL;
    int n = w->rows - row;
    for (int r = 0; r < rows; r++) {
        float *out = y + (size_t)r * ldy + row;
        v16 v = acc[r];
        if (n >= CODEC_PANEL) {
            v16_store(out, bias != NULL ? v16_add(v, v16_load(bias + row)) : v);
            continue;
        }
        float part[CODEC_PANEL];
        v16_store(part, v);
        for (int i = 0; i < n; i++)
            out[i] = bias != NULL ? part[i] + bias[row + i] : part[i];
    }
}

/* Expands to the function that a codec_cpu slot holds. block is a ROWDOT_INLINE rowdot_fn. */
#define ROWDOT_MUL(name, block)                                                                    \
    ROWDOT_INLINE void name##_rows(const struct weight *w, const struct input *in,                 \
                                   const float *bias, float *y, size_t ldy, int panel, int r0,     \
                                   int rows)                                                       \
    {                                                                                              \
        v16 acc[ROWDOT];                                                                           \
        for (int r = 0; r < rows; r++)                                                             \
            acc[r] = v16_set1(0);                                                                  \
        block(w, in, r0, panel, acc, rows);                                                        \
        rowdot_store(w, bias, y + (size_t)r0 * ldy, ldy, panel, acc, rows);                        \
    }                                                                                              \
    static void name(const struct weight *w, const struct input *in, const float *bias, float *y,  \
                     size_t ldy, int p0, int p1)                                                   \
    {                                                                                              \
        for (int p = p0; p < p1; p++) {                                                            \
            int r = 0;                                                                             \
            for (; r + ROWDOT <= in->n; r += ROWDOT)                                               \
                name##_rows(w, in, bias, y, ldy, p, r, ROWDOT);                                    \
            switch (ROWDOT > 1 ? in->n - r : 0) {                                                  \
            case 1: name##_rows(w, in, bias, y, ldy, p, r, 1); break;                              \
            case 2: name##_rows(w, in, bias, y, ldy, p, r, 2); break;                              \
            case 3: name##_rows(w, in, bias, y, ldy, p, r, 3); break;                              \
            case 4: name##_rows(w, in, bias, y, ldy, p, r, 4); break;                              \
            case 5: name##_rows(w, in, bias, y, ldy, p, r, 5); break;                              \
            case 6: name##_rows(w, in, bias, y, ldy, p, r, 6); break;                              \
            case 7: name##_rows(w, in, bias, y, ldy, p, r, 7); break;                              \
            default: break;                                                                        \
            }                                                                                      \
        }                                                                                          \
    }

#endif
