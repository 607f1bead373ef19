/* A generation's life: made from a request, submitted, read, released. See http_internal.h. */
#include "server/gen_internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"

enum {
    DETAIL_BYTES = 8,         /* of one prompt token, or head, in a detail */
    BACKLOG_MIN = 256 << 10,  /* bytes a stream may be ahead of its reader, or more: */
    BACKLOG_STEPS = 64,       /* as many as the engine makes for it in so many steps */
    BACKLOG_MAX = 32 << 20,   /* but not above this */
    CHUNK_BYTES = 512,        /* of one token */
    LOGPROB_BYTES = 300,      /* and of each that is listed with it */
    LOGPROBS_MAX = 256 << 20, /* bytes of JSON */
    /* what one prompt token may add to a backlog: it comes in one burst */
    PROMPT_LOGPROB_BYTES = CHUNK_BYTES + LOGPROB_BYTES * (API_MAX_LOGPROBS + 1)
};
static const uint64_t ping_ns = 10ull * 1000000000;

static void gen_free(struct gen *g)
{
    for (int i = 0; g->choice && i < g->n; i++) {
        struct choice *c = &g->choice[i];
        if (c->owns_ids)
            mem_free(c->ids);
        buf_free(&c->decoded);
        buf_free(&c->text);
        api_logprobs_free(&c->lp);
    }
    atomic_fetch_sub(&g->h->n_gens, 1);
    api_stream_free(&g->stream);
    buf_free(&g->out);
    buf_free(&g->detail);
    api_request_free(&g->req);
    pthread_mutex_destroy(&g->lock);
    mem_free(g->bias);
    mem_free(g->stop);
    mem_free(g->choice);
    mem_free(g);
}

void gen_wake(struct gen *g)
{
    if (!g->suspended)
        return;
    g->suspended = false;
    MHD_resume_connection(g->mhd);
}

/* Without the lock: the engine may be in one of our events. A job that has just ended takes no harm, nor one that is not
 * submitted yet. */
static void cancel_jobs(struct gen *g)
{
    for (int i = 0; i < g->n; i++)
        engine_cancel(g->h->en, &g->choice[i].job);
}

static void add_kv_usage(struct api_kv_usage *kv, const struct job_usage *u)
{
    const struct kv_report *r = &u->kv;

    kv->bytes += (int64_t)u->kv_bytes;
    kv->full_bytes += (int64_t)u->kv_full_bytes;
    kv->budget = u->kv_budget > kv->budget ? u->kv_budget : kv->budget;
    if (r->n_compactions == 0)
        return;
    if (r->raised && r->budget > kv->raised)
        kv->raised = r->budget;
    kv->kept += r->kept;
    kv->merged += r->merged;
    if (kv->n_pressed == 0 || r->mass_min < kv->mass_min)
        kv->mass_min = r->mass_min;
    kv->n_pressed++;
    kv->mass_mean += (r->mass_mean - kv->mass_mean) / kv->n_pressed;
}

void gen_usage(const struct gen *g, struct api_usage *u)
{
    *u = (struct api_usage){ .kv.policy = g->kv.policy->name,
                             .kv.detail = { buf_str(&g->detail), g->detail.len } };
    for (int i = 0; i < g->n; i++) {
        const struct choice *c = &g->choice[i];
        /* n choices of one prompt count the prompt once, as OpenAI does. */
        if (c->owns_ids) {
            u->n_prompt += c->usage.prompt_tokens;
            u->n_cached += c->usage.cached_tokens;
        }
        u->n_completion += c->usage.completion_tokens;
        add_kv_usage(&u->kv, &c->usage);
    }
}

/* When nothing runs any more, and nobody reads. */
static void log_end(const struct gen *g)
{
    enum finish_reason worst = FINISH_NONE; /* of all choices */
    struct api_usage u;

    gen_usage(g, &u);
    for (int i = 0; i < g->n; i++)
        worst = g->choice[i].finish > worst ? g->choice[i].finish : worst;
    LOG(I, "generation",
        "id=%s kind=%s stream=%d choices=%d prompt=%lld cached=%lld completion=%lld finish=%s "
        "ms=%.1f",
        g->id, g->req.kind == API_CHAT ? "chat" : "completion", g->req.stream, g->n,
        (long long)u.n_prompt, (long long)u.n_cached, (long long)u.n_completion, finish_name(worst),
        (double)(clock_ns() - g->start_ns) / 1e6);
    for (int i = 0; i < g->n && log_prompts(); i++)
        log_whole(LOG_I, "answer", "text", &g->choice[i].text, "id=%s index=%d", g->id, i);
}

void gen_unref(struct gen *g)
{
    pthread_mutex_lock(&g->lock);
    int left = --g->refs;
    pthread_mutex_unlock(&g->lock);
    if (left > 0)
        return;
    if (g->finished)
        log_end(g);
    gen_free(g);
}

