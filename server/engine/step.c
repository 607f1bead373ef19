/* The engine thread: cancel, admit, plan, run the model, hand out tokens, end what is finished; again.
 *
 * A step allocates nothing but what a newly admitted sequence needs.
 */
#include <string.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/engine/engine_internal.h"
#include "server/engine/stats.h"

/* ---- the end of a sequence ----------------------------------------------------------------------------------- */

static void show_pages(struct engine *en)
{
    struct kv_stats st;
    kv_pool_stats(en->pool, &st);
    atomic_store_explicit(&en->stats.kv_used, st.used, memory_order_relaxed);
    atomic_store_explicit(&en->stats.kv_cached, st.cached, memory_order_relaxed);
    atomic_store_explicit(&en->stats.running, en->n_running, memory_order_relaxed);
}

static void show_waiting(struct engine *en, int waiting, int preempted)
{
    pthread_mutex_lock(&en->lock);
    en->n_waiting += waiting;
    en->n_preempted += preempted;
    atomic_store_explicit(&en->stats.waiting, en->n_waiting + en->n_preempted,
                          memory_order_relaxed);
    pthread_mutex_unlock(&en->lock);
}

static double seconds(uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) / 1e9 : 0;
}

static void count_end(struct engine *en, const struct seq *s, const struct job_usage *u,
                      uint64_t now)
{
    struct engine_stats *t = &en->stats;
    atomic_fetch_add_explicit(&t->finished[s->finish], 1, memory_order_relaxed);
    if (s->finish != FINISH_STOP && s->finish != FINISH_LENGTH)
        return;
    histogram_observe(&t->e2e, seconds(s->job->submit_ns, now));
    histogram_observe(&t->prefill_time, (double)u->prefill_ns / 1e9);
    histogram_observe(&t->decode_time, (double)u->decode_ns / 1e9);
    histogram_observe(&t->output_len, u->completion_tokens);
}

/* Pages are back and numbers are right before the job's owner hears of it. */
static void finish(struct engine *en, struct seq *s)
{
    uint64_t now = clock_ns();
    uint64_t admit = s->admit_ns != 0 ? s->admit_ns : now;
    uint64_t first = s->first_ns != 0 ? s->first_ns : now;
    struct job_usage u = {
        .prompt_tokens = s->job->n_prompt,
        .completion_tokens = s->n_tokens - s->job->n_prompt,
        .cached_tokens = s->n_cached,
        .queued_ns = admit - s->job->submit_ns,
        .prefill_ns = first - admit,
        .decode_ns = now - first,
        .kv_bytes = kv_seq_bytes(&s->kv, en->pool),
        .kv_full_bytes = (size_t)s->kv.n_tokens * kv_token_bytes(kv_pool_shape(en->pool)),
        .preemptions = s->preemptions,
    };
    kv_seq_clear(&s->kv, en->pool);
    en->blocked = false;
    show_pages(en);
    if (!s->running)
        show_waiting(en, s->admit_ns == 0 ? -1 : 0, s->admit_ns == 0 ? 0 : -1);
    count_end(en, s, &u, now);
    seq_done(s, &u);
    seq_close(s, en->pool);
    atomic_fetch_sub(&en->live, 1);
}

/* A job that never became a sequence. */
static void finish_job(struct engine *en, struct job *j, enum finish_reason r,
                       const struct err *why)
{
    struct job_usage u = { .prompt_tokens = j->n_prompt, .queued_ns = clock_ns() - j->submit_ns };
    atomic_fetch_add_explicit(&en->stats.finished[r], 1, memory_order_relaxed);
    show_waiting(en, -1, 0);
    j->on_event(j, &(struct job_event){ .kind = JOB_DONE,
                                        .text = "",
                                        .finish = r,
                                        .err = r == FINISH_ERROR ? why : NULL,
                                        .usage = &u });
    atomic_fetch_sub(&en->live, 1);
}

