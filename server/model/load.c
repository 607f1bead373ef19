/* Reading and pressing overlap: while the next megabytes are in flight, the panels of the last ones are encoded by all
 * workers. A request never crosses a panel, so each one can be pressed on its own. What the file holds pressed already is
 * put where it belongs as it comes. */
#include "server/model/load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/base/progress.h"

/* A pressed matrix under way to a device: it is gathered on the host first, for bytes of a file come in any order. */
struct pressed {
    struct weight stage; /* codec NULL: no byte has come */
    uint64_t left;       /* bytes to come */
};

/* A request's piece of a tensor: rows to be pressed, or bytes of a part of a matrix that is pressed. */
struct piece {
    const struct tensor *t;
    const struct slot *slot;
    int row0, n_rows;
    struct pressed *pressed; /* NULL: rows */
    int part;
    size_t offset;
};

struct load {
    struct model *m;
    struct piece *piece;
    struct io_request *req;
    int n, cap;
    struct pressed *pressed; /* [forms of the source] */
    int n_pressed;
    float *scratch; /* [threads][step * cols of the widest] */
    size_t scratch_step;
    bool progress;
    struct err *err;
    struct progress bar;
    /* of the loop under way */
    const struct piece *now;
    const char *data;
    struct weight *to; /* where rows are pressed: the matrix itself, or a stage of it */
    int to_row0;       /* the piece's first row there */
};

static const char *shape_text(char *out, size_t size, const struct tensor *t)
{
    int n = 0;
    out[0] = 0;
    for (int i = 0; i < t->n_dims; i++)
        n += snprintf(out + n, size - (size_t)n, "%s%lld", i ? " x " : "", (long long)t->dim[i]);
    return out;
}

static int check_shape(const struct tensor *t, const struct slot *s, struct err *e)
{
    bool ok = s->cols == 0 ? t->n_dims == 1 && t->dim[0] == s->rows
                           : t->n_dims == 2 && t->dim[0] == s->rows && t->dim[1] == s->cols;
    char found[96];
    if (ok)
        return 0;
    if (s->cols == 0)
        return err_set(e, ERR_FORMAT, "tensor %s has shape %s, the model's config asks for %d",
                       s->name, shape_text(found, sizeof found, t), s->rows);
    return err_set(e, ERR_FORMAT, "tensor %s has shape %s, the model's config asks for %d x %d",
                   s->name, shape_text(found, sizeof found, t), s->rows, s->cols);
}

/* Codes of a pressed matrix whose form nobody names would pass for small whole numbers. */
static int check_plain(const struct tensor *t, struct err *e)
{
    if (t->type != DT_U8 && t->type != DT_I8 && t->type != DT_I16)
        return 0;
    return err_set(e, ERR_FORMAT, "tensor %s is of %s, which is no type of weights", t->name,
                   dtype_name(t->type));
}

/* Whether t is as the part needs it. */
static int check_part(const struct tensor *t, const struct codec_part *p, const char *form,
                      struct err *e)
{
    char found[96];
    char wanted[96];
    struct tensor want = { .n_dims = p->n_dims };
    memcpy(want.dim, p->dim, sizeof want.dim);
    if (t->type == p->type && t->n_dims == p->n_dims &&
        memcmp(t->dim, p->dim, (size_t)p->n_dims * sizeof p->dim[0]) == 0)
        return 0;
    return err_set(e, ERR_FORMAT, "tensor %s is %s of %s; the form %s has %s of %s there", t->name,
                   shape_text(found, sizeof found, t), dtype_name(t->type), form,
                   shape_text(wanted, sizeof wanted, &want), dtype_name(p->type));
}

int load_parts(const struct source *src, const char *matrix, const struct weight *w,
               const struct tensor *out[CODEC_PARTS], struct err *e)
{
    struct codec_part part[CODEC_PARTS];
    int n = weight_parts(w, part);
    for (int i = 0; i < n; i++) {
        out[i] = source_part(src, matrix, part[i].name);
        if (out[i] == NULL)
            return err_set(e, ERR_FORMAT,
                           "tensor %s: the form %s needs a tensor %.*s%s, which is missing", matrix,
                           weight_form(w), (int)(strlen(matrix) - strlen("weight")), matrix,
                           part[i].name);
        TRY(check_part(out[i], &part[i], weight_form(w), e));
    }
    return n;
}

