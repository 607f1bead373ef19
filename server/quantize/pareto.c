/* wring quantize --pareto: what bits buy. For each budget a choice of forms, and how far the model that is spliced accordingly is
 * from the teacher on sequences of the calibration text that nothing was measured on. No model is written: the bank has every
 * matrix in every form. Beside that the forms of the family by themselves, as --allocate uniform has them. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/plot.h"
#include "server/model/arch.h"
#include "server/model/folder.h"
#include "server/quantize/allocate.h"

/* Held-out sequences and the most tokens of one. */
enum { HELD = 32, LENGTH = 256, MAX_TEXT = 1 << 20, KEY = 32 };

struct point {
    double bits;      /* a weight of the layers' matrices */
    double bytes;     /* of all tensors, as a folder would keep them */
    double kl, error; /* mean over sequences and its standard error, nats a token */
};

struct pareto {
    struct allocation a;
    struct bank bank;
    struct sequences held;
    struct judge judge;
    json_t *points; /* notes: a point by budget, as given, or form */
    double budget[PLOT_POINTS];
    int n;
    int fd; /* of OUT, which it locks */
};

/* ---- budgets ----------------------------------------------------------------------------------------------------- */

static void budget_key(char out[KEY], double bits)
{
    snprintf(out, KEY, "%.6g", bits);
}

/* In rising order. */
static int parse_budgets(struct pareto *p, const char *list, struct err *e)
{
    for (const char *at = list; *at != 0;) {
        char *end;
        double v = strtod(at, &end);
        bool more = *end == ',' && end[1] != 0;
        if (end == at || (*end != 0 && !more) || !(v > 0 && v <= 32) || p->n == PLOT_POINTS)
            return err_set(e, ERR_INVALID,
                           "pareto: \"%s\" is not a list of at most %d numbers of bits from 0 to "
                           "32, as 2.2,2.5,3",
                           list, PLOT_POINTS);
        p->budget[p->n++] = v;
        at = more ? end + 1 : end;
    }
    cli_sort(p->budget, p->n);
    return 0;
}

/* Before anything that takes long. */
static int check_budgets(struct pareto *p, struct err *e)
{
    TRY(parse_budgets(p, p->a.q->config->pareto, e));
    for (int i = 0; i < p->n; i++) {
        allocation_set_bits(&p->a, p->budget[i]);
        TRY(allocation_check(&p->a, e));
    }
    return 0;
}

/* ---- points ------------------------------------------------------------------------------------------------------ */

static void weigh(const struct pareto *p, struct point *out)
{
    const struct model *m = p->bank.form[0];
    size_t planes = 0, files = p->a.rest;
    for (int i = 0; i < p->a.n; i++) {
        const struct weight *w = m->slot[p->bank.slot[i]].w;
        planes += weight_bytes(w);
        files += hf_write_bytes(w);
    }
    out->bits = 8 * (double)planes / p->a.weights;
    out->bytes = (double)files;
}

/* What a->choice comes to. */
static int measure(struct pareto *p, const char *key, struct err *e)
{
    struct progress bar;
    struct point x = { 0 };
    double kl[HELD], squares = 0;
    int n = p->judge.n, rc = 0;
    bank_splice(&p->bank, &p->a, p->a.choice);
    weigh(p, &x);
    progress_start(&bar, key, "sequences", (uint64_t)n);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = judge_run(&p->judge, i, 1, &kl[i], e);
        progress_add(&bar, 1);
    }
    progress_end(&bar, rc == 0);
    if (rc < 0)
        return rc;
    for (int i = 0; i < n; i++)
        x.kl += kl[i] / n;
    for (int i = 0; i < n; i++)
        squares += (kl[i] - x.kl) * (kl[i] - x.kl);
    x.error = n > 1 ? sqrt(squares / (n - 1) / n) : 0;
    if (!isfinite(x.kl))
        return err_set(e, ERR_FORMAT, "%s: the outputs are no numbers", key);
    json_t *v = json_pack("{s:f, s:f, s:f, s:f}", "bits", x.bits, "bytes", x.bytes, "kl", x.kl,
                          "error", x.error);
    if (json_object_set_new(p->points, key, v) < 0)
        return err_set(e, ERR_NOMEM, "no memory for the notes");
    return quantize_state_save(p->a.q, e);
}

static bool has_budget(const struct pareto *p, double bits)
{
    char key[KEY];
    budget_key(key, bits);
    return json_object_get(p->points, key) != NULL;
}

