/* The definition of every op, in plain C. Faster files replace single slots and are tested against this one. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/elem.h"

/* ---- rows ---------------------------------------------------------------------------------------------------- */

struct rows {
    float *y, *x;
    const float *a, *w;
    const int32_t *index;
    int dim;
    float eps;
};

/* 1 / sqrt(mean(x^2) + eps), with the sum in 16 interleaved parts so that every vector width has the same bits. */
static float inv_rms(const float *x, int dim, float eps)
{
    float part[16] = { 0 };
    for (int i = 0; i < dim; i++)
        part[i % 16] += x[i] * x[i];
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++)
            part[j] += part[j + half];
    return 1.0f / sqrtf(part[0] / (float)dim + eps);
}

static void norm_row(float *y, const float *x, const float *w, int dim, float eps)
{
    float s = inv_rms(x, dim, eps);
    for (int i = 0; i < dim; i++)
        y[i] = x[i] * s * w[i];
}

static void add_row(float *x, const float *y, int dim)
{
    for (int i = 0; i < dim; i++)
        x[i] += y[i];
}

static void norm_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->dim;
        if (t->a)
            add_row(t->x + at, t->a + at, t->dim);
        norm_row(t->y + at, t->x + at, t->w, t->dim, t->eps);
    }
}

static void ref_rmsnorm(struct be *be, float *y, float *x, const float *add, const float *w, int n,
                        int dim, float eps)
{
    struct rows t = { .y = y, .x = x, .a = add, .w = w, .dim = dim, .eps = eps };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 4, norm_rows, &t);
}

static void add_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++)
        add_row(t->x + (size_t)r * (size_t)t->dim, t->a + (size_t)r * (size_t)t->dim, t->dim);
}

static void ref_add(struct be *be, float *x, const float *y, int n, int dim)
{
    struct rows t = { .x = x, .a = y, .dim = dim };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 4, add_rows, &t);
}

static void gather_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    size_t dim = (size_t)t->dim;
    (void)i_thread;
    for (int r = first; r < last; r++)
        memcpy(t->y + (size_t)r * dim, t->a + (size_t)t->index[r] * dim, dim * sizeof(float));
}

static void ref_gather(struct be *be, float *y, const float *x, const int32_t *row, int n, int dim)
{
    struct rows t = { .y = y, .a = x, .index = row, .dim = dim };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 4, gather_rows, &t);
}

static void swiglu_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    (void)i_thread;
    for (size_t i = (size_t)first * (size_t)t->dim; i < (size_t)last * (size_t)t->dim; i++)
        t->y[i] = t->a[i] / (1.0f + expf(-t->a[i])) * t->w[i];
}

static void ref_swiglu(struct be *be, float *y, const float *gate, const float *up, int n, int dim)
{
    struct rows t = { .y = y, .a = gate, .w = up, .dim = dim };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 16, swiglu_rows, &t);
}

/* ---- position ------------------------------------------------------------------------------------------------ */

struct rope {
    float *x, *table_cos, *table_sin;
    const float *cos, *sin, *norm, *inv_freq;
    const int32_t *pos;
    float eps, mscale;
    int n_heads, head_dim, half;
    bool half_split;
};

static void table_rows(void *arg, int first, int last, int i_thread)
{
    const struct rope *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        for (int i = 0; i < t->half; i++) {
            float angle = (float)t->pos[r] * t->inv_freq[i];
            t->table_cos[(size_t)r * (size_t)t->half + (size_t)i] = cosf(angle) * t->mscale;
            t->table_sin[(size_t)r * (size_t)t->half + (size_t)i] = sinf(angle) * t->mscale;
        }
    }
}

static void ref_rope_table(struct be *be, float *cos, float *sin, const int32_t *pos,
                           const float *inv_freq, float mscale, int n, int half)
{
    struct rope t = { .table_cos = cos,
                      .table_sin = sin,
                      .pos = pos,
                      .inv_freq = inv_freq,
                      .mscale = mscale,
                      .half = half };
    cpu_for(be, n, 0, (size_t)n * (size_t)half * 64, table_rows, &t);
}

static void rope_head(const struct rope *t, float *x, const float *cos, const float *sin)
{
    if (t->norm)
        norm_row(x, x, t->norm, t->head_dim, t->eps);
    for (int i = 0; i < t->half; i++) {
        float *a = t->half_split ? x + i : x + 2 * i;
        float *b = t->half_split ? x + i + t->half : x + 2 * i + 1;
        float a0 = *a, b0 = *b;
        *a = a0 * cos[i] - b0 * sin[i];
        *b = a0 * sin[i] + b0 * cos[i];
    }
}

static void rope_rows(void *arg, int first, int last, int i_thread)
{
    const struct rope *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->half;
        for (int h = 0; h < t->n_heads; h++)
            rope_head(t, t->x + ((size_t)r * (size_t)t->n_heads + (size_t)h) * (size_t)t->head_dim,
                      t->cos + at, t->sin + at);
    }
}

