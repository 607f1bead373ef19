/* A sequence's tables: which pages hold its tokens, its last queries, and what a compaction will need. */
#include "server/base/mem.h"

#include "kvcache/compact.h"
#include "kvcache/kv_internal.h"
#include "kvcache/split.h"

/* ---- layers that take turns ------------------------------------------------------------------------------------ */

/* Full pages of the prompt, from the first to compute on: block b of all layers is one page. */
static bool takes_turns(const struct kv_seq *s, int b)
{
    return kv_seq_by_layer(s) && b >= s->n_cached / KV_PAGE && b < s->n_prompt / KV_PAGE;
}

/* Pages that blocks [from, to) of all layers are. */
static int64_t wide_pages(const struct kv_seq *s, const struct kv_pool *p, int from, int to)
{
    int64_t n = 0;
    for (int b = from; b < to; b++)
        n += takes_turns(s, b) ? 1 : p->shape.n_layers;
    return n;
}

static int64_t query_pages(const struct kv_seq *s, const struct kv_pool *p, int n)
{
    return (int64_t)n * (kv_seq_by_layer(s) ? 1 : p->shape.n_layers);
}

/* ---- what a compaction will need ------------------------------------------------------------------------------- */

/* Pressed as soon as its prompt is there. A prompt without a full page has nothing to press. */
static bool prompt_pressed(const struct kv_seq *s)
{
    return !s->opt.policy->keeps_all && s->n_prompt > s->opt.budget && s->n_prompt >= KV_PAGE;
}

static bool ever_pressed(const struct kv_seq *s, int max_tokens)
{
    return prompt_pressed(s) ||
           (!s->opt.policy->keeps_all && max_tokens > (int64_t)s->opt.budget + s->opt.tail);
}

/* Tokens there are when a sequence that is ever pressed is so for the first time: its prompt, or, of a full page at least, what
 * first outgrows its budget. No head can hold more then. */
static int first_at(const struct kv_seq *s)
{
    return max_int(prompt_pressed(s) ? s->n_prompt : s->opt.budget + s->opt.tail + 1, KV_PAGE);
}

/* Narrow pages that the first compaction may fill. A head has at most `slots` on average: the budget, to which the guard may
 * raise it, or, where that is small, what is protected and the tokens of the tail page. Each head rounds up to whole pages;
 * by at most a page's slots less one. */
static int spares_most(const struct kv_seq *s, const struct kv_pool *p)
{
    const struct kv_options *o = &s->opt;
    int budget = o->mass_floor > 0 ? o->budget_max : o->budget;
    int slots = max_int(budget, o->sinks + o->protect + max_int(o->window, KV_PAGE - 1));
    int64_t heads = pool_heads(p), page = pool_narrow_slots(p);
    int64_t n = o->split == KV_SPLIT_UNIFORM ? heads * pool_narrow_pages(p, slots)
                                             : heads * (slots + page - 1) / page;
    return n < INT32_MAX ? (int)n : INT32_MAX;
}

/* Spare pages that s has to hold once it covers n_tokens tokens; from the first layer that is pressed on they turn into those
 * of its heads. */
static int spares_for(const struct kv_seq *s, int n_tokens)
{
    if (s->spare == NULL || s->narrow != NULL)
        return 0;
    bool due = prompt_pressed(s) || n_tokens > (int64_t)s->opt.budget + s->opt.tail;
    return due ? s->max_spare : 0;
}

static int query_for(const struct kv_seq *s)
{
    return kv_seq_pressed(s) ? 0 : s->want_query;
}

/* Wide pages in use when it is pressed for the first time: what is pressed, its queries and what comes of it, side by side. */
static int64_t first_peak(const struct kv_seq *s, const struct kv_pool *p)
{
    int64_t heads = p->shape.n_kv_heads;
    return wide_pages(s, p, 0, pages_of_slots(first_at(s))) + query_pages(s, p, s->want_query) +
           (s->max_spare + heads - 1) / heads;
}

/* When it is pressed again: its prompt may have held less than its answer's wide tail does. */
static int64_t later_peak(const struct kv_seq *s, const struct kv_pool *p)
{
    int64_t heads = p->shape.n_kv_heads;
    int n = min_int(KV_PAGE + s->opt.tail, s->max_blocks * KV_PAGE - s->n_prompt + KV_PAGE - 1);
    return (int64_t)pages_of_slots(n) * p->shape.n_layers + (s->max_spare + heads - 1) / heads;
}

