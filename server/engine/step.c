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
    atomic_store_explicit(&en->stats.kv_split, st.split, memory_order_relaxed);
    atomic_store_explicit(&en->stats.kv_narrow, st.narrow, memory_order_relaxed);
    atomic_store_explicit(&en->stats.running, en->n_running, memory_order_relaxed);
}

/* s waits neither to be admitted nor, once preempted, to go on. */
static void stop_waiting(struct engine *en, struct seq *s)
{
    if (s->admit_ns == 0)
        engine_unwait(en, s->job);
    else
        atomic_fetch_sub(&en->stats.waiting, 1);
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
        .kv_policy = s->kv.opt.policy->name,
        .kv_budget = s->kv.opt.policy->keeps_all ? 0 : s->kv.opt.budget,
        .kv = s->report,
    };
    kv_seq_clear(&s->kv, en->pool);
    en->blocked = false;
    show_pages(en);
    if (!s->running)
        stop_waiting(en, s);
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
    engine_unwait(en, j);
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

/* Who makes room: the youngest, but before a prompt between its layers, which would begin anew, the one before it. The oldest
 * goes on in any case. */
static int victim(const struct engine *en)
{
    int last = en->n_running - 1;
    return last > 1 && kv_seq_by_layer(&en->running[last]->kv) ? last - 1 : last;
}

/* Makes room for the others; who does waits. */
static int preempt(struct engine *en, struct err *e)
{
    int i = victim(en);
    struct seq *s = en->running[i];
    TRY(press_out(en, s, e));
    en->blocked = false;
    if (s->finish != FINISH_NONE) {
        sweep(en, en->running, &en->n_running);
        return 0;
    }
    en->n_running--;
    memmove(&en->running[i], &en->running[i + 1],
            (size_t)(en->n_running - i) * sizeof(struct seq *));
    s->preemptions++;
    atomic_fetch_add_explicit(&en->stats.preemptions, 1, memory_order_relaxed);
    s->running = false;
    insert(en->held, &en->n_held, s);
    atomic_fetch_add(&en->stats.waiting, 1);
    return 0;
}

/* Moves the oldest job of the queue behind what is held, if it comes to a sequence, as long as all that runs could be preempted
 * and held beside it. False: there is no job, or no room. */
static bool hold_next(struct engine *en)
{
    struct seq *s;
    struct err why;
    struct job *j =
        en->n_running + en->n_held <= en->config.max_seqs ? queue_take(en, false) : NULL;
    if (j == NULL)
        return false;
    if (seq_open(&s, j, en->model, en->pool, &en->config, &why) < 0) {
        finish_job(en, j, FINISH_ERROR, &why);
        return true;
    }
    s->serial = ++en->last_serial;
    insert(en->held, &en->n_held, s);
    return true;
}

/* Starts from what the prefix index knows of it. Rows whose logits are wanted have to be computed, what was swapped has not. */
static bool looks_up(const struct seq *s)
{
    return s->shares && s->kv.swap == NULL && !seq_scores(s);
}

/* Whether r, which runs, is about to publish the prompt of s: then it is computed once, and its pages are taken once. It runs,
 * so it gets through or ends, and s does not wait in vain. */
static bool computes_for(const struct seq *r, const struct seq *s)
{
    int n = s->job->n_prompt;
    return r->shares && !r->kv.layer_major && r->job->n_prompt == n && r->kv.n_tokens < n &&
           r->kv.n_hashed < (n - 1) / KV_PAGE * KV_PAGE &&
           (r->job->prompt == s->job->prompt || /* choices of one request */
            memcmp(r->token, s->token, (size_t)n * sizeof *s->token) == 0);
}

/* The choices of a request come with the same prompt, all at once. */
static bool prompt_comes(const struct engine *en, const struct seq *s)
{
    for (int i = 0; looks_up(s) && !kv_seq_by_layer(&s->kv) && i < en->n_running; i++)
        if (computes_for(en->running[i], s))
            return true;
    return false;
}

/* Where in `held` the oldest is that waits for pages only: not for the stream of a prompt that goes layer by layer, nor for its
 * own prompt, which may take long to come; -1: nowhere. It is taken from the queue if need be. */
static int next_held(struct engine *en)
{
    bool busy = layers_busy(en);
    for (int i = 0; i < en->n_held || hold_next(en);) {
        if (i == en->n_held) /* that job came to nothing */
            continue;
        const struct seq *s = en->held[i];
        if (!(busy && kv_seq_by_layer(&s->kv)) && !prompt_comes(en, s))
            return i;
        i++;
    }
    return -1;
}

