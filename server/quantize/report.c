#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "server/model/arch.h"
#include "server/quantize/quantize.h"

enum { FORMS = 16, FORMS_TEXT = 256 };

/* The matrices of all layers that have one name. */
struct kind {
    const char *name;        /* "attn_q", as the file names it */
    const char *form[FORMS]; /* in alphabetical order */
    int count[FORMS];
    int n_forms;
    int n;
    double weights, bits, error; /* sums */
    double worst;
};

static const char *kind_name(const char *tensor)
{
    int skip = 0;
    (void)sscanf(tensor, "blk.%*d.%n", &skip);
    return tensor + skip;
}

static void add_form(struct kind *k, const char *form)
{
    int at = 0;
    while (at < k->n_forms && strcmp(k->form[at], form) < 0)
        at++;
    if (at == k->n_forms || strcmp(k->form[at], form) != 0) {
        ASSERT(k->n_forms < FORMS);
        for (int i = k->n_forms++; i > at; i--) {
            k->form[i] = k->form[i - 1];
            k->count[i] = k->count[i - 1];
        }
        k->form[at] = form;
        k->count[at] = 0;
    }
    k->count[at]++;
}

/* "trellis2", or "trellis2 x4, trellis3 x2" where there are several. */
static void print_forms(const struct kind *k, char out[FORMS_TEXT])
{
    size_t len = 0;
    if (k->n_forms == 1)
        snprintf(out, FORMS_TEXT, "%s", k->form[0]);
    for (int i = 0; k->n_forms > 1 && i < k->n_forms && len < FORMS_TEXT; i++)
        len += (size_t)snprintf(out + len, FORMS_TEXT - len, "%s%s x%d", i > 0 ? ", " : "",
                                k->form[i], k->count[i]);
}

static void add(struct kind *k, const struct quantize *q, const struct slot *s)
{
    const json_t *note = quantize_state_find(q, s->name);
    const char *form = json_string_value(json_object_get(note, "form"));
    double error = json_number_value(json_object_get(note, "error"));
    double weights = (double)s->rows * s->cols;
    add_form(k, form != NULL ? form : "-");
    k->n++;
    k->weights += weights;
    k->bits += weights * json_number_value(json_object_get(note, "bits"));
    k->error += error;
    k->worst = error > k->worst ? error : k->worst;
}

/* Whether slot i is the first of its kind. */
static bool is_first(const struct model *m, int i)
{
    for (int j = 0; j < i; j++)
        if (m->slot[j].w != NULL &&
            strcmp(kind_name(m->slot[j].name), kind_name(m->slot[i].name)) == 0)
            return false;
    return m->slot[i].w != NULL && m->slot[i].w->codec != NULL;
}

static struct kind sum_up(const struct quantize *q, int first)
{
    const struct model *m = q->model;
    struct kind k = { .name = kind_name(m->slot[first].name) };
    for (int i = first; i < m->n_slots; i++)
        if (m->slot[i].w != NULL && strcmp(kind_name(m->slot[i].name), k.name) == 0)
            add(&k, q, &m->slot[i]);
    return k;
}

static void print_kind(struct table *t, const struct kind *k)
{
    char name[SLOT_NAME];
    char forms[FORMS_TEXT];
    print_forms(k, forms);
    snprintf(name, sizeof name, "%.*s", (int)strcspn(k->name, "."), k->name);
    table_str(t, name);
    table_int(t, k->n);
    table_str(t, forms);
    table_num(t, k->bits / k->weights, 3);
    table_num(t, k->error / k->n, 6);
    table_num(t, k->worst, 6);
}

/* Bits a weight of the matrices that belong to layers. */
static double layer_bits(const struct quantize *q)
{
    double weights = 0, bits = 0;
    for (int i = 0; i < q->model->n_slots; i++) {
        const struct slot *s = &q->model->slot[i];
        struct kind k = { 0 };
        if (s->w == NULL || quantize_layer_of(s->name) < 0)
            continue;
        add(&k, q, s);
        weights += k.weights;
        bits += k.bits;
    }
    return weights > 0 ? bits / weights : 0;
}

static double n_weights(const struct model *m)
{
    double n = 0;
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        bool there = s->w != NULL ? s->w->codec != NULL : *s->v != NULL;
        n += there ? (double)s->rows * (s->w != NULL ? s->cols : 1) : 0;
    }
    return n;
}

static int64_t shard_bytes(const struct quantize *q)
{
    char path[4096];
    struct stat st;
    int64_t sum = 0;
    int n = q->model->config.n_layers + 1;
    for (int i = 1; i <= n; i++) {
        snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", hf_write_folder(q->out), i,
                 n);
        if (stat(path, &st) == 0)
            sum += st.st_size;
    }
    return sum;
}

static int print_total(const struct quantize *q, double seconds)
{
    static const struct table_col cols[] = { { "layer_bits", "bits in layers" },
                                             { "model_bits", "bits in all" },
                                             { "bytes", "bytes" },
                                             { "seconds", "seconds" } };
    struct table *t;
    if (table_open(&t, cols, 4) < 0)
        return cli_no_table();
    int64_t bytes = shard_bytes(q);
    table_num(t, layer_bits(q), 3);
    table_num(t, 8.0 * (double)bytes / n_weights(q->model), 3);
    table_int(t, bytes);
    table_num(t, seconds, 1);
    return cli_table(t, q->config->json);
}

/* What tuning did, where there was any: loss on the sequences that it held out. */
static int print_tuning(const struct quantize *q)
{
    static const struct table_col cols[] = { { "tune_step", "best step" },
                                             { "kl_before", "KL before" },
                                             { "kl_after", "KL after" },
                                             { "codes_moved", "codes moved" } };
    const json_t *note = quantize_state_tuned(q);
    struct table *t;
    if (note == NULL)
        return 0;
    if (table_open(&t, cols, 4) < 0)
        return cli_no_table();
    table_int(t, json_integer_value(json_object_get(note, "step")));
    table_num(t, json_number_value(json_object_get(note, "before")), 4);
    table_num(t, json_number_value(json_object_get(note, "after")), 4);
    table_int(t, json_integer_value(json_object_get(note, "moves")));
    int code = cli_table(t, q->config->json);
    if (code == 0 && !q->config->json)
        putchar('\n');
    return code;
}

int quantize_report(const struct quantize *q, double seconds)
{
    static const struct table_col cols[] = {
        { "matrix", "matrix" },        { "n", "n" },        { "form", "form" }, { "bits", "bits" },
        { "error", "relative error" }, { "worst", "worst" }
    };
    struct table *t;
    if (table_open(&t, cols, 6) < 0)
        return cli_no_table();
    for (int i = 0; i < q->model->n_slots; i++)
        if (is_first(q->model, i)) {
            struct kind k = sum_up(q, i);
            print_kind(t, &k);
        }
    int code = cli_table(t, q->config->json);
    if (code == 0 && !q->config->json)
        putchar('\n');
    if (code == 0)
        code = print_tuning(q);
    return code == 0 ? print_total(q, seconds) : code;
}