/* Below 8 bits. */
static bool narrow(const char *word)
{
    static const char *const wide[] = { "auto", "f32", "f16", "bf16", "q8" };
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        if (strcmp(word, wide[i]) == 0)
            return false;
    return true;
}

const char *load_word(const char *tensor, const char *word)
{
    bool table = strcmp(tensor, "token_embd.weight") == 0 || strcmp(tensor, "output.weight") == 0;
    return table && narrow(word) ? "q8" : word;
}

int load_slot(struct model *m, const struct slot *s, enum dtype type, const struct model_options *o,
              struct err *e)
{
    if (s->w != NULL) {
        int rc = weight_open(s->w, m->be, load_word(s->name, o->weights), o->int8, type, s->rows,
                             s->cols, e);
        if (rc < 0)
            return err_prefix(e, "tensor %s", s->name);
        m->weight_bytes += weight_bytes(s->w);
        return 0;
    }
    size_t bytes = (size_t)s->rows * sizeof(float);
    *s->v = m->be->ops->alloc(m->be, bytes);
    if (*s->v == NULL)
        return err_set(e, ERR_NOMEM, "no memory for tensor %s (%zu bytes)", s->name, bytes);
    m->weight_bytes += bytes;
    return 0;
}

static int add_piece(struct load *l, const struct source *src, const struct piece *p,
                     uint64_t offset, size_t bytes, struct err *e)
{
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 256;
        struct piece *piece = mem_realloc(l->piece, (size_t)cap * sizeof *piece);
        if (piece != NULL)
            l->piece = piece;
        struct io_request *req = mem_realloc(l->req, (size_t)cap * sizeof *req);
        if (req != NULL)
            l->req = req;
        if (piece == NULL || req == NULL)
            return err_set(e, ERR_NOMEM, "no memory to plan the reading of %s", p->t->name);
        l->cap = cap;
    }
    const struct source_file *f = &src->file[p->t->file];
    l->piece[l->n] = *p;
    l->req[l->n] = (struct io_request){
        .fd = f->fd, .path = f->path, .offset = p->t->offset + offset, .bytes = bytes
    };
    l->n++;
    return 0;
}

/* Cuts a tensor into requests of whole panels. */
static int add_tensor(struct load *l, const struct source *src, const struct tensor *t,
                      const struct slot *s, struct err *e)
{
    int64_t cols = t->dim[t->n_dims - 1];
    size_t row = dtype_row_bytes(t->type, cols);
    int rows = s->w != NULL ? s->rows : 1;
    int unit = s->w != NULL ? codec_step(s->w->codec) : 1;
    size_t bytes = row * (size_t)unit;
    if (bytes > io_max_request())
        return err_set(e, ERR_UNSUPPORTED,
                       "tensor %s has rows of %zu bytes; at most %zu can be read", s->name, row,
                       io_max_request() / (size_t)unit);
    int step = s->w != NULL ? (int)(io_max_request() / bytes) * unit : 1;
    for (int r = 0; r < rows; r += step) {
        struct piece p = { .t = t, .slot = s, .row0 = r };
        p.n_rows = rows - r < step ? rows - r : step;
        TRY(add_piece(l, src, &p, (uint64_t)r * row, row * (size_t)p.n_rows, e));
    }
    if (l->scratch_step < (size_t)unit * (size_t)cols)
        l->scratch_step = (size_t)unit * (size_t)cols;
    return 0;
}

/* The matrix that a slot names, which the file holds in parts, empty, and the requests that bring its bytes. */
static int add_pressed(struct load *l, const struct source *src, const struct slot *s,
                       const char *form, const struct model_options *o, struct err *e)
{
    const struct tensor *t[CODEC_PARTS];
    struct pressed *to = &l->pressed[l->n_pressed++];
    struct weight w; /* memory is asked for when the file is known to fill it */
    if (weight_set_form(&w, form, s->rows, s->cols, e) < 0)
        return err_prefix(e, "tensor %s", s->name);
    int n = load_parts(src, s->name, &w, t, e);
    TRY(n);
    if (weight_open_form(s->w, l->m->be, form, o->int8, s->rows, s->cols, e) < 0)
        return err_prefix(e, "tensor %s", s->name);
    l->m->weight_bytes += weight_bytes(s->w);
    for (int i = 0; i < n; i++) {
        to->left += t[i]->bytes;
        for (uint64_t at = 0, some; at < t[i]->bytes; at += some) {
            some = t[i]->bytes - at < io_max_request() ? t[i]->bytes - at : io_max_request();
            struct piece p = { t[i], s, .pressed = to, .part = i, .offset = (size_t)at };
            TRY(add_piece(l, src, &p, at, (size_t)some, e));
        }
    }
    return 0;
}

