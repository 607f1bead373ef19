/* The vector kernels of quant/tiledot.h, made of a codec's tile function: for files that are compiled once per ISA.
 *
 *   TILEDOT_MUL_I8(name, fill, kind, offset, has_base, row_scale)     a function for the slot PREP_I8 of a struct codec_cpu
 *   TILEDOT_MUL_I8_U5(name, fill, kind, has_base, row_scale)          the same for codes below 32, offset 0
 *   TILEDOT_MUL_F32(name, fill, kind, offset, has_base, row_scale)    for the slot PREP_F32
 *
 * fill is a tile_fn (seen by the compiler, so that it can be inlined); row_scale(w, panel) points to the sixteen f16 scales
 * of a panel's rows, tile_no_scale where kind is not TILE_ROW.
 *
 * A chunk of tiles is unpacked, then every input row of a part passes over it. One row costs a tile's way through the
 * first-level cache, eight cost about the same unpacking, and with many rows the sums are loaded and stored once a chunk.
 */
#ifndef WRING_QUANT_TILEDOT_KERNEL_H
#define WRING_QUANT_TILEDOT_KERNEL_H

#include "quant/rowdot.h"
#include "quant/tiledot.h"
#include "quant/vec16.h"

enum {
    /* tiles unpacked at a time: they, some records and sums fit the first-level cache */
    TILEDOT_CHUNK = 4,
    /* Panels times rows worked on together, and rows. With int8 inputs a load serves two panels of four rows, or eight panels of
     * one: 16 ns a tile and row where one panel of eight rows took 37 (Zen 5, AVX-512). */
    TILEDOT_SUMS = V16_ROWS,
    TILEDOT_ROWS = V16_ROWS < 4 ? V16_ROWS : 4,
    TILEDOT_PART = 64, /* rows whose sums are kept: a multiple of INPUT_BLOCK */
};

/* Sums of some rows with the panels [a, b) of a unit. Even and odd inputs have sums of their own with f32 inputs. */
struct tiledot_part {
    int row, end; /* input rows */
    int unit, a, b;
    _Alignas(64) float sum[2][TILEDOT_PART][TILE_ROWS];
};

/* ---- int8 inputs ------------------------------------------------------------------------------------------------- */

ROWDOT_INLINE v16i tiledot_start(int32_t neg128, int offset)
{
    return offset == 128 ? v16i_start_s8(neg128) : v16i_set1(offset == 64 ? neg128 / 2 : 0);
}

ROWDOT_INLINE v16i tiledot_dot(v16i s, v16q c, const int8_t *x, struct tiledot how)
{
    if (how.narrow)
        return v16i_add_u5(s, c, x);
    return how.offset == 128 ? v16i_dot_s8(s, c, x) : v16i_dot_u7(s, c, x);
}

/* Line j of a panel's codes; those of offset 128 as v16q_load_s8 gives them. */
typedef v16q tiledot_line_fn(const uint8_t *code, int j);

ROWDOT_INLINE v16q tiledot_line(const uint8_t *code, int j)
{
    return v16q_load(code + j * TILE_ROWS * 4);
}
ROWDOT_INLINE v16q tiledot_line_s8(const uint8_t *code, int j)
{
    return v16q_load_s8(code + j * TILE_ROWS * 4);
}

/* Sums of half a group's inputs, of some panels side by side with some rows: a line of codes at a time, so that there are as many
 * chains as sums. */
ROWDOT_INLINE void tiledot_dots(tiledot_line_fn *line, const uint8_t *code, const char *rec, int h,
                                v16i (*s)[TILEDOT_ROWS], int panels, int rows, struct tiledot how)
{
#pragma GCC unroll 4
    for (int j = 4 * h; j < 4 * h + 4; j++) {
        v16q c[TILEDOT_SUMS];
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
            c[p] = line(code + p * CODEC_PANEL * 4, j);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int8_t *x = (const int8_t *)rec + r * INPUT_GROUP + 4 * j;
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++)
                s[p][r] = tiledot_dot(s[p][r], c[p], x, how);
        }
    }
}

