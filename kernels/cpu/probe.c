/* Probing one KV head (kernels/probe.h): the definition in plain C, and the walk of the faster levels over its slots.
 *
 * The walk takes CPU_ATTEND_ROWS queries at a time past tiles of ATTEND_TILE slots, the narrow ones, then the wide ones,
 * with attention's own kernels (attend.h). Unlike attention's walk it has no spans to share out: one thread does a
 * head, one softmax runs over all of its tiles.
 */
#include "kernels/probe.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/elem.h"

static const float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;

/* The wide slots that query i sees are those below: */
static int wide_seen(const struct probe_head *h, const struct probe_queries *q, int i)
{
    if (!q->see || q->see[i] > h->n_wide)
        return h->n_wide;
    return q->see[i] < 0 ? 0 : q->see[i];
}

static const char *block_at(const struct probe_head *h, int32_t block)
{
    return (const char *)h->pool + (size_t)block * kv_block_bytes(h->type, h->dim);
}

/* The side of a narrow page; NULL: no slot has a bias. */
static const float *side_at(const struct probe_head *h, int32_t block)
{
    return h->beta ? h->beta + (size_t)block * kv_side_floats(h->narrow_type) : NULL;
}

/* Where a slot is, and its bias. */
static struct kv_slot_at place_of(const struct probe_head *h, int slot, float *bias)
{
    bool narrow = slot < h->n_narrow;
    enum kv_narrow type = narrow ? h->narrow_type : KV_NARROW_SAME;
    int s = narrow ? slot : slot - h->n_narrow, page = kv_narrow_slots(type);
    int32_t block = (narrow ? h->narrow : h->wide)[s / page];
    const float *side = narrow ? side_at(h, block) : NULL;
    *bias = side ? side[s % page] : 0;
    return (struct kv_slot_at){ .block = block_at(h, block),
                                .side = type == KV_NARROW_Q8 ? side : NULL,
                                .type = h->type,
                                .slot = s % page,
                                .dim = h->dim };
}

/* ---- the definition ------------------------------------------------------------------------------------------------- */

/* x_ij */
static double ref_logit(const struct probe_head *h, const float *q, int slot)
{
    double dot = 0;
    float bias;
    struct kv_slot_at at = place_of(h, slot, &bias);
    for (int i = 0; i < h->dim; i++)
        dot += (double)q[i] * (double)kv_key_at(&at, i);
    return (double)h->scale * dot + (double)bias;
}

/* One query; m is the largest logit so far, l and out the sums of exp(x - m) and exp(x - m) v. */
static float ref_attend_one(const struct probe_head *h, const float *q, int n_seen, float *o)
{
    double m = -INFINITY, l = 0, out[BE_HEAD_DIM_MAX] = { 0 };
    for (int j = 0; j < n_seen; j++) {
        float bias;
        struct kv_slot_at at = place_of(h, j, &bias);
        double x = ref_logit(h, q, j);
        if (x == -INFINITY)
            continue;
        double down = x > m ? exp(m - x) : 1;
        m = x > m ? x : m;
        double p = exp(x - m);
        l = l * down + p;
        for (int i = 0; i < h->dim; i++)
            out[i] = out[i] * down + p * (double)kv_value_at(&at, i);
    }
    for (int i = 0; i < h->dim; i++)
        o[i] = l == 0 ? 0 : (float)(out[i] / l);
    return l == 0 ? -INFINITY : (float)(m + log(l));
}

static void ref_attend(const struct probe_head *h, const struct probe_queries *q, float *o,
                       float *lse)
{
    for (int i = 0; i < q->n; i++) {
        size_t at = (size_t)i * (size_t)h->dim;
        lse[i] = ref_attend_one(h, q->q + at, h->n_narrow + wide_seen(h, q, i), o + at);
    }
}

static void ref_sums(const struct probe_head *h, const struct probe_queries *q, const float *lse,
                     const float *weight, float *sum, float *square)
{
    for (int j = 0; j < h->n_narrow + h->n_wide; j++) {
        double s = 0, s2 = 0;
        for (int i = 0; i < q->n; i++) {
            if (j >= h->n_narrow + wide_seen(h, q, i) || lse[i] == -INFINITY)
                continue;
            double p = exp(ref_logit(h, q->q + (size_t)i * (size_t)h->dim, j) - (double)lse[i]);
            s += (double)weight[i] * p;
            s2 += (double)weight[i] * p * p;
        }
        sum[j] += (float)s;
        if (square)
            square[j] += (float)s2;
    }
}