/* Takes the finished ones out of a list first, so that the numbers shown count the others only. */
static void sweep(struct engine *en, struct seq **list, int *n)
{
    for (int i = 0; i < *n;) {
        struct seq *s = list[i];
        if (s->finish == FINISH_NONE) {
            i++;
            continue;
        }
        memmove(&list[i], &list[i + 1], (size_t)(*n - i - 1) * sizeof(struct seq *));
        (*n)--;
        finish(en, s);
    }
}

/* ---- the queue ----------------------------------------------------------------------------------------------- */

/* Takes the oldest job, or the oldest cancelled one. */
static struct job *queue_take(struct engine *en, bool cancelled_only)
{
    pthread_mutex_lock(&en->lock);
    struct job **at = &en->queue;
    while (*at != NULL && cancelled_only && !atomic_load(&(*at)->cancelled))
        at = &(*at)->next;
    struct job *j = *at;
    if (j != NULL) {
        *at = j->next;
        if (*at == NULL)
            en->queue_end = at;
    }
    pthread_mutex_unlock(&en->lock);
    return j;
}

static void mark_cancelled(struct seq **list, int n)
{
    for (int i = 0; i < n; i++)
        if (atomic_load(&list[i]->job->cancelled))
            list[i]->finish = FINISH_CANCELLED;
}

static void cancel(struct engine *en)
{
    uint64_t n = atomic_load(&en->n_cancels);
    if (n == en->seen_cancels)
        return;
    en->seen_cancels = n;
    mark_cancelled(en->running, en->n_running);
    mark_cancelled(en->held, en->n_held);
    sweep(en, en->running, &en->n_running);
    sweep(en, en->held, &en->n_held);
    for (struct job *j; (j = queue_take(en, true)) != NULL;)
        finish_job(en, j, FINISH_CANCELLED, NULL);
}

/* ---- admission and preemption -------------------------------------------------------------------------------- */

static void insert(struct seq **list, int *n, struct seq *s)
{
    int i = (*n)++;
    for (; i > 0 && list[i - 1]->serial > s->serial; i--)
        list[i] = list[i - 1];
    list[i] = s;
}

static void preempt(struct engine *en, int i)
{
    struct seq *s = en->running[i];
    memmove(&en->running[i], &en->running[i + 1],
            (size_t)(en->n_running - i - 1) * sizeof(struct seq *));
    en->n_running--;
    kv_seq_clear(&s->kv, en->pool);
    s->preemptions++;
    atomic_fetch_add_explicit(&en->stats.preemptions, 1, memory_order_relaxed);
    s->running = s->compacted = false;
    insert(en->held, &en->n_held, s);
    en->blocked = false;
    show_waiting(en, 0, 1);
}

/* Makes sure that something waits in held[0], from the queue if need be. */
static bool next_held(struct engine *en)
{
    while (en->n_held == 0) {
        struct job *j = queue_take(en, false);
        struct seq *s;
        struct err why;
        if (j == NULL)
            return false;
        if (seq_open(&s, j, en->model, en->pool, &en->config, &why) < 0) {
            finish_job(en, j, FINISH_ERROR, &why);
            continue;
        }
        s->serial = ++en->last_serial;
        insert(en->held, &en->n_held, s);
    }
    return true;
}

static void started(struct engine *en, struct seq *s)
{
    struct engine_stats *t = &en->stats;
    s->running = true;
    show_waiting(en, s->admit_ns == 0 ? -1 : 0, s->admit_ns == 0 ? 0 : -1);
    if (s->admit_ns != 0)
        return;
    s->admit_ns = clock_ns();
    s->n_cached = s->kv.n_cached;
    histogram_observe(&t->queue_time, seconds(s->job->submit_ns, s->admit_ns));
    histogram_observe(&t->prompt_len, s->job->n_prompt);
    if (s->shares) {
        atomic_fetch_add_explicit(&t->prefix_queries, (uint64_t)s->n_tokens, memory_order_relaxed);
        atomic_fetch_add_explicit(&t->prefix_hits, (uint64_t)s->n_cached, memory_order_relaxed);
    }
}

