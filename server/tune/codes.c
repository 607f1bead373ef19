/* Codes move: sums that slopes are, and the search of each row. */
#include <string.h>

#include "server/base/mem.h"
#include "server/tune/tune_internal.h"

/* Moves of a row in one step: on stories15M in planes2g32 a good step makes 1 a row in the mean. */
enum { ROW_MOVES = 32 };

/* ---- sums -------------------------------------------------------------------------------------------------------- */

/* c[rows][cols] += a^T b, of a [n][rows] and b [n][cols] */
static void add_outer(const struct tune *t, float *c, const float *a, int rows, const float *b,
                      int cols, int n)
{
    struct dense_product p = { .c = c, .a = a, .b = b, .m = rows, .scale = 1, .add = true };
    p.n = cols;
    p.k = n;
    p.a_row = p.b_col = 1;
    p.a_col = (size_t)rows;
    p.b_row = p.c_row = (size_t)cols;
    tune_product(t->be, &p);
}

void tune_slopes_add(const struct tune *t, const struct tune_matrix *m, const float *dy,
                     const float *x, int n)
{
    int rows = m->stored->rows;
    int cols = m->stored->cols;
    add_outer(t, m->slopes.g, dy, rows, x, cols, n);
    if (m->slopes.sums)
        add_outer(t, m->slopes.h, x, cols, x, cols, n);
    for (int i = 0; i < n; i++, dy += rows)
        for (int r = 0; r < rows; r++)
            m->slopes.s[r] += (double)dy[r] * (double)dy[r];
}

static size_t area(const struct weight *w)
{
    return (size_t)w->rows * (size_t)w->cols;
}

static size_t square(const struct weight *w)
{
    return (size_t)w->cols * (size_t)w->cols;
}

