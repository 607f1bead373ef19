/* Encoding for pvq: plain, each group by itself, and with the second moments of the inputs, where errors go on to later
 * columns and a group's point is judged by what its error costs.
 */
#include <float.h>

#include "quant/feedback.h"
#include "quant/pvq/pvq.h"
#include "server/base/mem.h"

/* ---- one group --------------------------------------------------------------------------------------------------- */

static int nearest_level(const struct pvq_form *f, float gain)
{
    int level = 0;
    while (level + 1 < f->levels && gain > 0.5f * (f->gain[level] + f->gain[level + 1]))
        level++;
    return level;
}

static void store(struct weight *w, int row, int group, const int8_t *y, int level)
{
    const struct pvq_form *f = &pvq_form[w->variant];
    const struct pyramid *t = pyramid_tables();
    int lane = row % CODEC_PANEL;
    uint8_t *cell = pvq_cell(w, row / CODEC_PANEL, group, f->bytes);
    uint64_t code = pyramid_code(t, y, f->k, f->levels, level);
    int upper = f->bytes - 4;
    for (int i = 0; i < 4; i++)
        cell[4 * lane + i] = (uint8_t)(code >> 8 * i);
    for (int i = 0; i < upper; i++)
        cell[4 * CODEC_PANEL + upper * lane + i] = (uint8_t)(code >> (32 + 8 * i));
}

/* Root mean square times what the form's gains are relative to; 0 where there is none. */
static float first_scale(const struct pvq_form *f, const float *x, int cols)
{
    double sum = 0;
    for (int k = 0; k < cols; k++)
        sum += (double)x[k] * (double)x[k];
    return isfinite(sum) ? (float)sqrt(sum / cols) * f->scale : 0;
}

static void store_scale(struct weight *w, int row, float scale)
{
    enum { F16_MAX = 65504 };
    if (!(scale > 0)) /* or no number */
        scale = 0;
    pvq_scales(w, row / CODEC_PANEL)[row % CODEC_PANEL] =
        f32_to_f16(scale < F16_MAX ? scale : F16_MAX);
}

/* ---- without moments --------------------------------------------------------------------------------------------- */

static void encode_row(struct weight *w, int row, const float *x)
{
    const struct pvq_form *f = &pvq_form[w->variant];
    float scale = first_scale(f, x, w->cols);
    double xq = 0;
    double qq = 0;
    for (int g = 0; g < pvq_groups(w); g++, x += PYRAMID_N) {
        int8_t y[PYRAMID_N];
        pyramid_project(x, f->k, y);
        float xy = 0;
        for (int i = 0; i < PYRAMID_N; i++)
            xy += x[i] * (float)y[i];
        float along = xy / sqrtf((float)pvq_norm2(y));
        int level = scale > 0 ? nearest_level(f, along / scale) : 0;
        xq += (double)along * (double)f->gain[level];
        qq += (double)f->gain[level] * (double)f->gain[level];
        store(w, row, g, y, level);
    }
    store_scale(w, row, scale > 0 ? (float)(xq / qq) : 0);
}

void pvq_encode(struct weight *w, int row0, int n, const float *src)
{
    for (int i = 0; i < n; i++)
        encode_row(w, row0 + i, src + (size_t)i * (size_t)w->cols);
}

/* ---- with moments ------------------------------------------------------------------------------------------------ */

/* A group's point while it is improved: the loss of q = c y, c = gain * scale / |y|, is (x - q) h (x - q). */
struct search {
    float (*h)[PYRAMID_N]; /* metric metric^T */
    float y[PYRAMID_N];
    float hx[PYRAMID_N], hy[PYRAMID_N];
    float xhx, xhy, yhy, yy;
    float gain; /* times the row's scale */
    float loss;
};

static float loss_of(const struct search *s, float gain, float xhy, float yhy, float yy)
{
    float c = gain / sqrtf(yy);
    return s->xhx - 2 * c * xhy + c * c * yhy;
}

static float dot(const float *a, const float *b)
{
    float sum = 0;
    for (int i = 0; i < PYRAMID_N; i++)
        sum += a[i] * b[i];
    return sum;
}

static void apply(float (*h)[PYRAMID_N], const float *x, float *hx)
{
    for (int i = 0; i < PYRAMID_N; i++)
        hx[i] = 0;
    for (int k = 0; k < PYRAMID_N; k++)
        for (int i = 0; i < PYRAMID_N; i++)
            hx[i] += x[k] * h[k][i];
}

/* Sums that follow from y, afresh, and the gain that suits it best. */
static int judge(struct search *s, const struct pvq_form *f, float scale)
{
    apply(s->h, s->y, s->hy);
    s->xhy = dot(s->y, s->hx);
    s->yhy = dot(s->y, s->hy);
    s->yy = dot(s->y, s->y);
    s->loss = FLT_MAX;
    int best = 0;
    for (int level = 0; level < f->levels; level++) {
        float loss = loss_of(s, f->gain[level] * scale, s->xhy, s->yhy, s->yy);
        if (loss < s->loss) {
            s->loss = loss;
            best = level;
        }
    }
    s->gain = f->gain[best] * scale;
    return best;
}

