#include <string.h>

#include "server/base/log.h"
#include "server/cli/cli.h"
#include "server/cli/recipe.h"

static enum io_method io_method(const char *word)
{
    return strcmp(word, "uring") == 0 ? IO_URING : strcmp(word, "pread") == 0 ? IO_PREAD : IO_AUTO;
}

int session_open(struct session *s, const struct config *c, const char *model, bool progress,
                 struct err *e)
{
    *s = (struct session){ 0 };
    char path[4096];
    TRY(recipe_resolve(model, path, sizeof path, e));
    struct be_config bc = { .device = c->device, .n_threads = (int)c->threads, .isa = c->isa };
    TRY(be_open(&s->be, &bc, e));
    struct model_options o = { .weights = c->weights,
                               .int8 = strcmp(c->activations, "int8") == 0,
                               .io = io_method(c->io),
                               .progress = progress };
    int rc = model_open(&s->model, path, &o, s->be, e);
    if (rc < 0) {
        session_close(s);
        return rc;
    }
    const struct io_report *r = &s->model->io;
    LOG(I, "loaded",
        "model=%s arch=%s weights=%s bytes=%zu io=%s gb_s=%.2f seconds=%.3f isa=%s threads=%d",
        LOG_STR(path), s->model->config.arch, weight_form(&s->model->layer[0].q),
        s->model->weight_bytes, r->method,
        r->seconds > 0 ? (double)r->bytes / r->seconds / 1e9 : 0.0, s->model->load_seconds,
        cpu_isa_name(s->be->isa), par_threads(s->be->par));
    return 0;
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
    return be->isa >= CPU_BF16 ? KV_BF16 : KV_F16;
}

void cli_engine_config(const struct config *c, const struct be *be, struct engine_config *out)
{
    *out = (struct engine_config){
        .ctx = (int)c->ctx,
        .max_seqs = (int)c->max_seqs,
        .max_batch = (int)c->max_batch,
        .max_queue = (int)c->max_queue,
        .kv_bytes = (size_t)c->kv_size,
        .kv_type = cli_kv_type(c, be),
        .prefix_cache = c->prefix_cache,
    };
}
