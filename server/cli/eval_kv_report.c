/* The results of wring eval kv as Markdown, CSV and plots; made of the grid alone. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/cli/bootstrap.h"
#include "server/cli/eval_kv.h"
#include "server/cli/plot.h"

enum { MAX_REPORT = 64 << 20, FIFTHS = 5 };

static int write_out(struct buf *b, const char *path, struct err *e)
{
    int rc = b->bad != 0 ? err_set(e, b->bad, "no memory for %s", path)
                         : file_write_atomic(path, buf_str(b), b->len, e);
    buf_free(b);
    return rc;
}

/* "-" for what there is nothing of. */
static void add_cell(struct buf *b, double v, int digits)
{
    if (isfinite(v))
        buf_addf(b, " %.*f |", digits, v);
    else
        buf_adds(b, " - |");
}

/* ---- differences ------------------------------------------------------------------------------------------------- */

enum { KL, EXACT, NLL, FIRST, N_DIFFS };

struct diff {
    int n;
    struct interval d[N_DIFFS]; /* of one variant less another, over the samples that both have */
};

static int compare(const struct kv_grid *g, int task, int variant, int base, int budget,
                   struct diff *out)
{
    double *d = mem_alloc((size_t)g->n_samples * N_DIFFS * sizeof *d);
    bool answers = g->task[task]->kind == KV_ANSWER;
    int n = 0;
    int rc = d != NULL ? 0 : ERR_NOMEM;
    for (int s = 0; rc == 0 && s < g->n_samples; s++) {
        const struct kv_cell *a = kv_grid_at(g, task, s, variant, budget);
        const struct kv_cell *b = kv_grid_at(g, task, s, base, budget);
        if (!a->have || !b->have)
            continue;
        d[KL * g->n_samples + n] = a->kl - b->kl;
        d[EXACT * g->n_samples + n] = answers ? a->exact - b->exact : NAN;
        d[NLL * g->n_samples + n] = a->nll - b->nll;
        d[FIRST * g->n_samples + n] = a->first - b->first;
        n++;
    }
    out->n = n;
    for (int i = 0; rc == 0 && i < N_DIFFS; i++)
        rc = bootstrap_mean(d + (ptrdiff_t)i * g->n_samples, n, &out->d[i]);
    mem_free(d);
    return rc;
}

static void add_interval(struct buf *b, const struct interval *i, double scale, int digits)
{
    if (!isfinite(i->mean)) {
        buf_adds(b, " - |");
        return;
    }
    buf_addf(b, " %+.*f [%+.*f, %+.*f] |", digits, i->mean * scale, digits, i->low * scale, digits,
             i->high * scale);
}

static int add_diffs(const struct kv_grid *g, int task, int base, struct buf *b)
{
    buf_addf(b,
             "\nAgainst `%s` at the same budget, paired over samples, 95 %% intervals:\n\n"
             "| policy | budget | n | KL | answers, points | NLL | first differs |\n"
             "|---|---|---|---|---|---|---|\n",
             g->variant[base].word);
    for (int v = 0; v < g->n_variants; v++)
        for (int k = 0; k < g->budget.n && v != base; k++) {
            struct diff d;
            if (compare(g, task, v, base, k, &d) < 0)
                return ERR_NOMEM;
            if (d.n == 0)
                continue;
            buf_addf(b, "| `%s` | %d | %d |", g->variant[v].word, g->budget.v[k], d.n);
            add_interval(b, &d.d[KL], 1, 4);
            add_interval(b, &d.d[EXACT], 100, 1);
            add_interval(b, &d.d[NLL], 1, 3);
            add_interval(b, &d.d[FIRST], 1, 1);
            buf_adds(b, "\n");
        }
    return 0;
}

/* ---- Markdown ---------------------------------------------------------------------------------------------------- */

static void add_whole(const struct kv_grid *g, struct buf *b)
{
    buf_adds(b, "\n## The whole cache\n\nOnly what it answers is asked of the others.\n\n"
                "| task | what | n | answers % | NLL | bytes | prefill ms |\n"
                "|---|---|---|---|---|---|---|\n");
    for (int t = 0; t < g->n_tasks; t++) {
        struct kv_means m;
        double prefill = 0;
        kv_grid_means(g, t, -1, 0, &m);
        for (int s = 0; s < g->n_samples; s++)
            prefill += kv_grid_at(g, t, s, -1, 0)->prefill_ms;
        buf_addf(b, "| %s | %s | %d |", g->task[t]->name, g->task[t]->title, m.n);
        add_cell(b, 100 * m.exact, 1);
        add_cell(b, m.nll, 3);
        add_cell(b, m.bytes, 0);
        add_cell(b, prefill / m.n, 0);
        buf_adds(b, "\n");
    }
}

