/* What forms cost by dp and hawq: how much a matrix minds errors, from a probe, times how large a form's are. */
#include <stdatomic.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

/* ---- dp ---------------------------------------------------------------------------------------------------------- */

/* What the form loses, from the notes or measured now. */
static int form_error(struct allocation *a, const char *form, double *t2, struct err *e)
{
    json_t *forms;
    TRY(quantize_state_map(a->q, "forms", &forms, e));
    const json_t *known = json_object_get(forms, form);
    if (known == NULL) {
        TRY(gauss_error(a->q->session.be, form, t2, e));
        if (json_object_set_new(forms, form, json_real((double)(float)*t2)) < 0)
            return err_set(e, ERR_NOMEM, "no memory for the notes");
        known = json_object_get(forms, form);
    }
    *t2 = json_number_value(known);
    return 0;
}

int quantize_error_dp(struct allocation *a, struct err *e)
{
    json_t *alphas;
    TRY(quantize_probe(a, NOISE_ROWS, e));
    TRY(quantize_state_map(a->q, quantize_probe_name(NOISE_ROWS), &alphas, e));
    for (int i = 0; i < a->n; i++) {
        struct matrix *m = &a->matrix[i];
        double alpha = json_number_value(json_object_get(alphas, m->slot->name));
        for (int c = 0; c < a->family.n; c++) {
            TRY(form_error(a, m->form[c], &m->error[c], e));
            m->error[c] *= alpha;
        }
    }
    return 0;
}

/* ---- hawq -------------------------------------------------------------------------------------------------------- */

/* Every form of every matrix is one task. */
struct rounding {
    const struct allocation *a;
    atomic_bool failed;
    struct err err; /* of the one that failed first */
};

/* |Q(W) - W|^2 / |W|^2, of some rows. */
static int measure_rounding(const struct allocation *a, struct matrix *m, int c, struct err *e)
{
    struct be *be = a->q->session.be;
    const struct weight *from = m->slot->w;
    int rows = from->rows < QUANTIZE_ROWS ? from->rows : QUANTIZE_ROWS;
    struct weight w;
    TRY(weight_open_form(&w, be, m->form[c], false, rows, from->cols, e));
    size_t floats = (size_t)rows * (size_t)from->cols;
    float *x = mem_alloc(2 * floats * sizeof *x);
    for (int r = 0; r < rows && x != NULL; r++)
        weight_row(from, (int)((int64_t)r * from->rows / rows), x + (ptrdiff_t)r * from->cols);
    int rc = x != NULL ? weight_plan(&w, x, NULL, x + floats, be->isa, e)
                       : err_set(e, ERR_NOMEM, "no memory to round %s", m->slot->name);
    if (rc == 0)
        rc = rounding_error(&w, x, x + floats, &m->error[c], e);
    mem_free(x);
    weight_close(&w, be);
    return rc;
}

static void round_tasks(void *arg, int first, int last, int i_thread)
{
    struct rounding *r = arg;
    int forms = r->a->family.n;
    struct err e;
    (void)i_thread;
    for (int i = first; i < last && !atomic_load(&r->failed) && !fetch_cancelled(); i++) {
        int rc = measure_rounding(r->a, &r->a->matrix[i / forms], i % forms, &e);
        progress_add(&r->a->q->bar, 1);
        if (rc < 0 && !atomic_exchange(&r->failed, true))
            r->err = e;
    }
}

static int round_all(struct allocation *a, struct err *e)
{
    struct rounding r = { .a = a };
    int tasks = a->n * a->family.n;
    progress_start(&a->q->bar, "round", "forms", (uint64_t)tasks);
    par_for(a->q->session.be->par, tasks, 1, round_tasks, &r);
    progress_end(&a->q->bar, !r.failed && !fetch_cancelled());
    if (r.failed)
        return err_set(e, r.err.code, "%s", r.err.text);
    return fetch_cancelled() ? err_set(e, ERR_CANCELLED, "stopped") : 0;
}

int quantize_error_hawq(struct allocation *a, struct err *e)
{
    json_t *curvatures;
    TRY(quantize_probe(a, NOISE_EVEN, e));
    TRY(round_all(a, e));
    TRY(quantize_state_map(a->q, quantize_probe_name(NOISE_EVEN), &curvatures, e));
    for (int i = 0; i < a->n; i++) {
        struct matrix *m = &a->matrix[i];
        double curvature = json_number_value(json_object_get(curvatures, m->slot->name));
        for (int c = 0; c < a->family.n; c++)
            m->error[c] *= curvature;
    }
    return 0;
}
