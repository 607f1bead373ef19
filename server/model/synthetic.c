/* Shapes are those of the config.json that each model was published with.
 *
 * A number of a matrix is a function of tensor, row and column alone (splitmix64 of a counter), so any thread can make any
 * row. Pressing costs more than making, 16 ns a weight for q4: a matrix of more than POOL rows repeats the first POOL.
 * That is at least 1.2 MB a matrix (q4, 2048 columns) and differs between matrices: more than a processor's caches
 * could make use of, and as random to it as without the repetition.
 */
#include "server/model/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/base/mix.h"
#include "server/base/progress.h"
#include "server/model/load.h"
#include "server/text/vocab.h"

enum { POOL = 64 * CODEC_PANEL };

struct shape {
    const char *name, *arch;
    int layers, dim, heads, kv_heads, head_dim, ffn, vocab, ctx;
    float theta, eps;
    float rope_factor; /* of Llama 3.1's rule, 0: none */
    bool tied;
    const char *extra; /* optional tensors that it has: part of their names */
};

/* clang-format off */
static const struct shape shapes[] = {
    { "tiny",          "llama",    2,   64,  4, 2,  16,   192,    320,   2048, 1e4f, 1e-5f,  0, true,  NULL },
    { "smollm2-135m",  "llama",   30,  576,  9, 3,  64,  1536,  49152,   8192, 1e5f, 1e-5f,  0, true,  NULL },
    { "qwen2.5-0.5b",  "qwen2",   24,  896, 14, 2,  64,  4864, 151936,  32768, 1e6f, 1e-6f,  0, true,  "bias" },
    { "tinyllama-1.1b","llama",   22, 2048, 32, 4,  64,  5632,  32000,   2048, 1e4f, 1e-5f,  0, false, NULL },
    { "llama-3.2-1b",  "llama",   16, 2048, 32, 8,  64,  8192, 128256, 131072, 5e5f, 1e-5f, 32, true,  NULL },
    { "llama-3.2-3b",  "llama",   28, 3072, 24, 8, 128,  8192, 128256, 131072, 5e5f, 1e-5f, 32, true,  NULL },
    { "mistral-7b",    "mistral", 32, 4096, 32, 8, 128, 14336,  32768,  32768, 1e6f, 1e-5f,  0, false, NULL },
    { "qwen2.5-7b",    "qwen2",   28, 3584, 28, 4, 128, 18944, 152064,  32768, 1e6f, 1e-6f,  0, false, "bias" },
    { "llama-3.1-8b",  "llama",   32, 4096, 32, 8, 128, 14336, 128256, 131072, 5e5f, 1e-5f,  8, false, NULL },
    { "qwen3-8b",      "qwen3",   36, 4096, 32, 8, 128, 12288, 151936,  40960, 1e6f, 1e-6f,  0, false, "_norm" },
    { "llama-3.1-70b", "llama",   80, 8192, 64, 8, 128, 28672, 128256, 131072, 5e5f, 1e-5f,  8, false, NULL },
};
/* clang-format on */
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

const char *synthetic_shapes(void)
{
    return "tiny, smollm2-135m, qwen2.5-0.5b, tinyllama-1.1b, llama-3.2-1b, llama-3.2-3b, "
           "mistral-7b, qwen2.5-7b, llama-3.1-8b, qwen3-8b, llama-3.1-70b";
}

