#include "server/tune/tune.h"

#include <math.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/tune/tune_internal.h"

/* ---- factors ----------------------------------------------------------------------------------------------------- */

int tune_count(const struct slot *s)
{
    if (s->w != NULL)
        return s->w->codec != NULL && s->reads != INPUT_OF_NONE ? s->rows : 0;
    return *s->v != NULL && strcmp(s->name, "rope_freqs.weight") != 0 ? s->rows : 0;
}

int tune_count_all(const struct model *m)
{
    int n = 0;
    for (int i = 0; i < m->n_slots; i++)
        n += tune_count(&m->slot[i]);
    return n;
}

void tune_apply(const struct slot *s, const float *factor)
{
    for (int i = 0; i < tune_count(s); i++) {
        if (s->w != NULL)
            weight_rescale(s->w, i, factor[i]);
        else
            (*s->v)[i] *= factor[i];
    }
}

/* The first factor of the slot that `place`, a weight or a vector's pointer, belongs to. */
static int first_of(const struct model *m, const void *place)
{
    int n = 0;
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        if (place == (s->w != NULL ? (const void *)s->w : (const void *)s->v))
            return n;
        n += tune_count(s);
    }
    ASSERT(false);
    return -1;
}

void tune_set(struct tune *t, const float *log)
{
    int at = 0;
    for (int i = 0; i < t->n; i++)
        t->factor[i] = expf(log[i]);
    for (int i = 0; i < t->m->n_slots; i++) {
        const struct slot *s = &t->m->slot[i];
        int n = tune_count(s);
        for (int k = 0; k < n && s->v != NULL; k++)
            (*s->v)[k] = t->vector[at + k] * t->factor[at + k];
        at += n;
    }
}

