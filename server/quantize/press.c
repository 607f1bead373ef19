#include <math.h>
#include <stdatomic.h>

#include "quant/moments.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

struct shard {
    struct quantize *q;
    int layer;
    struct pressed *p; /* its matrices */
    int n;
};

static bool belongs(const struct slot *s, int layer)
{
    return s->w != NULL && s->w->codec != NULL && quantize_layer_of(s->name) == layer;
}

static void close_shard(struct shard *s)
{
    for (int i = 0; i < s->n; i++)
        weight_close(&s->p[i].w, s->q->session.be);
    mem_free(s->p);
}

static int open_shard(struct shard *s, struct quantize *q, int layer, struct err *e)
{
    const struct model *m = q->model;
    *s = (struct shard){ .q = q, .layer = layer };
    s->p = mem_zalloc((size_t)m->n_slots, sizeof *s->p);
    if (s->p == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d matrices", m->n_slots);
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *t = &m->slot[i];
        if (!belongs(t, layer))
            continue;
        struct pressed *p = &s->p[s->n++];
        p->slot = t;
        const char *word = layer < 0 ? quantize_head(q->config) : quantize_form(q, t);
        int rc = weight_open_press(&p->w, q->session.be, word, t->rows, t->cols, e);
        if (rc < 0) {
            close_shard(s);
            return err_prefix(e, "%s", t->name);
        }
    }
    return 0;
}

void quantize_row(const struct quantize *q, const struct pressed *p, int row, float *dst)
{
    weight_row(p->slot->w, hf_row_of(&q->model->config, p->slot->name, row), dst);
}

/* ---- pressing ---------------------------------------------------------------------------------------------------- */

/* One loop over the units of the matrices that share moments. */
struct press {
    struct shard *s;
    const struct moments *m;
    float *scratch; /* [threads][2][step] */
    size_t step;
    atomic_bool failed;
    struct err err; /* of the one that failed first */
};

/* n rows to dst. A damaged source must not become a model that looks sound. */
static int read_rows(const struct quantize *q, const struct pressed *p, int row0, int n, float *dst,
                     struct err *e)
{
    for (int r = row0; r < row0 + n; r++, dst += p->w.cols) {
        quantize_row(q, p, r, dst);
        for (int k = 0; k < p->w.cols; k++)
            if (!isfinite(dst[k]))
                return err_set(e, ERR_FORMAT, "%s: row %d has a weight that is no number",
                               p->slot->name, r);
    }
    return 0;
}

static int press_unit(struct press *l, struct pressed *p, int row0, float *src, struct err *e)
{
    int step = codec_step(p->w.codec);
    int n = p->w.rows - row0 < step ? p->w.rows - row0 : step;
    size_t cols = (size_t)p->w.cols;
    TRY(read_rows(l->s->q, p, row0, n, src, e));
    TRY(weight_press(&p->w, row0, n, src, src + l->step, l->m, e));
    if (l->s->layer >= 0)
        progress_add(&l->s->q->bar, (uint64_t)n * cols);
    return 0;
}

static void press_units(void *arg, int first, int last, int i_thread)
{
    struct press *l = arg;
    float *src = l->scratch + (size_t)i_thread * 2 * l->step;
    struct err e;
    int i = 0;
    for (int u = first; u < last && !atomic_load(&l->failed) && !fetch_cancelled(); u++) {
        while (u >= l->s->p[i].end)
            i++;
        struct pressed *p = &l->s->p[i];
        int unit = u - (i > 0 ? p[-1].end : 0);
        int rc = press_unit(l, p, unit * codec_step(p->w.codec), src, &e);
        if (rc < 0 && !atomic_exchange(&l->failed, true))
            l->err = e;
    }
}

/* A matrix that is pressed as a whole: what has been told of it. */
struct whole {
    struct shard *s;
    double weights, told;
};

static bool go_on(void *arg, double done)
{
    struct whole *l = arg;
    double now = floor(done * l->weights);
    if (l->s->layer >= 0)
        progress_add(&l->s->q->bar, (uint64_t)(now - l->told));
    l->told = now;
    return !fetch_cancelled();
}

