/* The grid of results: what is to be measured, and DIR/kv.jsonl, one line a cell, so that a run can be taken up again. */
#include <jansson.h>
#include <math.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "server/base/mem.h"
#include "server/cli/eval_kv.h"

enum { MOST = 64, MAX_LOG = 1 << 30 };

/* ---- what is to be measured -------------------------------------------------------------------------------------- */

static int add_task(struct kv_grid *g, const struct kv_task *t, struct err *e)
{
    if (g->n_tasks == MOST)
        return err_set(e, ERR_LIMIT, "tasks: more than %d", MOST);
    for (int i = 0; i < g->n_tasks; i++)
        if (g->task[i] == t)
            return err_set(e, ERR_INVALID, "tasks: \"%s\" is named twice", t->name);
    g->task[g->n_tasks++] = t;
    return 0;
}

static int read_tasks(struct kv_grid *g, const char *list, struct err *e)
{
    char word[KV_WORD];
    char known[256] = "";
    size_t at = 0;
    for (int f = 0; kv_families[f] != NULL; f++)
        for (const struct kv_task *t = kv_families[f]; t->name != NULL; t++) {
            at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at > 0 ? ", " : "",
                                   t->name);
            if (list[0] == 0)
                TRY(add_task(g, t, e));
        }
    while (kv_variant_next(&list, word)) {
        const struct kv_task *t = kv_task_find(word);
        if (t == NULL)
            return err_set(e, ERR_INVALID, "tasks: there is no \"%s\"; there are: %s", word, known);
        TRY(add_task(g, t, e));
    }
    return 0;
}

static int add_variant(struct kv_grid *g, const char *word, struct err *e)
{
    if (g->n_variants == MOST)
        return err_set(e, ERR_LIMIT, "policies: more than %d", MOST);
    for (int i = 0; i < g->n_variants; i++)
        if (strcmp(g->variant[i].word, word) == 0)
            return err_set(e, ERR_INVALID, "policies: \"%s\" is named twice", word);
    return kv_variant_parse(&g->variant[g->n_variants++], word, e);
}

static int read_variants(struct kv_grid *g, const char *list, const char *base, struct err *e)
{
    char word[KV_WORD];
    if (list[0] == 0)
        for (int i = 0; kv_policy_list[i] != NULL; i++)
            if (!kv_policy_list[i]->keeps_all)
                TRY(add_variant(g, kv_policy_list[i]->name, e));
    while (kv_variant_next(&list, word))
        TRY(add_variant(g, word, e));
    while (kv_variant_next(&base, word)) {
        int i = 0;
        while (i < g->n_variants && strcmp(g->variant[i].word, word) != 0)
            i++;
        if (i == g->n_variants)
            return err_set(e, ERR_INVALID, "base: \"%s\" is none of the policies compared", word);
        g->variant[i].base = true;
    }
    return 0;
}

static int check_budgets(const struct cli_list *b, struct err *e)
{
    for (int i = 0; i < b->n; i++)
        for (int k = 0; k < i; k++)
            if (b->v[i] == b->v[k])
                return err_set(e, ERR_INVALID, "budgets: %d is named twice", b->v[i]);
    return 0;
}

static size_t n_cells(const struct kv_grid *g)
{
    return (size_t)g->n_tasks * (size_t)g->n_samples *
           (1 + (size_t)g->n_variants * (size_t)g->budget.n);
}

static int read_all(struct kv_grid *g, const struct config *c, const char *budgets, struct err *e)
{
    TRY(read_tasks(g, c->tasks, e));
    TRY(read_variants(g, c->policies, c->base, e));
    TRY(cli_numbers("budgets", c->budgets[0] != 0 ? c->budgets : budgets, KV_BUDGET_MIN, 1 << 20,
                    &g->budget, e));
    TRY(check_budgets(&g->budget, e));
    g->cell = mem_zalloc(n_cells(g), sizeof *g->cell);
    return g->cell != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for %zu results", n_cells(g));
}

