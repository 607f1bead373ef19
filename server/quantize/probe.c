/* How much the outputs suffer from errors in one matrix: divergence / t^2.
 *
 * The matrix is replaced by one with noise of relative size t, either Gaussian and row by row as codecs err, or signs of one size,
 * so small that the divergence is half of z^T H z with H its Hessian; one z is enough, for z^T H z - Tr(H) is a sum over so many
 * pairs of signs. The layers from there on
 * run again for a few sequences, and the logits are compared with those of the model as it is. One layer's hidden states
 * wait in memory, beside the logits of the sequences. Seeds are the places of matrices and rows: every run sees the same
 * noise, whatever the number of threads.
 *
 * Noise knows nothing of error feedback, which takes more from some matrices than from others. The matrices as really
 * pressed to two bits in the place of noise give alphas of 0.1 to 0.8 times those, but choose hardly better: stories15m at
 * 2.7 bits of trellis has a perplexity of 6.62 instead of 6.65, for pressing everything once more.
 */
#include <math.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/logits.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

enum { SEQUENCES = 2, LENGTH = 256 };
/* Rows: about what a form of two bits loses. */
static const double noise_t2[] = { [NOISE_ROWS] = 0.05, [NOISE_EVEN] = 0.005 };

const char *quantize_probe_name(enum noise kind)
{
    return kind == NOISE_ROWS ? "alpha" : "curvature";
}

struct probe {
    struct quantize *q;
    int n_seqs, len;
    size_t size;  /* numbers of a sequence's hidden states */
    float *clean; /* [n_seqs][len][dim] what the model as it is hands to the layer under way */
    float *x;     /* the same, with noise */
    float *truth; /* [n_seqs][len][vocab] logits of the model as it is */
    double *row;  /* [QUANTIZE_OUT] divergences */
    enum noise kind;
};

static void close_probe(struct probe *p)
{
    mem_free(p->row);
    mem_free(p->truth);
    mem_free(p->x);
    mem_free(p->clean);
}

static int open_probe(struct probe *p, struct quantize *q, enum noise kind, struct err *e)
{
    const struct model_config *c = &q->model->config;
    *p = (struct probe){ .q = q,
                         .kind = kind,
                         .n_seqs = q->text.n < SEQUENCES ? q->text.n : SEQUENCES,
                         .len = q->text.len < LENGTH ? q->text.len : LENGTH };
    p->size = (size_t)p->len * (size_t)c->dim;
    p->clean = mem_zalloc((size_t)p->n_seqs * p->size, sizeof *p->clean);
    p->x = mem_zalloc((size_t)p->n_seqs * p->size, sizeof *p->x);
    p->truth = mem_alloc((size_t)p->n_seqs * (size_t)p->len * (size_t)c->vocab * sizeof *p->truth);
    p->row = mem_zalloc(QUANTIZE_OUT, sizeof *p->row);
    if (p->clean != NULL && p->x != NULL && p->truth != NULL && p->row != NULL)
        return 0;
    close_probe(p);
    return err_set(e, ERR_NOMEM, "no memory to probe with %d x %d tokens", p->n_seqs, p->len);
}

/* ---- a pass ------------------------------------------------------------------------------------------------------ */

/* Layers [first, end) of every sequence, from x to x. */
static int run_layers(struct probe *p, int first, int end, float *x, struct err *e)
{
    for (int i = 0; i < p->n_seqs; i++)
        for (int l = first; l < end; l++)
            TRY(quantize_run_sequence(p->q, l, i, p->len, NULL, x + (size_t)i * p->size, e));
    return fetch_cancelled() ? err_set(e, ERR_CANCELLED, "stopped") : 0;
}

/* The mean divergence of the logits of p->x from the truth; sum NULL: they are the truth. */
static int judge(struct probe *p, double *mean, struct err *e)
{
    const struct quantize *q = p->q;
    int rows = p->n_seqs * p->len;
    size_t dim = (size_t)q->model->config.dim, vocab = (size_t)q->model->config.vocab;
    const float *logits;
    double sum = 0;
    for (int r = 0, n; r < rows; r += n) {
        n = rows - r < QUANTIZE_OUT ? rows - r : QUANTIZE_OUT;
        n = n < q->text.len ? n : q->text.len; /* as many as the runner takes */
        float *truth = p->truth + (size_t)r * vocab;
        TRY(model_head(q->model, q->run.ws, p->x + (size_t)r * dim, n, &logits, e));
        if (mean == NULL) {
            memcpy(truth, logits, (size_t)n * vocab * sizeof *truth);
            continue;
        }
        logits_kls(q->session.be->par, truth, logits, q->model->config.vocab, n, p->row);
        for (int i = 0; i < n; i++)
            sum += p->row[i];
    }
    if (mean != NULL)
        *mean = sum / rows;
    return 0;
}

/* ---- noise ------------------------------------------------------------------------------------------------------- */

struct noisy {
    const struct weight *from;
    struct weight w;
    enum noise kind;
    uint64_t seed;
    double square;  /* NOISE_EVEN: the mean square of all numbers */
    float *scratch; /* [threads][3][CODEC_PANEL][cols] */
};

