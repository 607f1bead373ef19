/* The metadata of a GGUF file as a model's numbers and its vocabulary (keys: the GGUF specification). */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/model/gguf.h"

/* A whole number of the architecture's, "llama.block_count" for key "block_count"; otherwise the default. */
static int arch_int(const struct gguf *g, const char *arch, const char *key, int otherwise)
{
    char name[128];
    double v;
    snprintf(name, sizeof name, "%s.%s", arch, key);
    const struct pair *p = gguf_find(g, name);
    return p != NULL && !p->array && gguf_number(p, 0, &v) && v >= 0 && v <= INT32_MAX ? (int)v
                                                                                       : otherwise;
}

static float arch_num(const struct gguf *g, const char *arch, const char *key, float otherwise)
{
    char name[128];
    double v;
    snprintf(name, sizeof name, "%s.%s", arch, key);
    return gguf_number(gguf_find(g, name), 0, &v) ? (float)v : otherwise;
}

static void copy_text(const struct gguf *g, const char *key, char *out, size_t size,
                      const char *otherwise)
{
    struct str s;
    if (gguf_text(gguf_find(g, key), &s))
        snprintf(out, size, "%.*s", (int)(s.n < size ? s.n : size - 1), s.p);
    else
        snprintf(out, size, "%s", otherwise);
}
/* ---- the model's numbers ------------------------------------------------------------------------------------------ */

/* A file that has a factor but no type means linear, and before there were types the factor had another name. */
static int read_scaling(const struct gguf *g, struct model_config *c, const char *path,
                        struct err *e)
{
    char key[64];
    char type[32];
    snprintf(key, sizeof key, "%s.rope.scaling.type", c->arch);
    copy_text(g, key, type, sizeof type, "linear");
    float factor =
        arch_num(g, c->arch, "rope.scaling.factor", arch_num(g, c->arch, "rope.scale_linear", 0));
    bool linear = strcmp(type, "linear") == 0;
    if (!linear && strcmp(type, "none") != 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: rope scaling \"%s\" is not supported; none and linear are", path, type);
    if (!(factor >= 0 && isfinite(factor)))
        return err_set(e, ERR_FORMAT,
                       "%s: rope scaling factor %g makes no sense; a number above 0 does, or 0 for "
                       "none",
                       path, (double)factor);
    c->rope_factor = linear && factor > 0 ? factor : 1;
    c->rope_scaling = c->rope_factor != 1 ? ROPE_LINEAR : ROPE_PLAIN;
    return 0;
}

int gguf_config(struct source *s, struct err *e)
{
    const struct gguf *g = s->state;
    struct model_config *c = &s->config;
    struct str t;
    double parts;
    if (gguf_number(gguf_find(g, "split.count"), 0, &parts) && parts > 1)
        return err_set(
            e, ERR_UNSUPPORTED,
            "%s: is one of %.0f parts of a model: join them, as llama-gguf-split --merge "
            "does",
            s->file[0].path, parts);
    if (!gguf_text(gguf_find(g, "general.architecture"), &t))
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
    if (!(c->norm_eps > 0 && c->norm_eps < 1) || !(c->rope_theta > 0 && isfinite(c->rope_theta)))
        return err_set(e, ERR_FORMAT, "%s: norm epsilon %g or rope base %g make no sense",
                       s->file[0].path, (double)c->norm_eps, (double)c->rope_theta);
    int value = arch_int(g, c->arch, "attention.value_length", c->head_dim);
    if (c->head_dim > 0 && value != c->head_dim)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: heads of keys have %d numbers, of values %d; equal ones are supported",
                       s->file[0].path, c->head_dim, value);
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
    return gguf_number(gguf_find(g, key), 0, &v) && v >= 0 && v < INT32_MAX ? (int32_t)v
                                                                            : otherwise;
}

static bool flag(const struct gguf *g, const char *key, bool otherwise)
{
    double v;
    return gguf_number(gguf_find(g, key), 0, &v) ? v != 0 : otherwise;
}

/* Scores and kinds, where the file has them for every token. */
static int read_numbers(const struct gguf *g, uint64_t n, float **score, uint8_t **kind)
{
    double v;
    const struct pair *s = gguf_find(g, "tokenizer.ggml.scores");
    const struct pair *k = gguf_find(g, "tokenizer.ggml.token_type");
    *score = s != NULL && s->array && s->n == n ? mem_zalloc((size_t)n, sizeof **score) : NULL;
    *kind = k != NULL && k->array && k->n == n ? mem_zalloc((size_t)n, 1) : NULL;
    if ((s != NULL && s->n == n && *score == NULL) || (k != NULL && k->n == n && *kind == NULL))
        return ERR_NOMEM;
    for (uint64_t i = 0; i < n; i++) {
        if (*score != NULL && gguf_number(s, i, &v))
            (*score)[i] = (float)v;
        if (*kind != NULL)
            (*kind)[i] =
                gguf_number(k, i, &v) && v >= TOK_NORMAL && v <= TOK_BYTE ? (uint8_t)v : TOK_NORMAL;
    }
    return 0;
}

/* Llama 3's vocabulary puts BOS in front of a text where the file does not say, by any of its names. */
static bool is_llama3(const char *pre)
{
    return strcmp(pre, "llama-bpe") == 0 || strcmp(pre, "llama3") == 0 ||
           strcmp(pre, "llama-v3") == 0;
}

/* Some converters write the end of a turn as a word of the user's, which no model means; llama.cpp corrects it too. */
static void correct_ends(const struct words *w, uint64_t n, uint8_t *kind)
{
    for (uint64_t i = 0; i < n; i++)
        if (kind[i] == TOK_USER_DEFINED && tok_names_end(w->p[i], w->n[i]))
            kind[i] = TOK_CONTROL;
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
    else if (kind != NULL)
        correct_ends(&w, tokens->n, kind);
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
                           .add_bos =
                               flag(g, "tokenizer.ggml.add_bos_token", !bpe || is_llama3(pre)),
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

int gguf_tokenizer(const struct source *s, struct tokenizer **out, struct err *e)
{
    const struct gguf *g = s->state;
    char model[32];
    copy_text(g, "tokenizer.ggml.model", model, sizeof model, "");
    const struct pair *tokens = gguf_find(g, "tokenizer.ggml.tokens");
    const struct pair *merges = gguf_find(g, "tokenizer.ggml.merges");
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