int kv_grid_open(struct kv_grid *g, const struct config *c, const char *budgets, int n_samples,
                 struct err *e)
{
    *g = (struct kv_grid){ .n_samples = n_samples };
    g->task = mem_zalloc(MOST, sizeof *g->task);
    g->variant = mem_zalloc(MOST, sizeof *g->variant);
    int rc = g->task != NULL && g->variant != NULL
                 ? read_all(g, c, budgets, e)
                 : err_set(e, ERR_NOMEM, "no memory for the tasks");
    if (rc < 0)
        kv_grid_close(g);
    return rc;
}

void kv_grid_close(struct kv_grid *g)
{
    mem_free(g->cell);
    mem_free(g->variant);
    mem_free(g->task);
    *g = (struct kv_grid){ 0 };
}

struct kv_cell *kv_grid_at(const struct kv_grid *g, int task, int sample, int variant, int budget)
{
    size_t columns = 1 + (size_t)g->n_variants * (size_t)g->budget.n;
    size_t column = variant < 0 ? 0 : 1 + (size_t)variant * (size_t)g->budget.n + (size_t)budget;
    return &g->cell[((size_t)task * (size_t)g->n_samples + (size_t)sample) * columns + column];
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

struct field {
    const char *key;
    size_t at;
};
#define AT(member)                                                                                 \
    {                                                                                              \
#        member, offsetof(struct kv_cell, member)                                                  \
    }
static const struct field reals[] = { AT(exact),      AT(kl),    AT(kl95),      AT(attn),
                                      AT(top1),       AT(nll),   AT(nll_full),  AT(first),
                                      AT(mass),       AT(bytes), AT(pressings), AT(press_ms),
                                      AT(prefill_ms), AT(depth) };
enum { N_REALS = sizeof reals / sizeof *reals };

static double *real_of(struct kv_cell *c, int i)
{
    return (double *)(void *)((char *)c + reals[i].at);
}

static void hash_text(char out[17], uint64_t v)
{
    snprintf(out, 17, "%016llx", (unsigned long long)v);
}

/* The cell that a line belongs to; NULL: none of this grid's. */
static struct kv_cell *place_of(const struct kv_grid *g, const json_t *line)
{
    char settings[17];
    const char *set = json_string_value(json_object_get(line, "settings"));
    const char *task = json_string_value(json_object_get(line, "task"));
    const char *policy = json_string_value(json_object_get(line, "policy"));
    json_int_t sample = json_integer_value(json_object_get(line, "sample"));
    json_int_t budget = json_integer_value(json_object_get(line, "budget"));
    int t = 0;
    int v = 0;
    int b = 0;
    hash_text(settings, g->settings);
    if (set == NULL || task == NULL || strcmp(set, settings) != 0 || sample < 0 ||
        sample >= g->n_samples)
        return NULL;
    while (t < g->n_tasks && strcmp(g->task[t]->name, task) != 0)
        t++;
    if (t == g->n_tasks)
        return NULL;
    if (policy == NULL)
        return kv_grid_at(g, t, (int)sample, -1, 0);
    while (v < g->n_variants && strcmp(g->variant[v].word, policy) != 0)
        v++;
    while (b < g->budget.n && g->budget.v[b] != budget)
        b++;
    return v < g->n_variants && b < g->budget.n ? kv_grid_at(g, t, (int)sample, v, b) : NULL;
}

static void load_line(struct kv_grid *g, const char *s, size_t n)
{
    json_t *line = json_loadb(s, n, 0, NULL);
    struct kv_cell *c = line != NULL ? place_of(g, line) : NULL;
    if (c != NULL) {
        c->tokens = (int)json_integer_value(json_object_get(line, "tokens"));
        c->answers = (int)json_integer_value(json_object_get(line, "answers"));
        for (int i = 0; i < N_REALS; i++) {
            const json_t *x = json_object_get(line, reals[i].key);
            *real_of(c, i) = json_is_number(x) ? json_number_value(x) : (double)NAN;
        }
        c->have = true;
    }
    json_decref(line);
}

/* A line cut short by the end of a run is no JSON, and is measured again. A number that a line lacks is not known: NaN. */
int kv_grid_load(struct kv_grid *g, const char *path, struct err *e)
{
    struct buf b;
    if (access(path, F_OK) != 0)
        return 0;
    buf_init(&b, MAX_LOG);
    int rc = buf_read_file(&b, path, e);
    for (const char *p = buf_str(&b); rc == 0 && *p != 0;) {
        size_t n = strcspn(p, "\n");
        load_line(g, p, n);
        p += n + (p[n] == '\n');
    }
    buf_free(&b);
    return rc;
}

static json_t *line_of(const struct kv_grid *g, int task, int sample, int variant, int budget)
{
    char settings[17];
    struct kv_cell *c = kv_grid_at(g, task, sample, variant, budget);
    hash_text(settings, g->settings);
    json_t *line =
        json_pack("{s:s, s:s, s:i, s:i, s:i}", "settings", settings, "task", g->task[task]->name,
                  "sample", sample, "tokens", c->tokens, "answers", c->answers);
    int bad = line == NULL;
    if (variant >= 0) {
        bad |= json_object_set_new(line, "policy", json_string(g->variant[variant].word));
        bad |= json_object_set_new(line, "budget", json_integer(g->budget.v[budget]));
    }
    for (int i = 0; i < N_REALS; i++)
        if (isfinite(*real_of(c, i)))
            bad |= json_object_set_new(line, reals[i].key, json_real(*real_of(c, i)));
    if (bad == 0)
        return line;
    json_decref(line);
    return NULL;
}

int kv_grid_save(const struct kv_grid *g, int fd, int task, int sample, int variant, int budget,
                 struct err *e)
{
    char text[1024];
    json_t *line = line_of(g, task, sample, variant, budget);
    size_t n = line != NULL ? json_dumpb(line, text, sizeof text - 1, JSON_COMPACT) : 0;
    json_decref(line);
    if (n == 0 || n >= sizeof text)
        return err_set(e, ERR_NOMEM, "no memory for a result");
    text[n++] = '\n';
    return file_write_all(fd, text, n) == 0 ? 0 : err_errno(e, ERR_IO, "cannot write");
}

/* ---- means ------------------------------------------------------------------------------------------------------- */

void kv_grid_means(const struct kv_grid *g, int task, int variant, int budget, struct kv_means *out)
{
    double worse = 0;
    *out = (struct kv_means){ 0 };
    for (int s = 0; s < g->n_samples; s++) {
        const struct kv_cell *c = kv_grid_at(g, task, s, variant, budget);
        const struct kv_cell *full = kv_grid_at(g, task, s, -1, 0);
        if (!c->have || !full->have)
            continue;
        out->n++;
        out->exact += c->exact;
        out->kl += c->kl;
        out->kl95 += c->kl95;
        out->attn += c->attn;
        out->top1 += c->top1;
        out->nll += c->nll;
        out->first += c->first;
        out->mass += c->mass;
        out->bytes += c->bytes;
        out->share += c->bytes / full->bytes;
        out->pressings += c->pressings;
        out->press_ms += c->press_ms;
        out->press_share += c->press_ms / c->prefill_ms;
        worse += c->nll - c->nll_full;
    }
    double n = out->n > 0 ? out->n : (double)NAN;
    double *const sums[] = { &out->exact,      &out->kl,    &out->kl95,      &out->attn,
                             &out->top1,       &out->nll,   &out->first,     &out->mass,
                             &out->bytes,      &out->share, &out->pressings, &out->press_ms,
                             &out->press_share };
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        *sums[i] /= n;
    if (g->task[task]->kind == KV_LONG)
        out->press_share = (double)NAN;
    if (g->task[task]->kind != KV_ANSWER)
        out->exact = (double)NAN;
    out->ppl_ratio = exp(worse / n);
}