/* Factors of 1 on the vectors as they are. */
static void start_anew(struct tune *t)
{
    int at = 0;
    for (int i = 0; i < t->n; i++)
        t->factor[i] = 1;
    for (int i = 0; i < t->m->n_slots; i++) {
        const struct slot *s = &t->m->slot[i];
        int n = tune_count(s);
        if (n > 0 && s->v != NULL)
            memcpy(t->vector + at, *s->v, (size_t)n * sizeof(float));
        at += n;
    }
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

struct reading {
    const struct weight *w;
    float *to;
};

static void read_rows(void *arg, int first, int last, int i_thread)
{
    const struct reading *r = arg;
    (void)i_thread;
    for (int i = first; i < last; i++)
        weight_row(r->w, i, r->to + (size_t)i * (size_t)r->w->cols);
}

static void read_matrix(const struct be *be, const struct weight *w, float *to)
{
    struct reading r = { w, to };
    par_for(be->par, w->rows, CODEC_PANEL, read_rows, &r);
}

static const struct weight *head_of(const struct model *m)
{
    return m->out.codec != NULL ? &m->out : &m->embd;
}

void tune_read(struct tune *t)
{
    struct tune_matrix *all[TUNE_MATRICES];
    for (int i = 0; i < t->m->config.n_layers; i++) {
        tune_matrices(&t->layer[i], all);
        for (int k = 0; k < TUNE_MATRICES; k++)
            read_matrix(t->be, all[k]->stored, all[k]->w);
    }
    read_matrix(t->be, head_of(t->m), t->head);
    read_matrix(t->be, head_of(t->teacher), t->wanted_head);
}

static struct tune_matrix matrix_of(const struct model *m, const struct weight *w,
                                    float *const *bias)
{
    struct tune_matrix x = { .stored = w, .at = first_of(m, w) };
    while (m->slot[x.slot].w != w)
        x.slot++;
    if (bias != NULL && *bias != NULL) {
        x.bias = *bias;
        x.bias_at = first_of(m, bias);
    }
    return x;
}

static int open_layer(struct tune_layer *l, const struct model *m, int i, struct err *e)
{
    const struct layer *y = &m->layer[i];
    struct tune_matrix *all[TUNE_MATRICES];
    *l = (struct tune_layer){ .q = matrix_of(m, &y->q, &y->q_bias),
                              .k = matrix_of(m, &y->k, &y->k_bias),
                              .v = matrix_of(m, &y->v, &y->v_bias),
                              .o = matrix_of(m, &y->o, NULL),
                              .gate = matrix_of(m, &y->gate, NULL),
                              .up = matrix_of(m, &y->up, NULL),
                              .down = matrix_of(m, &y->down, NULL),
                              .attn_norm = first_of(m, &y->attn_norm),
                              .ffn_norm = first_of(m, &y->ffn_norm),
                              .q_norm = first_of(m, &y->q_norm),
                              .k_norm = first_of(m, &y->k_norm) };
    tune_matrices(l, all);
    for (int k = 0; k < TUNE_MATRICES; k++) {
        const struct weight *w = all[k]->stored;
        all[k]->w = mem_alloc((size_t)w->rows * (size_t)w->cols * sizeof(float));
        if (all[k]->w == NULL)
            return err_set(e, ERR_NOMEM, "no memory for layer %d in f32", i);
    }
    return 0;
}

/* ---- room -------------------------------------------------------------------------------------------------------- */

/* Hands out the room, NULL to ask for its size only: the floats that it takes. */
static size_t lay_out(struct tune *t, float *room)
{
    const struct model_config *c = &t->m->config;
    size_t len = (size_t)t->len;
    size_t dim = len * (size_t)c->dim;
    size_t ffn = len * (size_t)c->ffn;
    size_t q = len * (size_t)(c->n_heads * c->head_dim);
    size_t kv = len * (size_t)(c->n_kv_heads * c->head_dim);
    size_t half = len * (size_t)(c->rope_dim / 2);
    size_t out = (size_t)TUNE_OUT * (size_t)c->vocab;
    size_t scores = (size_t)par_threads(t->be->par) * 2 * TUNE_SPAN * len;
    struct tune_acts *a = &t->a;
    struct tune_back *d = &t->d;
    /* clang-format off */
    const struct {
        float **part;
        size_t size;
    } plan[] = {
        { &t->cos, half }, { &t->sin, half }, { &t->minus, half },
        { &t->stream, dim * (size_t)(c->n_layers + 1) }, { &t->dx, dim },
        { &t->logits, out }, { &t->wanted, out }, { &t->scores, scores },
        { &a->xn, dim }, { &a->yq, q }, { &a->yk, kv }, { &a->q, q }, { &a->k, kv }, { &a->v, kv },
        { &a->att, q }, { &a->o, dim }, { &a->h, dim }, { &a->hn, dim },
        { &a->gate, ffn }, { &a->up, ffn }, { &a->act, ffn }, { &a->down, dim },
        { &d->h, dim }, { &d->hn, dim }, { &d->att, q }, { &d->q, q }, { &d->k, kv }, { &d->v, kv },
        { &d->act, ffn }, { &d->gate, ffn }, { &d->up, ffn }, { &d->row, q > dim ? q : dim },
    };
    /* clang-format on */
    size_t at = 0;
    for (size_t i = 0; i < sizeof plan / sizeof *plan; i++) {
        if (room != NULL)
            *plan[i].part = room + at;
        at += (plan[i].size + 15) / 16 * 16;
    }
    return at;
}

static int open_room(struct tune *t, struct err *e)
{
    const struct model_config *c = &t->m->config;
    size_t floats = lay_out(t, NULL);
    size_t layers = (size_t)c->n_layers;
    t->room = mem_alloc(floats * sizeof *t->room);
    t->factor = mem_alloc((size_t)t->n * sizeof *t->factor);
    t->vector = mem_zalloc((size_t)t->n, sizeof *t->vector);
    t->pos = mem_alloc((size_t)t->len * sizeof *t->pos);
    t->layer = mem_zalloc(layers, sizeof *t->layer);
    t->head = mem_alloc((size_t)c->vocab * (size_t)c->dim * sizeof *t->head);
    t->wanted_head = mem_alloc((size_t)c->vocab * (size_t)c->dim * sizeof *t->wanted_head);
    if (t->room == NULL || t->factor == NULL || t->vector == NULL || t->pos == NULL ||
        t->layer == NULL || t->head == NULL || t->wanted_head == NULL)
        return err_set(e, ERR_NOMEM, "no memory to tune sequences of %d tokens", t->len);
    lay_out(t, t->room);
    return 0;
}

static void open_angles(struct tune *t)
{
    int half = t->m->config.rope_dim / 2;
    for (int i = 0; i < t->len; i++)
        t->pos[i] = i;
    t->be->ops->rope_table(t->be, t->cos, t->sin, t->pos, t->m->inv_freq, 1.0f, t->len, half);
    for (size_t i = 0; i < (size_t)t->len * (size_t)half; i++)
        t->minus[i] = -t->sin[i];
}

static int open_all(struct tune *t, struct err *e)
{
    TRY(open_room(t, e));
    for (int i = 0; i < t->m->config.n_layers; i++)
        TRY(open_layer(&t->layer[i], t->m, i, e));
    t->out_norm = first_of(t->m, &t->m->out_norm);
    open_angles(t);
    start_anew(t);
    tune_read(t);
    return 0;
}

int tune_open(struct tune **out, struct model *student, const struct model *teacher, int len,
              struct err *e)
{
    ASSERT(student->be->host && student->be == teacher->be && len >= 1);
    ASSERT(student->config.vocab == teacher->config.vocab);
    struct tune *t = mem_zalloc(1, sizeof *t);
    if (t == NULL)
        return err_set(e, ERR_NOMEM, "no memory to tune");
    t->m = student;
    t->teacher = teacher;
    t->be = student->be;
    t->len = len;
    t->n = tune_count_all(student);
    int rc = open_all(t, e);
    if (rc < 0) {
        tune_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tune_close(struct tune *t)
{
    struct tune_matrix *all[TUNE_MATRICES];
    if (t == NULL)
        return;
    tune_codes_close(t);
    for (int i = 0; t->layer != NULL && i < t->m->config.n_layers; i++) {
        tune_matrices(&t->layer[i], all);
        for (int k = 0; k < TUNE_MATRICES; k++)
            mem_free(all[k]->w);
    }
    mem_free(t->wanted_head);
    mem_free(t->head);
    mem_free(t->layer);
    mem_free(t->pos);
    mem_free(t->vector);
    mem_free(t->factor);
    mem_free(t->room);
    mem_free(t);
}

void tune_settle(struct tune *t)
{
    int at = 0;
    for (int i = 0; i < t->m->n_slots; i++) {
        const struct slot *s = &t->m->slot[i];
        int n = tune_count(s);
        if (n > 0 && s->v != NULL)
            memcpy(*s->v, t->vector + at, (size_t)n * sizeof(float));
        tune_apply(s, t->factor + at);
        at += n;
    }
    start_anew(t);
    tune_read(t);
}
