/* The walk of attention over keys: cuts rows into units, keys into spans and tiles, and merges spans in order.
 *
 * A unit is up to CPU_ATTEND_ROWS rows of one sequence and KV head. When units are many a thread takes a whole one;
 * when they are few or uneven (decode) its spans are separate work items, whose results wait in state->partial and are
 * merged afterwards by the same function in the same order. Which of the two happens does not change a bit.
 */
#include "kernels/cpu/attend.h"

#include <math.h>
#include <string.h>

struct walk {
    const struct be_attend *a;
    struct cpu_state *state;
    const struct attend_kernel *kernel;
    int group; /* query heads of a KV head */
    int n_units, n_items;
};

/* Result of a span, or of all spans so far, for the rows of a unit: m[n], l[n], o[n][dim]. */
struct result {
    float *m, *l, *o;
};

static const float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static struct result result_at(float *p, int n)
{
    return (struct result){ .m = p, .l = p + n, .o = p + 2 * n };
}

static size_t result_floats(int n, int dim)
{
    return (size_t)n * (size_t)(dim + 2);
}

/* ---- the plan ------------------------------------------------------------------------------------------------ */

/* First wide slot that the row at position pos sees. */
static int first_seen(const struct be_attend *a, const struct be_seq *q, int pos)
{
    int lo = q->kv.wide_pos0;
    return a->window ? max_int(lo, pos + 1 - a->window) : lo;
}

static int narrow_spans(const struct attend_unit *u)
{
    return (u->n_narrow + ATTEND_SPAN - 1) / ATTEND_SPAN;
}

static void unit_set(const struct walk *w, struct attend_unit *u, int i_seq, int kv_head, int row0,
                     int n_rows)
{
    const struct be_seq *q = &w->a->kv.seqs[i_seq];
    u->i_seq = i_seq;
    u->kv_head = kv_head;
    u->row0 = row0;
    u->n_rows = n_rows;
    u->lo = first_seen(w->a, q, q->pos0 + row0 / w->group);
    u->hi = q->pos0 + (row0 + n_rows - 1) / w->group + 1;
    u->n_narrow = q->kv.narrow ? q->kv.n_narrow[kv_head] : 0;
    u->n_spans = narrow_spans(u);
    if (u->lo < u->hi)
        u->n_spans += (u->hi - 1) / ATTEND_SPAN - u->lo / ATTEND_SPAN + 1;
}

/* Where the next wave begins. */
struct cursor {
    int i_seq, row, kv_head;
};

/* Fills the unit table from the cursor on. Long units come first within a sequence, so that no thread is left with one
 * at the end. */
static void plan_units(struct walk *w, struct cursor *c)
{
    const struct be_kv *kv = &w->a->kv;
    w->n_units = 0;
    for (; c->i_seq < kv->n_seqs; c->i_seq++, c->row = 0) {
        int n = kv->seqs[c->i_seq].n_rows * w->group;
        for (; c->row < n; c->row += CPU_ATTEND_ROWS, c->kv_head = 0) {
            int first = max_int(0, n - c->row - CPU_ATTEND_ROWS);
            for (; c->kv_head < kv->n_kv_heads; c->kv_head++) {
                if (w->n_units == CPU_ATTEND_UNITS)
                    return;
                unit_set(w, &w->state->units[w->n_units++], c->i_seq, c->kv_head, first,
                         n - c->row - first);
            }
        }
    }
}

/* Cuts the units of this wave into work items; returns about how many bytes of keys and values they touch. */
static size_t plan_items(struct walk *w, int n_threads)
{
    struct attend_unit *units = w->state->units;
    int64_t total = 0, longest = 0;
    for (int i = 0; i < w->n_units; i++) {
        int64_t slots = units[i].n_narrow + max_int(0, units[i].hi - units[i].lo);
        total += slots;
        longest = slots > longest ? slots : longest;
    }
    bool split = longest * 4 * n_threads > total && n_threads > 1;
    size_t used = 0;
    w->n_items = 0;
    for (int i = 0; i < w->n_units; i++) {
        struct attend_unit *u = &units[i];
        size_t need = (size_t)u->n_spans * result_floats(u->n_rows, w->a->kv.head_dim);
        u->item0 = w->n_items;
        u->partial = -1;
        if (split && u->n_spans > 1 && (used + need) * sizeof(float) <= CPU_PARTIAL_BYTES) {
            u->partial = (int64_t)used;
            used += need;
        }
        w->n_items += u->partial < 0 ? 1 : u->n_spans;
    }
    return (size_t)total * 2 * (size_t)w->a->kv.head_dim * kv_elem_bytes(w->a->kv.type);
}