/* Adds half a group's inputs. d: scales of each panel's rows. */
ROWDOT_INLINE void tiledot_half_i8(tiledot_line_fn *line, const uint8_t *code, const v16 *d,
                                   const char *rec, struct rowdot_at at, int h,
                                   v16 (*acc)[TILEDOT_ROWS], int panels, int rows,
                                   struct tiledot how)
{
    const float *scale = (const float *)(rec + at.numbers) + h * at.width;
    const int32_t *neg128 = (const int32_t *)(rec + at.numbers) + (5 + h) * at.width;
    v16i s[TILEDOT_SUMS][TILEDOT_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
            s[p][r] = tiledot_start(neg128[r], how.offset);
    tiledot_dots(line, code, rec, h, s, panels, rows, how);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        v16 x = v16_set1(scale[r]);
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            v16i sum = how.narrow ? v16i_sum_u5(s[p][r]) : s[p][r];
            acc[p][r] =
                v16_fma(v16i_float(sum), how.kind == TILE_ROW ? x : v16_mul(d[p], x), acc[p][r]);
        }
    }
}

/* Adds a group's base, times the sums of its inputs. */
ROWDOT_INLINE void tiledot_base_i8(const v16 *base, const char *rec, struct rowdot_at at,
                                   v16 (*acc)[TILEDOT_ROWS], int panels, int rows)
{
    const float *sum = (const float *)(rec + at.numbers) + 2 * at.width;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
            acc[p][r] = v16_fma(base[p], v16_set1(sum[r]), acc[p][r]);
}

/* A tile of some panels, `lane` the first one's first row, with some rows of the tile's record. */
ROWDOT_INLINE void tiledot_tile_i8(const struct tile *t, int lane, const char *rec,
                                   struct rowdot_at at, v16 (*acc)[TILEDOT_ROWS], int panels,
                                   int rows, struct tiledot how)
{
    v16 v[TILEDOT_SUMS];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
            v[p] = v16_load(t->scale[how.kind == TILE_HALF ? h : 0] + lane + p * CODEC_PANEL);
        if (how.offset == 128)
            tiledot_half_i8(tiledot_line_s8, t->code[0][lane], v, rec, at, h, acc, panels, rows,
                            how);
        else
            tiledot_half_i8(tiledot_line, t->code[0][lane], v, rec, at, h, acc, panels, rows, how);
    }
    if (!how.has_base)
        return;
#pragma GCC unroll 8
    for (int p = 0; p < panels; p++)
        v[p] = v16_load(t->base + lane + p * CODEC_PANEL);
    tiledot_base_i8(v, rec, at, acc, panels, rows);
}

/* Adds n tiles, of some panels for some rows. */
ROWDOT_INLINE void tiledot_block_i8(const struct tile *t, int n, struct rowdot_at at,
                                    float (*sum)[TILE_ROWS], int panel, int panels, int rows,
                                    struct tiledot how)
{
    int lane = panel * CODEC_PANEL;
    const char *rec = at.rec;
    v16 acc[TILEDOT_SUMS][TILEDOT_ROWS];
#pragma GCC unroll 8
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            acc[p][r] = v16_load(sum[r] + lane + p * CODEC_PANEL);
    for (int i = 0; i < n; i++, rec += (size_t)at.width * INPUT_RECORD)
        tiledot_tile_i8(&t[i], lane, rec, at, acc, panels, rows, how);
#pragma GCC unroll 8
    for (int p = 0; p < panels; p++)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            v16_store(sum[r] + lane + p * CODEC_PANEL, acc[p][r]);
}

/* Adds n tiles, of groups g on, for some rows. */
ROWDOT_INLINE void tiledot_rows_i8(const struct tile *t, int n, int g, const struct input *in,
                                   struct tiledot_part *p, int row, int rows, struct tiledot how)
{
    const int panels = TILEDOT_SUMS / rows;
    struct rowdot_at at =
        rowdot_record(in, row, row % INPUT_BLOCK, input_width(in, row / INPUT_BLOCK));
    float(*sum)[TILE_ROWS] = p->sum[0] + (row - p->row);
    int panel = p->a;
    at.rec += (size_t)g * (size_t)at.width * INPUT_RECORD;
    for (; panel + panels <= p->b; panel += panels)
        tiledot_block_i8(t, n, at, sum, panel, panels, rows, how);
    for (; panels > 1 && panel < p->b; panel++)
        tiledot_block_i8(t, n, at, sum, panel, 1, rows, how);
}