static bool has_all(const struct pareto *p)
{
    bool all = true;
    for (int c = 0; c < p->a.family.n; c++)
        all &= json_object_get(p->points, p->a.family.word[c]) != NULL;
    for (int i = 0; i < p->n; i++)
        all &= has_budget(p, p->budget[i]);
    return all;
}

static int measure_budget(struct pareto *p, double bits, struct err *e)
{
    char key[KEY];
    if (has_budget(p, bits))
        return 0;
    budget_key(key, bits);
    allocation_set_bits(&p->a, bits);
    TRY(allocation_choose(&p->a, e));
    return measure(p, key, e);
}

static int measure_all(struct pareto *p, struct err *e)
{
    TRY(bank_fill(&p->a, e));
    TRY(bank_open(&p->bank, &p->a, e));
    p->a.bank = &p->bank;
    TRY(judge_open(&p->judge, p->a.q, &p->held, HELD, LENGTH, p->bank.form[0], e));
    for (int c = 0; c < p->a.family.n; c++) {
        if (json_object_get(p->points, p->a.family.word[c]) != NULL)
            continue;
        for (int i = 0; i < p->a.n; i++)
            p->a.choice[i] = c;
        TRY(measure(p, p->a.family.word[c], e));
    }
    for (int i = 0; i < p->n; i++)
        TRY(measure_budget(p, p->budget[i], e));
    return 0;
}

/* ---- the report -------------------------------------------------------------------------------------------------- */

/* What a row is of. */
struct row {
    char way[KEY], asked[KEY];
    struct point x;
};

static int row_of(const struct pareto *p, int i, struct row *r)
{
    const struct allocation *a = &p->a;
    bool form = i < a->family.n;
    if (i >= a->family.n + p->n)
        return -1;
    snprintf(r->way, KEY, "%s", form ? "uniform" : a->q->config->allocate);
    if (form)
        snprintf(r->asked, KEY, "%s", a->family.word[i]);
    else
        budget_key(r->asked, p->budget[i - a->family.n]);
    const json_t *v = json_object_get(p->points, r->asked);
    r->x = (struct point){ .bits = json_number_value(json_object_get(v, "bits")),
                           .bytes = json_number_value(json_object_get(v, "bytes")),
                           .kl = json_number_value(json_object_get(v, "kl")),
                           .error = json_number_value(json_object_get(v, "error")) };
    return 0;
}

static int write_text(struct buf *b, const char *name, const struct pareto *p, struct err *e)
{
    char path[FOLDER_PATH];
    int rc = folder_path(path, p->a.q->config->word[1], name, e);
    if (rc == 0)
        rc = b->bad != 0 ? err_set(e, b->bad, "no memory for %s", path)
                         : file_write_atomic(path, buf_str(b), b->len, e);
    buf_free(b);
    return rc;
}

static int write_tables(const struct pareto *p, struct err *e)
{
    struct buf csv;
    struct buf md;
    struct row r;
    buf_init(&csv, MAX_TEXT);
    buf_init(&md, MAX_TEXT);
    buf_adds(&csv, "allocate,asked,bits,bytes,kl,kl_error\n");
    buf_addf(
        &md,
        "# What bits buy\n\n%s, %s, %d held-out sequences of %d tokens; KL to the unpressed "
        "model, nats a token\n\n"
        "| allocate | asked for | bits a weight in layers | bytes | KL |\n|---|---|---|---|---|\n",
        p->a.q->config->word[0], quantize_codec(p->a.q->config), p->held.n,
        p->held.len < LENGTH ? p->held.len : LENGTH);
    for (int i = 0; row_of(p, i, &r) == 0; i++) {
        buf_addf(&csv, "%s,%s,%.6g,%.0f,%.6g,%.6g\n", r.way, r.asked, r.x.bits, r.x.bytes, r.x.kl,
                 r.x.error);
        buf_addf(&md, "| %s | %s | %.3f | %.0f | %.4f ± %.4f |\n", r.way, r.asked, r.x.bits,
                 r.x.bytes, r.x.kl, r.x.error);
    }
    int rc = write_text(&csv, "pareto.csv", p, e);
    if (rc < 0)
        buf_free(&md);
    return rc < 0 ? rc : write_text(&md, "pareto.md", p, e);
}