/* ---- one span ------------------------------------------------------------------------------------------------ */

/* The slots of one kind that a unit walks: narrow ones, or wide ones by position. */
struct lane {
    const struct walk *w;
    const struct be_seq *seq;
    const struct attend_unit *unit;
    bool narrow;
    int lo, hi; /* slots of this span that some row sees */
};

/* The page of `slots` slots that holds slot `slot`, and its side. */
static const char *page_at(const struct lane *s, int slot, int slots, const float **side)
{
    const struct be_kv *kv = &s->w->a->kv;
    size_t block;
    *side = NULL;
    if (s->narrow) {
        block = (size_t)s->seq->kv.narrow[s->unit->kv_head][slot / slots];
        if (kv->beta)
            *side = kv->beta + block * kv_side_floats(kv->narrow_type);
    } else {
        size_t page = (size_t)s->seq->kv.wide[(slot - s->seq->kv.wide_pos0) / slots];
        block = page * (size_t)kv->n_kv_heads + (size_t)s->unit->kv_head;
    }
    return (const char *)kv->pool + block * kv_block_bytes(kv->type, kv->head_dim);
}

/* Pages of the tile at slot `tile`; a page outside [lo, hi) is replaced by one inside, and masked by its reader. */
static void tile_pages(const struct lane *s, int tile, struct attend_pages *p)
{
    const struct be_kv *kv = &s->w->a->kv;
    size_t half = kv_block_bytes(kv->type, kv->head_dim) / 2;
    p->scale = NULL;
    if (s->narrow && kv->narrow_type == KV_NARROW_Q8) {
        const float *side;
        const char *page = page_at(s, tile, KV_PAGE_Q8, &side);
        attend_pages_q8(p, page, side, half);
        return;
    }
    for (int i = 0; i < ATTEND_PAGES; i++) {
        int slot = tile + i * KV_PAGE;
        slot = max_int(slot, s->lo / KV_PAGE * KV_PAGE);
        slot = min_int(slot, (s->hi - 1) / KV_PAGE * KV_PAGE);
        const char *page = page_at(s, slot, KV_PAGE, &p->beta[i]);
        p->k[i] = page;
        p->v[i] = page + half;
    }
}

/* Which slots of the tile each row sees. */
static void tile_mask(const struct lane *s, int tile, struct attend_tile *t, int *lo, int *hi)
{
    const struct walk *w = s->w;
    t->lo_all = ATTEND_TILE;
    t->hi_all = 0;
    t->masked = false;
    for (int r = 0; r < s->unit->n_rows; r++) {
        int pos = s->seq->pos0 + (s->unit->row0 + r) / w->group;
        int from = s->narrow ? s->lo : max_int(s->lo, first_seen(w->a, s->seq, pos));
        int to = s->narrow ? s->hi : min_int(s->hi, pos + 1);
        lo[r] = min_int(max_int(from - tile, 0), ATTEND_TILE);
        hi[r] = max_int(min_int(to - tile, ATTEND_TILE), lo[r]);
        t->masked |= hi[r] - lo[r] < ATTEND_TILE;
        if (lo[r] < hi[r]) {
            t->lo_all = min_int(t->lo_all, lo[r]);
            t->hi_all = max_int(t->hi_all, hi[r]);
        }
    }
    t->lo = lo;
    t->hi = hi;
}

static void span_run(const struct lane *s, const struct attend_rows *rows)
{
    int lo[CPU_ATTEND_ROWS], hi[CPU_ATTEND_ROWS];
    struct attend_tile t;
    for (int r = 0; r < rows->n; r++)
        rows->m[r] = -INFINITY;
    memset(rows->l, 0, (size_t)rows->n * ATTEND_LANES * sizeof(float));
    memset(rows->o, 0, (size_t)rows->n * 2 * (size_t)rows->pitch * sizeof(float));
    if (s->lo >= s->hi)
        return;
    int tile = s->lo / ATTEND_TILE * ATTEND_TILE;
    tile_pages(s, tile, &t.next);
    for (; tile < s->hi; tile += ATTEND_TILE) {
        t.at = t.next;
        if (tile + ATTEND_TILE < s->hi)
            tile_pages(s, tile + ATTEND_TILE, &t.next);
        tile_mask(s, tile, &t, lo, hi);
        if (t.lo_all < t.hi_all)
            s->w->kernel->tile(rows, &t);
    }
}

