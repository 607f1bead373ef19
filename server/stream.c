/* From the engine's events to bytes. See http_internal.h.
 *
 * Events run on the engine's thread and append to a buffer; libmicrohttpd's reader (gen.c) takes from it on an I/O thread
 * and suspends its connection, under the lock, when there is nothing; whoever appends resumes it. A reader that falls
 * more than a ceiling behind loses its stream: the engine never waits for anybody.
 */
#include <string.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/gen_internal.h"

static struct api_token token_of(const struct gen *g, int32_t id, float logprob)
{
    return (struct api_token){ .text = http_piece(g->h, id), .logprob = logprob };
}

_Static_assert((int)API_MAX_LOGPROBS == (int)SAMPLE_MAX_LOGPROBS,
               "what requests are told is what the engine takes");

static void add_logprobs(struct choice *c, int32_t id, const struct sample_result *r)
{
    const struct gen *g = c->g;
    struct api_token top[SAMPLE_MAX_LOGPROBS + 1];
    struct api_token t = token_of(g, id, r ? r->logprob : 0);
    int n = 0;
    bool listed = false;

    t.no_logprob = r == NULL;
    for (; r && n < r->n_top; n++) {
        top[n] = token_of(g, r->top[n].id, r->top[n].logprob);
        listed = listed || r->top[n].id == id;
    }
    /* Completions promise the chosen token among the alternatives, one more than asked for if need be. */
    if (r && !listed && g->req.kind == API_COMPLETION && g->req.sampling.logprobs > 0)
        top[n++] = t;
    api_logprobs_add(&c->lp, &t, top, n);
}

static bool begins_with(const char *s, size_t n, const char *start, size_t n_start)
{
    return n >= n_start && memcmp(s, start, n_start) == 0;
}

/* A token of the prompt. The space that the tokenizer puts in front of a text is in its token, but not in the echo. */
static void score_token(struct choice *c, const struct sample_result *r)
{
    int32_t id = c->job.prompt[c->n_scored++];
    struct api_str piece = http_piece(c->g->h, id);
    size_t left = c->echo.n - c->echo_at;
    const char *at = c->echo.p + c->echo_at;

    add_logprobs(c, id, r);
    if (piece.n > 0 && piece.p[0] == ' ' && !begins_with(at, left, piece.p, piece.n) &&
        begins_with(at, left, piece.p + 1, piece.n - 1)) {
        piece.n--;
        c->lp.offset--;
    }
    c->echo_at += piece.n < left ? piece.n : left;
}

/* Echo with logprobs: the tokens of the prompt, the first of which nothing predicts. */
static void score_prompt(struct choice *c, const struct job_event *ev)
{
    const struct gen *g = c->g;

    if (!c->job.prompt_logprobs)
        return;
    if (c->n_scored == 0) {
        score_token(c, NULL);
        /* A beginning-of-text token that the tokenizer put in front is no part of the echoed text. */
        if (g->req.prompts[c->i_prompt].text.p && c->job.prompt[0] == tok_bos(g->h->model->tok)) {
            c->lp.offset = 0;
            c->echo_at = 0;
        }
    }
    if (ev->kind == JOB_PROMPT && ev->has_logprob && c->n_scored < c->job.n_prompt)
        score_token(c, ev->result);
}

static void put_text(struct choice *c, const char *text, size_t n, bool has_logprobs)
{
    struct gen *g = c->g;
    if (!g->req.stream || log_prompts())
        (void)buf_add(&c->text, text, n);
    if (!g->req.stream)
        return;
    if (n == 0 && !has_logprobs)
        return;
    api_stream_text(&g->stream, c->index, text, n, has_logprobs ? &c->lp : NULL, &g->out);
    api_logprobs_clear(&c->lp);
}

/* Before the first token: the role, or the echo of the prompt. */
static void begin(struct choice *c)
{
    struct gen *g = c->g;
    if (c->begun)
        return;
    c->begun = true;
    if (g->req.kind == API_CHAT && g->req.stream)
        api_stream_role(&g->stream, c->index, &g->out);
    if (g->req.echo)
        put_text(c, c->echo.p, c->echo.n, c->lp.n > 0);
}

static void job_failed(struct gen *g, const struct job_event *ev)
{
    if (g->err.status)
        return;
    if (ev->finish == FINISH_ERROR && ev->err)
        api_error_from(&g->err, ev->err, NULL);
    else
        api_error_unavailable(&g->err, "shutting_down", "The server is shutting down.", 5);
}

static void job_done(struct choice *c, const struct job_event *ev)
{
    struct gen *g = c->g;

    c->finish = ev->finish;
    if (ev->usage)
        c->usage = *ev->usage;
    g->n_running--;
    if (ev->finish == FINISH_ERROR || ev->finish == FINISH_CANCELLED)
        job_failed(g, ev);
    else if (g->req.stream && !g->err.status)
        api_stream_finish(&g->stream, c->index, finish_name(ev->finish), &g->out);
    if (g->n_running > 0)
        return;
    g->finished = true;
    if (!g->req.stream)
        return;
    if (g->err.status) {
        api_stream_error(&g->err, &g->out);
        return;
    }
    struct api_usage u;
    gen_usage(g, &u);
    api_stream_usage(&g->stream, &g->head, &u, &g->out);
    api_stream_done(&g->out);
}

/* How the first choice's prompt was pressed. */
static void tell_detail(struct gen *g, const struct job *j, const struct job_kv *kv)
{
    const struct api_detail d = { .n_layers = kv->n_layers,
                                  .n_heads = kv->n_kv_heads,
                                  .n_prompt = j->n_prompt,
                                  .slots = kv->slots,
                                  .survival = kv->survival };
    if (g->req.stream)
        api_stream_detail(&g->stream, &g->head, &d, &g->out);
    else
        api_detail_write(&d, &g->detail);
}

static void write_event(struct choice *c, const struct job_event *ev)
{
    struct gen *g = c->g;

    if (ev->kind == JOB_PROMPT && ev->kv)
        tell_detail(g, &c->job, ev->kv);
    score_prompt(c, ev);
    if (ev->kind != JOB_PROMPT)
        begin(c);
    bool has_logprobs = ev->kind == JOB_TOKEN && ev->has_logprob && g->req.sampling.logprobs >= 0;
    if (has_logprobs)
        add_logprobs(c, ev->id, ev->result);
    if (ev->kind != JOB_PROMPT)
        put_text(c, ev->text, ev->text_len, has_logprobs);
    g->decoding = g->decoding || ev->kind == JOB_TOKEN;
}

/* Engine thread. */
void stream_on_event(struct job *j, const struct job_event *ev)
{
    struct choice *c = j->user;
    struct gen *g = c->g;

    pthread_mutex_lock(&g->lock);
    if (!g->gone && !g->err.status)
        write_event(c, ev);
    if (ev->kind == JOB_DONE)
        job_done(c, ev);
    if (g->out.bad && !g->gone) {
        g->overflow = g->gone = true;
        atomic_fetch_add(&g->h->metrics.slow_readers, 1);
    }
    bool cancel = (g->overflow || g->err.status) && g->n_running > 0; /* nobody reads the others */
    bool last = g->n_running == 0 && ev->kind == JOB_DONE;
    if (g->finished || g->gone || g->out.len > 0)
        gen_wake(g);
    if (g->out.len > 0)
        g->last_ns = clock_ns();
    pthread_mutex_unlock(&g->lock);
    if (cancel)
        gen_stop(g);
    if (last)
        gen_unref(g);
}