static void ref_rope(struct be *be, float *x, const float *cos, const float *sin, const float *norm,
                     float eps, int n, int n_heads, int head_dim, int half, bool half_split)
{
    struct rope t = { .x = x,
                      .cos = cos,
                      .sin = sin,
                      .norm = norm,
                      .eps = eps,
                      .n_heads = n_heads,
                      .head_dim = head_dim,
                      .half = half,
                      .half_split = half_split };
    cpu_for(be, n, 0, (size_t)n * (size_t)(n_heads * head_dim) * 4, rope_rows, &t);
}

/* ---- cache ----------------------------------------------------------------------------------------------------- */

static char *block_at(const struct be_kv *kv, size_t block)
{
    return (char *)kv->pool + block * kv_block_bytes(kv->type, kv->head_dim);
}

static void *block_values(const struct be_kv *kv, char *block)
{
    return block + kv_block_bytes(kv->type, kv->head_dim) / 2;
}

static void ref_kv_append(struct be *be, const struct be_kv *kv, const float *k, const float *v)
{
    (void)be;
    for (int s = 0; s < kv->n_seqs; s++) {
        const struct be_seq *q = &kv->seqs[s];
        for (int r = 0; r < q->n_rows; r++) {
            int at = q->pos0 + r - q->kv.wide_pos0, slot = at % KV_PAGE;
            size_t page = (size_t)q->kv.wide[at / KV_PAGE];
            for (int h = 0; h < kv->n_kv_heads; h++) {
                char *block = block_at(kv, page * (size_t)kv->n_kv_heads + (size_t)h);
                size_t row = (size_t)(q->row0 + r) * (size_t)kv->n_kv_heads + (size_t)h;
                for (int i = 0; i < kv->head_dim; i++) {
                    size_t j = row * (size_t)kv->head_dim + (size_t)i;
                    kv_put(kv->type, block, kv_k_index(slot, i), k[j]);
                    kv_put(kv->type, block_values(kv, block), kv_v_index(slot, i, kv->head_dim),
                           v[j]);
                    if (r == q->n_rows - 1 && slot % 2 == 0)
                        kv_put(kv->type, block_values(kv, block),
                               kv_v_index(slot + 1, i, kv->head_dim), 0);
                }
            }
        }
    }
}

struct keep_rows {
    const struct be_keep *keep;
    const float *q, *lse;
    enum kv_type type;
    int n_heads, head_dim;
};

static void keep_record(const struct keep_rows *t, int r, char *record)
{
    size_t heads = (size_t)t->n_heads, n = heads * (size_t)t->head_dim;
    if (record == NULL)
        return;
    for (size_t i = 0; i < n; i++)
        kv_put(t->type, record, i, t->q[(size_t)r * n + i]);
    memcpy(record + kv_record_lse(t->type, t->n_heads, t->head_dim), t->lse + (size_t)r * heads,
           heads * sizeof(float));
}

static void keep_rows(void *arg, int first, int last, int i_thread)
{
    const struct keep_rows *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        keep_record(t, r, t->keep[r].sample);
        keep_record(t, r, t->keep[r].window);
    }
}