static void fill_units(void *arg, int first, int last, int i_thread)
{
    struct load *l = arg;
    const struct piece *p = l->now;
    size_t row = dtype_row_bytes(p->t->type, p->t->dim[1]);
    float *scratch = l->scratch + (size_t)i_thread * l->scratch_step;
    int unit = codec_step(l->to->codec);
    for (int i = first; i < last; i++) {
        int r = i * unit;
        int n = p->n_rows - r < unit ? p->n_rows - r : unit;
        weight_fill(l->to, l->to_row0 + r, n, p->t->type, l->data + (size_t)r * row, scratch);
    }
}

static void press(struct load *l, struct weight *to, int row0)
{
    l->to = to;
    l->to_row0 = row0;
    int unit = codec_step(to->codec);
    par_for(l->m->be->par, (l->now->n_rows + unit - 1) / unit, 1, fill_units, l);
}

/* A device's planes are not the host's to write: rows are pressed beside them and brought over. */
static int press_staged(struct load *l, struct weight *w)
{
    struct weight stage;
    TRY(weight_stage_open(&stage, w, l->now->n_rows, l->err));
    press(l, &stage, 0);
    weight_stage_upload(&stage, w, l->m->be, l->now->row0);
    weight_stage_close(&stage);
    return 0;
}

static int put_pressed(struct load *l, const struct piece *p, const void *data, size_t n)
{
    struct pressed *to = p->pressed;
    struct weight *w = p->slot->w;
    if (l->m->be->host) {
        weight_put(w, p->part, p->offset, n, data);
        return 0;
    }
    if (to->stage.codec == NULL)
        TRY(weight_stage_open(&to->stage, w, w->rows, l->err));
    weight_put(&to->stage, p->part, p->offset, n, data);
    to->left -= n;
    if (to->left == 0) {
        weight_stage_upload(&to->stage, w, l->m->be, 0);
        weight_stage_close(&to->stage);
    }
    return 0;
}

static int on_read(void *arg, const struct io_request *r, const void *data)
{
    struct load *l = arg;
    const struct piece *p = &l->piece[r - l->req];
    l->now = p;
    l->data = data;
    if (p->pressed != NULL) {
        TRY(put_pressed(l, p, data, r->bytes));
    } else if (p->slot->w != NULL && l->m->be->host) {
        press(l, p->slot->w, p->row0);
    } else if (p->slot->w != NULL) {
        TRY(press_staged(l, p->slot->w));
    } else {
        dtype_decode(p->t->type, data, l->scratch, (size_t)p->slot->rows);
        l->m->be->ops->upload(l->m->be, *p->slot->v, l->scratch,
                              (size_t)p->slot->rows * sizeof(float));
    }
    if (l->progress)
        progress_add(&l->bar, r->bytes);
    return 0;
}

static int plan_slot(struct load *l, const struct source *src, const struct slot *s,
                     const struct model_options *o, struct err *e)
{
    const char *form = s->w != NULL ? source_form(src, s->name) : NULL;
    if (form != NULL)
        return add_pressed(l, src, s, form, o, e);
    const struct tensor *t = source_find(src, s->name);
    if (t == NULL && s->optional)
        return 0;
    if (t == NULL)
        return err_set(e, ERR_FORMAT, "%s: tensor %s is missing; a %s model needs it",
                       src->file[0].path, s->name, src->config.arch);
    TRY(check_plain(t, e));
    TRY(check_shape(t, s, e));
    TRY(load_slot(l->m, s, t->type, o, e));
    return add_tensor(l, src, t, s, e);
}

/* Some form was not asked for by any slot: which one. */
static int stray_form(const struct source *src, const struct slot *slot, int n, struct err *e)
{
    for (int i = 0; i < src->n_forms; i++) {
        const struct source_form *f = &src->form[i];
        int k = 0;
        while (k < n && (slot[k].w == NULL || strcmp(slot[k].name, f->name) != 0))
            k++;
        if (k == n)
            return err_set(e, ERR_FORMAT, "%s has the form %s, but the %s model has no such matrix",
                           f->name, f->word, src->config.arch);
    }
    return 0;
}