static int press_whole(struct shard *s, struct pressed *p, const struct moments *m, struct err *e)
{
    size_t cols = (size_t)p->w.cols, n = (size_t)p->w.rows * cols;
    struct whole l = { .s = s, .weights = (double)n };
    struct press_watch watch = { go_on, &l };
    float *src = mem_alloc(n * sizeof *src);
    if (src == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d x %d weights", p->w.rows, p->w.cols);
    int rc = read_rows(s->q, p, 0, p->w.rows, src, e);
    if (rc == 0)
        rc = p->w.codec->press_all(&p->w, src, m, s->q->session.be->par, &watch, e);
    mem_free(src);
    return rc;
}

/* Matrices that are pressed with the same moments: of one input, in one space, in one order. */
struct group {
    enum layer_input what;
    bool rotated, ordered;
};

static bool chosen(const struct pressed *p, struct group g)
{
    const struct codec *c = weight_coder(&p->w);
    return p->slot->reads == g.what && c->rotated == g.rotated && c->ordered == g.ordered;
}

/* Counts the units of the matrices chosen; of the others, and of those pressed as a whole, there are none. */
static int count_units(struct press *l, struct group g)
{
    int total = 0;
    for (int i = 0; i < l->s->n; i++) {
        struct pressed *p = &l->s->p[i];
        if (chosen(p, g) && p->w.codec->press_all == NULL) {
            int step = codec_step(p->w.codec);
            size_t floats = (size_t)step * (size_t)p->w.cols;
            l->step = floats > l->step ? floats : l->step;
            total += (p->w.rows + step - 1) / step;
        }
        p->end = total;
    }
    return total;
}

/* What a codec wants to see of the whole matrix first. */
static int plan(const struct quantize *q, struct pressed *p, struct err *e)
{
    size_t rows = (size_t)p->w.rows;
    size_t floats = rows * (size_t)p->w.cols;
    if (p->w.codec->plan == NULL)
        return 0;
    float *src = mem_zalloc(2 * floats + rows, sizeof *src);
    if (src == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the numbers of %s", p->slot->name);
    float *share = src + 2 * floats;
    const float *from = quantize_shares(q, p->slot);
    for (int r = 0; from != NULL && r < p->w.rows; r++)
        share[r] = from[hf_row_of(&q->model->config, p->slot->name, r)];
    int rc = read_rows(q, p, 0, p->w.rows, src, e);
    if (rc == 0)
        rc = weight_plan(&p->w, src, from != NULL ? share : NULL, src + floats, q->session.be->isa,
                         e);
    mem_free(src);
    return rc;
}

static int press_chosen(struct shard *s, struct group g, const struct moments *m, struct err *e)
{
    struct par *par = s->q->session.be->par;
    struct press l = { .s = s, .m = m };
    for (int i = 0; i < s->n && !fetch_cancelled(); i++) {
        if (!chosen(&s->p[i], g))
            continue;
        TRY(plan(s->q, &s->p[i], e));
        if (s->p[i].w.codec->press_all != NULL)
            TRY(press_whole(s, &s->p[i], m, e));
    }
    if (fetch_cancelled())
        return err_set(e, ERR_CANCELLED, "stopped");
    int units = count_units(&l, g);
    if (units == 0)
        return 0;
    l.scratch = mem_zalloc((size_t)par_threads(par) * 2 * l.step, sizeof(float));
    if (l.scratch == NULL)
        return err_set(e, ERR_NOMEM, "no memory to press %zu numbers at a time", l.step);
    par_for(par, units, 1, press_units, &l);
    mem_free(l.scratch);
    if (l.failed)
        return err_set(e, l.err.code, "%s", l.err.text);
    return fetch_cancelled() ? err_set(e, ERR_CANCELLED, "stopped") : 0;
}

static int press_group(struct shard *s, struct group g, const struct sums *sums, struct err *e)
{
    const struct be *be = s->q->session.be;
    struct moments m;
    bool any = false, want = false;
    for (int i = 0; i < s->n; i++)
        if (chosen(&s->p[i], g)) {
            any = true;
            want |= s->p[i].w.codec->press != NULL || s->p[i].w.codec->press_all != NULL;
        }
    if (!any)
        return 0;
    if (!want || sums == NULL)
        return press_chosen(s, g, NULL, e);
    TRY(moments_open(&m, sums->h[g.what], sums->n_rows, sums->cols[g.what], g.rotated,
                     (float)s->q->config->damp, be->isa, be->par, e));
    int rc = g.ordered ? moments_reorder(&m, be->par, e) : 0;
    if (rc == 0)
        rc = press_chosen(s, g, &m, e);
    moments_close(&m);
    return rc;
}

static int press_all(struct shard *s, const struct sums *sums, struct err *e)
{
    for (enum layer_input what = INPUT_OF_NONE; what < LAYER_INPUTS; what++)
        for (int i = 0; i < 4; i++)
            TRY(press_group(s, (struct group){ what, i & 1, i & 2 }, sums, e));
    return quantize_loss(s->q, s->p, s->n, sums, e);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int write_vector(struct quantize *q, const struct slot *t, struct err *e)
{
    float *v = mem_zalloc((size_t)t->rows, sizeof *v);
    if (v == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %s", t->name);
    for (int i = 0; i < t->rows; i++)
        v[i] = (*t->v)[hf_row_of(&q->model->config, t->name, i)];
    int rc = hf_write_vector(q->out, t->name, v, t->rows, e);
    mem_free(v);
    return rc;
}

/* The notes come first: a shard that is there has its notes. */
static int write_shard(struct shard *s, struct err *e)
{
    struct quantize *q = s->q;
    hf_write_shard_begin(q->out, s->layer + 1);
    for (int i = 0; i < s->n; i++) {
        TRY(hf_write_weight(q->out, s->p[i].slot->name, &s->p[i].w, e));
        TRY(quantize_state_note(q, &s->p[i], e));
    }
    for (int i = 0; i < q->model->n_slots; i++) {
        const struct slot *t = &q->model->slot[i];
        if (t->v != NULL && *t->v != NULL && quantize_layer_of(t->name) == s->layer)
            TRY(write_vector(q, t, e));
    }
    TRY(quantize_state_save(q, e));
    return hf_write_shard_end(q->out, e);
}

int quantize_shard(struct quantize *q, int layer, const struct sums *sums, struct err *e)
{
    struct shard s;
    TRY(open_shard(&s, q, layer, e));
    int rc = press_all(&s, sums, e);
    if (rc == 0)
        rc = write_shard(&s, e);
    close_shard(&s);
    return rc;
}