/* No layer's share of the budget waits for a layer to come. */
static bool may_go_by_layer(const struct kv_seq *s)
{
    const struct kv_options *o = &s->opt;
    bool guard = o->mass_floor > 0 && o->budget_max > o->budget;
    return o->layer_major > 0 && kv_split_by_layer(o->split) && !guard;
}

/* Whether it is worth it, or the only way. */
static bool goes_by_layer(const struct kv_seq *s, const struct kv_pool *p)
{
    return may_go_by_layer(s) &&
           (s->n_prompt >= s->opt.layer_major || first_peak(s, p) > p->n_pages);
}

static int plan_compaction(struct kv_seq *s, const struct kv_pool *p, int max_tokens, struct err *e)
{
    if (s->opt.policy->keeps_all)
        return 0;
    if (p->sample_bytes == 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "this server keeps no queries, so that %s cannot choose what stays in the "
                       "cache",
                       s->opt.policy->name);
    if (s->opt.stride % pool_stride(p) != 0)
        return err_set(e, ERR_INVALID, "stride is %d; one query in %d is kept", s->opt.stride,
                       pool_stride(p));
    if (!ever_pressed(s, max_tokens))
        return 0;
    /* so that the guard goes no further than the pages that are held for it, whenever it is asked */
    s->opt.budget_max = min_int(s->opt.budget_max, first_at(s));
    s->max_spare = spares_most(s, p);
    int64_t later = later_peak(s, p);
    if (!prompt_pressed(s) && (first_peak(s, p) > p->n_pages || later > p->n_pages)) {
        s->max_spare = 0; /* whole it fits the pool, so it stays whole */
        return 0;
    }
    if (!prompt_pressed(s))
        return 0;
    int a_page = pool_page_records(p);
    if (a_page == 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "%d query heads over %d KV heads: the queries of a token take %zu bytes, "
                       "more than a page of %zu",
                       p->shape.n_heads, p->shape.n_kv_heads, p->record_bytes, p->page_bytes);
    int n = min_int(s->n_prompt, KV_WINDOW_QUERIES);
    s->want_query = (n + a_page - 1) / a_page;
    s->layer_major = goes_by_layer(s, p);
    int64_t peak = first_peak(s, p);
    if (later > peak && later > p->n_pages)
        return err_set(
            e, ERR_LIMIT,
            "an answer of %d tokens with a tail of %d takes %lld pages before it is pressed "
            "again; the KV pool has %d",
            s->max_blocks * KV_PAGE - s->n_prompt, s->opt.tail, (long long)later, p->n_pages);
    if (peak > p->n_pages)
        return err_set(e, ERR_LIMIT,
                       "pressing a prompt of %d tokens to %d a head takes %lld pages at once%s; "
                       "the KV pool has %d",
                       s->n_prompt, s->opt.budget, (long long)peak,
                       s->layer_major ? ", even layer by layer" : "", p->n_pages);
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------ */

int kv_seq_plan(struct kv_seq *s, const struct kv_pool *p, const struct kv_options *opt,
                int n_prompt, int max_tokens, struct err *e)
{
    *s = (struct kv_seq){ .opt = *opt,
                          .n_prompt = n_prompt,
                          .max_blocks = max_int(pages_of_slots(max_tokens), 1) };
    TRY(kv_options_fill(&s->opt, n_prompt, kv_slot_bytes(&p->shape), e));
    return plan_compaction(s, p, max_tokens, e);
}

int kv_seq_tables(struct kv_seq *s, struct kv_pool *p, struct err *e)
{
    size_t layers = (size_t)p->shape.n_layers;
    s->wide = mem_zalloc(layers * (size_t)s->max_blocks, sizeof *s->wide);
    bool ok = s->wide != NULL;
    if (ok && s->max_spare > 0)
        ok = (s->spare = mem_alloc((size_t)s->max_spare * sizeof *s->spare)) != NULL;
    if (ok && s->want_query > 0)
        ok = (s->query = mem_alloc(layers * (size_t)s->want_query * sizeof *s->query)) != NULL;
    s->root = ++p->last_root;
    if (ok)
        return 0;
    kv_seq_close(s, p);
    return err_set(e, ERR_NOMEM, "no memory for the tables of a sequence");
}

int kv_seq_open(struct kv_seq *s, struct kv_pool *p, const struct kv_options *opt, int n_prompt,
                int max_tokens, struct err *e)
{
    TRY(kv_seq_plan(s, p, opt, n_prompt, max_tokens, e));
    return kv_seq_tables(s, p, e);
}

void seq_release(struct kv_seq *s, struct kv_pool *p)
{
    while (s->n_spare > 0)
        kv_narrow_free(p, s->spare[--s->n_spare]);
    for (int i = p->shape.n_layers * s->n_query - 1; i >= 0; i--)
        pool_page_unref(p, s->query[i]);
    s->n_query = 0;
}

/* Last pages first: see prefix.c. */
void seq_drop_wide(struct kv_seq *s, struct kv_pool *p, int n)
{
    for (int b = n - 1; b >= 0; b--)
        for (int l = 0; l < p->shape.n_layers; l++)
            pool_page_unref(p, seq_wide(s, l)[b]);
    s->n_blocks -= n;
    for (int l = 0; l < p->shape.n_layers; l++)
        for (int b = 0; b < s->n_blocks; b++)
            seq_wide(s, l)[b] = seq_wide(s, l)[b + n];
}

static void drop_narrow(struct kv_seq *s, struct kv_pool *p)
{
    for (int i = 0; s->narrow != NULL && s->swap == NULL && i < pool_heads(p); i++)
        for (int b = s->n_block[i] - 1; b >= 0; b--)
            kv_narrow_free(p, s->narrow[i][b]);
    for (int l = 0; s->narrow != NULL && l < p->shape.n_layers; l++)
        mem_free(s->narrow[l * p->shape.n_kv_heads]);
    mem_free(s->swap);
    mem_free(s->narrow);
}

void kv_seq_clear(struct kv_seq *s, struct kv_pool *p)
{
    seq_drop_wide(s, p, s->n_blocks);
    seq_release(s, p);
    drop_narrow(s, p);
    *s = (struct kv_seq){ .opt = s->opt,
                          .n_prompt = s->n_prompt,
                          .max_blocks = s->max_blocks,
                          .wide = s->wide,
                          .layer_major = s->layer_major,
                          .spare = s->spare,
                          .max_spare = s->max_spare,
                          .query = s->query,
                          .want_query = s->want_query };
}

void kv_seq_close(struct kv_seq *s, struct kv_pool *p)
{
    if (s->wide == NULL)
        return;
    kv_seq_clear(s, p);
    mem_free(s->query);
    mem_free(s->spare);
    mem_free(s->wide);
    *s = (struct kv_seq){ 0 };
}

/* ---- pages ----------------------------------------------------------------------------------------------------- */

static int blocks_for(const struct kv_seq *s, int n_tokens)
{
    int tail = n_tokens - s->wide_pos0;
    return tail <= 0 ? 0 : pages_of_slots(tail);
}

int64_t kv_seq_need(const struct kv_seq *s, const struct kv_pool *p, int n_tokens)
{
    if (s->swap != NULL)
        return swap_need(s, p);
    int query = max_int(query_for(s) - s->n_query, 0);
    int spare = max_int(spares_for(s, n_tokens) - s->n_spare, 0);
    return wide_pages(s, p, s->n_blocks, blocks_for(s, n_tokens)) + query_pages(s, p, query) +
           pool_narrow_need(p, spare);
}

/* One page for each layer, `stride` apart in the table, or one for all. */
static void take(struct kv_pool *p, int32_t *table, int stride, bool turns)
{
    for (int l = 0; l < p->shape.n_layers; l++) {
        int32_t *page = table + (size_t)l * (size_t)stride;
        *page = turns && l > 0 ? *table : pool_page_take(p);
        ASSERT(*page >= 0);
        if (turns && l > 0)
            pool_page_ref(p, *page);
    }
}

int kv_seq_reserve(struct kv_seq *s, struct kv_pool *p, int n_tokens)
{
    ASSERT(s->swap == NULL);
    int want = blocks_for(s, n_tokens), spare = spares_for(s, n_tokens);
    if (want > s->max_blocks || kv_seq_need(s, p, n_tokens) > kv_pool_available(p))
        return ERR_LIMIT;
    for (; s->n_blocks < want; s->n_blocks++)
        take(p, s->wide + s->n_blocks, s->max_blocks, takes_turns(s, s->n_blocks));
    if (s->n_query == 0 && query_for(s) > 0) {
        s->n_query = s->want_query;
        for (int i = 0; i < s->n_query; i++)
            take(p, s->query + i, s->n_query, kv_seq_by_layer(s));
    }
    for (; s->n_spare < spare; s->n_spare++) {
        int rc = kv_narrow_alloc(p, &s->spare[s->n_spare]);
        ASSERT(rc == 0);
    }
    return 0;
}

/* ---- what others see of it ------------------------------------------------------------------------------------- */

void kv_seq_view(const struct kv_seq *s, const struct kv_pool *p, int layer, struct kv_view *out)
{
    size_t head0 = (size_t)layer * (size_t)p->shape.n_kv_heads;
    *out = (struct kv_view){
        .wide = seq_wide(s, layer),
        .wide_pos0 = s->wide_pos0,
        .narrow = kv_seq_pressed(s) ? (const int32_t *const *)(s->narrow + head0) : NULL,
        .n_narrow = kv_seq_pressed(s) ? s->n_narrow + head0 : NULL,
    };
}

void *seq_window_at(const struct kv_seq *s, const struct kv_pool *p, int layer, int i)
{
    int a_page = pool_page_records(p);
    char *page = pool_page_at(p, s->query[layer * s->n_query + i / a_page]);
    return page + (size_t)(i % a_page) * p->record_bytes;
}

bool kv_seq_keep(const struct kv_seq *s, const struct kv_pool *p, int layer, int pos,
                 struct be_keep *out)
{
    *out = (struct be_keep){ 0 };
    if (p->sample == NULL)
        return false;
    int slot = pos - s->wide_pos0, stride = pool_stride(p), window0 = seq_window0(s);
    if ((slot + 1) % stride == 0)
        out->sample = (char *)pool_sample_at(p, seq_wide(s, layer)[slot / KV_PAGE]) +
                      (size_t)(slot % KV_PAGE / stride) * p->record_bytes;
    if (s->n_query > 0 && pos >= window0 && pos < s->n_prompt)
        out->window = seq_window_at(s, p, layer, pos - window0);
    return out->sample != NULL || out->window != NULL;
}

size_t kv_seq_bytes(const struct kv_seq *s, const struct kv_pool *p)
{
    size_t wide = (size_t)(wide_pages(s, p, 0, s->n_blocks) + query_pages(s, p, s->n_query));
    size_t narrow = (size_t)s->n_spare, slots = 0;
    for (int i = 0; s->narrow != NULL && i < pool_heads(p); i++) {
        narrow += s->swap == NULL ? (size_t)s->n_block[i] : 0;
        slots += (size_t)s->quota[i];
    }
    return wide * (p->page_bytes + p->sample_bytes) + narrow * (p->block_bytes + p->side_bytes) +
           slots * sizeof(struct kv_slot);
}

int kv_seq_slots(const struct kv_seq *s, const struct kv_pool *p)
{
    int slots = 0;
    for (int i = 0; kv_seq_pressed(s) && i < pool_heads(p); i++)
        slots = max_int(slots, s->n_narrow[i]);
    return slots + s->n_tokens - s->wide_pos0;
}

bool kv_compact_due(const struct kv_seq *s)
{
    if (s->spare == NULL || s->swap != NULL || s->n_tokens / KV_PAGE * KV_PAGE <= s->wide_pos0)
        return false;
    if (kv_seq_pressed(s)) /* heads outgrow their quotas together */
        return s->n_narrow[0] + s->n_tokens - s->wide_pos0 > (int64_t)s->quota[0] + s->opt.tail;
    if (prompt_pressed(s))
        return s->n_tokens >= s->n_prompt;
    return s->n_tokens > (int64_t)s->opt.budget + s->opt.tail;
}