/* Slots of span i of a unit. */
static struct lane span_at(const struct walk *w, const struct attend_unit *u, int i)
{
    struct lane s = { .w = w, .seq = &w->a->kv.seqs[u->i_seq], .unit = u };
    int n_narrow = narrow_spans(u);
    s.narrow = i < n_narrow;
    if (s.narrow) {
        s.lo = i * ATTEND_SPAN;
        s.hi = min_int(u->n_narrow, s.lo + ATTEND_SPAN);
    } else {
        int span = u->lo / ATTEND_SPAN + i - n_narrow;
        s.lo = max_int(u->lo, span * ATTEND_SPAN);
        s.hi = min_int(u->hi, (span + 1) * ATTEND_SPAN);
    }
    return s;
}

/* ---- results ------------------------------------------------------------------------------------------------- */

static void result_clear(struct result *t, int n, int dim)
{
    for (int r = 0; r < n; r++)
        t->m[r] = -INFINITY;
    memset(t->l, 0, (size_t)n * sizeof(float));
    memset(t->o, 0, (size_t)n * (size_t)dim * sizeof(float));
}

/* Adds one span of row r. A span of which the row saw nothing leaves the sum as it is. */
static void result_merge(struct result *t, int r, float m, float l, const float *o, int dim)
{
    if (m == -INFINITY && l == 0)
        return;
    float *sum = t->o + (size_t)r * (size_t)dim;
    float top = m <= t->m[r] ? t->m[r] : m;
    float f = t->m[r] == -INFINITY ? 0.0f : exp2f(t->m[r] - top), g = exp2f(m - top);
    t->m[r] = top;
    t->l[r] = t->l[r] * f + l * g;
    for (int i = 0; i < dim; i++)
        sum[i] = sum[i] * f + o[i] * g;
}

static void result_write(const struct walk *w, const struct attend_unit *u, const struct result *t)
{
    const struct be_attend *a = w->a;
    int dim = a->kv.head_dim;
    for (int r = 0; r < u->n_rows; r++) {
        int token = (u->row0 + r) / w->group, head = (u->row0 + r) % w->group;
        size_t at = (size_t)(a->kv.seqs[u->i_seq].row0 + token) * (size_t)a->n_heads +
                    (size_t)(u->kv_head * w->group + head);
        float f = t->l[r] == 0 ? 0 : 1 / t->l[r];
        for (int i = 0; i < dim; i++)
            a->out[at * (size_t)dim + (size_t)i] = t->o[(size_t)r * (size_t)dim + (size_t)i] * f;
        if (a->lse)
            a->lse[at] = t->l[r] == 0 ? -INFINITY : t->m[r] * LN2 + logf(t->l[r]);
    }
}

/* ---- work items ---------------------------------------------------------------------------------------------- */

_Static_assert((CPU_ATTEND_ROWS * (4 * BE_HEAD_DIM_MAX + 2 * ATTEND_LANES + 2) +
                3 * ATTEND_TILE * BE_HEAD_DIM_MAX) *
                       sizeof(float) <=
                   CPU_SCRATCH_BYTES,
               "scratch of a thread holds rows, a tile, a span and the sum of spans");

static void pack_rows(const struct walk *w, const struct attend_unit *u, struct attend_rows *rows)
{
    const struct be_attend *a = w->a;
    size_t row_bytes = (size_t)rows->pitch * sizeof(float);
    rows->n = u->n_rows;
    for (int r = 0; r < u->n_rows; r++) {
        int token = (u->row0 + r) / w->group, head = (u->row0 + r) % w->group;
        size_t at = (size_t)(a->kv.seqs[u->i_seq].row0 + token) * (size_t)a->n_heads +
                    (size_t)(u->kv_head * w->group + head);
        w->kernel->pack((char *)rows->q + (size_t)r * row_bytes, a->q + at * (size_t)rows->dim,
                        a->scale * LOG2E, rows->dim, rows->pitch);
    }
}