static int draw(const struct pareto *p, struct err *e)
{
    struct plot_series series[2] = { { .name = "uniform" }, { .name = p->a.q->config->allocate } };
    struct plot plot = { .title = "What bits buy",
                         .x_title = "bits a weight in layers",
                         .y_title = "KL to the unpressed model, nats a token",
                         .series = series,
                         .n_series = 2 };
    char path[FOLDER_PATH];
    struct row r;
    for (int i = 0; row_of(p, i, &r) == 0; i++) {
        struct plot_series *s = &series[i < p->a.family.n ? 0 : 1];
        s->x[s->n] = r.x.bits;
        s->y[s->n++] = r.x.kl;
    }
    TRY(folder_path(path, p->a.q->config->word[1], "pareto.png", e));
    return plot_write(&plot, path, e);
}

static int print(const struct pareto *p)
{
    static const struct table_col cols[] = {
        { "allocate", "allocate" }, { "asked", "asked for" }, { "bits", "bits in layers" },
        { "bytes", "bytes" },       { "kl", "KL" },           { "kl_error", "+/-" }
    };
    struct table *t;
    struct row r;
    if (table_open(&t, cols, sizeof cols / sizeof *cols) < 0)
        return cli_no_table();
    for (int i = 0; row_of(p, i, &r) == 0; i++) {
        table_str(t, r.way);
        table_str(t, r.asked);
        table_num(t, r.x.bits, 3);
        table_int(t, (int64_t)r.x.bytes);
        table_num(t, r.x.kl, 4);
        table_num(t, r.x.error, 4);
    }
    return cli_table(t, p->a.q->config->json);
}

int quantize_pareto_report(struct quantize *q)
{
    struct pareto p = { .n = 0 };
    struct err e;
    int rc = allocation_open(&p.a, q, &e);
    if (rc == 0)
        rc = parse_budgets(&p, q->config->pareto, &e);
    if (rc == 0)
        rc = quantize_state_map(q, "points", &p.points, &e);
    int code = rc == 0 ? print(&p) : cli_fail(&e);
    allocation_close(&p.a);
    return code;
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

/* What was measured goes, and with it matrices that were pressed for this run alone. */
static int start_over(const struct quantize *q, struct err *e)
{
    char path[FOLDER_PATH];
    TRY(folder_path(path, q->config->word[1], QUANTIZE_NOTES, e));
    fetch_remove(path);
    bank_remove(q);
    return 0;
}

/* The folder OUT, locked until fd is closed. */
static int open_folder(const char *out, int *fd, struct err *e)
{
    if (folder_has(out, "config.json"))
        return err_set(e, ERR_INVALID, "%s: holds a model; name another folder for the sweep", out);
    if (mkdir(out, 0777) != 0 && errno != EEXIST)
        return err_errno(e, ERR_IO, "%s: cannot make the folder", out);
    *fd = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open the folder", out);
    if (flock(*fd, LOCK_EX | LOCK_NB) != 0)
        return err_errno(e, errno == EWOULDBLOCK ? ERR_BUSY : ERR_IO, "%s: cannot lock the folder",
                         out);
    return 0;
}

int quantize_check_pareto(const struct config *c, struct err *e)
{
    struct pareto p = { .fd = -1 };
    TRY(parse_budgets(&p, c->pareto, e));
    int rc = open_folder(c->word[1], &p.fd, e);
    if (rc == 0)
        (void)rmdir(c->word[1]); /* unless it has something in it */
    if (p.fd >= 0)
        close(p.fd);
    return rc;
}

static int run(struct pareto *p, struct err *e)
{
    struct quantize *q = p->a.q;
    const struct config *c = q->config;
    TRY(check_budgets(p, e));
    TRY(sequences_rest(&p->held, &q->text, q->model->tok, c->calibrate, HELD, e));
    TRY(open_folder(c->word[1], &p->fd, e));
    if (c->force)
        TRY(start_over(q, e));
    TRY(quantize_state_open(q, e));
    TRY(quantize_state_map(q, "points", &p->points, e));
    if (!has_all(p)) /* a sweep that is complete only tells */
        TRY(measure_all(p, e));
    TRY(write_tables(p, e));
    return draw(p, e);
}

int quantize_pareto(struct quantize *q, struct err *e)
{
    struct pareto p = { .fd = -1 };
    TRY(allocation_open(&p.a, q, e));
    int rc = run(&p, e);
    judge_close(&p.judge);
    bank_close(&p.bank);
    sequences_close(&p.held);
    allocation_close(&p.a);
    if (rc == ERR_CANCELLED)
        err_set(e, rc, "stopped; the same command%s goes on with what is in %s",
                q->config->force ? " without --force" : "", q->config->word[1]);
    if (rc == 0)
        bank_remove(q);
    if (p.fd >= 0)
        close(p.fd);
    return rc;
}
