/* The engine's doors, and its opening and closing. The work is in step.c and press.c. */
#include <signal.h>

#include "server/base/clock.h"
#include "server/base/machine.h"
#include "server/base/mem.h"
#include "server/engine/engine_internal.h"
#include "server/engine/stats.h"

const char *finish_name(enum finish_reason r)
{
    static const char *const name[] = { "none", "stop", "length", "cancelled", "error" };
    return (unsigned)r <= FINISH_ERROR ? name[r] : "unknown";
}

/* Rows of logits of a step for prompts whose every row is wanted, beside one for a token of every sequence. */
enum { SCORED_ROWS = 64 };

/* ---- opening ------------------------------------------------------------------------------------------------- */

static int64_t page_round(int64_t n_tokens)
{
    return (n_tokens + KV_PAGE - 1) / KV_PAGE * KV_PAGE;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* What a device takes while it serves, beside its pool: recorded passes, buffers, and a step's page tables: shared pages are
 * named once a sequence. */
static size_t device_own(const struct engine_config *c, const struct model *m, int64_t ctx)
{
    size_t pages = (size_t)c->max_seqs * (size_t)(ctx / KV_PAGE + 1);
    size_t tables = pages * (size_t)m->config.n_layers * sizeof(int32_t);
    return ((size_t)256 << 20) + tables + tables / 4;
}

/* What the pool may take unasked. A machine's memory, or a container's, serves others too: a quarter, and no more than half
 * of what the weights leave. A device's is there for this: nine tenths of what weights and activations leave, less room for
 * the backend's own buffers. */
static int64_t default_bytes(const struct engine_config *c, const struct model *m, int64_t ctx)
{
    size_t room, total, own = device_own(c, m, ctx);
    m->be->ops->memory(m->be, &room, &total);
    if (total == 0) {
        int64_t there = machine_memory(NULL);
        int64_t left = there - (int64_t)m->weight_bytes;
        return least(there / 4, left > 0 ? left / 2 : 0);
    }
    return (int64_t)(room / 10 * 9 > 2 * own ? room / 10 * 9 - own : room / 2);
}

/* Sequences of full length, four on a machine, all that may run at once on a device, as far as memory goes: cached
 * prefixes fill the pool sooner or later. A context that was asked for fits once in any case. */
static int64_t default_tokens(const struct engine_config *c, const struct model *m, int64_t ctx,
                              size_t span)
{
    int seqs = m->be->host && c->max_seqs > 4 ? 4 : c->max_seqs;
    int64_t n = page_round(ctx) * seqs;
    int64_t bytes = default_bytes(c, m, ctx);
    int64_t most = (bytes - (int64_t)layers_bytes(c, m, ctx)) / (int64_t)span * KV_PAGE;
    if (c->ctx == 0 &&
        most < ctx) /* the context will be the pool's, and what is between the layers its */
        most = bytes / (int64_t)(span + layers_bytes(c, m, KV_PAGE)) * KV_PAGE;
    if (n > most)
        n = most;
    if (n < page_round(c->ctx))
        n = page_round(c->ctx);
    return n > KV_PAGE ? n : KV_PAGE;
}

static int fill_counts(struct engine_config *c, struct err *e)
{
    if (c->ctx < 0 || c->max_seqs < 0 || c->max_batch < 0 || c->max_queue < 0 || c->kv_tokens < 0)
        return err_set(e, ERR_INVALID, "a negative number in the engine's settings");
    if (c->max_seqs == 0)
        c->max_seqs = 64;
    if (c->max_batch == 0)
        c->max_batch = 512;
    if (c->max_batch < c->max_seqs) /* every decoding sequence has its row in every step */
        c->max_batch = c->max_seqs;
    if (c->max_queue == 0)
        c->max_queue = 1024;
    return 0;
}

/* An allocation that fails while a device serves fails as a lost device does, so room for those is seen to here. */
static int check_device(const struct engine_config *c, const struct model *m, struct err *e)
{
    size_t room, total, own = device_own(c, m, c->ctx);
    m->be->ops->memory(m->be, &room, &total);
    size_t most = room > 2 * own ? room - own : room / 2;
    if (total == 0 || c->kv_bytes <= most) /* 0: it cannot tell */
        return 0;
    return err_set(e, ERR_NOMEM,
                   "a KV pool of %zu bytes (%lld tokens); %s has room for %zu beside the weights "
                   "and what the steps take (--kv-size %zuM)",
                   c->kv_bytes, (long long)c->kv_tokens, m->be->device, most, most >> 20);
}

/* A machine maps more memory than it has, and ends the process that touches it: long after the start, under load. */
static int check_memory(const struct engine_config *c, const struct model *m, struct err *e)
{
    if (!m->be->host)
        return check_device(c, m, e);
    int64_t there = machine_memory(NULL);
    if (c->kv_bytes + m->weight_bytes <= (size_t)there)
        return 0;
    return err_set(
        e, ERR_INVALID,
        "a KV pool of %zu bytes (%lld tokens) and weights of %zu bytes: this machine has "
        "%lld bytes of memory",
        c->kv_bytes, (long long)c->kv_tokens, m->weight_bytes, (long long)there);
}

/* After the activations are there: the default is a part of what they leave. */
static int fill_pool(struct engine_config *c, const struct model *m, const struct kv_shape *shape,
                     struct err *e)
{
    size_t span = kv_span_bytes(shape);
    bool asked = c->kv_tokens > 0 || c->kv_bytes > 0 || c->ctx > 0;
    int64_t ctx = c->ctx > 0 ? c->ctx : m->config.ctx_train;
    if (c->kv_tokens > 0)
        c->kv_tokens = page_round(c->kv_tokens);
    else if (c->kv_bytes > 0)
        c->kv_tokens = (int64_t)(c->kv_bytes / span) * KV_PAGE;
    else
        c->kv_tokens = default_tokens(c, m, ctx, span);
    if (c->kv_tokens < KV_PAGE || (c->kv_tokens < c->ctx && !layers_may(c, m)))
        return err_set(
            e, ERR_INVALID,
            "a KV pool of %zu bytes holds %lld tokens; a context of %lld takes %zu bytes",
            c->kv_bytes, (long long)c->kv_tokens, (long long)ctx,
            (size_t)(page_round(ctx) / KV_PAGE) * span);
    c->kv_bytes = (size_t)(c->kv_tokens / KV_PAGE) * span;
    c->ctx = (int)(ctx < c->kv_tokens || c->ctx > 0 ? ctx : c->kv_tokens);
    return asked ? check_memory(c, m, e) : 0;
}

static bool open_arrays(struct engine *en)
{
    size_t seqs = (size_t)en->config.max_seqs, rows = (size_t)en->config.max_batch;
    size_t out = (size_t)en->max_out;
    return (en->running = mem_zalloc(seqs, sizeof(struct seq *))) != NULL &&
           (en->held = mem_zalloc(seqs + 1, sizeof(struct seq *))) != NULL &&
           (en->plan = mem_zalloc(seqs, sizeof *en->plan)) != NULL &&
           (en->rows = mem_zalloc(seqs, sizeof *en->rows)) != NULL &&
           (en->batch_seq = mem_zalloc(seqs, sizeof *en->batch_seq)) != NULL &&
           (en->token = mem_zalloc(rows, sizeof *en->token)) != NULL &&
           (en->pos = mem_zalloc(rows, sizeof *en->pos)) != NULL &&
           (en->out_row = mem_zalloc(out, sizeof *en->out_row)) != NULL &&
           (en->out = mem_zalloc(out, sizeof *en->out)) != NULL;
}

static void free_engine(struct engine *en)
{
    choose_close(en);
    mem_free(en->out);
    mem_free(en->out_row);
    mem_free(en->pos);
    mem_free(en->token);
    mem_free(en->batch_seq);
    mem_free(en->rows);
    mem_free(en->plan);
    mem_free(en->held);
    mem_free(en->running);
    workspace_close(en->ws);
    layers_close(en);
    kv_compactor_close(en->compactor);
    kv_pool_close(en->pool);
    pthread_cond_destroy(&en->wake);
    pthread_mutex_destroy(&en->lock);
    mem_free(en);
}

/* Signals are the main thread's: the new thread starts with all of them blocked. */
static int start_thread(struct engine *en)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&en->thread, NULL, engine_main, en);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