void tune_codes_clear(struct tune *t)
{
    struct tune_matrix *all[TUNE_MATRICES];
    t->seen = 0;
    t->lost = 0;
    for (int i = 0; i < t->m->config.n_layers; i++) {
        tune_matrices(&t->layer[i], all);
        for (int k = 0; k < TUNE_MATRICES; k++) {
            const struct weight *w = all[k]->stored;
            const struct tune_slopes *s = &all[k]->slopes;
            if (s->g == NULL)
                continue;
            memset(s->g, 0, area(w) * sizeof *s->g);
            memset(s->s, 0, (size_t)w->rows * sizeof *s->s);
            if (s->sums)
                memset(s->h, 0, square(w) * sizeof *s->h);
        }
    }
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static void close_slopes(struct tune_slopes *s)
{
    if (s->sums)
        mem_free(s->h);
    mem_free(s->s);
    mem_free(s->g);
    *s = (struct tune_slopes){ 0 };
}

void tune_codes_close(struct tune *t)
{
    struct tune_matrix *all[TUNE_MATRICES];
    for (int i = 0; t->layer != NULL && i < t->m->config.n_layers; i++) {
        tune_matrices(&t->layer[i], all);
        for (int k = 0; k < TUNE_MATRICES; k++)
            close_slopes(&all[k]->slopes);
    }
    mem_free(t->code_room);
    t->code_room = NULL;
}

/* h: of the matrix before, which reads the same; NULL: this one is the first. */
static int open_slopes(struct tune_slopes *s, const struct weight *w, float *h, struct err *e)
{
    s->sums = h == NULL;
    s->h = h != NULL ? h : mem_alloc(square(w) * sizeof *s->h);
    s->s = mem_alloc((size_t)w->rows * sizeof *s->s);
    s->g = mem_alloc(area(w) * sizeof *s->g);
    if (s->h != NULL && s->s != NULL && s->g != NULL)
        return 0;
    return err_set(e, ERR_NOMEM, "no memory for the slopes of %d x %d weights", w->rows, w->cols);
}

static int open_layer(struct tune *t, int layer, struct err *e)
{
    struct tune_matrix *all[TUNE_MATRICES];
    float *h[LAYER_INPUTS] = { NULL };
    tune_matrices(&t->layer[layer], all);
    for (int k = 0; k < TUNE_MATRICES; k++) {
        const struct weight *w = all[k]->stored;
        enum layer_input what = t->m->slot[all[k]->slot].reads;
        size_t cols = (size_t)w->cols;
        if (w->codec->moves == NULL)
            continue;
        TRY(open_slopes(&all[k]->slopes, w, h[what], e));
        h[what] = all[k]->slopes.h;
        t->code_width = cols > t->code_width ? cols : t->code_width;
    }
    return 0;
}

/* What a thread works on a row with, in room that open_room() gives. */
struct desk {
    float *grad, *curve; /* [cols] */
    float *is, *becomes; /* [cols] the row's numbers */
    float *room;         /* [3][cols] */
    struct codec_move *offer;
};

static size_t desk_bytes(const struct tune *t)
{
    return t->code_width * (7 * sizeof(float) + sizeof(struct codec_move));
}

static struct desk desk_of(const struct tune *t, int i_thread)
{
    size_t n = t->code_width;
    float *at = (float *)(void *)((char *)t->code_room + (size_t)i_thread * desk_bytes(t));
    return (struct desk){ at,         at + n,     at + 2 * n,
                          at + 3 * n, at + 4 * n, (struct codec_move *)(void *)(at + 7 * n) };
}

int tune_codes_open(struct tune *t, struct err *e)
{
    for (int i = 0; i < t->m->config.n_layers; i++)
        TRY(open_layer(t, i, e));
    t->code_room = mem_alloc((size_t)par_threads(t->be->par) * desk_bytes(t) + 1);
    if (t->code_room == NULL)
        return err_set(e, ERR_NOMEM, "no memory to move codes");
    tune_codes_clear(t);
    return 0;
}

/* ---- moves ------------------------------------------------------------------------------------------------------- */

void tune_codes_make(const struct model *m, const struct tune_move *move, size_t n)
{
    for (const struct tune_move *v = move; v < move + n; v++) {
        struct weight *w = m->slot[v->slot].w;
        w->codec->moves->make(w, v->row, v->at, v->code);
    }
}

void tune_codes_undo(struct tune *t, const struct tune_move *move, size_t n)
{
    for (const struct tune_move *v = move + n; v-- > move;) {
        struct weight *w = t->m->slot[v->slot].w;
        w->codec->moves->make(w, v->row, v->at, v->was);
    }
    tune_read(t);
}

/* One loop over the rows of a matrix. */
struct search {
    const struct tune *t;
    const struct tune_matrix *m;
    struct weight *w;
    float caution;
    struct tune_move *move; /* [rows][ROW_MOVES] */
    int *n;                 /* [rows] */
};

/* caution s_r */
static float bend_of(const struct search *s, int row)
{
    return (float)((double)s->caution * s->m->slopes.s[row] / (2 * s->t->lost));
}

static void start_row(const struct search *s, struct desk *d, int row)
{
    size_t cols = (size_t)s->w->cols;
    const float *g = s->m->slopes.g + (size_t)row * cols;
    float one = 1 / (float)s->t->seen;
    float bend = bend_of(s, row);
    for (size_t k = 0; k < cols; k++) {
        d->grad[k] = g[k] * one;
        d->curve[k] = bend * s->m->slopes.h[k * cols + k] * one;
    }
    weight_row(s->w, row, d->is);
}

/* The row has changed: its slopes follow. */
static void follow(const struct search *s, struct desk *d, int row)
{
    size_t cols = (size_t)s->w->cols;
    float bend = bend_of(s, row) / (float)s->t->seen;
    weight_row(s->w, row, d->becomes);
    for (size_t k = 0; k < cols; k++) {
        float step = bend * (d->becomes[k] - d->is[k]);
        const float *h = s->m->slopes.h + k * cols;
        for (size_t i = 0; i < cols && step != 0; i++)
            d->grad[i] += step * h[i];
    }
    memcpy(d->is, d->becomes, cols * sizeof *d->is);
}

static const struct codec_move *best_of(const struct codec_move *offer, int n)
{
    const struct codec_move *best = offer;
    for (int i = 1; i < n; i++)
        best = offer[i].gain > best->gain ? &offer[i] : best;
    return best;
}

static int search_row(const struct search *s, struct desk *d, int row, struct tune_move *move)
{
    const struct codec_moves *c = s->w->codec->moves;
    int n = 0;
    start_row(s, d, row);
    while (n < ROW_MOVES) {
        c->find(s->w, row, d->grad, d->curve, d->room, d->offer);
        const struct codec_move *best = best_of(d->offer, c->count(s->w));
        if (!(best->gain > 0))
            break;
        int was = c->make(s->w, row, best->at, best->code);
        move[n++] = (struct tune_move){ s->m->slot, row, best->at, best->code, was };
        follow(s, d, row);
    }
    return n;
}

static void search_panels(void *arg, int first, int last, int i_thread)
{
    const struct search *s = arg;
    struct desk d = desk_of(s->t, i_thread);
    for (int r = first * CODEC_PANEL; r < last * CODEC_PANEL && r < s->w->rows; r++) {
        size_t cols = (size_t)s->w->cols;
        s->n[r] = search_row(s, &d, r, s->move + (size_t)r * ROW_MOVES);
        memcpy(s->m->w + (size_t)r * cols, d.is, cols * sizeof *d.is);
    }
}

static int search_matrix(struct search *s, struct buf *moves, struct err *e)
{
    size_t rows = (size_t)s->w->rows;
    s->move = mem_alloc(rows * ROW_MOVES * sizeof *s->move);
    s->n = mem_zalloc(rows, sizeof *s->n);
    int rc = s->move == NULL || s->n == NULL ? ERR_NOMEM : 0;
    if (rc == 0)
        par_for(s->t->be->par, weight_panels(s->w), 1, search_panels, s);
    for (size_t r = 0; r < rows && rc == 0; r++)
        rc = buf_add(moves, s->move + r * ROW_MOVES, (size_t)s->n[r] * sizeof *s->move);
    mem_free(s->n);
    mem_free(s->move);
    return rc < 0 ? err_set(e, rc, "no memory for moves of codes") : 0;
}

int tune_codes_move(struct tune *t, float caution, struct buf *moves, struct err *e)
{
    ASSERT(t->code_room != NULL && t->seen > 0);
    struct tune_matrix *all[TUNE_MATRICES];
    for (int i = 0; i < t->m->config.n_layers; i++) {
        tune_matrices(&t->layer[i], all);
        for (int k = 0; k < TUNE_MATRICES; k++) {
            struct search s = { .t = t, .m = all[k], .caution = caution };
            s.w = t->m->slot[all[k]->slot].w;
            if (all[k]->slopes.g != NULL)
                TRY(search_matrix(&s, moves, e));
        }
    }
    return 0;
}
