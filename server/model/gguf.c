/* GGUF version 2 and 3 (the GGUF specification): a header of typed key-value pairs and tensor descriptions, then data.
 *
 * The header is read into memory from the front, doubling until it is whole, and every number in it is checked against
 * what is there before it is used: a count can ask for no more than the bytes that would have to follow it. Strings keep
 * pointing into the header, which lives as long as the source.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/model/gguf.h"

enum { FIRST_READ = 4 << 20, MAX_DIMS = 4, MAX_NAME = 64 };
enum { MAX_PAIRS = 1 << 16, MAX_TENSORS = 1 << 18 }; /* far above any model's */

const uint8_t gguf_type_bytes[G_TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

struct cursor {
    const struct source_file *file;
    const uint8_t *p;
    size_t n, at;
    bool more; /* the header goes on behind what was read */
    struct err *e;
};

enum { NEED_MORE = 1 };

/* n bytes from here, or NULL: then more says whether reading on may help. */
static const uint8_t *bytes(struct cursor *c, uint64_t n)
{
    if (n > c->n - c->at) {
        c->more = n <= c->file->size && c->at + n <= c->file->size;
        return NULL;
    }
    const uint8_t *p = c->p + c->at;
    c->at += (size_t)n;
    return p;
}

static int cut_short(const struct cursor *c, const char *what)
{
    if (c->more)
        return NEED_MORE;
    return err_set(c->e, ERR_FORMAT, "%s: the file ends inside %s, at byte %zu of %" PRIu64,
                   c->file->path, what, c->at, c->file->size);
}

static bool get(struct cursor *c, void *out, size_t n)
{
    const uint8_t *p = bytes(c, n);
    if (p != NULL)
        memcpy(out, p, n);
    return p != NULL;
}

static bool get_str(struct cursor *c, struct str *s)
{
    uint64_t n;
    if (!get(c, &n, sizeof n))
        return false;
    s->n = (size_t)n;
    s->p = (const char *)bytes(c, n);
    return s->p != NULL;
}

/* Passes over n elements of a type; arrays of arrays are not in the wild and not taken. */
static bool skip(struct cursor *c, enum gguf_type type, uint64_t n)
{
    struct str s;
    if (type != G_STRING)
        return n <= c->file->size && bytes(c, n * gguf_type_bytes[type]) != NULL;
    for (uint64_t i = 0; i < n; i++)
        if (!get_str(c, &s))
            return false;
    return true;
}

static int read_pair(struct cursor *c, struct pair *out)
{
    uint32_t type;
    *out = (struct pair){ .n = 1 };
    if (!get_str(c, &out->key) || !get(c, &type, sizeof type))
        return cut_short(c, "the metadata");
    if (type == G_ARRAY) {
        out->array = true;
        if (!get(c, &type, sizeof type) || !get(c, &out->n, sizeof out->n))
            return cut_short(c, "the metadata");
        if (type == G_ARRAY)
            return err_set(c->e, ERR_UNSUPPORTED, "%s: metadata %.*s is an array of arrays",
                           c->file->path, (int)(out->key.n < MAX_NAME ? out->key.n : MAX_NAME),
                           out->key.p);
    }
    if (type >= G_TYPES)
        return err_set(c->e, ERR_FORMAT, "%s: metadata %.*s has type %u; 0 to 12 are defined",
                       c->file->path, (int)(out->key.n < MAX_NAME ? out->key.n : MAX_NAME),
                       out->key.p, type);
    out->type = (enum gguf_type)type;
    out->at = c->p + c->at;
    return skip(c, out->type, out->n) ? 0 : cut_short(c, "the metadata");
}

/* ---- metadata by name -------------------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b)
{
    const struct str *x = &((const struct pair *)a)->key;
    const struct str *y = &((const struct pair *)b)->key;
    int d = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);
    return d != 0 ? d : x->n < y->n ? -1 : x->n > y->n;
}

const struct pair *gguf_find(const struct gguf *g, const char *key)
{
    struct pair want = { .key = { key, strlen(key) } };
    return bsearch(&want, g->pair, (size_t)g->n_pairs, sizeof want, by_key);
}

static int sort_pairs(struct gguf *g, const struct cursor *c)
{
    qsort(g->pair, (size_t)g->n_pairs, sizeof *g->pair, by_key);
    for (uint64_t i = 1; i < g->n_pairs; i++) {
        const struct str *k = &g->pair[i].key;
        if (by_key(&g->pair[i - 1], &g->pair[i]) == 0)
            return err_set(c->e, ERR_FORMAT, "%s: metadata %.*s is there twice", c->file->path,
                           (int)(k->n < MAX_NAME ? k->n : MAX_NAME), k->p);
    }
    return 0;
}

/* Any number as double; false for other types. */
bool gguf_number(const struct pair *p, uint64_t i, double *out)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        float f32;
        uint64_t u64;
        int64_t i64;
        double f64;
    } v;
    if (p == NULL || p->type == G_STRING || i >= p->n)
        return false;
    memcpy(&v, p->at + i * gguf_type_bytes[p->type], gguf_type_bytes[p->type]);
    switch (p->type) {
    case G_U8:
    case G_BOOL: *out = v.u8; break;
    case G_I8: *out = v.i8; break;
    case G_U16: *out = v.u16; break;
    case G_I16: *out = v.i16; break;
    case G_U32: *out = v.u32; break;
    case G_I32: *out = v.i32; break;
    case G_F32: *out = (double)v.f32; break;
    case G_U64: *out = (double)v.u64; break;
    case G_I64: *out = (double)v.i64; break;
    case G_F64: *out = v.f64; break;
    case G_STRING:
    case G_ARRAY:
    case G_TYPES: return false;
    }
    return true;
}

