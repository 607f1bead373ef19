/* GGUF version 2 and 3 (the GGUF specification): a header of typed key-value pairs and tensor descriptions, then data.
 *
 * The header is read into memory from the front, doubling until it is whole, and every number in it is checked against
 * what is there before it is used: a count can ask for no more than the bytes that would have to follow it. Strings keep
 * pointing into the header, which lives as long as the source.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/model/source_internal.h"

enum { FIRST_READ = 4 << 20, MAX_DIMS = 4, MAX_NAME = 64 };

enum gguf_type {
    G_U8,
    G_I8,
    G_U16,
    G_I16,
    G_U32,
    G_I32,
    G_F32,
    G_BOOL,
    G_STRING,
    G_ARRAY,
    G_U64,
    G_I64,
    G_F64,
    G_TYPES
};
static const uint8_t type_bytes[G_TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

struct str {
    const char *p;
    size_t n;
};

/* A value: type says what at points to; an array has the type of its elements and their number. */
struct pair {
    struct str key;
    enum gguf_type type;
    bool array;
    uint64_t n;
    const uint8_t *at;
};

struct gguf {
    struct buf head;
    struct pair *pair;
    uint64_t n_pairs;
    char *names; /* the tensors' names, NUL-terminated */
};

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
        return n <= c->file->size && bytes(c, n * type_bytes[type]) != NULL;
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

static const struct pair *find(const struct gguf *g, const char *key)
{
    size_t n = strlen(key);
    for (uint64_t i = 0; i < g->n_pairs; i++)
        if (g->pair[i].key.n == n && memcmp(g->pair[i].key.p, key, n) == 0)
            return &g->pair[i];
    return NULL;
}

/* Any number as double; false for other types. */
static bool number(const struct pair *p, uint64_t i, double *out)
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
    memcpy(&v, p->at + i * type_bytes[p->type], type_bytes[p->type]);
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

static bool text(const struct pair *p, struct str *out)
{
    uint64_t n;
    if (p == NULL || p->type != G_STRING || p->array)
        return false;
    memcpy(&n, p->at, sizeof n);
    *out = (struct str){ (const char *)p->at + sizeof n, (size_t)n };
    return true;
}

/* A whole number of the architecture's, "llama.block_count" for key "block_count"; otherwise the default. */
static int arch_int(const struct gguf *g, const char *arch, const char *key, int otherwise)
{
    char name[128];
    double v;
    snprintf(name, sizeof name, "%s.%s", arch, key);
    const struct pair *p = find(g, name);
    return p != NULL && !p->array && number(p, 0, &v) && v >= 0 && v <= INT32_MAX ? (int)v
                                                                                  : otherwise;
}

static float arch_num(const struct gguf *g, const char *arch, const char *key, float otherwise)
{
    char name[128];
    double v;
    snprintf(name, sizeof name, "%s.%s", arch, key);
    return number(find(g, name), 0, &v) ? (float)v : otherwise;
}

