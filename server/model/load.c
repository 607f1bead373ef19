/* Reading and pressing overlap: while the next megabytes are in flight, the panels of the last ones are encoded by all
 * workers. A request never crosses a panel, so each one can be pressed on its own. */
#include "server/model/load.h"

#include <stdlib.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/base/progress.h"

/* A request's part of a tensor. */
struct part {
    const struct tensor *t;
    const struct slot *slot;
    int row0, n_rows;
};

struct load {
    struct model *m;
    struct part *part;
    struct io_request *req;
    int n, cap;
    float *scratch; /* [threads][step * cols of the widest] */
    size_t scratch_step;
    bool progress;
    struct err *err;
    struct progress bar;
    /* of the loop under way */
    const struct part *now;
    const char *data;
    struct weight *to; /* where rows are pressed: the matrix itself, or a stage of it */
    int to_row0;       /* the part's first row there */
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

static int add_part(struct load *l, const struct source *src, const struct part *p)
{
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 256;
        struct part *part = mem_realloc(l->part, (size_t)cap * sizeof *part);
        if (part == NULL)
            return ERR_NOMEM;
        l->part = part;
        struct io_request *req = mem_realloc(l->req, (size_t)cap * sizeof *req);
        if (req == NULL)
            return ERR_NOMEM;
        l->req = req;
        l->cap = cap;
    }
    const struct source_file *f = &src->file[p->t->file];
    int64_t cols = p->t->dim[p->t->n_dims - 1];
    size_t row = dtype_row_bytes(p->t->type, cols);
    l->part[l->n] = *p;
    l->req[l->n] = (struct io_request){
        .fd = f->fd,
        .path = f->path,
        .offset = p->t->offset + (uint64_t)p->row0 * row,
        .bytes = row * (size_t)p->n_rows,
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
        struct part p = { t, s, r, rows - r < step ? rows - r : step };
        if (add_part(l, src, &p) < 0)
            return err_set(e, ERR_NOMEM, "no memory to plan the reading of %s", s->name);
    }
    if (l->scratch_step < (size_t)unit * (size_t)cols)
        l->scratch_step = (size_t)unit * (size_t)cols;
    return 0;
}

static void fill_units(void *arg, int first, int last, int i_thread)
{
    struct load *l = arg;
    const struct part *p = l->now;
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

static int on_read(void *arg, const struct io_request *r, const void *data)
{
    struct load *l = arg;
    const struct part *p = &l->part[r - l->req];
    l->now = p;
    l->data = data;
    if (p->slot->w != NULL && l->m->be->host) {
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

static int plan(struct load *l, const struct source *src, const struct slot *slot, int n,
                const struct model_options *o, struct err *e)
{
    for (int i = 0; i < n; i++) {
        const struct tensor *t = source_find(src, slot[i].name);
        if (t == NULL && slot[i].optional)
            continue;
        if (t == NULL)
            return err_set(e, ERR_FORMAT, "%s: tensor %s is missing; a %s model needs it",
                           src->file[0].path, slot[i].name, src->config.arch);
        TRY(check_shape(t, &slot[i], e));
        TRY(load_slot(l->m, &slot[i], t->type, o, e));
        TRY(add_tensor(l, src, t, &slot[i], e));
    }
    return 0;
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
        progress_end(&l.bar);
done:
    mem_free(l.scratch);
    mem_free(l.req);
    mem_free(l.part);
    return rc;
}