static struct sched_limits limits(const struct engine *en)
{
    return (struct sched_limits){
        .max_rows = en->config.max_batch,
        .max_out = en->max_out,
        .prompt_rows = en->config.max_batch / 4 > KV_PAGE ? en->config.max_batch / 4 : KV_PAGE,
        .available = kv_pool_available(en->pool),
        .block_pages = kv_pool_shape(en->pool)->n_layers,
    };
}

/* Starts waiting sequences, oldest first, until one does not fit. */
static void admit(struct engine *en)
{
    while (!en->blocked && en->n_running < en->config.max_seqs && next_held(en)) {
        struct seq *s = en->held[0];
        /* rows whose logits are wanted have to be computed */
        if (s->shares && !seq_scores(s))
            kv_prefix_match(&s->kv, en->pool, s->token, s->n_tokens, 0);
        struct sched_limits l = limits(en);
        int64_t need = kv_seq_need(&s->kv, en->pool, s->n_tokens);
        if (!sched_admits(en->n_running, en->config.max_seqs, need, &l)) {
            kv_seq_clear(&s->kv, en->pool);
            en->blocked = true;
            return;
        }
        int rc = kv_seq_reserve(&s->kv, en->pool, s->n_tokens);
        ASSERT(rc == 0);
        en->n_held--;
        memmove(&en->held[0], &en->held[1], (size_t)en->n_held * sizeof(struct seq *));
        insert(en->running, &en->n_running, s);
        started(en, s);
    }
}

/* ---- a step -------------------------------------------------------------------------------------------------- */

/* Decides the rows of every running sequence, preempting as long as decoding ones lack pages. */
static void plan(struct engine *en)
{
    for (;;) {
        struct sched_limits l = limits(en);
        for (int i = 0; i < en->n_running; i++)
            en->plan[i] = (struct sched_seq){ .todo = seq_todo(en->running[i]),
                                              .room = seq_room(en->running[i]),
                                              .all_out = seq_scores(en->running[i]) };
        int victim = sched_plan(en->plan, en->n_running, &l, en->rows);
        if (victim < 0)
            return;
        preempt(en, victim);
    }
}

static void build_batch(struct engine *en, struct batch *b)
{
    *b = (struct batch){
        .token = en->token, .pos = en->pos, .seq = en->batch_seq, .out_row = en->out_row
    };
    for (int i = 0; i < en->n_running; i++) {
        struct seq *s = en->running[i];
        int n = en->rows[i], pos0 = s->kv.n_tokens;
        if (n == 0)
            continue;
        int rc = kv_seq_reserve(&s->kv, en->pool, pos0 + n);
        ASSERT(rc == 0);
        en->batch_seq[b->n_seqs++] =
            (struct batch_seq){ .kv = &s->kv, .row0 = b->n_rows, .n_rows = n, .pos0 = pos0 };
        for (int k = 0; k < n; k++, b->n_rows++) {
            en->token[b->n_rows] = s->token[pos0 + k];
            en->pos[b->n_rows] = pos0 + k;
            if (!seq_wants_row(s, pos0 + k))
                continue;
            en->out[b->n_out].seq = s;
            en->out[b->n_out].pos = pos0 + k;
            en->out_row[b->n_out++] = b->n_rows;
        }
    }
}

/* The prompt's last row is in the cache. */
static void prompt_done(struct engine *en, struct seq *s)
{
    s->prompt_done = true;
    atomic_fetch_add_explicit(&en->stats.prompt_tokens, (uint64_t)s->job->n_prompt,
                              memory_order_relaxed);
    if (!s->job->prompt_logprobs)
        s->job->on_event(s->job, &(struct job_event){ .kind = JOB_PROMPT, .text = "" });
    if (s->job->max_tokens == 0 && s->finish == FINISH_NONE)
        s->finish = FINISH_LENGTH;
}

static void compact(struct engine *en, struct seq *s)
{
    s->compacted = true;
    for (int l = 0; l < en->model->config.n_layers && s->finish == FINISH_NONE; l++)
        if (s->kv.policy->compact(&s->kv, en->pool, en->model->be, l, &s->err) < 0)
            s->finish = FINISH_ERROR;
}