static void add_rows(const struct kv_grid *g, int task, struct buf *b)
{
    buf_adds(b, "| policy | budget | bytes | % of full | n | KL | KL 95 % | attention error % | "
                "top-1 % | PPL ratio | "
                "answers % | NLL | first differs | mass | pressings | press ms | % of prefill |\n"
                "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (int v = 0; v < g->n_variants; v++)
        for (int k = 0; k < g->budget.n; k++) {
            struct kv_means m;
            kv_grid_means(g, task, v, k, &m);
            if (m.n == 0)
                continue;
            buf_addf(b, "| `%s` | %d |", g->variant[v].word, g->budget.v[k]);
            add_cell(b, m.bytes, 0);
            add_cell(b, 100 * m.share, 1);
            buf_addf(b, " %d |", m.n);
            add_cell(b, m.kl, 4);
            add_cell(b, m.kl95, 3);
            add_cell(b, 100 * m.attn, 1);
            add_cell(b, 100 * m.top1, 1);
            add_cell(b, m.ppl_ratio, 3);
            add_cell(b, 100 * m.exact, 1);
            add_cell(b, m.nll, 3);
            add_cell(b, m.first, 1);
            add_cell(b, m.mass, 3);
            add_cell(b, m.pressings, 1);
            add_cell(b, m.press_ms, 1);
            add_cell(b, 100 * m.press_share, 1);
            buf_adds(b, "\n");
        }
}

/* Answers by the fifth of the text that holds the fact. */
static void add_depths(const struct kv_grid *g, int task, struct buf *b)
{
    static const char head[] =
        "\nAnswers, %, by where in the text the fact stands (fifths):\n\n"
        "| policy | budget | 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|---|\n";
    bool begun = false;
    for (int v = 0; v < g->n_variants; v++)
        for (int k = 0; k < g->budget.n; k++) {
            double right[FIFTHS] = { 0 };
            int n[FIFTHS] = { 0 };
            int all = 0;
            for (int s = 0; s < g->n_samples; s++) {
                const struct kv_cell *c = kv_grid_at(g, task, s, v, k);
                int i = (int)(c->depth * FIFTHS);
                if (!c->have || c->depth < 0 || i >= FIFTHS)
                    continue;
                right[i] += c->exact;
                n[i]++;
                all++;
            }
            if (all == 0)
                continue;
            if (!begun)
                buf_adds(b, head);
            begun = true;
            buf_addf(b, "| `%s` | %d |", g->variant[v].word, g->budget.v[k]);
            for (int i = 0; i < FIFTHS; i++)
                add_cell(b, n[i] > 0 ? 100 * right[i] / n[i] : NAN, 0);
            buf_adds(b, "\n");
        }
}

int kv_report_md(const struct kv_grid *g, const char *title, const char *path, struct err *e)
{
    struct buf b;
    int rc = 0;
    buf_init(&b, MAX_REPORT);
    buf_addf(&b, "# What pressing the KV cache costs\n\n%s\n", title);
    add_whole(g, &b);
    for (int t = 0; t < g->n_tasks && rc == 0; t++) {
        buf_addf(&b, "\n## %s: %s\n\n", g->task[t]->name, g->task[t]->title);
        add_rows(g, t, &b);
        if (g->task[t]->kind == KV_ANSWER)
            add_depths(g, t, &b);
        for (int v = 0; v < g->n_variants && rc == 0; v++)
            rc = g->variant[v].base ? add_diffs(g, t, v, &b) : 0;
    }
    if (rc < 0)
        b.bad = rc;
    return write_out(&b, path, e);
}

/* ---- CSV --------------------------------------------------------------------------------------------------------- */

/* Nothing for what there is nothing of. */
static void add_value(struct buf *b, double v)
{
    buf_adds(b, ",");
    if (isfinite(v))
        buf_addf(b, "%.6g", v);
}

/* The whole cache is compared with nothing. */
static int add_csv_diffs(const struct kv_grid *g, int task, int variant, int budget, struct buf *b)
{
    static const struct interval none = { NAN, NAN, NAN };
    for (int v = 0; v < g->n_variants; v++) {
        struct diff d = { 0, { none, none, none, none } };
        if (!g->variant[v].base)
            continue;
        if (variant >= 0)
            TRY(compare(g, task, variant, v, budget, &d));
        for (int i = 0; i < N_DIFFS; i++) {
            add_value(b, d.d[i].mean);
            add_value(b, d.d[i].low);
            add_value(b, d.d[i].high);
        }
    }
    return 0;
}

static int add_csv_row(const struct kv_grid *g, int task, int variant, int budget, struct buf *b)
{
    struct kv_means m;
    kv_grid_means(g, task, variant, budget, &m);
    if (m.n == 0)
        return 0;
    if (variant < 0)
        buf_addf(b, "%s,,", g->task[task]->name);
    else
        buf_addf(b, "%s,\"%s\",%d", g->task[task]->name, g->variant[variant].word,
                 g->budget.v[budget]);
    const double x[] = {
        m.bytes, m.share, m.kl,    m.kl95, m.attn,      m.top1,     m.ppl_ratio,
        m.exact, m.nll,   m.first, m.mass, m.pressings, m.press_ms, m.press_share
    };
    buf_addf(b, ",%d", m.n);
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        add_value(b, x[i]);
    TRY(add_csv_diffs(g, task, variant, budget, b));
    buf_adds(b, "\n");
    return 0;
}

int kv_report_csv(const struct kv_grid *g, const char *path, struct err *e)
{
    struct buf b;
    int rc = 0;
    buf_init(&b, MAX_REPORT);
    buf_adds(&b,
             "task,policy,budget,n,bytes,share,kl,kl95,attention,top1,ppl_ratio,answers,nll,first,"
             "mass,pressings,press_ms,press_share");
    for (int v = 0; v < g->n_variants; v++)
        if (g->variant[v].base)
            for (int i = 0; i < N_DIFFS; i++) {
                static const char *const what[] = { "kl", "answers", "nll", "first" };
                buf_addf(&b, ",\"%s less %s\",low,high", what[i], g->variant[v].word);
            }
    buf_adds(&b, "\n");
    for (int t = 0; t < g->n_tasks && rc == 0; t++) {
        rc = add_csv_row(g, t, -1, 0, &b);
        for (int v = 0; v < g->n_variants; v++)
            for (int k = 0; k < g->budget.n && rc == 0; k++)
                rc = add_csv_row(g, t, v, k, &b);
    }
    if (rc < 0)
        b.bad = rc;
    return write_out(&b, path, e);
}

/* ---- plots ------------------------------------------------------------------------------------------------------- */

static double quality_of(enum kv_kind kind, const struct kv_means *m)
{
    const double y[] = { [KV_TEXT] = m->kl,
                         [KV_ANSWER] = 100 * m->exact,
                         [KV_CHOICE] = m->first,
                         [KV_LONG] = m->ppl_ratio };
    return y[kind];
}

static int plot_task(const struct kv_grid *g, int task, struct plot_series *series,
                     const char *path, struct err *e)
{
    static const char *const quality[] = { [KV_TEXT] = "KL to the whole cache, nats",
                                           [KV_ANSWER] = "answers, %",
                                           [KV_CHOICE] = "tokens up to the first other choice",
                                           [KV_LONG] = "perplexity / the whole cache's" };
    const struct kv_task *t = g->task[task];
    char title[160];
    snprintf(title, sizeof title, "%s: %s", t->name, t->title);
    for (int v = 0; v < g->n_variants; v++) {
        struct plot_series *s = &series[v];
        *s = (struct plot_series){ .name = g->variant[v].word, .n = g->budget.n };
        for (int k = 0; k < g->budget.n; k++) {
            struct kv_means m;
            kv_grid_means(g, task, v, k, &m);
            s->x[k] = m.bytes / (1 << 20);
            s->y[k] = quality_of(t->kind, &m);
        }
    }
    struct plot p = { .title = title,
                      .x_title = "physical size of the KV cache, MiB",
                      .y_title = quality[t->kind],
                      .series = series,
                      .n_series = g->n_variants };
    return plot_write(&p, path, e);
}

int kv_report_plots(const struct kv_grid *g, const char *dir, struct err *e)
{
    struct plot_series *series = mem_zalloc((size_t)g->n_variants, sizeof *series);
    char path[4096];
    int rc = series != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for plots");
    for (int t = 0; t < g->n_tasks && rc == 0; t++) {
        snprintf(path, sizeof path, "%s/kv-%s.png", dir, g->task[t]->name);
        rc = plot_task(g, t, series, path, e);
    }
    mem_free(series);
    return rc;
}