static void unit_whole(const struct walk *w, const struct attend_unit *u, struct attend_rows *rows,
                       float *rest)
{
    struct result sum = result_at(rest, u->n_rows);
    float *o = rest + result_floats(u->n_rows, rows->dim), l;
    result_clear(&sum, u->n_rows, rows->dim);
    for (int i = 0; i < u->n_spans; i++) {
        struct lane s = span_at(w, u, i);
        span_run(&s, rows);
        for (int r = 0; r < u->n_rows; r++) {
            w->kernel->finish(rows, r, &l, o);
            result_merge(&sum, r, rows->m[r], l, o, rows->dim);
        }
    }
    result_write(w, u, &sum);
}

static void unit_span(const struct walk *w, const struct attend_unit *u, int i,
                      struct attend_rows *rows)
{
    float *p = w->state->partial + u->partial + (size_t)i * result_floats(u->n_rows, rows->dim);
    struct result t = result_at(p, u->n_rows);
    struct lane s = span_at(w, u, i);
    span_run(&s, rows);
    memcpy(t.m, rows->m, (size_t)u->n_rows * sizeof(float));
    for (int r = 0; r < u->n_rows; r++)
        w->kernel->finish(rows, r, &t.l[r], t.o + (size_t)r * (size_t)rows->dim);
}

/* The unit that work item i belongs to. */
static const struct attend_unit *unit_of(const struct walk *w, int item)
{
    const struct attend_unit *units = w->state->units;
    int lo = 0, hi = w->n_units;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (units[mid].item0 <= item)
            lo = mid;
        else
            hi = mid;
    }
    return &units[lo];
}

static void run_items(void *arg, int first, int last, int i_thread)
{
    const struct walk *w = arg;
    struct attend_rows rows;
    const struct attend_unit *packed = NULL;
    float *scratch = (float *)(void *)(w->state->scratch + (size_t)i_thread * CPU_SCRATCH_BYTES);
    float *rest = scratch + attend_rows_floats(w->a->kv.head_dim);
    attend_rows_cut(&rows, scratch, w->a->kv.type, w->a->kv.head_dim);
    for (int i = first; i < last; i++) {
        const struct attend_unit *u = unit_of(w, i);
        if (u != packed)
            pack_rows(w, u, &rows);
        packed = u;
        if (u->partial < 0)
            unit_whole(w, u, &rows, rest);
        else
            unit_span(w, u, i - u->item0, &rows);
    }
}

static void merge_units(void *arg, int first, int last, int i_thread)
{
    const struct walk *w = arg;
    int dim = w->a->kv.head_dim;
    float *scratch = (float *)(void *)(w->state->scratch + (size_t)i_thread * CPU_SCRATCH_BYTES);
    for (int i = first; i < last; i++) {
        const struct attend_unit *u = &w->state->units[i];
        if (u->partial < 0)
            continue;
        struct result sum = result_at(scratch, u->n_rows);
        result_clear(&sum, u->n_rows, dim);
        for (int s = 0; s < u->n_spans; s++) {
            float *p = w->state->partial + u->partial + (size_t)s * result_floats(u->n_rows, dim);
            struct result t = result_at(p, u->n_rows);
            for (int r = 0; r < u->n_rows; r++)
                result_merge(&sum, r, t.m[r], t.l[r], t.o + (size_t)r * (size_t)dim, dim);
        }
        result_write(w, u, &sum);
    }
}

void cpu_attend(struct be *be, const struct be_attend *a)
{
    struct walk w = { .a = a, .state = cpu_state(be), .group = a->n_heads / a->kv.n_kv_heads };
    struct cursor c = { 0 };
    w.kernel = w.state->attend[a->kv.type];
    for (;;) {
        plan_units(&w, &c);
        if (!w.n_units)
            return;
        size_t bytes = plan_items(&w, par_threads(be->par));
        cpu_for(be, w.n_items, 1, bytes, run_items, &w);
        if (w.n_items > w.n_units)
            cpu_for(be, w.n_units, 1, (size_t)w.n_items * (size_t)a->kv.head_dim * 16, merge_units,
                    &w);
    }
}