static int open_parts(struct engine *en, struct err *e)
{
    struct kv_shape shape;
    struct engine_config *c = &en->config;
    model_kv_shape(en->model, c->kv_type, c->kv_narrow, c->kv_samples, &shape);
    TRY(fill_counts(c, e));
    en->max_out = (int)least((int64_t)c->max_seqs + SCORED_ROWS, c->max_batch);
    TRY(workspace_open(&en->ws, en->model, c->max_batch, c->max_seqs, en->max_out, e));
    TRY(fill_pool(c, en->model, &shape, e));
    TRY(layers_open(en, e));
    TRY(kv_pool_open(&en->pool, en->model->be, &shape, c->kv_tokens, e));
    TRY(press_open(en, e));
    if (!open_arrays(en))
        return err_set(e, ERR_NOMEM, "no memory for a batch of %d rows", c->max_batch);
    TRY(choose_open(en, e));
    struct kv_stats st;
    kv_pool_stats(en->pool, &st);
    stats_init(&en->stats);
    atomic_store(&en->stats.kv_pages, st.pages);
    if (start_thread(en) != 0)
        return err_set(e, ERR_NOMEM, "the engine's thread cannot be started");
    return 0;
}

int engine_open(struct engine **out, const struct model *m, const struct engine_config *c,
                struct err *e)
{
    struct engine *en = mem_zalloc(1, sizeof *en);
    if (en == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the engine");
    en->model = m;
    en->config = *c;
    en->queue_end = &en->queue;
    pthread_mutex_init(&en->lock, NULL);
    pthread_cond_init(&en->wake, NULL);
    int rc = open_parts(en, e);
    if (rc < 0) {
        free_engine(en);
        return rc;
    }
    *out = en;
    return 0;
}

void engine_close(struct engine *en)
{
    if (en == NULL)
        return;
    pthread_mutex_lock(&en->lock);
    en->stop = true;
    pthread_cond_signal(&en->wake);
    pthread_mutex_unlock(&en->lock);
    pthread_join(en->thread, NULL);
    free_engine(en);
}

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

static int check_job(const struct engine *en, const struct job *j, struct err *e)
{
    int ctx = engine_room(&en->config, j->kv.policy);
    if (j->n_prompt < 1 || j->max_tokens < -1)
        return err_set(e, ERR_INVALID, "%d prompt tokens, %d tokens to make", j->n_prompt,
                       j->max_tokens);
    for (int i = 0; i < j->n_prompt; i++)
        if (j->prompt[i] < 0 || j->prompt[i] >= en->model->config.vocab)
            return err_set(e, ERR_INVALID, "prompt token %d is %d; the vocabulary has %d tokens", i,
                           j->prompt[i], en->model->config.vocab);
    if (j->n_prompt > ctx || (j->n_prompt == ctx && j->max_tokens != 0))
        return err_set(e, ERR_LIMIT, "the prompt has %d tokens; at most %d fit the %s of %d tokens",
                       j->n_prompt, j->max_tokens != 0 ? ctx - 1 : ctx,
                       ctx < en->config.ctx ? "KV pool" : "context", ctx);
    return 0;
}

int engine_check(const struct engine *en, const struct job *j, struct err *e)
{
    TRY(check_job(en, j, e));
    return press_check(en, j, e);
}

void engine_unwait(struct engine *en, struct job *j)
{
    if (!atomic_exchange(&j->waits, false))
        return;
    atomic_fetch_sub(&en->n_waiting, 1);
    atomic_fetch_sub(&en->stats.waiting, 1);
}

/* Why n jobs cannot be taken now. Under the lock. */
static int check_queue(const struct engine *en, int n, struct err *e)
{
    if (en->dead.code != 0)
        return err_set(e, en->dead.code, "%s", en->dead.text);
    if (en->draining || en->stop)
        return err_set(e, ERR_BUSY, "the engine takes no new jobs");
    int waiting = atomic_load(&en->n_waiting);
    if (waiting > 0 && waiting + n > en->config.max_queue)
        return err_set(e, ERR_BUSY, "%d jobs are waiting already; %d more are over %d", waiting, n,
                       en->config.max_queue);
    return 0;
}

static void enqueue(struct engine *en, struct job *j)
{
    atomic_store(&j->cancelled, 0);
    j->next = NULL;
    j->submit_ns = clock_ns();
    *en->queue_end = j;
    en->queue_end = &j->next;
    atomic_fetch_add(&en->n_waiting, 1);
    atomic_fetch_add(&en->stats.waiting, 1);
    atomic_store(&j->waits, true);
    atomic_fetch_add(&en->live, 1);
}

int engine_submit(struct engine *en, struct job *const *job, int n, struct err *e)
{
    for (int i = 0; i < n; i++)
        TRY(engine_check(en, job[i], e));
    pthread_mutex_lock(&en->lock);
    int rc = check_queue(en, n, e);
    for (int i = 0; i < n && rc == 0; i++)
        enqueue(en, job[i]);
    pthread_cond_signal(&en->wake);
    pthread_mutex_unlock(&en->lock);
    return rc;
}

/* The engine thread is awake while any job lives, and looks after every step; until then the job takes no room in the queue.
 * In this order: of one that is being submitted, either both are forgotten or it is cancelled. */
void engine_cancel(struct engine *en, struct job *j)
{
    engine_unwait(en, j);
    atomic_store(&j->cancelled, 1);
    atomic_fetch_add(&en->n_cancels, 1);
}

void engine_drain(struct engine *en)
{
    pthread_mutex_lock(&en->lock);
    en->draining = true;
    pthread_mutex_unlock(&en->lock);
}

bool engine_idle(const struct engine *en)
{
    return atomic_load(&en->live) == 0;
}

/* ---- looking in ---------------------------------------------------------------------------------------------- */

const struct engine_stats *engine_stats(const struct engine *en)
{
    return &en->stats;
}

int engine_error(struct engine *en, struct err *e)
{
    pthread_mutex_lock(&en->lock);
    int rc = en->dead.code;
    if (rc != 0)
        err_set(e, rc, "%s", en->dead.text);
    pthread_mutex_unlock(&en->lock);
    return rc;
}

int engine_ctx(const struct engine *en)
{
    return en->config.ctx;
}

int engine_room(const struct engine_config *c, const struct kv_policy *policy)
{
    bool whole = policy == NULL || policy->keeps_all;
    return whole && c->kv_tokens < c->ctx ? (int)c->kv_tokens : c->ctx;
}

const struct engine_config *engine_settings(const struct engine *en)
{
    return &en->config;
}

int engine_plan(const struct engine *en, struct table **out)
{
    return model_plan(en->model, en->ws, en->pool, en->stream_bytes, out);
}
