#include "tests/tools/writing.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/model/arch.h"

void writing_open(struct writing *x, struct be *be, const char *path, const char *form)
{
    struct err e;
    struct model_options o = { .weights = "f32" };
    *x = (struct writing){ .form = form };
    if (model_open(&x->m, path, &o, be, &e) < 0 || source_open(&x->src, path, &e) < 0)
        fail_msg("%s", e.text);
}

void writing_close(struct writing *x)
{
    writing_stop(x);
    source_close(x->src);
    model_close(x->m);
}

int writing_shards(const struct writing *x)
{
    return 1 + x->m->config.n_layers;
}

int writing_begin(struct writing *x, const char *out, struct err *e)
{
    return hf_write_open(&x->w, out, x->src, &x->m->config, writing_shards(x), e);
}

void writing_stop(struct writing *x)
{
    hf_write_close(x->w);
    x->w = NULL;
}

/* The rows of a matrix in the order of a folder, pressed. */
static int put_matrix(struct writing *x, const struct slot *s, struct err *e)
{
    size_t cols = (size_t)s->cols;
    size_t n = (size_t)s->rows * cols;
    assert_true(x->n_pressed < WRITING_MATRICES);
    struct weight *to = &x->pressed[x->n_pressed];
    float *row = mem_zalloc(n, 2 * sizeof *row);
    if (row == NULL)
        return err_set(e, ERR_NOMEM, "no memory for rows");
    for (int i = 0; i < s->rows; i++)
        s->w->codec->decode(s->w, hf_row_of(&x->m->config, s->name, i), row + (size_t)i * cols);
    int rc = weight_open_form(to, x->m->be, x->form, false, s->rows, s->cols, e);
    if (rc == 0) {
        x->n_pressed++;
        rc = weight_press(to, 0, s->rows, row, row + n, NULL, e);
    }
    if (rc == 0)
        rc = hf_write_weight(x->w, s->name, to, e);
    mem_free(row);
    return rc;
}

static int put_vector(struct writing *x, const struct slot *s, struct err *e)
{
    float v[1024];
    assert_true(s->rows <= 1024);
    for (int i = 0; i < s->rows; i++)
        v[i] = (*s->v)[hf_row_of(&x->m->config, s->name, i)];
    return hf_write_vector(x->w, s->name, v, s->rows, e);
}

static int shard_of(const char *name)
{
    int layer;
    return sscanf(name, "blk.%3d.", &layer) == 1 ? 1 + layer : 0;
}

int writing_shard(struct writing *x, int shard, struct err *e)
{
    int rc = 0;
    hf_write_shard_begin(x->w, shard);
    for (int i = 0; rc == 0 && i < x->m->n_slots; i++) {
        const struct slot *s = &x->m->slot[i];
        if (shard_of(s->name) != shard)
            continue;
        if (s->w != NULL)
            rc = put_matrix(x, s, e);
        else if (*s->v != NULL)
            rc = put_vector(x, s, e);
    }
    if (rc == 0)
        rc = hf_write_shard_end(x->w, e);
    else
        hf_write_shard_drop(x->w);
    while (x->n_pressed > 0)
        weight_close(&x->pressed[--x->n_pressed], x->m->be);
    return rc;
}

int writing_rest(struct writing *x, struct err *e)
{
    for (int i = writing_shards(x) - 1; i >= 0; i--)
        if (!hf_write_has_shard(x->w, i))
            TRY(writing_shard(x, i, e));
    return hf_write_finish(x->w, e);
}

void writing_model(struct be *be, const char *path, const char *form, const char *out)
{
    struct writing x;
    struct err e;
    writing_open(&x, be, path, form);
    if (writing_begin(&x, out, &e) < 0 || writing_rest(&x, &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(hf_write_folder(x.w), out);
    writing_close(&x);
}
