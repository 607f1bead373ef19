#include "server/cli/quantize_allocate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "quant/allocate.h"
#include "server/base/mem.h"
#include "server/model/arch.h"

enum { WIDTHS = 8, FORM_NAME = 32 };

/* ---- families ---------------------------------------------------------------------------------------------------- */

struct family {
    char word[WIDTHS][FORM_NAME];
    int n;
};

/* The forms whose words are the family's and a digit, narrow ones first; none is no error. */
static int find_family(struct family *f, struct be *be, const char *name, struct err *e)
{
    f->n = 0;
    for (int bits = 1; bits <= WIDTHS && strlen(name) < FORM_NAME - 2; bits++) {
        struct weight w;
        snprintf(f->word[f->n], FORM_NAME, "%s%d", name, bits);
        int rc = weight_open(&w, be, f->word[f->n], false, DT_F32, CODEC_PANEL, PROBE_COLS, e);
        weight_close(&w, be);
        if (rc == ERR_NOMEM)
            return rc;
        f->n += rc == 0;
    }
    return 0;
}

static bool has_budget(const struct config *c)
{
    return c->bits > 0 || c->size > 0;
}

int quantize_check_codec(struct be *be, const struct config *c, struct err *e)
{
    struct family f;
    struct weight w;
    TRY(find_family(&f, be, c->codec, e));
    if (c->bits > 0 && c->size > 0)
        return err_set(e, ERR_INVALID, "bits, size: one of them says what there is to spend");
    if (f.n > 0 && has_budget(c))
        return 0;
    if (f.n > 0)
        return err_set(e, ERR_INVALID,
                       "codec: %s is a family of forms: give one of them, as %s, or --bits or "
                       "--size",
                       c->codec, f.word[0]);
    if (weight_open(&w, be, c->codec, false, DT_F32, CODEC_PANEL, PROBE_COLS, e) < 0)
        return err_prefix(e, "codec");
    weight_close(&w, be);
    if (has_budget(c))
        return err_set(e, ERR_INVALID,
                       "%s: %s is one form for all matrices; forms are chosen from a family, as "
                       "trellis",
                       c->bits > 0 ? "bits" : "size", c->codec);
    return 0;
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

struct matrix {
    const struct slot *slot;
    /* of every word of the family */
    const char *form[WIDTHS]; /* another one where it does not fit the shape */
    size_t bytes[WIDTHS];
    double error[WIDTHS]; /* alpha t^2 */
    int choice;
};

struct allocation {
    struct quantize *q;
    struct family family;
    struct matrix *matrix;
    int n;
    double weights; /* numbers in all matrices */
    size_t rest;    /* with --size: bytes of the folder's other tensors */
};

/* What counts: with --bits what the planes take in memory, with --size what the file keeps of them. */
static size_t bytes_of(const struct allocation *a, const struct weight *w)
{
    return a->q->config->size > 0 ? hf_write_bytes(w) : weight_bytes(w);
}

static int add_matrix(struct allocation *a, const struct slot *s, struct err *e)
{
    struct matrix *m = &a->matrix[a->n++];
    m->slot = s;
    a->weights += (double)s->rows * s->cols;
    for (int c = 0; c < a->family.n; c++) {
        struct weight w;
        TRY(weight_open(&w, a->q->session.be, a->family.word[c], false, DT_F32, s->rows, s->cols,
                        e));
        m->form[c] = weight_form(&w);
        m->bytes[c] = bytes_of(a, &w);
        weight_close(&w, a->q->session.be);
    }
    return 0;
}

/* A tensor that no choice changes: a vector, which is written as f32, or a matrix of no layer. */
static int add_rest(struct allocation *a, const struct slot *s, struct err *e)
{
    struct weight w;
    if (s->v != NULL)
        a->rest += *s->v != NULL ? (size_t)s->rows * sizeof **s->v : 0;
    if (s->w == NULL || s->w->codec == NULL || quantize_layer_of(s->name) >= 0)
        return 0;
    TRY(weight_open(&w, a->q->session.be, a->q->config->head, false, DT_F32, s->rows, s->cols, e));
    a->rest += hf_write_bytes(&w);
    weight_close(&w, a->q->session.be);
    return 0;
}

/* In the order of the layers. */
static int add_matrices(struct allocation *a, struct err *e)
{
    const struct model *m = a->q->model;
    for (int i = 0; i < m->n_slots && a->q->config->size > 0; i++)
        TRY(add_rest(a, &m->slot[i], e));
    for (int l = 0; l < m->config.n_layers; l++)
        for (int i = 0; i < m->n_slots; i++) {
            const struct slot *s = &m->slot[i];
            if (s->w != NULL && s->w->codec != NULL && quantize_layer_of(s->name) == l)
                TRY(add_matrix(a, s, e));
        }
    return 0;
}

static int open_allocation(struct allocation *a, struct quantize *q, struct err *e)
{
    *a = (struct allocation){ .q = q };
    TRY(find_family(&a->family, q->session.be, q->config->codec, e));
    a->matrix = mem_zalloc((size_t)q->model->n_slots, sizeof *a->matrix);
    if (a->matrix == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d matrices", q->model->n_slots);
    int rc = add_matrices(a, e);
    if (rc < 0)
        mem_free(a->matrix);
    return rc;
}

/* Bytes that the layers' matrices may take. */
static size_t budget_of(const struct allocation *a)
{
    size_t size = (size_t)a->q->config->size;
    if (size > 0)
        return size > a->rest ? size - a->rest : 0;
    return (size_t)(a->q->config->bits * a->weights / 8);
}

/* Of all matrices in the form `c` of the family; -1: each in its smallest. */
static size_t total_bytes(const struct allocation *a, int c)
{
    size_t sum = 0;
    for (int i = 0; i < a->n; i++) {
        const size_t *bytes = a->matrix[i].bytes;
        size_t least = bytes[0];
        for (int k = 1; k < a->family.n; k++)
            least = bytes[k] < least ? bytes[k] : least;
        sum += c < 0 ? least : bytes[c];
    }
    return sum;
}

static bool is_uniform(const struct allocation *a)
{
    return strcmp(a->q->config->allocate, "uniform") == 0;
}

static int too_little(const struct allocation *a, size_t least, struct err *e)
{
    const struct config *c = a->q->config;
    if (c->size > 0)
        return err_set(e, ERR_INVALID,
                       "size: %lld bytes are too few, the smallest that %s can do here is %zu, of "
                       "which %zu are no layer's matrices",
                       (long long)c->size, c->codec, least + a->rest, a->rest);
    /* rounded up: what is said does */
    return err_set(e, ERR_INVALID,
                   "bits: %g bits a weight are too few, the smallest that %s can do here is %.4f",
                   c->bits, c->codec, ceil(8 * (double)least / a->weights * 1e4) / 1e4);
}

int quantize_check_budget(struct quantize *q, struct err *e)
{
    struct allocation a;
    if (!has_budget(q->config))
        return 0;
    TRY(open_allocation(&a, q, e));
    size_t least = total_bytes(&a, is_uniform(&a) ? 0 : -1);
    for (int c = 1; c < a.family.n && is_uniform(&a); c++)
        least = total_bytes(&a, c) < least ? total_bytes(&a, c) : least;
    mem_free(a.matrix);
    return least <= budget_of(&a) ? 0 : too_little(&a, least, e);
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

/* The widest form that fits for all. */
static void choose_uniform(struct allocation *a)
{
    size_t budget = budget_of(a), most = 0;
    int best = 0;
    for (int c = 0; c < a->family.n; c++) {
        size_t bytes = total_bytes(a, c);
        if (bytes <= budget && bytes > most) {
            best = c;
            most = bytes;
        }
    }
    for (int i = 0; i < a->n; i++)
        a->matrix[i].choice = best;
}

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

/* A matrix that looks the same in all forms needs no probe. */
static bool has_choice(const struct allocation *a, const struct matrix *m)
{
    for (int c = 1; c < a->family.n; c++)
        if (m->bytes[c] != m->bytes[0])
            return true;
    return false;
}

static int probe_all(struct allocation *a, struct err *e)
{
    int n = 0;
    const struct slot **s = mem_zalloc((size_t)a->n + 1, sizeof(const struct slot *));
    if (s == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d matrices", a->n);
    for (int i = 0; i < a->n; i++)
        if (has_choice(a, &a->matrix[i]))
            s[n++] = a->matrix[i].slot;
    int rc = quantize_probe(a->q, s, n, e);
    mem_free(s);
    return rc;
}

static int set_errors(struct allocation *a, struct err *e)
{
    json_t *alphas;
    TRY(quantize_state_map(a->q, "alpha", &alphas, e));
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

static int choose_dp(struct allocation *a, struct err *e)
{
    TRY(probe_all(a, e));
    TRY(set_errors(a, e));
    struct allocate_item *item = mem_zalloc((size_t)a->n + 1, sizeof *item);
    int *choice = mem_zalloc((size_t)a->n + 1, sizeof *choice);
    int rc = item != NULL && choice != NULL
                 ? 0
                 : err_set(e, ERR_NOMEM, "no memory for %d matrices", a->n);
    for (int i = 0; i < a->n && rc == 0; i++)
        item[i] = (struct allocate_item){ a->matrix[i].bytes, a->matrix[i].error, a->family.n };
    if (rc == 0)
        rc = allocate_dp(item, a->n, budget_of(a), choice, e);
    for (int i = 0; i < a->n && rc == 0; i++)
        a->matrix[i].choice = choice[i];
    mem_free(choice);
    mem_free(item);
    return rc;
}

static int note_choices(struct allocation *a, json_t *choices, struct err *e)
{
    for (int i = 0; i < a->n; i++) {
        const struct matrix *m = &a->matrix[i];
        if (json_object_set_new(choices, m->slot->name, json_string(a->family.word[m->choice])) < 0)
            return err_set(e, ERR_NOMEM, "no memory for the notes");
    }
    return quantize_state_save(a->q, e);
}

int quantize_allocate(struct quantize *q, struct err *e)
{
    struct allocation a;
    json_t *choices;
    int rc = 0;
    if (!has_budget(q->config))
        return 0;
    TRY(quantize_state_map(q, "choice", &choices, e));
    TRY(open_allocation(&a, q, e));
    if ((int)json_object_size(choices) != a.n) {
        if (is_uniform(&a))
            choose_uniform(&a);
        else
            rc = choose_dp(&a, e);
        if (rc == 0)
            rc = note_choices(&a, choices, e);
    }
    mem_free(a.matrix);
    return rc;
}

const char *quantize_form(const struct quantize *q, const struct slot *s)
{
    const json_t *choices = json_object_get(json_object_get(q->state, "allocation"), "choice");
    const char *word = json_string_value(json_object_get(choices, s->name));
    return word != NULL ? word : q->config->codec;
}