/* ---- making and submitting --------------------------------------------------------------------------------------- */

static int no_memory(struct api_error *e)
{
    return api_error_internal(e, "The server ran out of memory.");
}

static int check_length(const struct gen *g, struct choice *c, struct api_error *e)
{
    const struct api_sampling *s = &g->req.sampling;
    int ctx = engine_room(engine_settings(g->h->en), c->job.kv.policy), n = c->job.n_prompt;
    const char *param = g->req.kind == API_CHAT ? "messages" : "prompt";
    const struct api_room room = { ctx, engine_ctx(g->h->en) };

    if (n > ctx || (n == ctx && s->max_tokens != 0))
        return api_error_context(e, param, n, 0, room);
    if (s->max_tokens > ctx - n) {
        if (s->has_max_tokens)
            return api_error_context(e, param, n, s->max_tokens, room);
        c->job.max_tokens = ctx - n;
    }
    return 0;
}

/* The prompt's tokens, and how its cache is to be pressed. */
static int make_prompt(struct gen *g, struct choice *c, struct api_error *e)
{
    struct prompt_marks marks = { 0 };
    bool pressed = !g->kv.policy->keeps_all;
    const struct engine_config *ec = engine_settings(g->h->en);
    struct kv_shape shape;

    TRY(prompt_tokens(g->h, &g->req, c->i_prompt, engine_room(ec, g->kv.policy), &c->ids,
                      &c->job.n_prompt, pressed ? &marks : NULL, e));
    c->owns_ids = true;
    c->job.kv = g->kv;
    c->job.kv.question0 = marks.question0;
    c->job.kv.question1 = marks.question1;
    c->job.kv.protect = g->req.compression.protect_system ? marks.system : 0;
    model_kv_shape(g->h->model, ec->kv_type, ec->kv_narrow, 0, &shape);
    return press_fit(&c->job.kv, &g->h->c.press, &g->req.compression, c->job.n_prompt,
                     kv_slot_bytes(&shape), e);
}

/* The prompt's text as given, or what its ids stand for. */
static int make_echo(const struct gen *g, struct choice *c, struct api_error *e)
{
    const struct api_prompt *p = &g->req.prompts[c->i_prompt];

    c->echo = p->text;
    if (p->text.p)
        return 0;
    if (tok_decode(g->h->model->tok, p->ids, p->n_ids, true, &c->decoded) < 0)
        return no_memory(e);
    c->echo = (struct api_str){ buf_str(&c->decoded), c->decoded.len };
    return 0;
}

static int make_choice(struct gen *g, int i, uint64_t seed, struct api_error *e)
{
    const struct api_sampling *s = &g->req.sampling;
    struct choice *c = &g->choice[i];
    int first = i - i % g->req.n;

    c->g = g;
    c->index = i;
    c->i_prompt = i / g->req.n;
    buf_init(&c->text, TEXT_MAX);
    buf_init(&c->decoded, TEXT_MAX);
    api_logprobs_init(&c->lp, g->req.kind, LOGPROBS_MAX);
    if (i == first) {
        TRY(make_prompt(g, c, e));
        if (g->req.echo)
            TRY(make_echo(g, c, e));
    } else {
        c->echo = g->choice[first].echo;
        c->ids = g->choice[first].ids;
        c->job.n_prompt = g->choice[first].job.n_prompt;
        c->job.kv = g->choice[first].job.kv;
    }
    c->job.prompt = c->ids;
    c->job.max_tokens = s->max_tokens;
    c->job.sample = (struct sample_params){
        .temperature = (float)s->temperature,
        .top_p = (float)s->top_p,
        .min_p = (float)s->min_p,
        .top_k = s->top_k,
        .repetition_penalty = (float)s->repetition_penalty,
        .presence_penalty = (float)s->presence_penalty,
        .frequency_penalty = (float)s->frequency_penalty,
        .seed = seed + (uint64_t)i,
        .bias = g->bias,
        .n_bias = s->n_bias,
        .n_logprobs = s->logprobs,
    };
    c->job.stop = g->stop;
    c->job.n_stop = s->n_stop;
    c->job.stop_id = s->stop_ids;
    c->job.n_stop_id = s->n_stop_ids;
    c->job.ignore_eos = s->ignore_eos;
    c->job.prompt_logprobs = g->req.echo && s->logprobs >= 0;
    c->job.kv_detail = g->req.compression.detail && i == 0;
    c->job.no_prefix_cache = g->req.compression.recompute;
    c->job.on_event = stream_on_event;
    c->job.user = c;
    return check_length(g, c, e);
}