static void count_token(struct engine *en, const struct seq *s, uint64_t before, uint64_t now)
{
    struct engine_stats *t = &en->stats;
    atomic_fetch_add_explicit(&t->generation_tokens, 1, memory_order_relaxed);
    if (before == 0)
        histogram_observe(&t->ttft, seconds(s->job->submit_ns, now));
    else
        histogram_observe(&t->inter_token, seconds(before, now));
}

/* Pages that are full go to the index; prompts that are through are told so. */
static void take_prompts(struct engine *en, const struct batch *b)
{
    for (int i = 0; i < en->n_running; i++) {
        struct seq *s = en->running[i];
        if (en->rows[i] == 0)
            continue;
        if (s->shares)
            kv_prefix_publish(&s->kv, en->pool, s->token, 0);
        if (seq_scores(s) && s->n_scored == 0)
            seq_score(s, NULL);
    }
    for (int i = 0; i < b->n_out; i++)
        if (!out_is_next(&en->out[i]))
            seq_score(en->out[i].seq, &en->out[i].result);
    for (int i = 0; i < en->n_running; i++) {
        struct seq *s = en->running[i];
        if (s->kv.n_tokens < s->job->n_prompt)
            continue;
        if (!s->compacted && s->kv.policy->compact != NULL)
            compact(en, s);
        if (!s->prompt_done)
            prompt_done(en, s);
    }
}

static void take_tokens(struct engine *en, const struct batch *b)
{
    uint64_t now = clock_ns();
    for (int i = 0; i < b->n_out; i++) {
        struct seq *s = en->out[i].seq;
        uint64_t before = s->last_ns;
        if (!out_is_next(&en->out[i]) || s->finish != FINISH_NONE)
            continue;
        seq_push(s, &en->out[i].result, en->model->tok, now);
        count_token(en, s, before, now);
    }
}

static void fail_all(struct engine *en, enum finish_reason r, const struct err *why)
{
    for (int i = 0; i < en->n_running + en->n_held; i++) {
        struct seq *s = i < en->n_running ? en->running[i] : en->held[i - en->n_running];
        s->finish = r;
        if (why != NULL)
            s->err = *why;
    }
    sweep(en, en->running, &en->n_running);
    sweep(en, en->held, &en->n_held);
    for (struct job *j; (j = queue_take(en, false)) != NULL;)
        finish_job(en, j, r, why);
}

/* The device is lost: what runs and waits ends now, what comes is refused, and nothing more is started. */
static void die(struct engine *en, const struct err *why)
{
    LOG(E, "device_lost", "err=%s", LOG_STR(why->text));
    pthread_mutex_lock(&en->lock);
    en->dead = *why;
    pthread_mutex_unlock(&en->lock);
    fail_all(en, FINISH_ERROR, why);
}

static void step(struct engine *en)
{
    struct batch b;
    struct err why;
    cancel(en);
    admit(en);
    if (en->n_running == 0)
        return;
    plan(en);
    build_batch(en, &b);
    if (model_forward(en->model, en->ws, en->pool, &b, &en->logits, &why) < 0 ||
        choose(en, b.n_out, &why) < 0) {
        die(en, &why);
        return;
    }
    atomic_fetch_add_explicit(&en->stats.steps, 1, memory_order_relaxed);
    histogram_observe(&en->stats.batch_rows, b.n_rows);
    take_prompts(en, &b);
    take_tokens(en, &b);
    sweep(en, en->running, &en->n_running);
    show_pages(en);
}

void *engine_main(void *arg)
{
    struct engine *en = arg;
    for (;;) {
        pthread_mutex_lock(&en->lock);
        while (!en->stop && en->queue == NULL && en->n_running + en->n_held == 0)
            pthread_cond_wait(&en->wake, &en->lock);
        bool stop = en->stop;
        pthread_mutex_unlock(&en->lock);
        if (stop)
            break;
        step(en);
    }
    fail_all(en, FINISH_CANCELLED, NULL);
    return NULL;
}
