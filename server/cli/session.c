#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "server/base/log.h"
#include "server/cli/cli.h"
#include "server/cli/recipe.h"
#include "server/model/synthetic.h"

static enum io_method io_method(const char *word)
{
    return strcmp(word, "uring") == 0 ? IO_URING : strcmp(word, "pread") == 0 ? IO_PREAD : IO_AUTO;
}

int session_device(struct be **out, const struct config *c, const char *device, struct err *e)
{
    struct be_config bc = {
        .device = device, .n_threads = (int)c->threads, .isa = c->isa, .cublas = c->cublas
    };
    return be_open(out, &bc, e);
}

int session_options(struct model_options *o, const struct config *c, const struct be *be,
                    bool progress, struct err *e)
{
    if (!be->host && strcmp(c->activations, "int8") == 0)
        return err_set(e, ERR_INVALID,
                       "--activations int8 is the CPU's; %s takes auto (bf16) or f32", be->device);
    *o = (struct model_options){ .weights = c->weights,
                                 .int8 = strcmp(c->activations, "f32") != 0,
                                 .io = io_method(c->io),
                                 .progress = progress };
    return 0;
}

static int open_on(struct session *s, const struct config *c, const char *device, const char *path,
                   bool progress, struct err *e)
{
    struct model_options o;
    *s = (struct session){ 0 };
    TRY(session_device(&s->be, c, device, e));
    int rc = session_options(&o, c, s->be, progress, e);
    if (rc == 0 && c->synthetic[0] != 0)
        rc = synthetic_open(&s->model, path, &o, s->be, e);
    else if (rc == 0)
        rc = model_open(&s->model, path, &o, s->be, e);
    if (rc < 0) {
        session_close(s);
        return rc;
    }
    const struct io_report *r = &s->model->io;
    LOG(I, "loaded",
        "model=%s arch=%s weights=%s bytes=%zu io=%s gb_s=%.2f seconds=%.3f device=%s isa=%s "
        "threads=%d",
        LOG_STR(path), s->model->config.arch, weight_form(&s->model->layer[0].q),
        s->model->weight_bytes, r->method != NULL ? r->method : "none",
        r->seconds > 0 ? (double)r->bytes / r->seconds / 1e9 : 0.0, s->model->load_seconds,
        LOG_STR(s->be->device), cpu_isa_name(s->be->isa), par_threads(s->be->par));
    return 0;
}

void session_check_ctx(int64_t ctx, int trained)
{
    if (ctx > trained)
        LOG(W, "context_beyond_training", "ctx=%lld trained=%d", (long long)ctx, trained);
}

/* Where it is not what the user may expect. */
static void tell_ctx(int64_t asked, const struct engine *en, int trained)
{
    session_check_ctx(asked, trained);
    if (asked == 0 && engine_ctx(en) < trained)
        LOG(W, "context_cut_to_pool", "ctx=%d trained=%d pool_bytes=%zu", engine_ctx(en), trained,
            engine_settings(en)->kv_bytes);
}

/* Session, and engine when en is not NULL, on one device. */
static int open_both(struct session *s, struct engine **en, const struct config *c,
                     const char *device, const char *path, int max_seqs, bool progress,
                     struct err *e)
{
    TRY(open_on(s, c, device, path, progress, e));
    if (en == NULL)
        return 0;
    enum kv_type type = cli_kv_type(c, s->be);
    struct engine_config ec = {
        .ctx = (int)c->ctx,
        .max_seqs = max_seqs > 0 ? max_seqs : (int)c->max_seqs,
        .max_batch = (int)c->max_batch,
        .max_queue = (int)c->max_queue,
        .kv_bytes = (size_t)c->kv_size,
        .kv_type = type,
        .kv_narrow = cli_kv_narrow(c, type),
        .kv_samples = (int)c->kv_samples,
        .layer_major = c->layer_major > 0 ? (int)c->layer_major : INT_MAX,
        .prefix_cache = c->prefix_cache,
    };
    int rc = engine_open(en, s->model, &ec, e);
    if (rc < 0) {
        session_close(s);
        return rc;
    }
    tell_ctx(c->ctx, *en, s->model->config.ctx_train);
    return 0;
}

/* A GPU that is not there or has no room sends --device auto to the CPU; a bad file is bad there too. */
static bool cpu_may_do(int rc)
{
    return rc == ERR_DEVICE || rc == ERR_NOMEM || rc == ERR_UNSUPPORTED;
}

static int open_any(struct session *s, struct engine **en, const struct config *c,
                    const char *model, int max_seqs, bool progress, struct err *e)
{
    char path[4096];
    if (c->synthetic[0] != 0)
        snprintf(path, sizeof path, "%s", c->synthetic);
    else
        TRY(recipe_resolve(model, path, sizeof path, e));
    if (strcmp(c->device, "auto") != 0)
        return open_both(s, en, c, c->device, path, max_seqs, progress, e);
    int rc = open_both(s, en, c, "cuda", path, max_seqs, progress, e);
    if (!cpu_may_do(rc))
        return rc;
    LOG(I, "device", "auto=cpu why=%s", LOG_STR(e->text));
    return open_both(s, en, c, "cpu", path, max_seqs, progress, e);
}

int session_open(struct session *s, const struct config *c, const char *model, bool progress,
                 struct err *e)
{
    return open_any(s, NULL, c, model, 0, progress, e);
}

int session_engine(struct session *s, struct engine **en, const struct config *c, int max_seqs,
                   bool progress, struct err *e)
{
    return open_any(s, en, c, c->word[0], max_seqs, progress, e);
}

void session_close(struct session *s)
{
    model_close(s->model);
    be_close(s->be);
    *s = (struct session){ 0 };
}

enum kv_type cli_kv_type(const struct config *c, const struct be *be)
{
    for (int t = 0; t < KV_TYPE_N; t++)
        if (strcmp(c->kv_type, kv_type_name((enum kv_type)t)) == 0)
            return (enum kv_type)t;
    return !be->host || be->isa >= CPU_BF16 ? KV_BF16 : KV_F16;
}

enum kv_narrow cli_kv_narrow(const struct config *c, enum kv_type type)
{
    for (int n = 0; n < KV_NARROW_N; n++)
        if (strcmp(c->kv_narrow, kv_narrow_name((enum kv_narrow)n)) == 0)
            return (enum kv_narrow)n;
    /* without samples nothing is pressed */
    return type != KV_F32 && c->kv_samples > 0 ? KV_NARROW_Q8 : KV_NARROW_SAME;
}
