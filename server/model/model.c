#include "server/model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/model/load.h"
#include "server/model/workspace.h"

static int open_slots(struct model *m, const struct source *src, const struct model_options *o,
                      struct err *e)
{
    m->n_slots = m->arch->slots(m, NULL, NULL, 0);
    m->slot = mem_zalloc((size_t)m->n_slots, sizeof *m->slot);
    m->slot_name = mem_zalloc((size_t)m->n_slots, SLOT_NAME);
    if (m->slot == NULL || m->slot_name == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d tensors", m->n_slots);
    m->arch->slots(m, m->slot, m->slot_name, m->n_slots);
    return load_slots(m, src, m->slot, m->n_slots, o, e);
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
    m->inv_freq = m->be->ops->alloc(m->be, (size_t)half * sizeof *freq);
    if (freq == NULL || m->inv_freq == NULL) {
        mem_free(freq);
        return err_set(e, ERR_NOMEM, "no memory for the rope frequencies");
    }
    float *factor = freq + half;
    if (m->rope_factor != NULL)
        m->be->ops->download(m->be, factor, m->rope_factor, (size_t)half * sizeof *freq);
    for (int i = 0; i < half; i++) {
        freq[i] = rope_freq(&m->config, i);
        if (m->rope_factor != NULL)
            freq[i] /= factor[i];
    }
    m->be->ops->upload(m->be, m->inv_freq, freq, (size_t)half * sizeof *freq);
    mem_free(freq);
    return 0;
}

static int open_text(struct model *m, const struct source *src, struct err *e)
{
    TRY(source_tokenizer(src, &m->tok, e));
    if (tok_n(m->tok) > m->config.vocab)
        return err_set(e, ERR_FORMAT, "the tokenizer has %d tokens, the model only %d",
                       tok_n(m->tok), m->config.vocab);
    if (src->chat_template == NULL)
        return 0;
    return tmpl_open(&m->tmpl, src->chat_template, strlen(src->chat_template), e);
}

static int open_from(struct model *m, const struct source *src, const struct model_options *o,
                     struct err *e)
{
    m->config = src->config;
    m->arch = arch_find(m->config.arch);
    if (m->arch == NULL)
        return err_set(e, ERR_UNSUPPORTED,
                       "architecture \"%s\" is not known; known are llama, mistral, qwen2, qwen3",
                       m->config.arch);
    TRY(m->arch->check(&m->config, e));
    m->attn_scale = 1.0f / sqrtf((float)m->config.head_dim);
    m->layer = mem_zalloc((size_t)m->config.n_layers, sizeof *m->layer);
    if (m->layer == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d layers", m->config.n_layers);
    TRY(open_text(m, src, e));
    TRY(open_slots(m, src, o, e));
    return open_rope(m, e);
}

int model_open(struct model **out, const char *path, const struct model_options *o, struct be *be,
               struct err *e)
{
    double t0 = clock_s();
    struct source *src = NULL;
    TRY(source_open(&src, path, e));
    struct model *m = mem_zalloc(1, sizeof *m);
    if (m == NULL) {
        source_close(src);
        return err_set(e, ERR_NOMEM, "no memory for a model");
    }
    m->be = be;
    int rc = open_from(m, src, o, e);
    source_close(src);
    if (rc < 0) {
        model_close(m);
        return err_prefix(e, "%s", path);
    }
    m->load_seconds = clock_s() - t0;
    *out = m;
    return 0;
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
    tmpl_close(m->tmpl);
    tok_close(m->tok);
    mem_free(m->layer);
    mem_free(m);
}

void model_kv_shape(const struct model *m, enum kv_type type, struct kv_shape *out)
{
    *out = (struct kv_shape){ .n_layers = m->config.n_layers,
                              .n_kv_heads = m->config.n_kv_heads,
                              .head_dim = m->config.head_dim,
                              .type = type };
}

int model_forward(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                  const struct batch *b, const float **logits, struct err *e)
{
    ASSERT(b->n_rows >= 1 && b->n_rows <= ws->max_rows && b->n_seqs <= ws->max_seqs &&
           b->n_out <= ws->max_out);
    m->be->ops->step_begin(m->be);
    m->arch->forward(m, ws, pool, b);
    m->be->ops->step_end(m->be);
    TRY(m->be->ops->sync(m->be, e));
    for (int i = 0; i < b->n_seqs; i++)
        b->seq[i].kv->n_tokens = b->seq[i].pos0 + b->seq[i].n_rows;
    *logits = ws->logits;
    return 0;
}

int model_plan(const struct model *m, const struct workspace *ws, const struct kv_pool *pool,
               struct table **out)
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
    } row[3] = { { "weights", m->weight_bytes, "" },
                 { "kv pool", (size_t)st.pages * st.page_bytes, "" },
                 { "activations", workspace_bytes(ws), "" } };
    snprintf(row[0].detail, sizeof row[0].detail, "%s, %d layers", weight_form(&m->layer[0].q),
             m->config.n_layers);
    snprintf(row[1].detail, sizeof row[1].detail, "%lld tokens, %s, %zu B a token",
             (long long)(st.pages / s->n_layers * KV_PAGE), kv_type_name(s->type),
             kv_token_bytes(s));
    snprintf(row[2].detail, sizeof row[2].detail, "%d rows a step", ws->max_rows);
    TRY(table_open(out, cols, 4));
    for (int i = 0; i < 3; i++) {
        table_str(*out, row[i].what);
        table_int(*out, (int64_t)row[i].bytes);
        table_num(*out, (double)row[i].bytes / 1048576.0, 1);
        table_str(*out, row[i].detail);
    }
    return 0;
}
