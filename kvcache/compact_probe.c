/* The first pass: what the kept queries make of a head's candidates, and the policy's score. */
#include <math.h>
#include <string.h>

#include "kvcache/compact_internal.h"
#include "kvcache/score.h"

enum { CHUNK = 256, QUESTION_WEIGHT = 20 };

/* sum[j] += the average over records and group of the attention to j, each query from where it stood. The log-sum-exp over
 * all that it saw was kept with it, so columns can be summed alone. */
static int sum_records(struct item *t, const struct record *r, int n, float *sum)
{
    struct kv_head *h = &t->h;
    if (n == 0)
        return 0;
    size_t rows = (size_t)(n < CHUNK ? n : CHUNK) * h->group;
    float *q = arena_alloc(h->arena, rows * h->dim * sizeof *q);
    float *lse = arena_alloc(h->arena, rows * sizeof *lse);
    float *weight = arena_alloc(h->arena, rows * sizeof *weight);
    int32_t *see = arena_alloc(h->arena, rows * sizeof *see);
    if (q == NULL || lse == NULL || weight == NULL || see == NULL)
        return ERR_NOMEM;
    for (size_t i = 0; i < rows; i++)
        weight[i] = 1.0f / (float)n / (float)h->group;
    for (int i = 0; i < n; i += CHUNK) {
        int some = n - i < CHUNK ? n - i : CHUNK;
        item_queries(t, r + i, some, q, lse, see);
        struct probe_queries some_q = { q, see, some * h->group };
        probe_sums(h->isa, &t->probe, &some_q, lse, weight, sum, NULL, t->scratch);
    }
    return 0;
}

static bool in_question(const struct kv_options *o, int pos)
{
    return pos >= o->question0 && pos < o->question1;
}

/* Whether the question, or a part of it, is among the prompt's last queries. */
static bool question_seen(const struct press *w)
{
    const struct kv_options *o = &w->s->opt;
    return w->n_window > 0 && o->question0 < o->question1 && o->question1 > seq_window0(w->s);
}

/* The question's or, where none is marked, the prompt's last; without a prompt's, the last samples. Pressed again there are
 * none (press_probe). */
int press_local(const struct press *w, const struct source *src, struct record *r)
{
    if (kv_seq_pressed(w->s))
        return 0;
    int n = 0, all = w->n_window > 0 ? w->n_window : w->n_samples;
    int first = all > KV_WINDOW_QUERIES ? all - KV_WINDOW_QUERIES : 0;
    bool question = question_seen(w);
    for (int i = first; i < all; i++) {
        struct record at = w->n_window > 0 ? source_window(w, src, i) : source_sample(w, src, i);
        if (!question || in_question(&w->s->opt, at.pos))
            r[n++] = at;
    }
    return n;
}

struct record press_last(const struct press *w, const struct source *src)
{
    return w->n_window > 0 ? source_window(w, src, w->n_window - 1)
                           : source_sample(w, src, w->n_samples - 1);
}

/* Whether the same queries speak for both scores. */
static bool global_is_local(const struct press *w)
{
    return w->n_window == 0 && w->n_samples <= KV_WINDOW_QUERIES;
}

/* One of so many samples, or 0: of as many, evenly strided, as the options say. */
static int global_step(const struct press *w)
{
    return global_is_local(w) ? 1 : w->s->opt.stride / pool_stride(w->pool);
}

/* Where only the local score counts nobody asks for the other. */
static bool global_counts(const struct press *w)
{
    const struct kv_options *o = &w->s->opt;
    return !o->policy->global_local || o->local < 1;
}

int press_global(const struct press *w, const struct source *src, struct record *r)
{
    if (kv_seq_pressed(w->s) || !global_counts(w))
        return 0;
    int all = w->n_samples, step = global_step(w), most = w->s->opt.queries;
    int n = step > 0 ? all / step : all < most ? all : most;
    for (int i = 0; r != NULL && i < n; i++) {
        int end = step > 0 ? (i + 1) * step : (int)((int64_t)(i + 1) * all / n);
        r[i] = source_sample(w, src, end - 1);
    }
    return n;
}

static int score_causal(struct item *t)
{
    const struct press *w = t->w;
    struct press_head *st = t->st;
    struct record *r =
        arena_alloc(t->h.arena, ((size_t)w->n_samples + KV_WINDOW_QUERIES) * sizeof *r);
    if (r == NULL)
        return ERR_NOMEM;
    TRY(sum_records(t, r, press_local(w, t->src, r), st->local));
    r[0] = press_last(w, t->src);
    TRY(sum_records(t, r, 1, st->last));
    if (!global_is_local(w))
        return sum_records(t, r, press_global(w, t->src, r), st->global);
    memcpy(st->global, st->local, (size_t)st->n * sizeof *st->global);
    return 0;
}

/* The tail page stays as it is, so a fit has to reproduce attention over the candidates alone (ref_o, ref_lse): an error
 * there counts in the output by the share that a query gives to them, squared in a square. The question's queries weigh more:
 * what is asked now is asked again. */