static int copy_lists(struct gen *g, struct api_error *e)
{
    const struct api_sampling *s = &g->req.sampling;

    if (s->n_stop > 0) {
        g->stop = mem_zalloc((size_t)s->n_stop, sizeof(*g->stop));
        if (!g->stop)
            return no_memory(e);
        for (int i = 0; i < s->n_stop; i++)
            g->stop[i] = s->stop[i].p;
    }
    if (s->n_bias > 0) {
        g->bias = mem_zalloc((size_t)s->n_bias, sizeof(*g->bias));
        if (!g->bias)
            return no_memory(e);
        for (int i = 0; i < s->n_bias; i++)
            g->bias[i] = (struct logit_bias){ s->bias[i].id, s->bias[i].bias };
    }
    return 0;
}

size_t gen_backlog(int n_seqs, int n_logprobs)
{
    size_t listed = n_logprobs >= 0 ? (size_t)n_logprobs + 1 : 0;
    size_t max = BACKLOG_STEPS * (size_t)n_seqs * (CHUNK_BYTES + LOGPROB_BYTES * listed);
    return max < BACKLOG_MIN ? BACKLOG_MIN : max < BACKLOG_MAX ? max : BACKLOG_MAX;
}

/* What comes beside the tokens comes in one burst. */
static size_t backlog_max(const struct gen *g)
{
    const struct model_config *m = &g->h->model->config;
    int most = engine_settings(g->h->en)->max_seqs;
    size_t max = gen_backlog(g->n < most ? g->n : most, g->req.sampling.logprobs);
    size_t n_heads = (size_t)m->n_layers * (size_t)m->n_kv_heads;
    for (int i = 0; i < g->n; i++) {
        if (g->req.echo)
            max += 6 * g->choice[i].echo.n + 64 * (size_t)g->choice[i].job.n_prompt;
        if (g->choice[i].job.prompt_logprobs)
            max += PROMPT_LOGPROB_BYTES * (size_t)g->choice[i].job.n_prompt;
        if (g->choice[i].job.kv_detail)
            max += DETAIL_BYTES * ((size_t)g->choice[i].job.n_prompt + n_heads);
    }
    return max;
}