bool gguf_text(const struct pair *p, struct str *out)
{
    uint64_t n;
    if (p == NULL || p->type != G_STRING || p->array)
        return false;
    memcpy(&n, p->at, sizeof n);
    *out = (struct str){ (const char *)p->at + sizeof n, (size_t)n };
    return true;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static int read_tensor(struct cursor *c, struct tensor *t, char **names)
{
    struct str name;
    uint32_t n_dims;
    uint32_t type;
    uint64_t dim[MAX_DIMS];
    if (!get_str(c, &name) || !get(c, &n_dims, sizeof n_dims))
        return cut_short(c, "the tensor list");
    if (name.n == 0 || name.n > MAX_NAME || memchr(name.p, 0, name.n) != NULL)
        return err_set(c->e, ERR_FORMAT, "%s: a tensor's name has %zu bytes; 1 to %d are possible",
                       c->file->path, name.n, MAX_NAME);
    if (n_dims < 1 || n_dims > MAX_DIMS)
        return err_set(c->e, ERR_FORMAT, "%s: tensor %.*s has %u dimensions; 1 to %d are possible",
                       c->file->path, (int)name.n, name.p, n_dims, MAX_DIMS);
    if (!get(c, dim, n_dims * sizeof *dim) || !get(c, &type, sizeof type) ||
        !get(c, &t->offset, sizeof t->offset))
        return cut_short(c, "the tensor list");
    int dt = dtype_from_gguf(type);
    if (dt < 0)
        return err_set(c->e, ERR_UNSUPPORTED, "%s: tensor %.*s has type %u, which is not supported",
                       c->file->path, (int)name.n, name.p, type);
    t->type = (enum dtype)dt;
    t->n_dims = (int)n_dims;
    for (uint32_t i = 0; i < n_dims; i++)
        t->dim[i] = dim[n_dims - 1 - i] > INT64_MAX ? -1 : (int64_t)dim[n_dims - 1 - i];
    t->name = *names;
    memcpy(*names, name.p, name.n);
    (*names)[name.n] = 0;
    *names += name.n + 1;
    return 0;
}

/* Offsets are relative to the first aligned byte behind the header. */
static int place_tensors(struct source *s, const struct cursor *c)
{
    const struct gguf *g = s->state;
    double align = 32;
    (void)gguf_number(gguf_find(g, "general.alignment"), 0, &align);
    if (!(align >= 1 && align <= 1 << 20) || ((uint64_t)align & ((uint64_t)align - 1)) != 0)
        return err_set(c->e, ERR_FORMAT, "%s: general.alignment is %g; a power of two is needed",
                       c->file->path, align);
    uint64_t a = (uint64_t)align;
    uint64_t data = (c->at + a - 1) / a * a;
    for (int i = 0; i < s->n_tensors; i++) {
        struct tensor *t = &s->tensor[i];
        if (t->offset % a != 0 || t->offset > UINT64_MAX - data)
            return err_set(c->e, ERR_FORMAT,
                           "%s: tensor %s lies at %" PRIu64 ", not at a multiple of %" PRIu64,
                           c->file->path, t->name, t->offset, a);
        t->offset += data;
        if (tensor_check(t, c->file->size, c->e) < 0)
            return err_prefix(c->e, "%s", c->file->path);
    }
    return 0;
}

static int read_tensors(struct source *s, struct cursor *c, uint64_t n)
{
    struct gguf *g = s->state;
    /* A description takes at least 33 bytes, so a count can not ask for more memory than the file has. */
    if (n > MAX_TENSORS || n > c->file->size / 33)
        return err_set(c->e, ERR_FORMAT,
                       "%s: %" PRIu64 " tensors are more than a file of %" PRIu64 " bytes can hold",
                       c->file->path, n, c->file->size);
    mem_free(s->tensor);
    mem_free(g->names);
    s->tensor = mem_zalloc((size_t)n + 1, sizeof *s->tensor);
    g->names = mem_alloc(((size_t)n + 1) * (MAX_NAME + 1));
    if (s->tensor == NULL || g->names == NULL)
        return err_set(c->e, ERR_NOMEM, "%s: no memory for %" PRIu64 " tensors", c->file->path, n);
    char *names = g->names;
    s->n_tensors = 0;
    for (uint64_t i = 0; i < n; i++) {
        int rc = read_tensor(c, &s->tensor[i], &names);
        if (rc != 0)
            return rc;
        s->n_tensors++;
    }
    return place_tensors(s, c);
}

static int read_header(struct source *s, struct cursor *c)
{
    struct gguf *g = s->state;
    uint32_t head[2];
    uint64_t n_tensors;
    uint64_t n_pairs;
    if (!get(c, head, sizeof head) || !get(c, &n_tensors, sizeof n_tensors) ||
        !get(c, &n_pairs, sizeof n_pairs))
        return err_set(c->e, ERR_FORMAT, "%s: too short for a GGUF file", c->file->path);
    if (memcmp(head, "GGUF", 4) != 0)
        return err_set(c->e, ERR_FORMAT,
                       "%s: not a GGUF file (a model is one, or a folder with config.json)",
                       c->file->path);
    if (head[1] != 2 && head[1] != 3)
        return err_set(c->e, ERR_UNSUPPORTED, "%s: GGUF version %u; 2 and 3 are supported",
                       c->file->path, head[1]);
    if (n_pairs > MAX_PAIRS || n_pairs > c->file->size / 13)
        return err_set(c->e, ERR_FORMAT,
                       "%s: %" PRIu64 " metadata entries are more than a file of %" PRIu64
                       " bytes can hold",
                       c->file->path, n_pairs, c->file->size);
    mem_free(g->pair);
    g->n_pairs = 0;
    g->pair = mem_zalloc((size_t)n_pairs + 1, sizeof *g->pair);
    if (g->pair == NULL)
        return err_set(c->e, ERR_NOMEM, "%s: no memory for %" PRIu64 " metadata entries",
                       c->file->path, n_pairs);
    for (uint64_t i = 0; i < n_pairs; i++) {
        int rc = read_pair(c, &g->pair[i]);
        if (rc != 0)
            return rc;
        g->n_pairs++;
    }
    TRY(sort_pairs(g, c));
    return read_tensors(s, c, n_tensors);
}

static int read_front(struct buf *b, const struct source_file *f, size_t want, struct err *e)
{
    if (buf_reserve(b, want - b->len) < 0)
        return err_set(e, ERR_NOMEM, "%s: no memory for a header of %zu bytes", f->path, want);
    while (b->len < want) {
        ssize_t n = pread(f->fd, b->data + b->len, want - b->len, (off_t)b->len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n == 0 ? err_set(e, ERR_IO, "%s: became shorter while it was read", f->path)
                          : err_errno(e, ERR_IO, "%s: cannot read", f->path);
        b->len += (size_t)n;
    }
    return 0;
}

/* ---- open and close ----------------------------------------------------------------------------------------------- */

static int read_all(struct source *s, struct err *e)
{
    struct gguf *g = s->state;
    const struct source_file *f = &s->file[0];
    size_t want = FIRST_READ;
    for (;;) {
        want = want < f->size ? want : (size_t)f->size;
        TRY(read_front(&g->head, f, want, e));
        struct cursor c = { .file = f, .p = (const uint8_t *)buf_str(&g->head), .n = want, .e = e };
        int rc = read_header(s, &c);
        if (rc != NEED_MORE)
            return rc;
        want *= 2;
    }
}

static int read_template(const struct gguf *g, const char *key, char **out, struct err *e)
{
    struct str t;
    if (!gguf_text(gguf_find(g, key), &t))
        return 0;
    *out = mem_strndup(t.p, t.n);
    return *out != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for the chat template");
}

static int read_templates(struct source *s, struct err *e)
{
    TRY(read_template(s->state, "tokenizer.chat_template", &s->chat_template, e));
    return read_template(s->state, "tokenizer.chat_template.tool_use", &s->tool_template, e);
}

int gguf_open(struct source *s, const char *path, struct err *e)
{
    struct gguf *g = mem_zalloc(1, sizeof *g);
    if (g == NULL)
        return err_set(e, ERR_NOMEM, "no memory to open %s", path);
    buf_init(&g->head, (size_t)1 << 40);
    s->state = g;
    s->format = &source_gguf;
    int rc = source_add_file(s, path, e);
    TRY(rc);
    TRY(read_all(s, e));
    if (source_finish(s, e) < 0)
        return err_prefix(e, "%s", path);
    TRY(gguf_config(s, e));
    return read_templates(s, e);
}

static void gguf_close(struct source *s)
{
    struct gguf *g = s->state;
    buf_free(&g->head);
    mem_free(g->pair);
    mem_free(g->names);
    mem_free(g);
}

const struct source_format source_gguf = { "gguf", gguf_tokenizer, gguf_close };