static bool among(const char *name, const char *const *list)
{
    while (*list != NULL && strcmp(*list, name) != 0)
        list++;
    return *list != NULL;
}

/* Whether the pass depends on t, a tensor of one of the first n layers or one that all share: not on tables of rope, which it
 * makes itself. */
static bool matters(const struct tensor *t, int n_layers)
{
    static const char *const table[] = { "attn_rot_embd.weight", "rope_freqs.weight", NULL };
    static const char *const shared[] = { "output.bias",
                                          "output_norm.bias",
                                          "token_embd_norm.weight",
                                          "token_embd_norm.bias",
                                          "position_embd.weight",
                                          "rope_factors_long.weight",
                                          "rope_factors_short.weight",
                                          NULL };
    int layer = 0;
    int at = 0;
    if (sscanf(t->name, "blk.%9d.%n", &layer, &at) != 1 || at == 0)
        return among(t->name, shared);
    return layer < n_layers && !among(t->name + at, table);
}

/* A tensor that is planned to be read by nothing, as the bias of a matrix that has none here, would change every answer. */
static int stray_tensor(const struct load *l, const struct source *src, struct err *e)
{
    bool *read = mem_zalloc((size_t)src->n_tensors, sizeof *read);
    int i = 0;
    if (read == NULL)
        return err_set(e, ERR_NOMEM, "no memory to plan the reading of the weights");
    for (int k = 0; k < l->n; k++)
        read[l->piece[k].t - src->tensor] = true;
    while (i < src->n_tensors && (read[i] || !matters(&src->tensor[i], src->config.n_layers)))
        i++;
    mem_free(read);
    if (i == src->n_tensors)
        return 0;
    return err_set(e, ERR_UNSUPPORTED, "%s: a %s model with a tensor %s is not supported",
                   src->file[src->tensor[i].file].path, src->config.arch, src->tensor[i].name);
}

static int plan(struct load *l, const struct source *src, const struct slot *slot, int n,
                const struct model_options *o, struct err *e)
{
    if (src->n_forms > 0 && strcmp(o->weights, "auto") != 0)
        return err_set(e, ERR_INVALID,
                       "the weights are pressed (%s is %s) and cannot be pressed again to %s; load "
                       "them with the word \"auto\"",
                       src->form[0].name, src->form[0].word, o->weights);
    l->pressed = src->n_forms > 0 ? mem_zalloc((size_t)src->n_forms, sizeof *l->pressed) : NULL;
    if (src->n_forms > 0 && l->pressed == NULL)
        return err_set(e, ERR_NOMEM, "no memory to plan the reading of the weights");
    for (int i = 0; i < n; i++)
        TRY(plan_slot(l, src, &slot[i], o, e));
    if (l->n_pressed < src->n_forms)
        return stray_form(src, slot, n, e);
    return stray_tensor(l, src, e);
}

int load_slots(struct model *m, const struct source *src, const struct slot *slot, int n,
               const struct model_options *o, struct err *e)
{
    struct load l = { .m = m, .progress = o->progress, .err = e };
    int rc = plan(&l, src, slot, n, o, e);
    if (rc < 0)
        goto done;
    size_t threads = (size_t)par_threads(m->be->par);
    l.scratch = mem_zalloc(threads * l.scratch_step, sizeof(float));
    if (l.scratch == NULL) {
        rc = err_set(e, ERR_NOMEM, "no memory for decoding");
        goto done;
    }
    uint64_t total = 0;
    for (int i = 0; i < l.n; i++)
        total += l.req[i].bytes;
    if (l.progress)
        progress_start(&l.bar, "load", "B", total);
    rc = io_read(l.req, l.n, &(struct io_options){ .method = o->io }, on_read, &l, &m->io, e);
    if (l.progress)
        progress_end(&l.bar, rc == 0);
done:
    for (int i = 0; i < l.n_pressed; i++)
        weight_stage_close(&l.pressed[i].stage);
    mem_free(l.pressed);
    mem_free(l.scratch);
    mem_free(l.req);
    mem_free(l.piece);
    return rc;
}
