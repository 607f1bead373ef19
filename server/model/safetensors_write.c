#include "server/model/safetensors_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/mem.h"

enum { MAX_HEADER = 100 << 20, ALIGN = 64, CHUNK = 1 << 20 };

static int by_place(const void *a, const void *b)
{
    const struct safetensors_out *x = a;
    const struct safetensors_out *y = b;
    int wide = dtype_block_bytes(y->part.type) - dtype_block_bytes(x->part.type);
    return wide != 0 ? wide : strcmp(x->name, y->name);
}

/* ---- the header -------------------------------------------------------------------------------------------------- */

static json_t *describe(const struct codec_part *p, uint64_t first)
{
    json_t *shape = json_array();
    for (int i = 0; i < p->n_dims; i++)
        json_array_append_new(shape, json_integer(p->dim[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(p->type), "shape", shape,
                     "data_offsets", (json_int_t)first, (json_int_t)(first + codec_part_bytes(p)));
}

/* The header with its length in front. Spaces at its end bring the data to a multiple of 64. */
static int make_header(struct buf *b, const struct safetensors_out *t, int n, json_t *metadata,
                       struct err *e)
{
    const size_t flags = JSON_COMPACT | JSON_SORT_KEYS;
    uint64_t at = 0;
    json_t *head = json_object();
    bool ok = head != NULL && json_object_set(head, "__metadata__", metadata) == 0;
    for (int i = 0; ok && i < n; i++) {
        ok = json_object_set_new(head, t[i].name, describe(&t[i].part, at)) == 0;
        at += codec_part_bytes(&t[i].part);
    }
    buf_add(b, &(uint64_t){ 0 }, sizeof(uint64_t));
    size_t size = ok ? json_dumpb(head, NULL, 0, flags) : 0;
    ok = size > 0 && buf_reserve(b, size) == 0;
    if (ok)
        b->len += json_dumpb(head, b->data + b->len, size, flags);
    json_decref(head);
    while (b->bad == 0 && b->len % ALIGN != 0)
        buf_addc(b, ' ');
    if (!ok || b->bad != 0)
        return err_set(e, ERR_NOMEM, "no memory for the header of %d tensors", n);
    memcpy(b->data, &(uint64_t){ b->len - sizeof(uint64_t) }, sizeof(uint64_t));
    return 0;
}

/* ---- the data ---------------------------------------------------------------------------------------------------- */

static bool write_tensor(FILE *f, const struct safetensors_out *t, char *chunk)
{
    size_t bytes = codec_part_bytes(&t->part);
    if (t->w == NULL)
        return fwrite(t->v, 1, bytes, f) == bytes;
    for (size_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < CHUNK ? bytes - at : CHUNK;
        weight_get(t->w, t->i_part, at, n, chunk);
        if (fwrite(chunk, 1, n, f) != n)
            return false;
    }
    return true;
}

static int write_file(const char *path, const struct buf *head, const struct safetensors_out *t,
                      int n, struct err *e)
{
    char *chunk = mem_alloc(CHUNK);
    if (chunk == NULL)
        return err_set(e, ERR_NOMEM, "no memory to write %s", path);
    FILE *f = fopen(path, "wbe");
    bool ok = f != NULL && fwrite(head->data, 1, head->len, f) == head->len;
    for (int i = 0; ok && i < n; i++)
        ok = write_tensor(f, &t[i], chunk);
    ok = ok && fflush(f) == 0 && fsync(fileno(f)) == 0;
    int rc = ok ? 0 : err_errno(e, ERR_IO, "%s: cannot write", path);
    if (f != NULL && fclose(f) != 0 && ok)
        rc = err_errno(e, ERR_IO, "%s: cannot write", path);
    mem_free(chunk);
    return rc;
}

int safetensors_write(const char *path, struct safetensors_out *t, int n, json_t *metadata,
                      struct err *e)
{
    char tmp[4096];
    struct buf head;
    int len = snprintf(tmp, sizeof tmp, "%s.tmp", path);
    if (len < 0 || (size_t)len >= sizeof tmp)
        return err_set(e, ERR_LIMIT, "%s: the path is too long", path);
    if (n > 1)
        qsort(t, (size_t)n, sizeof *t, by_place);
    buf_init(&head, MAX_HEADER);
    int rc = make_header(&head, t, n, metadata, e);
    if (rc == 0)
        rc = write_file(tmp, &head, t, n, e);
    if (rc == 0 && rename(tmp, path) != 0)
        rc = err_errno(e, ERR_IO, "%s: cannot write", path);
    if (rc < 0)
        unlink(tmp);
    buf_free(&head);
    return rc;
}
