/* The skeleton of a fast product: n input rows against panels of sixteen outputs, V16_ROWS rows at a time.
 *
 * A codec's kernel gives block(w, in, at, panel, acc, rows): the sums of the rows at `at` with one panel, `rows` a
 * constant from 1 to V16_ROWS so that the accumulators stay in registers. All counts run the same code, so a row's sum
 * does not depend on how many others are there. The panel's weights stay in the first-level cache while rows pass; rows
 * pass in parts small enough to stay in the second-level cache while panels pass.
 */
#ifndef WRING_QUANT_ROWDOT_H
#define WRING_QUANT_ROWDOT_H

#include "quant/input.h"
#include "quant/vec16.h"

#define ROWDOT_INLINE static inline __attribute__((always_inline))

enum { ROWDOT_PART_BYTES = 384 << 10 };

/* Some rows of one block of the input. */
struct rowdot_at {
    int row;         /* the first */
    int width;       /* rows of the block: of a prepared input's records */
    const char *rec; /* PREP_I8: the block's records, moved on to the first row's codes, ... */
    int numbers;     /* ... and from there to the same row's scale, in bytes */
};

ROWDOT_INLINE void rowdot_zero(v16 *acc, int rows)
{
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        acc[r] = v16_set1(0);
}

/* With f32 inputs even and odd ones have sums of their own, so that one row keeps two adders busy. */
ROWDOT_INLINE void rowdot_add(v16 *acc, const v16 *odd, int rows)
{
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        acc[r] = v16_add(acc[r], odd[r]);
}

/* Sums to y, with the bias; the last panel may be partly empty. */
ROWDOT_INLINE void rowdot_store(const struct weight *w, const float *bias, float *y, size_t ldy,
                                int panel, const v16 *acc, int rows)
{
    int row = panel * CODEC_PANEL;
    int n = w->rows - row;
#pragma GCC unroll 8
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

/* Rows of a part: a multiple of INPUT_BLOCK. */
static inline int rowdot_part(const struct weight *w)
{
    int rows = ROWDOT_PART_BYTES / (w->cols * (w->prep == PREP_F32 ? 4 : 2)) / INPUT_BLOCK;
    return (rows > 1 ? rows : 1) * INPUT_BLOCK;
}

/* Row i of a block of `width` rows in a prepared input. */
ROWDOT_INLINE struct rowdot_at rowdot_record(const struct input *in, int row, int i, int width)
{
    return (struct rowdot_at){ .row = row,
                               .width = width,
                               .rec = input_records(in, row / INPUT_BLOCK) + i * INPUT_GROUP,
                               .numbers = width * INPUT_GROUP - i * (INPUT_GROUP - 4) };
}

/* With whole blocks at a time everything but the address is a constant. */
ROWDOT_INLINE struct rowdot_at rowdot_at(const struct input *in, enum prep prep, int row, int rows)
{
    if (prep != PREP_I8)
        return (struct rowdot_at){ .row = row };
    if ((int)V16_ROWS == (int)INPUT_BLOCK)
        return rowdot_record(in, row, 0, rows);
    return rowdot_record(in, row, row % INPUT_BLOCK, input_width(in, row / INPUT_BLOCK));
}

/* Expands to the function that a codec_cpu slot holds. block is a ROWDOT_INLINE kernel. The whole width is a constant
 * where the rows are a whole block. */
#define ROWDOT_MUL(name, kind, block)                                                              \
    ROWDOT_INLINE void name##_rows(const struct weight *w, const struct input *in,                 \
                                   const float *bias, float *y, size_t ldy, int panel, int row,    \
                                   int rows)                                                       \
    {                                                                                              \
        v16 acc[V16_ROWS];                                                                         \
        rowdot_zero(acc, rows);                                                                    \
        struct rowdot_at at = rowdot_at(in, kind, row, rows);                                      \
        block(w, in, at, panel, acc, rows);                                                        \
        rowdot_store(w, bias, y + (size_t)row * ldy, ldy, panel, acc, rows);                       \
    }                                                                                              \
    static void name##_panel(const struct weight *w, const struct input *in, const float *bias,    \
                             float *y, size_t ldy, int panel, int row, int end)                    \
    {                                                                                              \
        for (; row + V16_ROWS <= end; row += V16_ROWS)                                             \
            name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS);                                \
        switch (end - row) {                                                                       \
        case 1: name##_rows(w, in, bias, y, ldy, panel, row, 1); break;                            \
        case 2: name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS > 2 ? 2 : 1); break;         \
        case 3: name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS > 3 ? 3 : 1); break;         \
        case 4: name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS > 4 ? 4 : 1); break;         \
        case 5: name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS > 5 ? 5 : 1); break;         \
        case 6: name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS > 6 ? 6 : 1); break;         \
        case 7: name##_rows(w, in, bias, y, ldy, panel, row, V16_ROWS > 7 ? 7 : 1); break;         \
        default: break;                                                                            \
        }                                                                                          \
    }                                                                                              \
    static void name(const struct weight *w, const struct input *in, const float *bias, float *y,  \
                     size_t ldy, int p0, int p1)                                                   \
    {                                                                                              \
        int part = rowdot_part(w);                                                                 \
        for (int row = 0; row < in->n; row += part)                                                \
            for (int p = p0; p < p1; p++)                                                          \
                name##_panel(w, in, bias, y, ldy, p, row,                                          \
                             row + part < in->n ? row + part : in->n);                             \
    }

#endif