/* x[cols], row `row`, and the noise that it gets. */
static void add_noise(const struct noisy *y, float *x, float *noise, int row)
{
    int n = y->w.cols;
    double square = y->kind == NOISE_EVEN ? y->square : mean_square(x, n);
    float size = (float)sqrt(noise_t2[y->kind] * square);
    gauss_fill(noise, n, y->seed, (uint64_t)row);
    for (int i = 0; i < n; i++)
        x[i] += size * (y->kind == NOISE_EVEN ? copysignf(1, noise[i]) : noise[i]);
}

static void fill_panels(void *arg, int first, int last, int i_thread)
{
    struct noisy *y = arg;
    int cols = y->w.cols;
    size_t panel = (size_t)CODEC_PANEL * (size_t)cols;
    float *x = y->scratch + (size_t)i_thread * 3 * panel;
    for (int row0 = first * CODEC_PANEL; row0 < last * CODEC_PANEL && row0 < y->w.rows;
         row0 += CODEC_PANEL) {
        int n = y->w.rows - row0 < CODEC_PANEL ? y->w.rows - row0 : CODEC_PANEL;
        for (int r = 0; r < n; r++) {
            float *row = x + (ptrdiff_t)r * cols;
            weight_row(y->from, row0 + r, row);
            add_noise(y, row, x + panel, row0 + r);
        }
        weight_fill(&y->w, row0, n, DT_F32, x, x + 2 * panel);
    }
}

/* y->w becomes *from with noise. */
static int open_noisy(struct noisy *y, struct be *be, const struct weight *from, enum noise kind,
                      uint64_t seed, struct err *e)
{
    *y = (struct noisy){ .from = from, .kind = kind, .seed = seed };
    TRY(weight_open_form(&y->w, be, "f32", false, from->rows, from->cols, e));
    size_t floats = 3 * (size_t)CODEC_PANEL * (size_t)from->cols;
    y->scratch = mem_zalloc((size_t)par_threads(be->par) * floats, sizeof *y->scratch);
    if (y->scratch == NULL) {
        weight_close(&y->w, be);
        return err_set(e, ERR_NOMEM, "no memory for noise in %d x %d", from->rows, from->cols);
    }
    y->square = weight_square(from, y->scratch);
    par_for(be->par, weight_panels(from), 1, fill_panels, y);
    mem_free(y->scratch);
    return 0;
}

/* ---- the probes -------------------------------------------------------------------------------------------------- */

/* The slot's matrix is another one for as long as this takes. */
static int probe(struct probe *p, int layer, const struct slot *s, double *cost, struct err *e)
{
    struct quantize *q = p->q;
    struct noisy y;
    double mean = 0;
    TRY(open_noisy(&y, q->session.be, s->w, p->kind, (uint64_t)(s - q->model->slot), e));
    struct weight was = *s->w;
    *s->w = y.w;
    memcpy(p->x, p->clean, (size_t)p->n_seqs * p->size * sizeof *p->x);
    int rc = run_layers(p, layer, q->model->config.n_layers, p->x, e);
    *s->w = was;
    weight_close(&y.w, q->session.be);
    if (rc == 0)
        rc = judge(p, &mean, e);
    *cost = (double)(float)(mean / noise_t2[p->kind]);
    if (rc == 0 && !isfinite(*cost))
        return err_set(e, ERR_FORMAT, "with noise in %s the outputs are no numbers", s->name);
    return rc;
}

static int probe_layer(struct probe *p, const struct allocation *a, int layer, json_t *notes,
                       struct err *e)
{
    size_t before = json_object_size(notes);
    for (int i = 0; i < a->n; i++) {
        const struct slot *s = a->matrix[i].slot;
        double cost;
        if (quantize_layer_of(s->name) != layer || !allocation_wants(a, i, notes))
            continue;
        TRY(probe(p, layer, s, &cost, e));
        if (json_object_set_new(notes, s->name, json_real(cost)) < 0)
            return err_set(e, ERR_NOMEM, "no memory for the notes");
        progress_add(&p->q->bar, 1);
    }
    return json_object_size(notes) > before ? quantize_state_save(p->q, e) : 0;
}

static int probe_layers(struct probe *p, const struct allocation *a, json_t *notes, struct err *e)
{
    int layers = p->q->model->config.n_layers;
    TRY(run_layers(p, 0, layers, p->x, e));
    TRY(judge(p, NULL, e));
    for (int l = 0; l < layers; l++) {
        TRY(probe_layer(p, a, l, notes, e));
        TRY(run_layers(p, l, l + 1, p->clean, e));
    }
    return 0;
}

int quantize_probe(struct allocation *a, enum noise kind, struct err *e)
{
    struct quantize *q = a->q;
    struct probe p;
    json_t *notes;
    int missing = 0;
    TRY(quantize_state_map(q, quantize_probe_name(kind), &notes, e));
    for (int i = 0; i < a->n; i++)
        missing += allocation_wants(a, i, notes);
    if (missing == 0)
        return 0;
    TRY(open_probe(&p, q, kind, e));
    progress_start(&q->bar, "probe", "matrices", (uint64_t)missing);
    int rc = probe_layers(&p, a, notes, e);
    progress_end(&q->bar, rc == 0);
    close_probe(&p);
    return rc;
}
