/* How much of its outputs a matrix would lose at no bits at all, were its error still what it is at many: the sum over columns j
 * of |w|^2 / U_jj^2, w the mean column, as a part of tr(W H W^T). The factor that turns |w|^2 into the square of a step is the
 * same for all matrices and so is of no account. */
#include <math.h>

#include "quant/moments.h"
#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

/* The matrices of a layer that are to be measured. */
struct layer_spread {
    struct quantize *q;
    struct sums sums;
    struct pressed *p; /* [n] with the teacher's weights */
    bool *rotated;     /* [n] */
    int n;
    json_t *notes;
};

/* The sum of 1 / U_jj^2: what a unit of error in every column comes to, after feedback. */
static double sum_of_losses(const struct moments *m)
{
    double sum = 0;
    for (int j = 0; j < m->cols; j++) {
        double u = (double)m->u[(size_t)j * (size_t)m->cols + (size_t)j];
        sum += 1 / (u * u);
    }
    return sum;
}

static int note_spread(struct layer_spread *s, const struct pressed *p, double losses,
                       struct err *e)
{
    float *row = mem_alloc((size_t)p->w.cols * sizeof *row);
    if (row == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %s", p->slot->name);
    double all = p->energy / (double)s->sums.n_rows;
    double spread =
        all == 0 ? 1 : weight_square(&p->w, row) * losses / all; /* 1: no outputs to lose */
    mem_free(row);
    if (!isfinite(spread) || !(spread > 0))
        return err_set(e, ERR_FORMAT, "%s: its outputs on the calibration text are no numbers",
                       p->slot->name);
    if (json_object_set_new(s->notes, p->slot->name, json_real((double)(float)spread)) < 0)
        return err_set(e, ERR_NOMEM, "no memory for the notes");
    return 0;
}

/* Those that read `what`, in the space where their codec errs. */
static int measure_input(struct layer_spread *s, enum layer_input what, bool rotated, struct err *e)
{
    const struct quantize *q = s->q;
    struct moments m;
    bool any = false;
    for (int i = 0; i < s->n; i++)
        any |= s->p[i].slot->reads == what && s->rotated[i] == rotated;
    if (!any)
        return 0;
    TRY(moments_open(&m, s->sums.h[what], s->sums.n_rows, s->sums.cols[what], rotated,
                     (float)q->config->damp, q->session.be->isa, q->session.be->par, e));
    double losses = sum_of_losses(&m);
    int rc = 0;
    for (int i = 0; i < s->n && rc == 0; i++)
        if (s->p[i].slot->reads == what && s->rotated[i] == rotated)
            rc = note_spread(s, &s->p[i], losses, e);
    moments_close(&m);
    return rc;
}

static int measure(struct layer_spread *s, int layer, struct err *e)
{
    TRY(quantize_run_layer(s->q, layer, &s->sums, e));
    TRY(quantize_loss(s->q, s->p, s->n, &s->sums, e));
    for (enum layer_input what = INPUT_OF_NONE; what < LAYER_INPUTS; what++) {
        TRY(measure_input(s, what, false, e));
        TRY(measure_input(s, what, true, e));
    }
    return quantize_state_save(s->q, e);
}

/* A layer of which everything is known is run all the same: the next one wants what it leaves. */
static int measure_layer(struct allocation *a, int layer, json_t *notes, struct err *e)
{
    struct layer_spread s = { .q = a->q, .notes = notes };
    s.p = mem_zalloc((size_t)a->n, sizeof *s.p);
    s.rotated = mem_zalloc((size_t)a->n, sizeof *s.rotated);
    int rc = s.p != NULL && s.rotated != NULL
                 ? sums_open(&s.sums, a->q->model, layer, e)
                 : err_set(e, ERR_NOMEM, "no memory for %d matrices", a->n);
    for (int i = 0; i < a->n && rc == 0; i++)
        if (quantize_layer_of(a->matrix[i].slot->name) == layer && allocation_wants(a, i, notes)) {
            s.rotated[s.n] = a->matrix[i].rotated;
            s.p[s.n++] = (struct pressed){ .slot = a->matrix[i].slot, .w = *a->matrix[i].slot->w };
        }
    if (rc == 0)
        rc = s.n > 0 ? measure(&s, layer, e) : quantize_run_layer(a->q, layer, NULL, e);
    sums_close(&s.sums);
    mem_free(s.rotated);
    mem_free(s.p);
    return rc;
}

/* Behind the last layer that is open nothing needs to be run. */
static int last_open(const struct allocation *a, const json_t *notes)
{
    int last = -1;
    for (int i = 0; i < a->n; i++)
        if (allocation_wants(a, i, notes))
            last = quantize_layer_of(a->matrix[i].slot->name);
    return last;
}

int quantize_spread(struct allocation *a, double *want, struct err *e)
{
    json_t *notes;
    int rc = 0;
    TRY(quantize_state_map(a->q, "spread", &notes, e));
    int layers = last_open(a, notes) + 1;
    progress_start(&a->q->bar, "spread", "layers", (uint64_t)layers);
    for (int l = 0; l < layers && rc == 0; l++) {
        rc = measure_layer(a, l, notes, e);
        progress_add(&a->q->bar, 1);
    }
    progress_end(&a->q->bar, rc == 0);
    for (int i = 0; i < a->n && rc == 0; i++) {
        double spread = json_number_value(json_object_get(notes, a->matrix[i].slot->name));
        want[i] = spread > 0 ? log2(spread) / 2 : 0;
    }
    return rc;
}