/* ---- the walk ------------------------------------------------------------------------------------------------------- */

/* Up to CPU_ATTEND_ROWS queries on their way past the slots: for attention, or (sum not NULL) for column sums. */
struct walk {
    const struct attend_kernel *kernel;
    const struct probe_head *h;
    struct attend_rows rows;
    int n_see[CPU_ATTEND_ROWS]; /* wide slots that a row sees */
    int n_wide;                 /* the most of them */
    const float *weight;        /* [rows.n] */
    float *sum, *square;        /* over all slots of the head; square may be NULL */
};

/* Rows from `first` on. */
static struct attend_rows rows_from(const struct attend_rows *all, int first)
{
    struct attend_rows r = *all;
    size_t at = (size_t)first, pitch = (size_t)all->pitch;
    r.n -= first;
    r.q = (char *)all->q + at * pitch * sizeof(float);
    r.m += at;
    r.l += at * ATTEND_LANES;
    r.o += at * 2 * pitch;
    return r;
}

/* A tile's pages; one from slot n on is replaced by the first, and masked by its reader. */
static void tile_pages(const struct probe_head *h, bool narrow, int tile, int n,
                       struct attend_pages *p)
{
    size_t half = kv_block_bytes(h->type, h->dim) / 2;
    p->scale = NULL;
    if (narrow && h->narrow_type == KV_NARROW_Q8) {
        int32_t block = h->narrow[tile / KV_PAGE_Q8];
        attend_pages_q8(p, block_at(h, block), side_at(h, block), half);
        return;
    }
    for (int i = 0; i < ATTEND_PAGES; i++) {
        int slot = tile + i * KV_PAGE;
        int32_t block = (narrow ? h->narrow : h->wide)[(slot < n ? slot : tile) / KV_PAGE];
        p->k[i] = block_at(h, block);
        p->v[i] = block_at(h, block) + half;
        p->beta[i] = narrow ? side_at(h, block) : NULL;
    }
}

/* Which of the tile's slots each row sees, hi[r] of them; returns the first row that sees any. */
static int tile_mask(const struct walk *w, bool narrow, int tile, struct attend_tile *t, int *hi)
{
    int first = w->rows.n;
    t->hi_all = 0;
    for (int r = w->rows.n - 1; r >= 0; r--) {
        int left = (narrow ? w->h->n_narrow : w->n_see[r]) - tile;
        hi[r] = left < 0 ? 0 : min_int(left, ATTEND_TILE);
        first = hi[r] ? r : first;
        t->hi_all = hi[r] > t->hi_all ? hi[r] : t->hi_all;
    }
    t->masked = false;
    for (int r = first; r < w->rows.n; r++)
        t->masked |= hi[r] < ATTEND_TILE;
    return first;
}

/* The tile whose first slot is `slot` of the head. */
static void tile_run(const struct walk *w, const struct attend_tile *t, int first, int slot)
{
    struct attend_rows rows = rows_from(&w->rows, first);
    if (!w->sum) {
        w->kernel->tile(&rows, t);
        return;
    }
    float sum[ATTEND_TILE] = { 0 }, square[ATTEND_TILE] = { 0 };
    w->kernel->sums(&rows, t, w->weight + first, sum, square);
    for (int j = 0; j < t->hi_all; j++)
        w->sum[slot + j] += sum[j];
    for (int j = 0; j < t->hi_all && w->square; j++)
        w->square[slot + j] += square[j];
}

static void walk_slots(const struct walk *w, bool narrow)
{
    static const int none[CPU_ATTEND_ROWS];
    int n = narrow ? w->h->n_narrow : w->n_wide, hi[CPU_ATTEND_ROWS];
    struct attend_tile t;
    for (int tile = 0; tile < n; tile += ATTEND_TILE) {
        if (tile == 0)
            tile_pages(w->h, narrow, 0, n, &t.at);
        else
            t.at = t.next;
        int after = tile + ATTEND_TILE < n ? tile + ATTEND_TILE : tile;
        tile_pages(w->h, narrow, after, n, &t.next);
        int first = tile_mask(w, narrow, tile, &t, hi);
        t.lo = none;
        t.hi = hi + first;
        t.lo_all = 0;
        tile_run(w, &t, first, tile + (narrow ? 0 : w->h->n_narrow));
    }
}