ROWDOT_INLINE void tiledot_chunk_i8(const struct tile *t, int n, int g, const struct input *in,
                                    struct tiledot_part *p, struct tiledot how)
{
    int row = p->row;
    for (; row + TILEDOT_ROWS <= p->end; row += TILEDOT_ROWS)
        tiledot_rows_i8(t, n, g, in, p, row, TILEDOT_ROWS, how);
    switch (p->end - row) {
    case 1: tiledot_rows_i8(t, n, g, in, p, row, 1, how); break;
    case 2: tiledot_rows_i8(t, n, g, in, p, row, TILEDOT_ROWS > 2 ? 2 : 1, how); break;
    case 3: tiledot_rows_i8(t, n, g, in, p, row, TILEDOT_ROWS > 3 ? 3 : 1, how); break;
    default: break;
    }
}

/* ---- f32 inputs -------------------------------------------------------------------------------------------------- */

ROWDOT_INLINE v16 tiledot_weight(v16q c, int b, v16 d, v16 base, struct tiledot how)
{
    v16 v = v16q_byte(c, b);
    if (how.offset != 0)
        v = v16_add(v, v16_set1((float)-how.offset));
    if (how.kind == TILE_ROW)
        return v;
    return how.has_base ? v16_fma(v, d, base) : v16_mul(v, d);
}

ROWDOT_INLINE void tiledot_tile_f32(const struct tile *t, int lane, const float *x, size_t cols,
                                    v16 *even, v16 *odd, int rows, struct tiledot how)
{
    v16 base = how.has_base ? v16_load(t->base + lane) : v16_set1(0);
#pragma GCC unroll 1
    for (int j = 0; j < TILE_COLS / 4; j++, x += 4) {
        v16q c = v16q_load(t->code[j][lane]);
        v16 d = how.kind == TILE_ROW ? v16_set1(1)
                                     : v16_load(t->scale[how.kind == TILE_HALF ? j / 4 : 0] + lane);
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            v16 v = tiledot_weight(c, b, d, base, how);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                v16 *to = b % 2 == 0 ? &even[r] : &odd[r];
                *to = v16_fma(v, v16_set1(x[(size_t)r * cols + (size_t)b]), *to);
            }
        }
    }
}

ROWDOT_INLINE void tiledot_rows_f32(const struct tile *t, int n, int g, const struct input *in,
                                    struct tiledot_part *p, int row, int rows, struct tiledot how)
{
    size_t cols = (size_t)in->cols;
    const float *x = in->x + (size_t)row * cols + (size_t)g * TILE_COLS;
    int at = row - p->row;
    for (int lane = p->a * CODEC_PANEL; lane < p->b * CODEC_PANEL; lane += CODEC_PANEL) {
        v16 even[V16_ROWS];
        v16 odd[V16_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            even[r] = v16_load(p->sum[0][at + r] + lane);
            odd[r] = v16_load(p->sum[1][at + r] + lane);
        }
        for (int i = 0; i < n; i++)
            tiledot_tile_f32(&t[i], lane, x + i * TILE_COLS, cols, even, odd, rows, how);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16_store(p->sum[0][at + r] + lane, even[r]);
            v16_store(p->sum[1][at + r] + lane, odd[r]);
        }
    }
}

ROWDOT_INLINE void tiledot_chunk_f32(const struct tile *t, int n, int g, const struct input *in,
                                     struct tiledot_part *p, struct tiledot how)
{
    int row = p->row;
    for (; row + V16_ROWS <= p->end; row += V16_ROWS)
        tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS, how);
    switch (p->end - row) {
    case 1: tiledot_rows_f32(t, n, g, in, p, row, 1, how); break;
    case 2: tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS > 2 ? 2 : 1, how); break;
    case 3: tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS > 3 ? 3 : 1, how); break;
    case 4: tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS > 4 ? 4 : 1, how); break;
    case 5: tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS > 5 ? 5 : 1, how); break;
    case 6: tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS > 6 ? 6 : 1, how); break;
    case 7: tiledot_rows_f32(t, n, g, in, p, row, V16_ROWS > 7 ? 7 : 1, how); break;
    default: break;
    }
}

/* ---- a part ------------------------------------------------------------------------------------------------------ */

ROWDOT_INLINE void tiledot_zero(struct tiledot_part *p, int sums)
{
    for (int i = 0; i < sums; i++)
        memset(p->sum[i], 0, (size_t)(p->end - p->row) * sizeof p->sum[i][0]);
}

