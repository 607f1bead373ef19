#include "server/quantize/allocate.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/recipe.h"
#include "server/model/arch.h"
#include "server/model/folder.h"

static const char usage[] = "quantize MODEL OUT [options]";

enum { PATH_SIZE = 4096 };

/* ---- opening ----------------------------------------------------------------------------------------------------- */

const char *quantize_codec(const struct config *c)
{
    bool budget = quantize_has_budget(c) || c->pareto[0] != 0;
    if (strcmp(c->codec, "auto") != 0)
        return c->codec;
    return budget ? "trellis" : "trellis2";
}

const char *quantize_head(const struct config *c)
{
    return strcmp(c->head, "auto") == 0 ? weight_head(quantize_codec(c)) : c->head;
}

/* Whether a codec knows the word. */
static int check_head(struct be *be, const char *word, struct err *e)
{
    struct weight w;
    if (weight_open_press(&w, be, word, CODEC_PANEL, PROBE_COLS, e) < 0)
        return err_prefix(e, "head");
    weight_close(&w, be);
    return 0;
}

/* All but loading it, which takes long. */
static int find_model(struct quantize *q, char path[PATH_SIZE], struct err *e)
{
    const struct config *c = q->config;
    TRY(session_device(&q->session.be, c, "cpu", e));
    TRY(quantize_check_codec(q->session.be, c, e));
    TRY(check_head(q->session.be, quantize_head(c), e));
    TRY(recipe_resolve(c->word[0], path, PATH_SIZE, e));
    return source_open(&q->src, path, e);
}

static int load_model(struct quantize *q, const char *path, struct err *e)
{
    struct model_options o;
    TRY(session_options(&o, q->config, q->session.be, true, e));
    o.int8 = false;
    TRY(model_open(&q->session.model, path, &o, q->session.be, e));
    q->model = q->session.model;
    return 0;
}

int quantize_open_model(struct quantize *q, struct err *e)
{
    char path[PATH_SIZE];
    TRY(find_model(q, path, e));
    return load_model(q, path, e);
}

/* Whether the texts can be read and OUT can be written. */
static int check_paths(const struct config *c, struct err *e)
{
    TRY(c->pareto[0] != 0 ? quantize_check_pareto(c, e) : hf_write_probe(c->word[1], e));
    if (c->align[0] != 0)
        TRY(quantize_fetch_texts(c->align, e));
    return quantize_fetch_texts(c->calibrate, e);
}

int quantize_open_text(struct quantize *q, struct err *e)
{
    const struct config *c = q->config;
    int len = q->model->config.ctx_train;
    len = c->context < len ? (int)c->context : len;
    len = c->tokens < len ? (int)c->tokens : len;
    TRY(sequences_aligned(&q->text, q->model->tok, c->calibrate, c->align, c->tokens, len,
                          q->session.be->par, e));
    TRY(quantize_runner(&q->run, q->model, len, e));
    size_t floats = (size_t)q->text.n * (size_t)len * (size_t)q->model->config.dim;
    q->x = mem_zalloc(floats, sizeof *q->x);
    return q->x != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for %d x %d tokens", q->text.n, len);
}