static void weigh_references(struct item *t, const float *share)
{
    const struct press *w = t->w;
    int group = t->h.group;
    bool question = question_seen(w);
    double sum = 0;
    for (int i = 0; i < w->n_ref * group; i++) {
        int r = i / group;
        bool strong = r >= w->n_strided && (!question || in_question(t->h.opt, t->h.ref_pos[r]));
        t->st->ref_weight[i] = (strong ? QUESTION_WEIGHT : 1) * share[i] * share[i];
        sum += (double)t->st->ref_weight[i];
    }
    float scale = (float)(w->n_ref * group / sum);
    for (int i = 0; i < w->n_ref * group; i++)
        t->st->ref_weight[i] = sum > 1e-30 ? t->st->ref_weight[i] * scale : 1.0f;
}

/* What a reference gives to the candidates, of all that it sees: share[n_ref * group]. */
static int share_references(struct item *t, const float *tail_lse)
{
    struct press_head *st = t->st;
    size_t rows = (size_t)t->h.n_ref * (size_t)t->h.group;
    float *share = arena_alloc(t->h.arena, rows * sizeof *share);
    double tail_mass = 0;
    if (share == NULL)
        return ERR_NOMEM;
    for (size_t i = 0; i < rows; i++) {
        share[i] = 1.0f / (1.0f + expf(tail_lse[i] - st->ref_lse[i]));
        tail_mass += 1.0 - (double)share[i];
    }
    st->tail_mass = (float)(tail_mass / (double)rows);
    weigh_references(t, share);
    return 0;
}

static int probe_references(struct item *t)
{
    struct kv_head *h = &t->h;
    struct press_head *st = t->st;
    struct probe_queries q = { h->ref_q, NULL, h->n_ref * h->group };
    size_t rows = (size_t)q.n;
    float *lse = arena_alloc(h->arena, rows * sizeof *lse);
    float *weight = arena_alloc(h->arena, rows * sizeof *weight);
    float *o = arena_alloc(h->arena, rows * h->dim * sizeof *o); /* the tail's: not used */
    if (lse == NULL || weight == NULL || o == NULL)
        return ERR_NOMEM;
    struct probe_head tail = t->probe;
    tail.n_narrow = 0;
    tail.wide = t->tail;
    tail.n_wide = t->w->n_tail;
    probe_attend(h->isa, &t->probe, &q, st->ref_o, st->ref_lse, t->scratch);
    probe_attend(h->isa, &tail, &q, o, lse, t->scratch);
    TRY(share_references(t, lse));
    for (size_t i = 0; i < rows; i++) {
        lse[i] = st->ref_lse[i] + log1pf(expf(lse[i] - st->ref_lse[i]));
        weight[i] = 1.0f / (float)rows;
    }
    probe_sums(h->isa, &t->probe, &q, lse, weight, st->mean, st->rms, t->scratch);
    for (int j = 0; j < h->n; j++)
        st->rms[j] = sqrtf(st->rms[j]);
    return 0;
}

static int probe_on_host(struct item *t)
{
    struct press_head *st = t->st;
    size_t bytes = (size_t)st->n * sizeof(float);
    memset(st->local, 0, bytes);
    memset(st->global, 0, bytes);
    memset(st->last, 0, bytes);
    memset(st->mean, 0, bytes);
    memset(st->rms, 0, bytes);
    TRY(score_causal(t));
    return probe_references(t);
}

bool press_protected(const struct press *w, int pos)
{
    const struct kv_options *o = &w->s->opt;
    return pos < o->sinks || pos < o->protect || pos >= w->s->n_tokens - o->window;
}

int press_probe(struct item *t)
{
    struct press_head *st = t->st;
    const struct kv_policy *policy = t->h.opt->policy;
    TRY(item_slots(t));
    if (!t->w->known || policy->wants_kv)
        TRY(item_references(t));
    if (policy->wants_kv)
        TRY(item_kv(t));
    if (!t->w->known)
        TRY(t->w->probed ? share_references(t, st->tail_lse) : probe_on_host(t));
    /* Few queries are left then, and the references are some of them: what these see, turned to what comes, is as good as what
     * they saw from where they stood (SmolLM2-135M, 7,167 tokens pressed 45 and 25 times, budgets 128 and 256: nats a token over
     * the whole cache's .126 and .065, not .122 and .068) and is there already. */
    if (kv_seq_pressed(t->w->s)) {
        memcpy(st->local, st->mean, (size_t)st->n * sizeof *st->local);
        memcpy(st->global, st->mean, (size_t)st->n * sizeof *st->global);
    }
    /* Samples of the pages still held say little of slots that older queries chose. */
    for (int j = 0; j < t->probe.n_narrow; j++)
        st->global[j] = t->w->s->slot[t->h.layer * t->h.n_kv_heads + t->h.head][j].score;
    return policy->score(&t->h, st->score);
}