/* The best place for a pulse taken from element i, with the gain as it is. */
static void try_from(const struct search *s, int i, const float *to, float *least, int32_t *from)
{
    float less = s->y[i] > 0 ? -1.0f : 1.0f;
    float xhy = s->xhy + less * s->hx[i];
    float yhy = s->yhy + 2 * less * s->hy[i] + s->h[i][i];
    float yy = s->yy - 2 * fabsf(s->y[i]) + 2;
    for (int j = 0; j < PYRAMID_N; j++) {
        float b = yhy + 2 * to[j] * (s->hy[j] + less * s->h[i][j]) + s->h[j][j];
        float loss = loss_of(s, s->gain, xhy + to[j] * s->hx[j], b, yy + 2 * fabsf(s->y[j]));
        bool better = loss < least[j] && j != i;
        from[j] = better ? i : from[j];
        least[j] = better ? loss : least[j];
    }
}

/* Makes the one move of a pulse that lowers the loss most; false when none does. */
static bool improve(struct search *s)
{
    float to[PYRAMID_N]; /* the sign of a pulse that comes */
    float least[PYRAMID_N];
    int32_t from[PYRAMID_N] = { 0 };
    float c = s->gain / sqrtf(s->yy);
    for (int j = 0; j < PYRAMID_N; j++) {
        float sign = s->y[j] != 0 ? s->y[j] : s->hx[j] - c * s->hy[j];
        to[j] = sign < 0 ? -1.0f : 1.0f;
        least[j] = FLT_MAX;
    }
    for (int i = 0; i < PYRAMID_N; i++)
        if (s->y[i] != 0)
            try_from(s, i, to, least, from);
    int best = 0;
    for (int j = 1; j < PYRAMID_N; j++)
        best = least[j] < least[best] ? j : best;
    if (!(least[best] < s->loss - 1e-5f * s->xhx)) /* what rounding may feign */
        return false;
    s->y[from[best]] += s->y[from[best]] > 0 ? -1.0f : 1.0f;
    s->y[best] += to[best];
    return true;
}

/* From the point nearest in direction by moves of pulses; returns the level of the gain. The moves take a fifth (pvq2, pvq4)
 * or a tenth (pvq3) off the products' error in tests/unit/test_pvq.c. */
static int seek(struct search *s, const struct pvq_form *f, const float *x, float scale, int8_t *y)
{
    enum { MOVES = 32 };
    pyramid_project(x, f->k, y);
    for (int i = 0; i < PYRAMID_N; i++)
        s->y[i] = y[i];
    apply(s->h, x, s->hx);
    s->xhx = dot(x, s->hx);
    int level = judge(s, f, scale);
    for (int i = 0; i < MOVES && improve(s); i++)
        level = judge(s, f, scale);
    for (int i = 0; i < PYRAMID_N; i++)
        y[i] = (int8_t)s->y[i];
    return level;
}

struct press {
    struct weight *w;
    int row0;
    const float *scale; /* of the rows */
};

/* A feedback_fn. */
static void press_block(void *arg, int j0, int b, int n, const float *x, const float *metric,
                        float *q)
{
    const struct press *p = arg;
    const struct pvq_form *f = &pvq_form[p->w->variant];
    float h[PYRAMID_N][PYRAMID_N];
    struct search s = { .h = h };
    for (int i = 0; i < b; i++)
        for (int j = 0; j < b; j++)
            h[i][j] = dot(metric + i * b, metric + j * b);
    for (int r = 0; r < n; r++) {
        float v[PYRAMID_N];
        int8_t y[PYRAMID_N];
        for (int i = 0; i < PYRAMID_N; i++)
            v[i] = x[(size_t)i * (size_t)n + (size_t)r];
        int level = seek(&s, f, v, p->scale[r], y);
        float scale = pvq_scale(f->gain[level], p->scale[r], (int)s.yy);
        for (int i = 0; i < PYRAMID_N; i++)
            q[(size_t)i * (size_t)n + (size_t)r] = (float)y[i] * scale;
        store(p->w, p->row0 + r, j0 / PYRAMID_N, y, level);
    }
}

int pvq_press(struct weight *w, int row0, int n, const float *src, const struct moments *m,
              struct err *e)
{
    size_t size = (size_t)n * (size_t)w->cols;
    float *x = mem_alloc(3 * size * sizeof(float) + 2 * (size_t)n * sizeof(float));
    if (x == NULL)
        return err_set(e, ERR_NOMEM, "no memory to press %d rows of %d weights", n, w->cols);
    float *copy = x + size;
    float *q = copy + size;
    float *scale = q + size;
    float *factor = scale + n;
    for (int i = 0; i < n; i++)
        scale[i] = first_scale(&pvq_form[w->variant], src + (size_t)i * (size_t)w->cols, w->cols);
    feedback_turn(src, copy, n, w->cols);
    memcpy(x, copy, size * sizeof(float));
    struct press p = { w, row0, scale };
    int rc = feedback_run(m, x, q, n, PYRAMID_N, press_block, &p, e);
    if (rc == 0)
        rc = feedback_refit(m, copy, q, n, factor, e);
    for (int i = 0; i < n && rc == 0; i++)
        store_scale(w, row0 + i, scale[i] * factor[i]);
    mem_free(x);
    return rc;
}