/* Few rows are kept, so what counts as work are the records. */
static void ref_query_keep(struct be *be, const struct be_keep *keep, const float *q,
                           const float *lse, enum kv_type type, int n, int n_heads, int head_dim)
{
    struct keep_rows t = { keep, q, lse, type, n_heads, head_dim };
    size_t records = 0;
    for (int r = 0; r < n; r++)
        records += (size_t)(keep[r].sample != NULL) + (keep[r].window != NULL);
    cpu_for(be, n, 0, records * (size_t)(n_heads * head_dim) * 8, keep_rows, &t);
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

/* A softmax-weighted sum in the making: sum_j exp(s_j - m) and sum_j exp(s_j - m) v_j. */
struct softsum {
    float m, l;
    float o[BE_HEAD_DIM_MAX];
};

static void softsum_clear(struct softsum *s, int head_dim)
{
    s->m = -INFINITY;
    s->l = 0;
    memset(s->o, 0, (size_t)head_dim * sizeof(float));
}

/* Makes m the maximum; what is there is scaled down. Nothing there: nothing to scale. */
static void softsum_raise(struct softsum *s, float m, int head_dim)
{
    float f = s->m == -INFINITY ? 0.0f : expf(s->m - m);
    s->m = m;
    s->l *= f;
    for (int i = 0; i < head_dim; i++)
        s->o[i] *= f;
}

static void softsum_merge(struct softsum *a, const struct softsum *b, int head_dim)
{
    if (b->m == -INFINITY)
        return;
    if (!(b->m <= a->m))
        softsum_raise(a, b->m, head_dim);
    float f = expf(b->m - a->m);
    a->l += b->l * f;
    for (int i = 0; i < head_dim; i++)
        a->o[i] += b->o[i] * f;
}

/* One query vector and the slots of its KV head: the narrow ones, or the wide ones numbered by position. */
struct lane {
    const struct be_attend *a;
    const struct kv_view *view;
    const float *q;
    int kv_head;
    bool narrow;
};

/* Where a slot lies, and its bias. */
static struct kv_slot_at lane_slot(const struct lane *t, int slot, float *bias)
{
    const struct be_kv *kv = &t->a->kv;
    enum kv_narrow type = t->narrow ? kv->narrow_type : KV_NARROW_SAME;
    int page = kv_narrow_slots(type);
    const float *side = NULL;
    size_t block;
    if (t->narrow) {
        block = (size_t)t->view->narrow[t->kv_head][slot / page];
        side = kv->beta ? kv->beta + block * kv_side_floats(type) : NULL;
    } else {
        block =
            (size_t)t->view->wide[(slot - t->view->wide_pos0) / KV_PAGE] * (size_t)kv->n_kv_heads +
            (size_t)t->kv_head;
    }
    *bias = side ? side[slot % page] : 0;
    return (struct kv_slot_at){ .block = block_at(kv, block),
                                .side = type == KV_NARROW_Q8 ? side : NULL,
                                .type = kv->type,
                                .slot = slot % page,
                                .dim = kv->head_dim };
}

static float lane_score(const struct lane *t, int slot)
{
    float s = 0, bias;
    struct kv_slot_at at = lane_slot(t, slot, &bias);
    for (int i = 0; i < at.dim; i++)
        s += t->q[i] * kv_key_at(&at, i);
    return s * t->a->scale + bias;
}

/* Slots [lo, hi) of one tile. */
static void lane_tile(const struct lane *t, int lo, int hi, struct softsum *sum)
{
    const struct be_kv *kv = &t->a->kv;
    float s[ATTEND_TILE], m = sum->m;
    for (int j = lo; j < hi; j++) {
        s[j - lo] = lane_score(t, j);
        if (!(s[j - lo] <= m))
            m = s[j - lo];
    }
    if (m == -INFINITY)
        return;
    softsum_raise(sum, m, kv->head_dim);
    for (int j = lo; j < hi; j++) {
        float p = expf(s[j - lo] - m), bias;
        struct kv_slot_at at = lane_slot(t, j, &bias);
        sum->l += p;
        for (int i = 0; i < at.dim; i++)
            sum->o[i] += p * kv_value_at(&at, i);
    }
}

/* Slots [lo, hi), cut at multiples of the span and of the tile. */
static void lane_spans(const struct lane *t, int lo, int hi, struct softsum *total)
{
    struct softsum span;
    while (lo < hi) {
        int end = min_int(hi, (lo / ATTEND_SPAN + 1) * ATTEND_SPAN);
        softsum_clear(&span, t->a->kv.head_dim);
        while (lo < end) {
            int next = min_int(end, (lo / ATTEND_TILE + 1) * ATTEND_TILE);
            lane_tile(t, lo, next, &span);
            lo = next;
        }
        softsum_merge(total, &span, t->a->kv.head_dim);
    }
}

struct attend_rows {
    const struct be_attend *a;
    const struct be_seq *seq;
};

static void attend_head(const struct attend_rows *t, int r, int h)
{
    const struct be_attend *a = t->a;
    int dim = a->kv.head_dim, pos = t->seq->pos0 + r;
    size_t at = (size_t)(t->seq->row0 + r) * (size_t)a->n_heads + (size_t)h;
    struct lane lane = { .a = a,
                         .view = &t->seq->kv,
                         .q = a->q + at * (size_t)dim,
                         .kv_head = h / (a->n_heads / a->kv.n_kv_heads) };
    struct softsum sum;
    softsum_clear(&sum, dim);
    if (lane.view->narrow) {
        lane.narrow = true;
        lane_spans(&lane, 0, lane.view->n_narrow[lane.kv_head], &sum);
        lane.narrow = false;
    }
    int lo = lane.view->wide_pos0;
    if (a->window && pos + 1 - a->window > lo)
        lo = pos + 1 - a->window;
    lane_spans(&lane, lo, pos + 1, &sum);
    for (int i = 0; i < dim; i++)
        a->out[at * (size_t)dim + (size_t)i] = sum.l == 0 ? 0 : sum.o[i] / sum.l;
    if (a->lse)
        a->lse[at] = sum.l == 0 ? -INFINITY : sum.m + logf(sum.l);
}

static void attend_rows(void *arg, int first, int last, int i_thread)
{
    const struct attend_rows *t = arg;
    (void)i_thread;
    for (int i = first; i < last; i++)
        attend_head(t, i / t->a->n_heads, i % t->a->n_heads);
}

static void ref_attend(struct be *be, const struct be_attend *a)
{
    for (int s = 0; s < a->kv.n_seqs; s++) {
        struct attend_rows t = { .a = a, .seq = &a->kv.seqs[s] };
        par_for(be->par, t.seq->n_rows * a->n_heads, 1, attend_rows, &t);
    }
}

void cpu_ops_ref(struct be_ops *ops)
{
    ops->rmsnorm = ref_rmsnorm;
    ops->add = ref_add;
    ops->gather = ref_gather;
    ops->swiglu = ref_swiglu;
    ops->rope_table = ref_rope_table;
    ops->rope = ref_rope;
    ops->kv_append = ref_kv_append;
    ops->attend = ref_attend;
    ops->query_keep = ref_query_keep;
}