/* OUT.part goes if a run like this one began it; what else lies there is not ours to remove. */
static int start_over(const char *out, struct err *e)
{
    char part[FOLDER_PATH];
    TRY(folder_beside(part, out, ".part", e));
    int fd = open(part, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool busy = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0;
    if (!busy && folder_has(part, QUANTIZE_NOTES))
        fetch_remove(part);
    if (fd >= 0)
        close(fd);
    return busy ? err_set(e, ERR_BUSY, "%s: another run is writing it", part) : 0;
}

/* Folders of the aqlm codec are for transformers too, which asks config.json alone how rope is scaled. */
static void warn_of_factors(const struct quantize *q)
{
    if (q->model->rope_factor != NULL && strncmp(quantize_codec(q->config), "aqlm", 4) == 0)
        LOG(W, "rope_factors",
            "note=\"the file has factors of rope that other programs will not find: add "
            "rope_scaling to config.json for them\"");
}

static int open_out(struct quantize *q, struct err *e)
{
    const char *out = q->config->word[1];
    warn_of_factors(q);
    if (q->config->force) {
        TRY(start_over(out, e));
        bank_remove(q);
    }
    TRY(hf_write_open(&q->out, out, q->src, &q->model->config, q->model->config.n_layers + 1, e));
    return quantize_state_open(q, e);
}

void quantize_close(struct quantize *q)
{
    json_decref(q->state);
    mem_free(q->share);
    mem_free(q->x);
    runner_close(&q->run);
    sequences_close(&q->text);
    hf_write_close(q->out);
    session_close(&q->session);
    source_close(q->src);
    *q = (struct quantize){ 0 };
}

/* ---- the run ----------------------------------------------------------------------------------------------------- */

static uint64_t weights_of(const struct model *m, int layer)
{
    uint64_t n = 0;
    for (int i = 0; i < m->n_slots; i++)
        if (m->slot[i].w != NULL && quantize_layer_of(m->slot[i].name) == layer)
            n += (uint64_t)m->slot[i].rows * (uint64_t)m->slot[i].cols;
    return n;
}

static int press_layer(struct quantize *q, int layer, struct err *e)
{
    struct sums s;
    TRY(sums_open(&s, q->model, layer, e));
    int rc = quantize_run_layer(q, layer, &s, e);
    if (rc == 0)
        rc = quantize_shard(q, layer, &s, e);
    sums_close(&s);
    return rc;
}

/* Behind the last layer that is still to be pressed nothing needs to be run. */
static int last_open(const struct quantize *q)
{
    int l = q->model->config.n_layers - 1;
    while (l >= 0 && hf_write_has_shard(q->out, l + 1))
        l--;
    return l;
}

static int press_layers(struct quantize *q, struct err *e)
{
    int last = quantize_tune_due(q) ? q->model->config.n_layers : last_open(q);
    for (int l = 0; l < q->model->config.n_layers; l++) {
        if (!hf_write_has_shard(q->out, l + 1))
            TRY(press_layer(q, l, e));
        else if (l < last)
            TRY(quantize_run_layer(q, l, NULL, e));
    }
    return 0;
}

/* Embedding and head are no part of the bar: they take next to nothing, and its ETA would be far off. */
static int press_model(struct quantize *q, struct err *e)
{
    uint64_t total = 0;
    for (int l = 0; l < q->model->config.n_layers; l++)
        total += hf_write_has_shard(q->out, l + 1) ? 0 : weights_of(q->model, l);
    int rc = hf_write_has_shard(q->out, 0) ? 0 : quantize_shard(q, -1, NULL, e);
    progress_start(&q->bar, "quantize", "w", total);
    if (rc == 0)
        rc = press_layers(q, e);
    progress_end(&q->bar, rc == 0);
    return rc;
}

int quantize_whole(const struct quantize *q, const struct config *c, struct err *e)
{
    struct quantize sub = *q; /* borrows what is open */
    sub.config = c;
    sub.out = NULL;
    sub.state = NULL;
    if (folder_has(c->word[1], QUANTIZE_NOTES))
        return quantize_state_same(&sub, c->word[1], e);
    int rc = open_out(&sub, e);
    if (rc == 0)
        rc = press_model(&sub, e);
    if (rc == 0)
        rc = hf_write_finish(sub.out, e);
    json_decref(sub.state);
    hf_write_close(sub.out);
    return rc;
}

static int run(struct quantize *q, struct err *e)
{
    char path[PATH_SIZE];
    TRY(find_model(q, path, e));
    TRY(check_paths(q->config, e));
    TRY(load_model(q, path, e));
    TRY(quantize_check_budget(q, e));
    TRY(quantize_open_text(q, e));
    if (quantize_tunes(q->config) && q->text.n < 2)
        return err_set(
            e, ERR_INVALID,
            "%s: a sequence is held out to judge by, and there is but one of %d tokens; take "
            "more --tokens or a shorter --context",
            q->config->tune > 0 ? "tune" : "tune-codes", q->text.len);
    if (q->config->pareto[0] != 0) {
        TRY(quantize_fisher(q, e));
        return quantize_pareto(q, e);
    }
    TRY(open_out(q, e));
    int rc = last_open(q) >= 0 ? quantize_fisher(q, e) : 0;
    if (rc == 0)
        rc = quantize_allocate(q, e);
    if (rc == 0)
        rc = press_model(q, e);
    if (rc == 0)
        rc = quantize_tune(q, e);
    if (rc == ERR_CANCELLED)
        return err_set(e, rc, "stopped; the same command%s goes on with what is in %s",
                       q->config->force ? " without --force" : "", hf_write_folder(q->out));
    if (rc == 0)
        rc = hf_write_finish(q->out, e);
    if (rc == 0)
        bank_remove(q);
    return rc;
}

int quantize_run(struct quantize *q, const struct config *c, struct err *e)
{
    *q = (struct quantize){ .config = c };
    int rc = run(q, e);
    if (rc < 0)
        quantize_close(q);
    return rc;
}

int cmd_quantize(int argc, char **argv)
{
    struct config c;
    struct quantize q;
    struct err e;
    bool done;
    double t0 = clock_s();
    int code = cli_config(&c, CONFIG_QUANTIZE, usage, 2, argc, argv, &done);
    if (done)
        return code;
    fetch_catch_signals();
    if (quantize_run(&q, &c, &e) < 0)
        code = cli_fail(&e);
    else {
        code = c.pareto[0] == 0 ? quantize_report(&q, clock_s() - t0) : quantize_pareto_report(&q);
        quantize_close(&q);
    }
    config_free(&c);
    return code;
}