/* Takes the queries from row0 on past all slots; m, and for attention l and o, are set. */
static void walk_rows(struct walk *w, const struct probe_queries *q, int row0)
{
    const struct probe_head *h = w->h;
    struct attend_rows *rows = &w->rows;
    rows->n = min_int(q->n - row0, CPU_ATTEND_ROWS);
    w->n_wide = 0;
    for (int r = 0; r < rows->n; r++) {
        w->kernel->pack((char *)rows->q + (size_t)r * (size_t)rows->pitch * sizeof(float),
                        q->q + (size_t)(row0 + r) * (size_t)h->dim, h->scale * LOG2E, h->dim,
                        rows->pitch);
        w->n_see[r] = wide_seen(h, q, row0 + r);
        w->n_wide = w->n_see[r] > w->n_wide ? w->n_see[r] : w->n_wide;
    }
    walk_slots(w, true);
    walk_slots(w, false);
}

static struct walk walk_open(enum cpu_isa isa, const struct probe_head *h, void *scratch)
{
    struct walk w = { .kernel = attend_kernel_of(isa, h->type), .h = h };
    attend_rows_cut(&w.rows, scratch, h->type, h->dim);
    return w;
}

static void walk_attend(struct walk *w, const struct probe_queries *q, float *o, float *lse)
{
    struct attend_rows *rows = &w->rows;
    for (int row0 = 0; row0 < q->n; row0 += CPU_ATTEND_ROWS) {
        for (int r = 0; r < CPU_ATTEND_ROWS; r++)
            rows->m[r] = -INFINITY;
        memset(rows->l, 0, sizeof(float) * CPU_ATTEND_ROWS * ATTEND_LANES);
        memset(rows->o, 0, sizeof(float) * CPU_ATTEND_ROWS * 2 * (size_t)rows->pitch);
        walk_rows(w, q, row0);
        for (int r = 0; r < rows->n; r++) {
            float l, *out = o + (size_t)(row0 + r) * (size_t)rows->dim;
            w->kernel->finish(rows, r, &l, out);
            float f = l == 0 ? 0 : 1 / l;
            for (int i = 0; i < rows->dim; i++)
                out[i] *= f;
            lse[row0 + r] = l == 0 ? -INFINITY : rows->m[r] * LN2 + logf(l);
        }
    }
}

static void walk_sums(struct walk *w, const struct probe_queries *q, const float *lse,
                      const float *weight)
{
    for (int row0 = 0; row0 < q->n; row0 += CPU_ATTEND_ROWS) {
        int n = min_int(q->n - row0, CPU_ATTEND_ROWS);
        for (int r = 0; r < n; r++)
            w->rows.m[r] = lse[row0 + r] == -INFINITY ? INFINITY : lse[row0 + r] * LOG2E;
        w->weight = weight + row0;
        walk_rows(w, q, row0);
    }
}

/* ---- the doors ------------------------------------------------------------------------------------------------------ */

size_t probe_scratch_bytes(int dim)
{
    return attend_rows_floats(dim) * sizeof(float);
}

void probe_attend(enum cpu_isa isa, const struct probe_head *h, const struct probe_queries *q,
                  float *o, float *lse, void *scratch)
{
    if (isa == CPU_REF) {
        ref_attend(h, q, o, lse);
        return;
    }
    struct walk w = walk_open(isa, h, scratch);
    walk_attend(&w, q, o, lse);
}

void probe_sums(enum cpu_isa isa, const struct probe_head *h, const struct probe_queries *q,
                const float *lse, const float *weight, float *sum, float *square, void *scratch)
{
    if (isa == CPU_REF) {
        ref_sums(h, q, lse, weight, sum, square);
        return;
    }
    struct walk w = walk_open(isa, h, scratch);
    w.sum = sum;
    w.square = square;
    walk_sums(&w, q, lse, weight);
}

void probe_gather(const struct probe_head *h, const int32_t *slot, int n, float *k, float *v)
{
    for (int j = 0; j < n; j++) {
        float bias;
        struct kv_slot_at at = place_of(h, slot[j], &bias);
        size_t row = (size_t)j * (size_t)h->dim;
        kv_slot_floats(&at, k ? k + row : NULL, v ? v + row : NULL);
    }
}
