#include "server/model/source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/model/source_internal.h"

int source_add_file(struct source *s, const char *path, struct err *e)
{
    struct source_file *file = mem_realloc(s->file, (size_t)(s->n_files + 1) * sizeof *file);
    if (file == NULL)
        return err_set(e, ERR_NOMEM, "no memory to open %s", path);
    s->file = file;
    struct source_file f = { .path = mem_strdup(path), .fd = open(path, O_RDONLY | O_CLOEXEC) };
    struct stat st = { 0 };
    int rc = 0;
    if (f.path == NULL)
        rc = err_set(e, ERR_NOMEM, "no memory to open %s", path);
    else if (f.fd < 0 || fstat(f.fd, &st) != 0)
        rc = err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: cannot open", path);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(e, ERR_FORMAT, "%s: not a regular file", path);
    if (rc < 0) {
        if (f.fd >= 0)
            close(f.fd);
        mem_free(f.path);
        return rc;
    }
    f.size = (uint64_t)st.st_size;
    s->file[s->n_files] = f;
    return s->n_files++;
}

int tensor_check(struct tensor *t, uint64_t file_size, struct err *e)
{
    uint64_t n = 1;
    for (int i = 0; i < t->n_dims; i++)
        if (t->dim[i] < 1 || t->dim[i] > INT32_MAX ||
            __builtin_mul_overflow(n, (uint64_t)t->dim[i], &n))
            return err_set(e, ERR_FORMAT,
                           "tensor %s: dimension %d is %" PRId64 "; 1 to %d is possible", t->name,
                           i, t->dim[i], INT32_MAX);
    int64_t cols = t->n_dims > 0 ? t->dim[t->n_dims - 1] : 1;
    if (cols % dtype_block(t->type) != 0)
        return err_set(e, ERR_FORMAT,
                       "tensor %s: rows of %" PRId64 " are no whole blocks of %s (%d)", t->name,
                       cols, dtype_name(t->type), dtype_block(t->type));
    if (__builtin_mul_overflow(n / (uint64_t)dtype_block(t->type),
                               (uint64_t)dtype_block_bytes(t->type), &t->bytes) ||
        t->offset > file_size || t->bytes > file_size - t->offset)
        return err_set(e, ERR_FORMAT,
                       "tensor %s: its bytes (offset %" PRIu64 ") end behind the file's %" PRIu64
                       "; the file is cut short or damaged",
                       t->name, t->offset, file_size);
    return 0;
}

int source_add_form(struct source *s, const char *matrix, const char *word, struct err *e)
{
    if ((s->n_forms & (s->n_forms - 1)) == 0) { /* full at every power of two */
        size_t cap = s->n_forms == 0 ? 1 : 2 * (size_t)s->n_forms;
        struct source_form *form = mem_realloc(s->form, cap * sizeof *form);
        if (form == NULL)
            return err_set(e, ERR_NOMEM, "no memory for the forms of %d matrices", s->n_forms + 1);
        s->form = form;
    }
    s->form[s->n_forms++] = (struct source_form){ matrix, word };
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a;
    const struct tensor *y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int by_matrix(const void *a, const void *b)
{
    return strcmp(((const struct source_form *)a)->name, ((const struct source_form *)b)->name);
}

static int finish_forms(struct source *s, struct err *e)
{
    if (s->n_forms > 0)
        qsort(s->form, (size_t)s->n_forms, sizeof *s->form, by_matrix);
    for (int i = 1; i < s->n_forms; i++)
        if (strcmp(s->form[i - 1].name, s->form[i].name) == 0)
            return err_set(e, ERR_FORMAT, "there are two forms of %s", s->form[i].name);
    return 0;
}

int source_finish(struct source *s, struct err *e)
{
    if (s->n_tensors == 0)
        return err_set(e, ERR_FORMAT, "%s: there are no tensors in it", s->file[0].path);
    qsort(s->tensor, (size_t)s->n_tensors, sizeof *s->tensor, by_place);
    for (int i = 1; i < s->n_tensors; i++) {
        const struct tensor *a = &s->tensor[i - 1];
        if (a->file == s->tensor[i].file && a->offset + a->bytes > s->tensor[i].offset)
            return err_set(e, ERR_FORMAT, "tensors %s and %s overlap", a->name, s->tensor[i].name);
    }
    qsort(s->tensor, (size_t)s->n_tensors, sizeof *s->tensor, by_name);
    for (int i = 1; i < s->n_tensors; i++)
        if (strcmp(s->tensor[i - 1].name, s->tensor[i].name) == 0)
            return err_set(e, ERR_FORMAT, "there are two tensors called %s", s->tensor[i].name);
    return finish_forms(s, e);
}

int source_open(struct source **out, const char *path, struct err *e)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: cannot open", path);
    struct source *s = mem_zalloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NOMEM, "no memory to open %s", path);
    int rc = S_ISDIR(st.st_mode) ? hf_open(s, path, e) : gguf_open(s, path, e);
    if (rc < 0) {
        source_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void source_close(struct source *s)
{
    if (s == NULL)
        return;
    if (s->format != NULL)
        s->format->close(s);
    for (int i = 0; i < s->n_files; i++) {
        close(s->file[i].fd);
        mem_free(s->file[i].path);
    }
    mem_free(s->file);
    mem_free(s->tensor);
    mem_free(s->form);
    mem_free(s->tool_template);
    mem_free(s->chat_template);
    mem_free(s);
}

const struct tensor *source_find(const struct source *s, const char *name)
{
    struct tensor key = { .name = name };
    return s->n_tensors == 0 ? NULL
                             : bsearch(&key, s->tensor, (size_t)s->n_tensors, sizeof key, by_name);
}

const char *source_form(const struct source *s, const char *matrix)
{
    struct source_form key = { .name = matrix };
    const struct source_form *f =
        s->n_forms == 0 ? NULL : bsearch(&key, s->form, (size_t)s->n_forms, sizeof key, by_matrix);
    return f != NULL ? f->word : NULL;
}

const struct tensor *source_part(const struct source *s, const char *matrix, const char *part)
{
    char name[160];
    size_t module = strlen(matrix) - strlen("weight");
    int n = snprintf(name, sizeof name, "%.*s%s", (int)module, matrix, part);
    return n > 0 && (size_t)n < sizeof name ? source_find(s, name) : NULL;
}

int source_tokenizer(const struct source *s, struct tokenizer **out, struct err *e)
{
    return s->format->tokenizer(s, out, e);
}

const char *source_format_name(const struct source *s)
{
    return s->format->name;
}