static int fill(struct gen *g, struct api_error *e)
{
    uint64_t seed = (uint64_t)g->req.sampling.seed;

    g->choice = mem_zalloc((size_t)g->n, sizeof(*g->choice));
    if (!g->choice)
        return no_memory(e);
    TRY(press_options(&g->kv, &g->h->c.press, &g->req.compression, e));
    TRY(copy_lists(g, e));
    TRY(prompt_check(g->h, &g->req, e));
    if (!g->req.sampling.has_seed && getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
        seed = clock_wall_ns();
    for (int i = 0; i < g->n; i++)
        TRY(make_choice(g, i, seed, e));
    buf_init(&g->out, backlog_max(g));
    buf_init(&g->detail, TEXT_MAX);
    char hex[25];
    http_random_hex(hex, 12);
    snprintf(g->id, sizeof(g->id), "%s-%s", g->req.kind == API_CHAT ? "chatcmpl" : "cmpl", hex);
    g->head = (struct api_head){ .kind = g->req.kind,
                                 .id = g->id,
                                 .model = g->h->c.model_id,
                                 .fingerprint = g->h->fingerprint,
                                 .created = clock_wall_s(),
                                 .include_usage = g->req.include_usage };
    return api_stream_init(&g->stream, &g->head) < 0 ? no_memory(e) : 0;
}

int gen_new(struct gen **out, struct http *h, struct MHD_Connection *mhd, struct api_request *req,
            struct api_error *e)
{
    struct gen *g = mem_zalloc(1, sizeof(*g));
    if (!g) {
        api_request_free(req);
        return no_memory(e);
    }
    *g = (struct gen){ .h = h, .mhd = mhd, .req = *req, .refs = 1, .start_ns = clock_ns() };
    g->n = req->n_prompts * req->n;
    g->last_ns = g->start_ns;
    pthread_mutex_init(&g->lock, NULL);
    atomic_fetch_add(&h->n_gens, 1);
    int rc = fill(g, e);
    if (rc < 0) {
        gen_free(g);
        return rc;
    }
    *out = g;
    return 0;
}

/* The engine forgets what was asked of jobs that it did not have yet. A hang-up from here on finds them there. */
static void cancel_if_gone(struct gen *g)
{
    pthread_mutex_lock(&g->lock);
    bool gone = g->gone;
    pthread_mutex_unlock(&g->lock);
    if (gone)
        cancel_jobs(g);
}

/* Counts the jobs as running, or none of them any more, and their reference with them. */
static void set_running(struct gen *g, bool running)
{
    pthread_mutex_lock(&g->lock);
    g->n_running = running ? g->n : 0;
    g->refs += running ? 1 : -1;
    pthread_mutex_unlock(&g->lock);
}

/* What the pool has no room for, why says: check_length() has looked at the context. It is the first that the engine refuses. */
static int no_room(const struct gen *g, const struct err *why, struct api_error *e)
{
    struct err same = { 0 };
    int i = 0;

    while (i < g->n - 1 && engine_check(g->h->en, &g->choice[i].job, &same) == 0)
        i++;
    int rc = api_error_code(e, "context_length_exceeded", "compression.kv", "%s", why->text);
    e->n_prompt = g->choice[i].job.n_prompt;
    e->n_ctx = engine_room(engine_settings(g->h->en), NULL);
    return rc;
}

int gen_submit(struct gen *g, struct api_error *e)
{
    struct err why = { 0 };
    struct job *job[API_MAX_CHOICES];

    for (int i = 0; i < g->n; i++)
        job[i] = &g->choice[i].job;
    set_running(g, true); /* before any of them may end */
    int rc = engine_submit(g->h->en, job, g->n, &why);
    if (rc == 0) {
        cancel_if_gone(g);
        return 0;
    }
    set_running(g, false);
    if (rc == ERR_BUSY && atomic_load(&g->h->draining))
        return api_error_unavailable(e, "shutting_down", "The server is shutting down.", 5);
    if (rc == ERR_BUSY)
        return api_error_busy(e, "The server's queue is full.", http_retry_after(g->h));
    if (rc == ERR_LIMIT)
        return no_room(g, &why, e);
    return api_error_from(e, &why, rc == ERR_UNSUPPORTED ? "compression.kv.policy" : NULL);
}

/* ---- the connection's side --------------------------------------------------------------------------------------- */

bool gen_wait(struct gen *g)
{
    pthread_mutex_lock(&g->lock);
    bool ready = g->finished || g->gone;
    if (!ready) {
        g->suspended = true;
        MHD_suspend_connection(g->mhd);
    }
    pthread_mutex_unlock(&g->lock);
    return ready;
}

int gen_reply(struct gen *g, struct buf *out, struct api_error *e)
{
    pthread_mutex_lock(&g->lock);
    bool gone = g->gone;
    pthread_mutex_unlock(&g->lock);
    if (gone)
        return ERR_CANCELLED;
    if (g->err.status) {
        *e = g->err;
        return ERR_INVALID;
    }
    struct api_choice *c = mem_zalloc((size_t)g->n, sizeof(*c));
    if (!c)
        return no_memory(e);
    int bad = g->detail.bad;
    for (int i = 0; i < g->n; i++) {
        const struct choice *from = &g->choice[i];
        bad = bad ? bad : from->text.bad;
        c[i] = (struct api_choice){ .text = { buf_str(&from->text), from->text.len },
                                    .finish_reason = finish_name(from->finish),
                                    .logprobs = g->req.sampling.logprobs >= 0 ? &from->lp : NULL };
    }
    struct api_usage u;
    gen_usage(g, &u);
    api_reply_write(&g->head, c, g->n, &u, out);
    mem_free(c);
    return bad || out->bad ? api_error_internal(e, "The reply is larger than this server sends.")
                           : 0;
}

ssize_t gen_read(void *cls, uint64_t pos, char *out, size_t max)
{
    struct gen *g = cls;
    ssize_t n;

    (void)pos;
    pthread_mutex_lock(&g->lock);
    if (g->gone) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (g->out.len > 0) {
        size_t take = g->out.len < max ? g->out.len : max;
        memcpy(out, g->out.data, take);
        buf_shift(&g->out, take);
        n = (ssize_t)take;
    } else if (g->finished) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        g->suspended = true;
        MHD_suspend_connection(g->mhd);
        n = 0;
    }
    pthread_mutex_unlock(&g->lock);
    return n;
}

void gen_hangup(struct gen *g)
{
    pthread_mutex_lock(&g->lock);
    bool running = !g->gone && g->n_running > 0;
    if (running)
        atomic_fetch_add(&g->h->metrics.cancelled[g->decoding ? PHASE_DECODE : PHASE_PROMPT], 1);
    g->gone = true;
    gen_wake(g);
    pthread_mutex_unlock(&g->lock);
    if (running)
        cancel_jobs(g);
}

void gen_stop(struct gen *g)
{
    cancel_jobs(g);
}

bool gen_tick(struct gen *g, uint64_t now_ns)
{
    pthread_mutex_lock(&g->lock);
    bool quiet = g->req.stream && !g->gone && !g->finished && g->out.len == 0;
    if (quiet && now_ns > g->last_ns + ping_ns) {
        api_stream_ping(&g->out);
        g->last_ns = now_ns;
        gen_wake(g);
    }
    bool overflow = g->overflow;
    pthread_mutex_unlock(&g->lock);
    return overflow;
}

void gen_release(struct gen *g)
{
    if (!g)
        return;
    gen_hangup(g);
    gen_unref(g);
}