static void started(struct engine *en, struct seq *s)
{
    struct engine_stats *t = &en->stats;
    s->running = true;
    stop_waiting(en, s);
    if (s->admit_ns != 0)
        return;
    s->admit_ns = clock_ns();
    s->n_cached = s->kv.n_cached;
    histogram_observe(&t->queue_time, seconds(s->job->submit_ns, s->admit_ns));
    histogram_observe(&t->prompt_len, s->job->n_prompt);
    if (looks_up(s)) {
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
    };
}

/* Wide pages that those who run may ask for with their next KV_PAGE tokens, and `next` with its own when it was swapped: they
 * stay free, so that nobody is preempted at once. */
static int64_t growth(const struct engine *en, const struct seq *next)
{
    int64_t pages = 0;
    if (en->n_running > 0 && next->kv.swap != NULL)
        pages += kv_pool_shape(en->pool)->n_layers;
    for (int i = 0; i < en->n_running; i++) {
        const struct seq *s = en->running[i];
        int n = s->limit - s->n_tokens < KV_PAGE ? s->limit : s->n_tokens + KV_PAGE - 1;
        pages += kv_seq_need(&s->kv, en->pool, n);
    }
    return pages;
}

/* Says why pages for n_tokens tokens of one sequence were not had; rc is passed on. */
static int no_pages(const struct engine *en, int rc, int n_tokens, struct err *e)
{
    if (rc == ERR_LIMIT)
        return err_set(e, rc,
                       "the KV pool of %lld tokens cannot hold %d tokens beside the narrow pages "
                       "that pressing them takes",
                       (long long)en->config.kv_tokens, n_tokens);
    return rc < 0 ? err_set(e, rc, "no memory for narrow pages") : rc;
}

static bool fits_pool(const struct engine *en, const struct seq *s)
{
    int64_t need = kv_seq_need(&s->kv, en->pool, s->n_tokens);
    return need + growth(en, s) <= kv_pool_available(en->pool);
}

/* Takes the pages of s: those of its tokens and for pressing them, or those it had when it was swapped. ERR_LIMIT: not now. */
static int take_pages(struct engine *en, struct seq *s, struct err *e)
{
    bool swapped = s->kv.swap != NULL;
    if (looks_up(s))
        kv_prefix_match(&s->kv, en->pool, s->token, s->n_tokens, 0);
    bool fits = fits_pool(en, s);
    if (!fits && kv_seq_by_layer(&s->kv) && s->kv.n_cached > 0) {
        /* what it found is in all layers, what it computes in one */
        kv_seq_clear(&s->kv, en->pool);
        fits = fits_pool(en, s);
    }
    if (fits) {
        if (swapped)
            return kv_seq_swap_in(&s->kv, en->pool, e);
        return no_pages(en, kv_seq_reserve(&s->kv, en->pool, s->n_tokens), s->n_tokens, e);
    }
    if (!swapped)
        kv_seq_clear(&s->kv, en->pool);
    return no_pages(en, ERR_LIMIT, s->n_tokens, e);
}

/* Starts waiting sequences, oldest first, until one does not fit; who waits for the stream or its prompt holds up nobody. One
 * that does not fit when nothing runs never will. */
static int admit(struct engine *en, struct err *e)
{
    int i;
    while (!en->blocked && en->n_running < en->config.max_seqs && (i = next_held(en)) >= 0) {
        struct seq *s = en->held[i];
        int rc = take_pages(en, s, e);
        if (rc == ERR_DEVICE)
            return rc;
        if (rc == ERR_LIMIT && en->n_running > 0) {
            en->blocked = true;
            return 0;
        }
        if (rc < 0) {
            seq_fail(s, e);
            sweep(en, en->held, &en->n_held);
            continue;
        }
        en->n_held--;
        memmove(&en->held[i], &en->held[i + 1], (size_t)(en->n_held - i) * sizeof(struct seq *));
        insert(en->running, &en->n_running, s);
        started(en, s);
    }
    return 0;
}

/* ---- a step -------------------------------------------------------------------------------------------------- */

static struct sched_seq sched_view(const struct engine *en, const struct seq *s)
{
    if (kv_seq_by_layer(&s->kv)) {
        int todo = layers_todo(s, kv_pool_shape(en->pool)->n_layers);
        return (struct sched_seq){ .todo = todo, .room = todo };
    }
    return (struct sched_seq){ .todo = seq_todo(s), .room = seq_room(s), .all_out = seq_scores(s) };
}

/* Pages for the next token of every decoding sequence, oldest first, preempting as long as there are none. */
static int make_room(struct engine *en, struct err *e)
{
    for (int i = 0; i < en->n_running;) {
        struct seq *s = en->running[i];
        struct sched_seq view = sched_view(en, s);
        int rc = sched_decodes(&view) ? kv_seq_reserve(&s->kv, en->pool, s->kv.n_tokens + 1) : 0;
        if (rc == 0) {
            i++;
        } else if (rc == ERR_LIMIT && en->n_running > 1) {
            TRY(preempt(en, e));
        } else {
            (void)no_pages(en, rc, s->n_tokens, e);
            seq_fail(s, e);
            sweep(en, en->running, &en->n_running);
        }
    }
    return 0;
}

