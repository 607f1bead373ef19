/* Compaction: the order of its passes, and the shares of the budget. What each pass does: compact_internal.h. */
#include <math.h>
#include <string.h>

#include "server/base/clock.h"
#include "server/base/mem.h"

#include "kvcache/compact_internal.h"
#include "kvcache/split.h"

/* ---- memory ---------------------------------------------------------------------------------------------------- */

int room_reserve(struct room *r, size_t bytes, struct err *e)
{
    if (bytes <= r->bytes)
        return 0;
    char *at = mem_map(bytes);
    if (at == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %zu bytes to press a KV cache in", bytes);
    room_close(r);
    *r = (struct room){ at, bytes };
    return 0;
}

void room_close(struct room *r)
{
    if (r->at != NULL)
        mem_unmap(r->at, r->bytes);
    *r = (struct room){ 0 };
}

void *room_piece(char *base, size_t *used, size_t bytes)
{
    void *at = base == NULL ? NULL : base + *used;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

int kv_compactor_open(struct kv_compactor **out, struct kv_pool *p, const struct kv_rope *rope,
                      int group, float scale, struct err *e)
{
    struct kv_compactor *c = mem_zalloc(1, sizeof *c);
    if (c == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a compactor");
    size_t half = (size_t)(rope->half > 0 ? rope->half : 1);
    c->pool = p;
    c->rope = *rope;
    c->group = group;
    c->scale = scale;
    c->n_threads = par_threads(p->be->par);
    c->arena = mem_zalloc((size_t)c->n_threads, sizeof *c->arena);
    c->inv_freq = mem_zalloc(half, sizeof *c->inv_freq);
    c->probe_bytes = (probe_scratch_bytes(p->shape.head_dim) + 63) / 64 * 64;
    int rc = c->arena == NULL || c->inv_freq == NULL ? ERR_NOMEM : 0;
    if (rc == 0)
        rc = room_reserve(&c->probe, (size_t)c->n_threads * c->probe_bytes, NULL);
    if (rc < 0) {
        kv_compactor_close(c);
        return err_set(e, rc, "no memory for a compactor");
    }
    for (int i = 0; i < c->n_threads; i++)
        arena_init(&c->arena[i], SIZE_MAX);
    if (rope->half > 0)
        memcpy(c->inv_freq, rope->inv_freq, half * sizeof *c->inv_freq);
    c->rope.inv_freq = c->inv_freq;
    *out = c;
    return 0;
}

void kv_compactor_close(struct kv_compactor *c)
{
    if (c == NULL)
        return;
    room_close(&c->out);
    room_close(&c->stage);
    room_close(&c->heads);
    room_close(&c->probe);
    mem_free(c->inv_freq);
    mem_free(c->arena);
    mem_free(c);
}

/* ---- passes ---------------------------------------------------------------------------------------------------- */

struct pass {
    struct press *w;
    press_fn *fn;
    int head0;
};

static void run_heads(void *arg, int first, int last, int thread)
{
    struct pass *pass = arg;
    struct press *w = pass->w;
    for (int i = pass->head0 + first; i < pass->head0 + last; i++) {
        struct item t;
        int rc = item_open(&t, w, i, thread);
        w->head[i].rc = rc < 0 ? rc : pass->fn(&t);
        arena_clear(&w->c->arena[thread]);
    }
}

int press_run(struct press *w, press_fn *fn, bool reads_pages, struct err *e)
{
    struct be *be = w->pool->be;
    int heads = w->pool->shape.n_kv_heads;
    struct pass pass = { w, fn, 0 };
    bool far = !be->host && !w->probed, by_layer = far && reads_pages;
    if (!by_layer)
        par_for(be->par, w->n_heads, 1, run_heads, &pass);
    for (int l = 0; by_layer && l < w->n_layers; l++) {
        TRY(source_stage(w, l, e));
        pass.head0 = l * heads;
        par_for(be->par, heads, 1, run_heads, &pass);
    }
    for (int i = 0; i < w->n_heads; i++)
        if (w->head[i].rc < 0)
            return err_set(e, w->head[i].rc, "no memory to press a KV cache in");
    return far ? be->ops->sync(be, e) : 0;
}

/* ---- the plan -------------------------------------------------------------------------------------------------- */

/* Pressing again is paid by every token of an answer: 8 references of a budget of 256 tokens and more, 16 of one of 128, which
 * leaves more to the fit. */
static int again_queries(const struct kv_options *o)
{
    enum { LEAST = 8, MOST = 16, QUERY_SLOTS = MOST * 128 };
    return min_int(o->queries, max_int(LEAST, min_int(MOST, QUERY_SLOTS / o->budget)));
}

/* Reference queries: samples from 5 % of the prompt on, evenly strided, and the prompt's last queries. The very first
 * queries see too little to speak for those to come. Of a sequence pressed before, some of all samples there are. */
static void plan_references(struct press *w)
{
    const struct kv_seq *s = w->s;
    bool again = kv_seq_pressed(s);
    int stride = pool_stride(w->pool), low = again ? 0 : s->n_tokens / 20;
    int most = again ? again_queries(&s->opt) : s->opt.queries;
    int high = w->n_window > 0 ? seq_window0(s) : s->n_tokens; /* positions in [low, high) */
    int first = low / stride, end = (high - s->wide_pos0) / stride;
    w->strided0 = first;
    w->strided_n = end > first ? end - first : 0;
    w->n_strided = min_int(w->strided_n, most);
    w->n_ref = w->n_strided + w->n_window;
}

static size_t lay_out(struct press *w, char *base)
{
    size_t used = 0, rows = (size_t)w->n_ref * (size_t)w->c->group;
    size_t dim = (size_t)w->pool->shape.head_dim, device = w->probed;
    w->head = room_piece(base, &used, (size_t)w->n_heads * sizeof *w->head);
    w->source = room_piece(base, &used, (size_t)w->n_layers * sizeof *w->source);
    for (int i = 0; i < w->n_heads; i++) {
        int n = w->n_wide + (kv_seq_pressed(w->s) ? w->s->n_narrow[w->head0 + i] : 0);
        size_t bytes = (size_t)n * sizeof(float);
        struct press_head h = {
            .n = n,
            .local = room_piece(base, &used, bytes),
            .global = room_piece(base, &used, bytes),
            .last = room_piece(base, &used, bytes),
            .mean = room_piece(base, &used, bytes),
            .rms = room_piece(base, &used, bytes),
            .score = room_piece(base, &used, bytes),
            .ref_o = room_piece(base, &used, !device * rows * dim * sizeof(float)),
            .ref_lse = room_piece(base, &used, rows * sizeof(float)),
            .ref_weight = room_piece(base, &used, rows * sizeof(float)),
            .beta = room_piece(base, &used, device * bytes),
            .tail_lse = room_piece(base, &used, device * rows * sizeof(float)),
            .keep = room_piece(base, &used, (size_t)n * sizeof(int32_t)),
            .exact = room_piece(base, &used, (size_t)n * sizeof(bool)),
        };
        if (base != NULL && !w->known)
            w->head[i] = h;
    }
    return used;
}

/* Forks of a prompt that differ in what is done with it (policy, budget, merge) are probed once, which is half of what
 * pressing them takes: `wring eval kv` presses each a dozen times. */
static struct probe_key key_of(const struct press *w)
{
    const struct kv_seq *s = w->s;
    const struct kv_options *o = &s->opt;
    bool prompt = s->n_tokens == s->n_prompt && !kv_seq_pressed(s);
    if (!prompt || kv_seq_by_layer(s) || !w->pool->be->host)
        return (struct probe_key){ 0 };
    return (struct probe_key){ .root = s->root,
                               .n_tokens = s->n_tokens,
                               .n_window = w->n_window,
                               .n_samples = w->n_samples,
                               .n_global = press_global(w, NULL, NULL),
                               .queries = o->queries,
                               .stride = o->stride,
                               .question0 = o->question0,
                               .question1 = o->question1 };
}

static int plan(struct press *w, struct err *e)
{
    const struct kv_seq *s = w->s;
    bool one = kv_seq_by_layer(s);
    w->layer0 = one ? s->layer : 0;
    w->n_layers = one ? 1 : w->pool->shape.n_layers;
    w->head0 = w->layer0 * w->pool->shape.n_kv_heads;
    w->n_heads = w->n_layers * w->pool->shape.n_kv_heads;
    w->n_tail = s->n_tokens % KV_PAGE;
    w->n_wide = s->n_tokens - w->n_tail - s->wide_pos0;
    w->n_samples = (s->n_tokens - s->wide_pos0) / pool_stride(w->pool);
    w->n_window = s->n_query == 0 ? 0 : s->n_prompt - seq_window0(s);
    plan_references(w);
    w->key = key_of(w);
    w->known = w->key.root != 0 && memcmp(&w->key, &w->c->key, sizeof w->key) == 0;
    TRY(room_reserve(&w->c->heads, lay_out(w, NULL), e));
    lay_out(w, w->c->heads.at);
    if (w->pool->be->host)
        source_direct(w);
    return 0;
}

/* ---- scores, shares, choice ------------------------------------------------------------------------------------ */

/* For policies that keep one set: all heads of a layer have the same candidates, and get the average of their scores. */
static void average_layer(struct press *w, int layer)
{
    int heads = w->pool->shape.n_kv_heads;
    struct press_head *h = &w->head[(size_t)layer * heads];
    for (int j = 0; j < h[0].n; j++) {
        float sum = 0;
        for (int k = 0; k < heads; k++)
            sum += h[k].score[j];
        for (int k = 0; k < heads; k++)
            h[k].score[j] = sum / (float)heads;
    }
}

static int protect(struct press *w, int head)
{
    int n = 0;
    for (int j = 0; j < w->head[head].n; j++) {
        if (!press_protected(w, press_candidate_pos(w, head, j)))
            continue;
        w->head[head].score[j] = INFINITY;
        n++;
    }
    return n;
}

static int clamp(int x, int low, int high)
{
    return x < low ? low : x > high ? high : x;
}

/* The first time `budget` slots a head on average are split by the scores. The pyramid does not ask for them, but for all
 * layers. */
static int split(struct press *w, int budget, struct arena *a)
{
    enum kv_split how = w->s->opt.split;
    bool all = how == KV_SPLIT_PYRAMID;
    struct kv_split_in in = { .n_layers = all ? w->pool->shape.n_layers : w->n_layers,
                              .n_kv_heads = w->pool->shape.n_kv_heads,
                              .n = w->n_wide,
                              .n_protected = w->head[0].n_protected,
                              .budget =
                                  clamp(budget - w->n_tail, w->head[0].n_protected, w->n_wide),
                              .split = how };
    int n = in.n_layers * in.n_kv_heads, first = all ? w->head0 : 0;
    const float **score = arena_alloc(a, (size_t)w->n_heads * sizeof *score);
    int *share = arena_alloc(a, (size_t)n * sizeof *share);
    if (score == NULL || share == NULL)
        return ERR_NOMEM;
    for (int i = 0; i < w->n_heads; i++)
        score[i] = w->head[i].score;
    in.score = all ? NULL : score;
    TRY(kv_split_budget(&in, share, a));
    for (int i = 0; i < w->n_heads; i++)
        w->head[i].n_keep = share[first + i];
    return 0;
}

/* Later a head has the quota it got then. */
static int share_out(struct press *w, int budget, struct err *e)
{
    int heads = w->pool->shape.n_kv_heads;
    for (int i = 0; kv_seq_pressed(w->s) && i < w->n_heads; i++) {
        int quota = w->s->quota[i], n = w->head[i].n;
        w->head[i].n_keep = clamp(quota - w->n_tail, w->head[i].n_protected, n < quota ? n : quota);
    }
    if (kv_seq_pressed(w->s))
        return 0;
    int rc = split(w, budget, &w->c->arena[0]);
    arena_clear(&w->c->arena[0]);
    if (rc < 0)
        return err_set(e, rc, "no memory to press a KV cache in");
    for (int i = 0; w->s->opt.policy->one_set && i < w->n_heads; i += heads) {
        int sum = 0;
        for (int h = 0; h < heads; h++)
            sum += w->head[i + h].n_keep;
        for (int h = 0; h < heads; h++)
            w->head[i + h].n_keep = sum / heads;
    }
    return 0;
}

/* sum: of the heads before these. */
static double sum_mass(const struct press *w, double sum)
{
    for (int i = 0; i < w->n_heads; i++)
        sum += (double)w->head[i].mass;
    return sum;
}

/* Chooses with the budget asked for and, when the guard finds that too little attention is left, with half as much again,
 * up to the ceiling. */
static int choose(struct press *w, struct err *e)
{
    const struct kv_options *o = &w->s->opt;
    int budget = o->budget;
    for (int l = 0; o->policy->one_set && l < w->n_layers; l++)
        average_layer(w, l);
    for (int i = 0; i < w->n_heads; i++)
        w->head[i].n_protected = protect(w, i);
    for (;;) {
        TRY(share_out(w, budget, e));
        TRY(press_run(w, press_choose, false, e));
        if (kv_seq_pressed(w->s) || o->mass_floor <= 0 ||
            sum_mass(w, 0) / w->n_heads >= (double)o->mass_floor || budget >= o->budget_max ||
            budget >= w->s->n_tokens)
            return 0;
        budget = budget < o->budget_max - budget / 2 ? budget + budget / 2 : o->budget_max;
        w->raised = true;
    }
}

static int write_out(struct press *w, struct err *e)
{
    int64_t n = 0;
    for (int i = 0; i < w->n_heads; i++) {
        w->head[i].out_block = n;
        n += pool_narrow_pages(w->pool, w->head[i].n_keep);
    }
    size_t used = 0, bytes = (size_t)n * w->pool->block_bytes;
    size_t beta = (size_t)n * w->pool->side_bytes;
    room_piece(NULL, &used, bytes);
    room_piece(NULL, &used, beta);
    if (n > 0)
        TRY(room_reserve(&w->c->out, used, e));
    used = 0;
    w->out = room_piece(w->c->out.at, &used, bytes);
    w->out_beta = room_piece(w->c->out.at, &used, beta);
    return press_run(w, press_write, true, e);
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

/* Layers that go one by one add up to what all at once would give. */
static void report(const struct press *w, struct kv_report *r)
{
    struct kv_seq *s = w->s;
    if (w->layer0 == 0) {
        r->kept = 0;
        r->mass_min = INFINITY;
        s->mass = 0;
    }
    for (int i = 0; i < w->n_heads; i++) {
        const struct press_head *h = &w->head[i];
        r->kept += h->n_keep;
        r->merged += h->merged;
        r->evicted += h->n - h->n_keep;
        r->mass_min = h->mass < r->mass_min ? h->mass : r->mass_min;
    }
    s->mass = sum_mass(w, s->mass);
    r->raised |= w->raised;
    if (kv_seq_by_layer(s))
        return;
    int64_t n = pool_heads(w->pool), slots = r->kept + n * w->n_tail;
    r->mass_mean = (float)(s->mass / (double)n);
    r->budget = (int)((slots + n / 2) / n);
    r->n_compactions++;
}

static int probe(struct press *w, struct err *e)
{
    struct kv_compactor *c = w->c;
    uint64_t start = clock_ns();
    c->key.root = 0;
    TRY(press_run(w, press_probe, true, e));
    c->key = w->key;
    if (!w->known)
        c->probe_ns = clock_ns() - start;
    return 0;
}

/* What every head keeps, unless one is too long for the device. */
static int decide(struct press *w, bool device, struct err *e)
{
    w->probed = device;
    w->raised = false;
    TRY(plan(w, e));
    if (device)
        TRY(device_probe(w, e));
    if (device && w->keep_most == 0)
        return 0;
    TRY(probe(w, e));
    return choose(w, e);
}

static int press(struct press *w, struct kv_report *r, struct err *e)
{
    TRY(decide(w, device_can(w), e));
    if (w->probed && !device_fits(w))
        TRY(decide(w, false, e));
    if (!w->probed)
        TRY(write_out(w, e));
    TRY(press_commit(w, e));
    report(w, r);
    return 0;
}

static void keep_small(struct room *r)
{
    if (r->bytes > KV_SCRATCH_KEPT)
        room_close(r);
}

int kv_compact(struct kv_compactor *c, struct kv_seq *s, struct kv_report *r, struct err *e)
{
    ASSERT(kv_compact_due(s));
    uint64_t start = clock_ns();
    struct press w = { .c = c, .pool = c->pool, .s = s };
    int rc = press(&w, r, e);
    keep_small(&c->heads);
    keep_small(&c->stage);
    keep_small(&c->out);
    if (c->heads.at == NULL)
        c->key.root = 0;
    if (rc == 0)
        r->ns += clock_ns() - start + (w.known ? c->probe_ns : 0);
    return rc;
}
