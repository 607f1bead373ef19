#include "server/model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/model/load.h"
#include "server/model/workspace.h"

static int open_slots(struct model *m, struct err *e)
{
    m->n_slots = m->arch->slots(m, NULL, NULL, 0);
    m->slot = mem_zalloc((size_t)m->n_slots, sizeof *m->slot);
    m->slot_name = mem_zalloc((size_t)m->n_slots, SLOT_NAME);
    if (m->slot == NULL || m->slot_name == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d tensors", m->n_slots);
    m->arch->slots(m, m->slot, m->slot_name, m->n_slots);
    return 0;
}

/* Frequency i of a rope of `dim` dimensions with the config's scaling (Llama 3.1: the published piecewise rule between
 * wave lengths ctx / high and ctx / low). */
static float rope_freq(const struct model_config *c, int i)
{
    double f = pow((double)c->rope_theta, -2.0 * i / c->rope_dim);
    if (c->rope_scaling == ROPE_LINEAR)
        return (float)(f / (double)c->rope_factor);
    if (c->rope_scaling != ROPE_LLAMA3)
        return (float)f;
    double wave = 2 * 3.14159265358979323846 / f;
    double low = (double)c->rope_ctx / (double)c->rope_low_freq;
    double high = (double)c->rope_ctx / (double)c->rope_high_freq;
    if (wave < high)
        return (float)f;
    if (wave > low)
        return (float)(f / (double)c->rope_factor);
    double smooth = ((double)c->rope_ctx / wave - (double)c->rope_low_freq) /
                    (double)(c->rope_high_freq - c->rope_low_freq);
    return (float)((1 - smooth) * f / (double)c->rope_factor + smooth * f);
}

static int open_rope(struct model *m, struct err *e)
{
    int half = m->config.rope_dim / 2;
    float *freq = mem_zalloc((size_t)half, 2 * sizeof *freq);
    m->rope = (struct kv_rope){ freq, half, m->config.rope_half_split };
    m->inv_freq = m->be->ops->alloc(m->be, (size_t)half * sizeof *freq);
    if (freq == NULL || m->inv_freq == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the rope frequencies");
    float *factor = freq + half;
    if (m->rope_factor != NULL)
        m->be->ops->download(m->be, factor, m->rope_factor, (size_t)half * sizeof *freq);
    for (int i = 0; i < half; i++) {
        freq[i] = rope_freq(&m->config, i);
        if (m->rope_factor != NULL)
            freq[i] /= factor[i];
    }
    m->be->ops->upload(m->be, m->inv_freq, freq, (size_t)half * sizeof *freq);
    return 0;
}

/* One that cannot be read is left out: all but chat goes without. */
static int open_template(struct tmpl **out, const char *text, struct err *e)
{
    struct err why;
    int rc = text != NULL ? tmpl_open(out, text, strlen(text), &why) : 0;
    if (rc == ERR_NOMEM)
        return err_set(e, rc, "%s", why.text);
    if (rc < 0)
        LOG(W, "no_chat_template", "reason=%s", LOG_STR(why.text));
    return 0;
}

static int open_text(struct model *m, const struct source *src, struct err *e)
{
    TRY(source_tokenizer(src, &m->tok, e));
    if (tok_n(m->tok) > m->config.vocab)
        return err_set(e, ERR_FORMAT, "the tokenizer has %d tokens, the model only %d",
                       tok_n(m->tok), m->config.vocab);
    TRY(open_template(&m->tmpl, src->chat_template, e));
    return open_template(&m->tool_tmpl, src->tool_template, e);
}

struct from_files {
    const struct source *src;
    const struct model_options *o;
};

static int fill_from_files(struct model *m, void *arg, struct err *e)
{
    const struct from_files *f = arg;
    TRY(open_text(m, f->src, e));
    return load_slots(m, f->src, m->slot, m->n_slots, f->o, e);
}

static int build(struct model *m, model_fill_fn *fill, void *arg, struct err *e)
{
    m->arch = arch_find(m->config.arch);
    if (m->arch == NULL)
        return err_set(e, ERR_UNSUPPORTED,
                       "architecture \"%s\" is not known; known are llama, mistral, qwen2, qwen3",
                       m->config.arch);
    TRY(m->arch->check(&m->config, e));
    if (!m->be->host && m->config.vocab > BE_VOCAB_MAX)
        return err_set(e, ERR_UNSUPPORTED, "a vocabulary of %d tokens; %s takes at most %d",
                       m->config.vocab, m->be->device, BE_VOCAB_MAX);
    m->attn_scale = 1.0f / sqrtf((float)m->config.head_dim);
    m->layer = mem_zalloc((size_t)m->config.n_layers, sizeof *m->layer);
    if (m->layer == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d layers", m->config.n_layers);
    TRY(open_slots(m, e));
    TRY(fill(m, arg, e));
    return open_rope(m, e);
}

int model_build(struct model **out, const struct model_config *c, struct be *be,
                model_fill_fn *fill, void *arg, struct err *e)
{
    double t0 = clock_s();
    struct model *m = mem_zalloc(1, sizeof *m);
    if (m == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a model");
    m->be = be;
    m->config = *c;
    int rc = build(m, fill, arg, e);
    if (rc == 0)
        rc = be->ops->sync(be, e); /* a device's uploads */
    if (rc < 0) {
        model_close(m);
        return rc;
    }
    m->load_seconds = clock_s() - t0;
    *out = m;
    return 0;
}

int model_open(struct model **out, const char *path, const struct model_options *o, struct be *be,
               struct err *e)
{
    struct source *src = NULL;
    TRY(source_open(&src, path, e));
    struct from_files f = { src, o };
    int rc = model_build(out, &src->config, be, fill_from_files, &f, e);
    source_close(src);
    return rc < 0 ? err_prefix(e, "%s", path) : 0;
}

/* Closing walks the same slots as loading, so nothing can be forgotten in one of the two. */
static void close_slots(struct model *m)
{
    for (int i = 0; m->slot != NULL && i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        if (s->w != NULL)
            weight_close(s->w, m->be);
        else if (s->v != NULL && *s->v != NULL)
            m->be->ops->free(m->be, *s->v, (size_t)s->rows * sizeof(float));
    }
    mem_free(m->slot_name);
    mem_free(m->slot);
}

void model_close(struct model *m)
{
    if (m == NULL)
        return;
    close_slots(m);
    if (m->inv_freq != NULL)
        m->be->ops->free(m->be, m->inv_freq, (size_t)(m->config.rope_dim / 2) * sizeof(float));
    mem_free((float *)m->rope.inv_freq);
    tmpl_close(m->tool_tmpl);
    tmpl_close(m->tmpl);
    tok_close(m->tok);
    mem_free(m->layer);
    mem_free(m);
}

static uint64_t hash_more(struct be *be, const void *p, size_t bytes, uint64_t h)
{
    char piece[1 << 16];
    for (size_t at = 0; at < bytes; at += sizeof piece) {
        size_t n = bytes - at < sizeof piece ? bytes - at : sizeof piece;
        be->ops->download(be, piece, (const char *)p + at, n);
        h = XXH3_64bits_withSeed(piece, n, h);
    }
    return h;
}

uint64_t model_hash(const struct model *m)
{
    uint64_t h = 0;
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        h = XXH3_64bits_withSeed(s->name, strlen(s->name), h);
        for (int p = 0; s->w != NULL && p < CODEC_PLANES; p++)
            h = hash_more(m->be, s->w->plane[p], s->w->bytes[p], h);
        if (s->v != NULL && *s->v != NULL)
            h = hash_more(m->be, *s->v, (size_t)s->rows * sizeof(float), h);
    }
    return h;
}

void model_kv_shape(const struct model *m, enum kv_type type, enum kv_narrow narrow, int samples,
                    struct kv_shape *out)
{
    *out = (struct kv_shape){ .n_layers = m->config.n_layers,
                              .n_kv_heads = m->config.n_kv_heads,
                              .head_dim = m->config.head_dim,
                              .type = type,
                              .n_heads = m->config.n_heads,
                              .samples = samples,
                              .narrow_type = narrow };
}

/* Where the queries of the batch are to be kept in layer l. False: none is. */
static bool keep_layer(struct workspace *ws, const struct kv_pool *pool, const struct batch *b,
                       int l)
{
    bool any = false;
    for (int i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *s = &b->seq[i];
        for (int r = 0; r < s->n_rows; r++) {
            struct be_keep *k = &ws->keep[l * b->n_rows + s->row0 + r];
            *k = (struct be_keep){ 0 };
            any |= kv_seq_keep(s->kv, pool, l, s->pos0 + r, k);
        }
    }
    return any;
}

/* NULL, as in most decode steps, when the first layer keeps none: then no layer does. */
static const struct be_keep *find_keep(const struct model *m, struct workspace *ws,
                                       const struct kv_pool *pool, const struct batch *b)
{
    for (int l = 0; l < m->config.n_layers; l++)
        if (!keep_layer(ws, pool, b, l))
            return NULL;
    return ws->keep;
}

/* The step that a batch is, as step_begin wants it. */
static void make_step(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                      const struct batch *b, struct be_step *step)
{
    ASSERT(b->n_rows >= 1 && b->n_rows <= ws->max_rows && b->n_seqs <= ws->max_seqs);
    for (int l = 0; l < m->config.n_layers; l++)
        for (int i = 0; i < b->n_seqs; i++) {
            struct be_seq *s = &ws->seq[l * b->n_seqs + i];
            *s = (struct be_seq){ .row0 = b->seq[i].row0,
                                  .n_rows = b->seq[i].n_rows,
                                  .pos0 = b->seq[i].pos0 };
            kv_seq_view(b->seq[i].kv, pool, l, &s->kv);
        }
    *step = (struct be_step){ .n_rows = b->n_rows,
                              .n_seqs = b->n_seqs,
                              .n_out = b->n_out,
                              .n_layers = m->config.n_layers,
                              .n_kv_heads = m->config.n_kv_heads,
                              .narrow_type = kv_pool_shape(pool)->narrow_type,
                              .token = b->token,
                              .pos = b->pos,
                              .out_row = b->out_row,
                              .seqs = ws->seq,
                              .keep = find_keep(m, ws, pool, b) };
}

static void run_step(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                     const struct be_step *s)
{
    m->arch->begin(m, ws, s);
    for (int l = 0; l < m->config.n_layers; l++)
        m->arch->layer(m, ws, pool, s, l);
    if (s->n_out > 0)
        m->arch->end(m, ws, s);
}

/* Waits where nobody else will, and counts what the sequences have now. */
static int end_pass(const struct model *m, const struct workspace *ws, const struct batch *b,
                    float **logits, struct err *e)
{
    m->be->ops->step_end(m->be);
    if (m->be->host || b->n_out == 0)
        TRY(m->be->ops->sync(m->be, e));
    for (int i = 0; i < b->n_seqs; i++)
        b->seq[i].kv->n_tokens = b->seq[i].pos0 + b->seq[i].n_rows;
    *logits = ws->logits;
    return 0;
}

int model_forward(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                  const struct batch *b, float **logits, struct err *e)
{
    const struct be_ops *ops = m->be->ops;
    struct be_step step;
    ASSERT(b->n_out <= ws->max_out);
    make_step(m, ws, pool, b, &step);
    if (!ops->step_begin(m->be, &step, ws))
        run_step(m, ws, pool, &step);
    return end_pass(m, ws, b, logits, e);
}

/* One layer alone, in a workspace of the caller's own whose residual stream x becomes. What begin reads of the embedding is
 * wanted by layer 0 only. */
static void run_layer(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                      const struct be_step *s, int layer, float *x)
{
    if (layer == 0)
        ws->x = x;
    m->arch->begin(m, ws, s);
    ws->x = x;
    m->arch->layer(m, ws, pool, s, layer);
}

int model_forward_layer(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                        const struct batch *b, int layer, float *x, float **logits, struct err *e)
{
    const struct be_ops *ops = m->be->ops;
    struct workspace own = *ws;
    struct be_step step;
    bool last = layer == m->config.n_layers - 1;
    ASSERT(b->n_out <= (last ? ws->max_out : 0));
    make_step(m, ws, pool, b, &step);
    bool lost = ops->step_begin(m->be, &step, NULL);
    if (!lost)
        run_layer(m, &own, pool, &step, layer, x);
    if (!lost && !last)
        ops->add(m->be, x, own.delta, b->n_rows, m->config.dim);
    if (!lost && b->n_out > 0)
        m->arch->end(m, &own, &step);
    return end_pass(m, ws, b, logits, e);
}

int model_layer(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                const struct batch *b, int layer, const struct observer *o, float *x, struct err *e)
{
    const struct be_ops *ops = m->be->ops;
    struct workspace own = *ws;
    struct be_step step;
    if (!m->be->host)
        return err_set(e, ERR_UNSUPPORTED, "%s cannot run a layer alone", m->be->device);
    own.observer = o;
    make_step(m, ws, pool, b, &step);
    step.n_out = step.n_rows; /* the last layer, too, runs for all rows */
    bool replayed = ops->step_begin(m->be, &step, NULL);
    ASSERT(!replayed);
    run_layer(m, &own, pool, &step, layer, x);
    ops->add(m->be, x, own.delta, b->n_rows, m->config.dim);
    ops->step_end(m->be);
    return ops->sync(m->be, e);
}

int model_head(const struct model *m, struct workspace *ws, const float *x, int n,
               const float **logits, struct err *e)
{
    const struct be_ops *ops = m->be->ops;
    size_t bytes = (size_t)n * (size_t)m->config.dim * sizeof *x;
    struct be_step step = { .n_rows = n, .n_out = n };
    if (!m->be->host)
        return err_set(e, ERR_UNSUPPORTED, "%s cannot run the head alone", m->be->device);
    bool replayed = ops->step_begin(m->be, &step, ws);
    ASSERT(!replayed && n <= ws->max_out);
    memcpy(ws->x, x, bytes);
    memset(ws->delta, 0, bytes);
    m->arch->end(m, ws, &step);
    ops->step_end(m->be);
    return model_logits(m, ws, n, logits, e);
}

int model_logits(const struct model *m, struct workspace *ws, int n, const float **logits,
                 struct err *e)
{
    *logits = ws->logits;
    if (m->be->host)
        return 0;
    *logits = ws->fetched;
    m->be->ops->download(m->be, ws->fetched, ws->logits,
                         (size_t)n * (size_t)m->config.vocab * sizeof(float));
    return m->be->ops->sync(m->be, e);
}

int model_plan(const struct model *m, const struct workspace *ws, const struct kv_pool *pool,
               size_t stream_bytes, struct table **out)
{
    static const struct table_col cols[] = {
        { "what", "memory" }, { "bytes", "bytes" }, { NULL, "MiB" }, { "detail", "detail" }
    };
    struct kv_stats st;
    kv_pool_stats(pool, &st);
    const struct kv_shape *s = kv_pool_shape(pool);
    struct row {
        const char *what;
        size_t bytes;
        char detail[96];
    } row[4] = { { "weights", m->weight_bytes, "" },
                 { "kv pool", kv_pool_bytes(pool), "" },
                 { "activations", workspace_bytes(ws), "" },
                 { "layer-major", stream_bytes, "" } };
    snprintf(row[0].detail, sizeof row[0].detail, "%s, %d layers", weight_form(&m->layer[0].q),
             m->config.n_layers);
    snprintf(row[1].detail, sizeof row[1].detail, "%lld tokens, %s, %zu B a token",
             (long long)(st.pages / s->n_layers * KV_PAGE), kv_type_name(s->type),
             kv_token_bytes(s));
    if (s->narrow_type != KV_NARROW_SAME)
        snprintf(row[1].detail, sizeof row[1].detail,
                 "%lld tokens, %s, %zu B a token; pressed: %s, %lld B a slot",
                 (long long)(st.pages / s->n_layers * KV_PAGE), kv_type_name(s->type),
                 kv_token_bytes(s), kv_narrow_name(s->narrow_type), (long long)kv_slot_bytes(s));
    snprintf(row[2].detail, sizeof row[2].detail, "%d rows a step", ws->max_rows);
    snprintf(row[3].detail, sizeof row[3].detail, "%zu tokens between layers",
             stream_bytes / (size_t)m->config.dim / sizeof(float));
    TRY(table_open(out, cols, 4));
    for (int i = 0; i < (stream_bytes > 0 ? 4 : 3); i++) {
        table_str(*out, row[i].what);
        table_int(*out, (int64_t)row[i].bytes);
        table_num(*out, (double)row[i].bytes / 1048576.0, 1);
        table_str(*out, row[i].detail);
    }
    return 0;
}
