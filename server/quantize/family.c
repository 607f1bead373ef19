#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

/* ---- families ---------------------------------------------------------------------------------------------------- */

int family_find(struct family *f, struct be *be, const char *name, struct err *e)
{
    f->n = 0;
    for (int bits = 1; bits <= FAMILY_FORMS && strlen(name) < FORM_NAME - 2; bits++) {
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

bool quantize_has_budget(const struct config *c)
{
    return c->bits > 0 || c->size > 0;
}

/* Whether codes of the form can move, where they are to. */
static int check_codes(struct be *be, const struct config *c, const char *word, struct err *e)
{
    struct weight w;
    if (c->tune_codes == 0)
        return 0;
    TRY(weight_open_press(&w, be, word, CODEC_PANEL, PROBE_COLS, e));
    bool alone = w.codec->moves != NULL;
    weight_close(&w, be);
    return alone ? 0
                 : err_set(e, ERR_INVALID,
                           "tune-codes: the codes of %s do not stand alone; those of planes and "
                           "aqlm do",
                           quantize_codec(c));
}

int quantize_check_codec(struct be *be, const struct config *c, struct err *e)
{
    struct family f;
    struct weight w;
    TRY(family_find(&f, be, quantize_codec(c), e));
    bool pareto = c->pareto[0] != 0, budget = quantize_has_budget(c) || pareto;
    if ((c->bits > 0) + (c->size > 0) + pareto > 1)
        return err_set(e, ERR_INVALID,
                       "bits, size, pareto: one of them says what there is to spend");
    if (!budget && strcmp(c->allocate, "dp") != 0)
        return err_set(
            e, ERR_INVALID,
            "allocate: there is nothing to share out without --bits, --size or --pareto");
    if (!budget && c->forms[0] != 0)
        return err_set(e, ERR_INVALID,
                       "forms: there is nothing to choose from without --bits, --size or --pareto");
    if (pareto && (c->tune > 0 || c->tune_codes > 0))
        return err_set(e, ERR_INVALID, "%s: a sweep judges models as they are pressed",
                       c->tune > 0 ? "tune" : "tune-codes");
    if (f.n > 0 && budget)
        return check_codes(be, c, f.word[0], e);
    if (f.n > 0)
        return err_set(e, ERR_INVALID,
                       "codec: %s is a family of forms: give one of them, as %s, or --bits, --size "
                       "or --pareto",
                       quantize_codec(c), f.word[0]);
    if (weight_open_press(&w, be, quantize_codec(c), CODEC_PANEL, PROBE_COLS, e) < 0)
        return err_prefix(e, "codec");
    weight_close(&w, be);
    if (budget)
        return err_set(e, ERR_INVALID,
                       "%s: %s is one form for all matrices; forms are chosen from a family, as "
                       "trellis",
                       pareto        ? "pareto"
                       : c->bits > 0 ? "bits"
                                     : "size",
                       quantize_codec(c));
    return check_codes(be, c, quantize_codec(c), e);
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

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
        m->rotated = c == 0 ? weight_coder(&w)->rotated : m->rotated;
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
    TRY(weight_open_press(&w, a->q->session.be, quantize_head(a->q->config), s->rows, s->cols, e));
    a->rest += hf_write_bytes(&w);
    weight_close(&w, a->q->session.be);
    return 0;
}

/* In the order of the layers. */
static int add_matrices(struct allocation *a, struct err *e)
{
    const struct model *m = a->q->model;
    for (int i = 0; i < m->n_slots; i++)
        TRY(add_rest(a, &m->slot[i], e));
    for (int l = 0; l < m->config.n_layers; l++)
        for (int i = 0; i < m->n_slots; i++) {
            const struct slot *s = &m->slot[i];
            if (s->w != NULL && s->w->codec != NULL && quantize_layer_of(s->name) == l)
                TRY(add_matrix(a, s, e));
        }
    return 0;
}

static int make_room(struct allocation *a, struct err *e)
{
    size_t n = (size_t)a->q->model->n_slots;
    a->matrix = mem_zalloc(n, sizeof *a->matrix);
    a->item = mem_zalloc(n, sizeof *a->item);
    a->choice = mem_zalloc(n, sizeof *a->choice);
    if (a->matrix != NULL && a->item != NULL && a->choice != NULL)
        return 0;
    return err_set(e, ERR_NOMEM, "no memory for %zu matrices", n);
}

void allocation_set_bits(struct allocation *a, double bits)
{
    a->bits = bits;
    a->budget = (size_t)(bits * a->weights / 8);
}

int allocation_open(struct allocation *a, struct quantize *q, struct err *e)
{
    *a = (struct allocation){ .q = q };
    TRY(family_find(&a->family, q->session.be, quantize_codec(q->config), e));
    int rc = make_room(a, e);
    if (rc == 0)
        rc = add_matrices(a, e);
    if (rc < 0) {
        allocation_close(a);
        return rc;
    }
    for (int i = 0; i < a->n; i++)
        a->item[i] = (struct allocate_item){ a->matrix[i].bytes, a->matrix[i].error, a->family.n };
    size_t size = (size_t)q->config->size;
    if (size > 0)
        a->budget = size > a->rest ? size - a->rest : 0;
    else
        allocation_set_bits(a, q->config->bits);
    return 0;
}

void allocation_close(struct allocation *a)
{
    mem_free(a->choice);
    mem_free(a->item);
    mem_free(a->matrix);
    *a = (struct allocation){ 0 };
}

size_t allocation_bytes(const struct allocation *a, int c)
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

bool allocation_wants(const struct allocation *a, int i, const json_t *notes)
{
    const size_t *bytes = a->matrix[i].bytes;
    if (json_object_get(notes, a->matrix[i].slot->name) != NULL)
        return false;
    for (int c = 1; c < a->family.n; c++)
        if (bytes[c] != bytes[0])
            return true;
    return false;
}