/* Sums to y: even and odd ones added, times the row's scale, with the bias. */
ROWDOT_INLINE void tiledot_store(const struct weight *w, const float *bias, float *y, size_t ldy,
                                 const struct tiledot_part *p, int sums, tile_scale_fn *row_scale,
                                 struct tiledot how)
{
    for (int i = p->a; i < p->b; i++) {
        int panel = p->unit * TILE_PANELS + i;
        v16 d = how.kind == TILE_ROW ? v16_f16(row_scale(w, panel)) : v16_set1(1);
        for (int row = p->row; row < p->end; row++) {
            v16 v = v16_load(p->sum[0][row - p->row] + i * CODEC_PANEL);
            if (sums == 2)
                v = v16_add(v, v16_load(p->sum[1][row - p->row] + i * CODEC_PANEL));
            if (how.kind == TILE_ROW)
                v = v16_mul(v, d);
            rowdot_store(w, bias, y + (size_t)row * ldy, ldy, panel, &v, 1);
        }
    }
}

static inline int tiledot_least(int a, int b)
{
    return a < b ? a : b;
}

/* The rows from `row` on, below n; the panels from `panel` on, below end, that are of one unit. */
static inline void tiledot_rows(struct tiledot_part *p, int row, int n)
{
    p->row = row;
    p->end = tiledot_least(row + TILEDOT_PART, n);
}
static inline void tiledot_panels(struct tiledot_part *p, int panel, int end)
{
    p->unit = panel / TILE_PANELS;
    p->a = panel % TILE_PANELS;
    p->b = tiledot_least(TILE_PANELS, p->a + end - panel);
}

#define TILEDOT_MUL_I8(name, fill, kind, offset, has_base, row_scale)                              \
    TILEDOT_MUL(name, fill, 1, tiledot_chunk_i8, row_scale, kind, offset, has_base, false)
#define TILEDOT_MUL_I8_U5(name, fill, kind, has_base, row_scale)                                   \
    TILEDOT_MUL(name, fill, 1, tiledot_chunk_i8, row_scale, kind, 0, has_base, true)
#define TILEDOT_MUL_F32(name, fill, kind, offset, has_base, row_scale)                             \
    TILEDOT_MUL(name, fill, 2, tiledot_chunk_f32, row_scale, kind, offset, has_base, false)

/* chunk: one of the two functions above; sums: how many it keeps. */
#define TILEDOT_MUL(name, fill, sums, chunk, row_scale, ...)                                       \
    static void name##_chunk(const struct tile *t, int n, int g, const struct input *in,           \
                             struct tiledot_part *p)                                               \
    {                                                                                              \
        const struct tiledot how = { __VA_ARGS__ };                                                \
        chunk(t, n, g, in, p, how);                                                                \
    }                                                                                              \
    static void name##_unit(const struct weight *w, const struct input *in, const float *bias,     \
                            float *y, size_t ldy, struct tiledot_part *p)                          \
    {                                                                                              \
        struct tile t[TILEDOT_CHUNK];                                                              \
        int groups = w->cols / TILE_COLS;                                                          \
        tiledot_zero(p, sums);                                                                     \
        for (int g = 0; g < groups; g += TILEDOT_CHUNK) {                                          \
            int n = tiledot_least(groups - g, TILEDOT_CHUNK);                                      \
            for (int i = 0; i < n; i++)                                                            \
                fill(w, p->unit, g + i, &t[i]);                                                    \
            name##_chunk(t, n, g, in, p);                                                          \
        }                                                                                          \
        const struct tiledot how = { __VA_ARGS__ };                                                \
        tiledot_store(w, bias, y, ldy, p, sums, row_scale, how);                                   \
    }                                                                                              \
    static void name(const struct weight *w, const struct input *in, const float *bias, float *y,  \
                     size_t ldy, int p0, int p1)                                                   \
    {                                                                                              \
        struct tiledot_part p;                                                                     \
        for (int row = 0; row < in->n; row = p.end) {                                              \
            tiledot_rows(&p, row, in->n);                                                          \
            for (int at = p0; at < p1; at += p.b - p.a) {                                          \
                tiledot_panels(&p, at, p1);                                                        \
                name##_unit(w, in, bias, y, ldy, &p);                                              \
            }                                                                                      \
        }                                                                                          \
    }

#endif
