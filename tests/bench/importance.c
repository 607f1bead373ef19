/* How much each input of each matrix matters, for quantisers that weigh their errors by it: the mean square of what the matrix
 * reads, over the tokens that `wring quantize` would calibrate with. Usage, with the options of that command:
 * importance MODEL OUT --calibrate TEXT [--context N] [--tokens N]
 *
 * OUT gets a line of JSON for every matrix of the layers: {"name": GGUF's, "mean": [a number for each input]}. That is what
 * llama.cpp's programs call an importance matrix.
 */
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/quantize/quantize.h"

struct squares {
    double *of[LAYER_INPUTS]; /* [cols] sums; NULL: nothing was read yet */
    int64_t rows[LAYER_INPUTS];
};

static void see(void *arg, enum layer_input what, const float *x, int n, int cols)
{
    struct squares *s = arg;
    if (s->of[what] == NULL)
        s->of[what] = mem_zalloc((size_t)cols, sizeof(double));
    ASSERT(s->of[what] != NULL);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < cols; i++) {
            double v = (double)x[(size_t)r * (size_t)cols + (size_t)i];
            s->of[what][i] += v * v;
        }
    s->rows[what] += n;
}

static void print_layer(FILE *f, const struct model *m, int layer, const struct squares *s)
{
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *t = &m->slot[i];
        if (t->w == NULL || quantize_layer_of(t->name) != layer || s->of[t->reads] == NULL)
            continue;
        fprintf(f, "{\"name\": \"%s\", \"mean\": [", t->name);
        for (int j = 0; j < t->cols; j++)
            fprintf(f, "%s%.9g", j > 0 ? ", " : "", s->of[t->reads][j] / (double)s->rows[t->reads]);
        fprintf(f, "]}\n");
    }
}

static int run_layer(struct quantize *q, int layer, FILE *f, struct err *e)
{
    struct squares s = { 0 };
    struct observer o = { see, &s };
    size_t size = (size_t)q->text.len * (size_t)q->model->config.dim;
    int rc = 0;
    for (int i = 0; i < q->text.n && rc == 0; i++)
        rc = quantize_run_sequence(q, layer, i, q->text.len, &o, q->x + (size_t)i * size, e);
    if (rc == 0)
        print_layer(f, q->model, layer, &s);
    for (int i = 0; i < LAYER_INPUTS; i++)
        mem_free(s.of[i]);
    return rc;
}

static int run(struct quantize *q, FILE *f, struct err *e)
{
    TRY(quantize_open_model(q, e));
    TRY(quantize_open_text(q, e));
    for (int l = 0; l < q->model->config.n_layers; l++)
        TRY(run_layer(q, l, f, e));
    return fflush(f) == 0 ? 0 : err_errno(e, ERR_IO, "%s", q->config->word[1]);
}

int main(int argc, char **argv)
{
    struct config c;
    struct quantize q = { .config = &c };
    struct err e;
    bool done;
    int rc =
        cli_config(&c, CONFIG_QUANTIZE, "MODEL OUT --calibrate TEXT", 2, argc - 1, argv + 1, &done);
    if (done)
        return rc;
    FILE *f = fopen(c.word[1], "w");
    rc = f != NULL ? run(&q, f, &e) : err_errno(&e, ERR_IO, "%s", c.word[1]);
    if (f != NULL)
        fclose(f);
    if (rc < 0)
        cli_fail(&e);
    quantize_close(&q);
    config_free(&c);
    return rc < 0;
}