static void config_of(const struct shape *s, const char *spec, struct model_config *c)
{
    *c = (struct model_config){ .n_layers = s->layers,
                                .dim = s->dim,
                                .n_heads = s->heads,
                                .n_kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .ffn = s->ffn,
                                .vocab = s->vocab,
                                .ctx_train = s->ctx,
                                .norm_eps = s->eps,
                                .tied = s->tied,
                                .rope_theta = s->theta,
                                .rope_half_split = true,
                                .rope_scaling = s->rope_factor > 0 ? ROPE_LLAMA3 : ROPE_PLAIN,
                                .rope_factor = s->rope_factor,
                                .rope_low_freq = 1,
                                .rope_high_freq = 4,
                                .rope_ctx = 8192 };
    snprintf(c->arch, sizeof c->arch, "%s", s->arch);
    snprintf(c->name, sizeof c->name, "synthetic %s", spec);
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* n numbers of the given mean and deviation: the sum of four uniform 16-bit numbers, which is normal but for tails that end
 * at 3.46 deviations. */
static void draw(float *out, int n, uint64_t tensor, int row, float mean, float deviation)
{
    const uint64_t key = mix64(mix64(tensor + 1) + (uint64_t)row);
    const float scale = deviation / 37837.23f; /* sqrt(4 * 65536^2 / 12) */
    for (int i = 0; i < n; i++) {
        uint64_t z = mix64(key + (uint64_t)(i + 1) * 0x9e3779b97f4a7c15u);
        int sum =
            (int)(z & 65535) + (int)(z >> 16 & 65535) + (int)(z >> 32 & 65535) + (int)(z >> 48);
        out[i] = mean + scale * (float)(sum - 2 * 65535);
    }
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

struct making {
    const struct shape *shape;
    const struct model_options *o;
    struct progress bar;
};

struct press {
    struct weight *to;
    uint64_t tensor;
    float *scratch; /* [threads][2][step * cols]: the numbers, and room for weight_fill */
};

static void press_units(void *arg, int first, int last, int i_thread)
{
    const struct press *p = arg;
    const int cols = p->to->cols;
    const int unit = codec_step(p->to->codec);
    const size_t some = (size_t)unit * (size_t)cols;
    float *x = p->scratch + (size_t)i_thread * 2 * some;
    for (int i = first; i < last; i++) {
        int row = i * unit;
        int n = p->to->rows - row < unit ? p->to->rows - row : unit;
        for (int r = 0; r < n; r++)
            draw(x + (size_t)r * (size_t)cols, cols, p->tensor, row + r, 0, 1 / sqrtf((float)cols));
        weight_fill(p->to, row, n, DT_F32, x, x + some);
    }
}

static int make_matrix(struct model *m, const struct slot *s, uint64_t tensor, struct making *k,
                       struct err *e)
{
    size_t threads = (size_t)par_threads(m->be->par);
    int unit = codec_step(s->w->codec);
    struct weight stage = { 0 };
    struct press p = { .to = &stage, .tensor = tensor };
    p.scratch = mem_zalloc(threads * 2 * (size_t)unit * (size_t)s->cols, sizeof(float));
    int rc = 0;
    if (p.scratch == NULL)
        rc = err_set(e, ERR_NOMEM, "no memory to make tensor %s", s->name);
    for (int row = 0, n; rc == 0 && row < s->rows; row += n) {
        n = s->rows - row < POOL ? s->rows - row : POOL;
        if (n != stage.rows) {
            weight_stage_close(&stage);
            rc = weight_stage_open(&stage, s->w, n, e);
            if (rc < 0)
                break;
            par_for(m->be->par, (n + unit - 1) / unit, 1, press_units, &p);
        }
        weight_stage_upload(&stage, s->w, m->be, row);
        if (k->o->progress)
            progress_add(&k->bar, weight_bytes(&stage));
    }
    weight_stage_close(&stage);
    mem_free(p.scratch);
    return rc;
}

/* Weights of a norm lie around 1, biases around 0. */
static int make_vector(struct model *m, const struct slot *s, uint64_t tensor, struct err *e)
{
    float *x = mem_zalloc((size_t)s->rows, sizeof *x);
    if (x == NULL)
        return err_set(e, ERR_NOMEM, "no memory to make tensor %s", s->name);
    draw(x, s->rows, tensor, 0, strstr(s->name, "norm") != NULL ? 1.0f : 0.0f, 0.1f);
    m->be->ops->upload(m->be, *s->v, x, (size_t)s->rows * sizeof *x);
    mem_free(x);
    return 0;
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

enum { FIRST_BYTE = 3, FIRST_WORD = FIRST_BYTE + 256, WORD = 12 };

/* <unk>, <s>, </s>, the bytes, and for every other id a word "a1f4 " that decoding can write: a served answer has text. */
static int make_text(struct model *m, struct err *e)
{
    static const char *const name[] = { "<unk>", "<s>", "</s>" };
    static const uint8_t kind[] = { TOK_UNKNOWN, TOK_CONTROL, TOK_CONTROL };
    const int n = m->config.vocab;
    struct vocab v = { 0 };
    char(*word)[WORD] = mem_zalloc((size_t)n, WORD);
    int rc = vocab_alloc(&v, n, e);
    if (rc == 0 && word == NULL)
        rc = err_set(e, ERR_NOMEM, "no memory for a vocabulary of %d tokens", n);
    for (int i = 0; rc == 0 && i < n; i++) {
        if (i >= FIRST_WORD)
            snprintf(word[i], WORD, "%x ", (unsigned)i);
        else if (i >= FIRST_BYTE)
            snprintf(word[i], WORD, "<0x%02X>", (unsigned)(i - FIRST_BYTE));
        v.text[i] = i < FIRST_BYTE ? name[i] : word[i];
        v.len[i] = strlen(v.text[i]);
        v.kind[i] = i < FIRST_BYTE ? kind[i] : i < FIRST_WORD ? TOK_BYTE : TOK_NORMAL;
    }
    if (rc == 0)
        rc = vocab_open(&v, &m->tok, e);
    vocab_free(&v);
    mem_free(word);
    return rc;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

static bool is_wanted(const struct slot *s, const struct shape *shape)
{
    return !s->optional || (shape->extra != NULL && strstr(s->name, shape->extra) != NULL);
}

/* All memory first: what does not fit is known before the work. */
static int make_tensors(struct model *m, void *arg, struct err *e)
{
    struct making *k = arg;
    m->io.method = "none";
    for (int i = 0; i < m->n_slots; i++)
        if (is_wanted(&m->slot[i], k->shape))
            TRY(load_slot(m, &m->slot[i], DT_F32, k->o, e));
    if (k->o->progress)
        progress_start(&k->bar, "make", "B", m->weight_bytes);
    int rc = 0;
    for (int i = 0; rc == 0 && i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        if (!is_wanted(s, k->shape))
            continue;
        rc =
            s->w != NULL ? make_matrix(m, s, (uint64_t)i, k, e) : make_vector(m, s, (uint64_t)i, e);
    }
    if (k->o->progress)
        progress_end(&k->bar, rc == 0);
    return rc < 0 ? rc : make_text(m, e);
}

static int find_shape(const char *spec, const struct shape **out, const char **form, struct err *e)
{
    size_t n = strcspn(spec, ":");
    if (n == strlen("mixtral-8x7b") && strncmp(spec, "mixtral-8x7b", n) == 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "mixtral-8x7b is a mixture of experts, which this program does not run yet; "
                       "shapes are: %s",
                       synthetic_shapes());
    for (int i = 0; i < N_SHAPES; i++)
        if (strlen(shapes[i].name) == n && strncmp(spec, shapes[i].name, n) == 0) {
            if (spec[n] != ':')
                return err_set(e, ERR_INVALID,
                               "\"%s\" names no form of weights; give one of %s, as %s:q4", spec,
                               codec_names(), spec);
            *out = &shapes[i];
            *form = spec + n + 1;
            return 0;
        }
    return err_set(e, ERR_INVALID,
                   "there is no shape \"%.*s\"; SHAPE:FORM is expected, and shapes are: %s", (int)n,
                   spec, synthetic_shapes());
}

int synthetic_open(struct model **out, const char *spec, const struct model_options *o,
                   struct be *be, struct err *e)
{
    struct model_options mine = *o;
    struct making k = { .o = &mine };
    struct model_config c;
    TRY(find_shape(spec, &k.shape, &mine.weights, e));
    config_of(k.shape, spec, &c);
    int rc = model_build(out, &c, be, make_tensors, &k, e);
    if (rc < 0)
        err_prefix(e, "%s", spec);
    return rc;
}