/* Decides the rows of every running sequence. */
static int plan(struct engine *en, struct err *e)
{
    TRY(make_room(en, e));
    struct sched_limits l = limits(en);
    for (int i = 0; i < en->n_running; i++)
        en->plan[i] = sched_view(en, en->running[i]);
    sched_plan(en->plan, en->n_running, &l, en->rows);
    return 0;
}

static void build_batch(struct engine *en, struct batch *b)
{
    *b = (struct batch){
        .token = en->token, .pos = en->pos, .seq = en->batch_seq, .out_row = en->out_row
    };
    for (int i = 0; i < en->n_running; i++) {
        struct seq *s = en->running[i];
        int n = en->rows[i], pos0 = s->kv.n_tokens;
        if (n == 0 || kv_seq_by_layer(&s->kv))
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
    struct job_kv kv;
    bool detail = press_detail(en, s, &kv);
    if (!s->job->prompt_logprobs || detail)
        s->job->on_event(s->job, &(struct job_event){
                                     .kind = JOB_PROMPT, .text = "", .kv = detail ? &kv : NULL });
    if (s->job->max_tokens == 0 && s->finish == FINISH_NONE)
        s->finish = FINISH_LENGTH;
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

/* Who waits for pages may share the prompt's, or have those of which the index had a copy. Not before all are there: one that
 * begins like it would find less of it, and compute the rest again, after it. */
static void publish(struct engine *en, struct seq *s)
{
    int was = s->kv.n_hashed, full = s->job->n_prompt / KV_PAGE * KV_PAGE;
    kv_prefix_publish(&s->kv, en->pool, s->token, 0);
    if (was < full && s->kv.n_hashed >= full)
        en->blocked = false;
}

/* Pages that are full go to the index before anything is pressed; prompts that are through are told so. */
static int take_prompts(struct engine *en, const struct batch *b, struct err *e)
{
    for (int i = 0; i < en->n_running; i++) {
        struct seq *s = en->running[i];
        if (en->rows[i] == 0)
            continue;
        if (s->shares)
            publish(en, s);
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
        TRY(press_seq(en, s, e));
        if (!s->prompt_done && s->finish == FINISH_NONE)
            prompt_done(en, s);
    }
    return 0;
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

/* What comes of a pass: ERR_DEVICE only. */
static int take(struct engine *en, const struct batch *b, struct err *e)
{
    TRY(choose(en, b->n_out, e));
    TRY(take_prompts(en, b, e));
    take_tokens(en, b);
    return 0;
}

static void fail_all(struct engine *en, enum finish_reason r, const struct err *why)
{
    for (int i = 0; i < en->n_running + en->n_held; i++) {
        struct seq *s = i < en->n_running ? en->running[i] : en->held[i - en->n_running];
        if (s->finish != FINISH_NONE) /* it has said all already */
            continue;
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

static int planned_rows(const struct engine *en)
{
    int n = 0;
    for (int i = 0; i < en->n_running; i++)
        n += en->rows[i];
    return n;
}

/* ERR_DEVICE only. */
static int step(struct engine *en, struct err *e)
{
    struct batch b;
    bool through;
    cancel(en);
    TRY(admit(en, e));
    TRY(plan(en, e));
    if (en->n_running == 0)
        return 0;
    build_batch(en, &b);
    histogram_observe(&en->stats.batch_rows, planned_rows(en));
    if (b.n_rows > 0) {
        TRY(model_forward(en->model, en->ws, en->pool, &b, &en->logits, e));
        TRY(take(en, &b, e));
    }
    TRY(layers_run(en, &b, &through, e));
    if (through)
        TRY(take(en, &b, e));
    atomic_fetch_add_explicit(&en->stats.steps, 1, memory_order_relaxed);
    sweep(en, en->running, &en->n_running);
    show_pages(en);
    return 0;
}

void *engine_main(void *arg)
{
    struct engine *en = arg;
    struct err why;
    for (;;) {
        pthread_mutex_lock(&en->lock);
        while (!en->stop && en->queue == NULL && en->n_running + en->n_held == 0)
            pthread_cond_wait(&en->wake, &en->lock);
        bool stop = en->stop;
        pthread_mutex_unlock(&en->lock);
        if (stop)
            break;
        if (step(en, &why) < 0)
            die(en, &why);
    }
    fail_all(en, FINISH_CANCELLED, NULL);
    return NULL;
}