static void copy_text(const struct gguf *g, const char *key, char *out, size_t size,
                      const char *otherwise)
{
    struct str s;
    if (text(find(g, key), &s))
        snprintf(out, size, "%.*s", (int)(s.n < size ? s.n : size - 1), s.p);
    else
        snprintf(out, size, "%s", otherwise);
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
    (void)number(find(g, "general.alignment"), 0, &align);
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
    if (n > c->file->size / 33)
        return err_set(c->e, ERR_FORMAT,
                       "%s: %" PRIu64 " tensors do not fit a file of %" PRIu64 " bytes",
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
    if (n_pairs > c->file->size / 13)
        return err_set(c->e, ERR_FORMAT,
                       "%s: %" PRIu64 " metadata entries do not fit a file of %" PRIu64 " bytes",
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

/* ---- the model's numbers ------------------------------------------------------------------------------------------ */

static int read_scaling(const struct gguf *g, struct model_config *c, const char *path,
                        struct err *e)
{
    char key[64];
    char type[32];
    snprintf(key, sizeof key, "%s.rope.scaling.type", c->arch);
    copy_text(g, key, type, sizeof type, "none");
    c->rope_factor = arch_num(g, c->arch, "rope.scaling.factor", 1);
    if (strcmp(type, "linear") == 0 && c->rope_factor > 0)
        c->rope_scaling = ROPE_LINEAR;
    else if (strcmp(type, "none") != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: rope scaling \"%s\" is not supported; none and linear are", path, type);
    return 0;
}

static int read_config(struct source *s, struct err *e)
{
    const struct gguf *g = s->state;
    struct model_config *c = &s->config;
    struct str t;
    if (!text(find(g, "general.architecture"), &t))
        return err_set(e, ERR_FORMAT,
                       "%s: general.architecture is missing: the file does not say what it is",
                       s->file[0].path);
    copy_text(g, "general.architecture", c->arch, sizeof c->arch, "");
    copy_text(g, "general.name", c->name, sizeof c->name, c->arch);
    c->n_layers = arch_int(g, c->arch, "block_count", 0);
    c->dim = arch_int(g, c->arch, "embedding_length", 0);
    c->n_heads = arch_int(g, c->arch, "attention.head_count", 0);
    c->n_kv_heads = arch_int(g, c->arch, "attention.head_count_kv", c->n_heads);
    c->head_dim = arch_int(g, c->arch, "attention.key_length", 0);
    c->ffn = arch_int(g, c->arch, "feed_forward_length", 0);
    c->ctx_train = arch_int(g, c->arch, "context_length", 0);
    c->norm_eps = arch_num(g, c->arch, "attention.layer_norm_rms_epsilon", 1e-5f);
    c->window = arch_int(g, c->arch, "attention.sliding_window", 0);
    c->rope_theta = arch_num(g, c->arch, "rope.freq_base", 10000);
    c->rope_dim = arch_int(g, c->arch, "rope.dimension_count", 0);
    /* Files of arch "llama" have q and k in the order of interleaved pairs; the others keep the halves. */
    c->rope_half_split = strcmp(c->arch, "llama") != 0;
    c->tied = source_find(s, "output.weight") == NULL;
    const struct tensor *embd = source_find(s, "token_embd.weight");
    if (embd == NULL || embd->n_dims != 2)
        return err_set(e, ERR_FORMAT, "%s: tensor token_embd.weight is missing or no matrix",
                       s->file[0].path);
    c->vocab = (int)embd->dim[0];
    return read_scaling(g, c, s->file[0].path, e);
}

/* ---- the tokenizer ------------------------------------------------------------------------------------------------ */

struct words {
    const char **p;
    size_t *n;
};

static int read_words(const struct pair *p, struct words *w)
{
    const uint8_t *at = p->at;
    w->p = mem_zalloc((size_t)p->n + 1, sizeof *w->p);
    w->n = mem_zalloc((size_t)p->n + 1, sizeof *w->n);
    if (w->p == NULL || w->n == NULL)
        return ERR_NOMEM;
    for (uint64_t i = 0; i < p->n; i++) {
        uint64_t n;
        memcpy(&n, at, sizeof n);
        w->p[i] = (const char *)at + sizeof n;
        w->n[i] = (size_t)n;
        at += sizeof n + n;
    }
    return 0;
}

static int32_t token_id(const struct gguf *g, const char *key, int32_t otherwise)
{
    double v;
    return number(find(g, key), 0, &v) && v >= 0 && v < INT32_MAX ? (int32_t)v : otherwise;
}

static bool flag(const struct gguf *g, const char *key, bool otherwise)
{
    double v;
    return number(find(g, key), 0, &v) ? v != 0 : otherwise;
}

/* Scores and kinds, where the file has them for every token. */
static int read_numbers(const struct gguf *g, uint64_t n, float **score, uint8_t **kind)
{
    double v;
    const struct pair *s = find(g, "tokenizer.ggml.scores");
    const struct pair *k = find(g, "tokenizer.ggml.token_type");
    *score = s != NULL && s->array && s->n == n ? mem_zalloc((size_t)n, sizeof **score) : NULL;
    *kind = k != NULL && k->array && k->n == n ? mem_zalloc((size_t)n, 1) : NULL;
    if ((s != NULL && s->n == n && *score == NULL) || (k != NULL && k->n == n && *kind == NULL))
        return ERR_NOMEM;
    for (uint64_t i = 0; i < n; i++) {
        if (*score != NULL && number(s, i, &v))
            (*score)[i] = (float)v;
        if (*kind != NULL)
            (*kind)[i] =
                number(k, i, &v) && v >= TOK_NORMAL && v <= TOK_BYTE ? (uint8_t)v : TOK_NORMAL;
    }
    return 0;
}

static int open_vocab(const struct gguf *g, const struct pair *tokens, const struct pair *merges,
                      bool bpe, struct tokenizer **out, struct err *e)
{
    struct words w = { 0 };
    struct words m = { 0 };
    float *score = NULL;
    uint8_t *kind = NULL;
    char pre[64];
    copy_text(g, "tokenizer.ggml.pre", pre, sizeof pre, "default");
    int rc = read_words(tokens, &w);
    if (rc == 0 && merges != NULL)
        rc = read_words(merges, &m);
    if (rc == 0)
        rc = read_numbers(g, tokens->n, &score, &kind);
    if (rc < 0)
        err_set(e, rc, "no memory for the vocabulary");
    bool llama3 = strcmp(pre, "llama-bpe") == 0;
    struct tok_vocab v = { .model = bpe ? TOK_BPE : TOK_SPM,
                           .n = (int)tokens->n,
                           .text = w.p,
                           .len = w.n,
                           .score = score,
                           .kind = kind,
                           .n_merges = merges != NULL ? (int)merges->n : 0,
                           .merge = m.p,
                           .merge_len = m.n,
                           .pre = pre,
                           .bos = token_id(g, "tokenizer.ggml.bos_token_id", bpe ? -1 : 1),
                           .eos = token_id(g, "tokenizer.ggml.eos_token_id", bpe ? -1 : 2),
                           .unk = token_id(g, "tokenizer.ggml.unknown_token_id", bpe ? -1 : 0),
                           .eot = token_id(g, "tokenizer.ggml.eot_token_id", -1),
                           .add_bos = flag(g, "tokenizer.ggml.add_bos_token", !bpe || llama3),
                           .add_eos = flag(g, "tokenizer.ggml.add_eos_token", false),
                           .add_space_prefix = flag(g, "tokenizer.ggml.add_space_prefix", !bpe) };
    if (rc == 0)
        rc = tok_open(out, &v, e);
    mem_free(kind);
    mem_free(score);
    mem_free(m.n);
    mem_free(m.p);
    mem_free(w.n);
    mem_free(w.p);
    return rc;
}

static bool is_list(const struct pair *p)
{
    return p != NULL && p->array && p->type == G_STRING && p->n >= 1 && p->n <= 1 << 24;
}

static int gguf_tokenizer(const struct source *s, struct tokenizer **out, struct err *e)
{
    const struct gguf *g = s->state;
    char model[32];
    copy_text(g, "tokenizer.ggml.model", model, sizeof model, "");
    const struct pair *tokens = find(g, "tokenizer.ggml.tokens");
    const struct pair *merges = find(g, "tokenizer.ggml.merges");
    bool bpe = strcmp(model, "gpt2") == 0;
    if (!bpe && strcmp(model, "llama") != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: tokenizer model \"%s\" is not supported; gpt2 and llama are",
                       s->file[0].path, model);
    if (!is_list(tokens) || (bpe && !is_list(merges)))
        return err_set(e, ERR_FORMAT, "%s: tokenizer.ggml.%s is missing or no list of strings",
                       s->file[0].path, is_list(tokens) ? "merges" : "tokens");
    if (open_vocab(g, tokens, bpe ? merges : NULL, bpe, out, e) < 0)
        return err_prefix(e, "%s", s->file[0].path);
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

static int read_template(struct source *s, struct err *e)
{
    struct str t;
    if (!text(find(s->state, "tokenizer.chat_template"), &t))
        return 0;
    s->chat_template = mem_strndup(t.p, t.n);
    return s->chat_template != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for the chat template");
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
    TRY(read_config(s, e));
    return read_template(s, e);
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
