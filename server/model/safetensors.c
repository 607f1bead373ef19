/* One safetensors file: a little-endian u64 with the length of a JSON header, the header {name: {dtype, shape,
 * data_offsets}}, then the tensors; offsets count from the header's end. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/model/hf.h"

enum { MAX_HEADER = 100 << 20, MAX_TENSORS = 1 << 20 };

/* ---- the header -------------------------------------------------------------------------------------------------- */

static int read_dims(struct tensor *t, const json_t *shape, struct err *e)
{
    if (!json_is_array(shape) || json_array_size(shape) > 4)
        return err_set(e, ERR_FORMAT, "tensor %s: shape must be a list of at most 4 sizes",
                       t->name);
    t->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d))
            return err_set(e, ERR_FORMAT, "tensor %s: dimension %d is not a whole number", t->name,
                           i);
        t->dim[i] = json_integer_value(d);
    }
    return 0;
}

static int read_type(struct tensor *t, const json_t *dtype, struct err *e)
{
    static const enum dtype known[] = { DT_F32, DT_F16, DT_BF16, DT_U8, DT_I8, DT_I16 };
    const char *word = json_string_value(dtype);
    for (size_t i = 0; word != NULL && i < sizeof known / sizeof known[0]; i++)
        if (strcmp(word, dtype_name(known[i])) == 0) {
            t->type = known[i];
            return 0;
        }
    return err_set(e, ERR_UNSUPPORTED,
                   "tensor %s: dtype \"%s\" is not supported; F32, F16, BF16, U8, I8, I16 are",
                   t->name, word != NULL ? word : "?");
}

static int read_tensor(struct tensor *t, const json_t *v, const struct source_file *f,
                       uint64_t data0, struct err *e)
{
    const json_t *range = json_object_get(v, "data_offsets");
    TRY(read_type(t, json_object_get(v, "dtype"), e));
    TRY(read_dims(t, json_object_get(v, "shape"), e));
    json_int_t first = json_integer_value(json_array_get(range, 0));
    json_int_t end = json_integer_value(json_array_get(range, 1));
    if (json_array_size(range) != 2 || first < 0 || end < first ||
        (uint64_t)first > f->size - data0)
        return err_set(e, ERR_FORMAT,
                       "tensor %s: data_offsets must be [first, end] inside the file's %" PRIu64
                       " bytes of data",
                       t->name, f->size - data0);
    t->offset = data0 + (uint64_t)first;
    TRY(tensor_check(t, f->size, e));
    if (t->bytes != (uint64_t)(end - first))
        return err_set(e, ERR_FORMAT,
                       "tensor %s: its shape takes %" PRIu64 " bytes, its data_offsets %lld",
                       t->name, t->bytes, (long long)(end - first));
    return 0;
}

static int read_tensors(struct source *s, struct arena *a, int file, const json_t *head,
                        uint64_t data0, struct err *e)
{
    const char *key;
    json_t *v;
    size_t n = json_object_size(head);
    if (n > MAX_TENSORS)
        return err_set(e, ERR_FORMAT, "%zu tensors; at most %d are possible", n, MAX_TENSORS);
    struct tensor *all = mem_realloc(s->tensor, ((size_t)s->n_tensors + n + 1) * sizeof *all);
    if (all == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %zu tensors", n);
    s->tensor = all;
    json_object_foreach((json_t *)head, key, v)
    {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        struct tensor *t = &all[s->n_tensors];
        *t = (struct tensor){ .name = hf_canonical(a, key), .file = file };
        if (t->name == NULL)
            return err_set(e, ERR_NOMEM, "no memory for the names of tensors");
        TRY(read_tensor(t, v, &s->file[file], data0, e));
        s->n_tensors++;
    }
    return 0;
}

static int read_text(const struct source_file *f, char *text, size_t n, struct err *e)
{
    for (size_t at = 0; at < n;) {
        ssize_t k = pread(f->fd, text + at, n - at, (off_t)(8 + at));
        if (k == 0)
            return err_set(e, ERR_FORMAT, "the file is cut short");
        if (k < 0 && errno != EINTR)
            return err_errno(e, ERR_IO, "cannot read the header");
        at += k > 0 ? (size_t)k : 0;
    }
    return 0;
}

static int parse(json_t **out, const char *text, size_t n, struct err *e)
{
    json_error_t why;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (*out == NULL)
        return err_set(e, ERR_FORMAT, "the header is not JSON: %s (byte %d)", why.text,
                       why.position);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    return err_set(e, ERR_FORMAT, "the header is not a JSON object");
}

int safetensors_header(const struct source_file *f, json_t **out, uint64_t *data0, struct err *e)
{
    uint64_t n = 0;
    if (pread(f->fd, &n, 8, 0) != 8)
        return err_set(e, ERR_FORMAT, "too short for a safetensors file");
    if (n < 2 || n > MAX_HEADER || n > f->size - 8)
        return err_set(e, ERR_FORMAT,
                       "the header should have %" PRIu64 " bytes; the file has %" PRIu64
                       " and %d are the most",
                       n, f->size, MAX_HEADER);
    char *text = mem_alloc(n);
    if (text == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a header of %" PRIu64 " bytes", n);
    int rc = read_text(f, text, n, e);
    if (rc == 0)
        rc = parse(out, text, n, e);
    mem_free(text);
    *data0 = 8 + n;
    return rc;
}

static int read_file(struct source *s, struct arena *a, int file, struct err *e)
{
    json_t *head;
    uint64_t data0;
    TRY(safetensors_header(&s->file[file], &head, &data0, e));
    int rc = read_tensors(s, a, file, head, data0, e);
    json_decref(head);
    return rc;
}

int safetensors_add(struct source *s, struct arena *a, const char *path, struct err *e)
{
    int file = source_add_file(s, path, e);
    TRY(file);
    int rc = read_file(s, a, file, e);
    return rc < 0 ? err_prefix(e, "%s", path) : 0;
}
