/* The second and third pass: what a head keeps, what becomes of the rest, and the pages it will lie in. A device that can has
 * its own third one (compact_device.c). */
#include <string.h>

#include "kvcache/compact_internal.h"
#include "kvcache/fit.h"
#include "kvcache/score.h"

int press_choose(struct item *t)
{
    struct press_head *st = t->st;
    const struct kv_policy *policy = t->h.opt->policy;
    struct kv_kept kept = { .n = st->n_keep, .keep = st->keep, .exact = st->exact };
    memset(st->exact, 0, (size_t)st->n * sizeof *st->exact);
    if (st->n_keep > 0 && policy->select != NULL)
        TRY(policy->select(&t->h, st->score, &kept));
    else if (st->n_keep > 0)
        kv_top(st->score, st->n, st->n_keep, st->keep);
    ASSERT(kept.n == st->n_keep);
    for (int i = 0; i < st->n_keep; i++) { /* no merge touches what a system prompt says */
        int pos = t->h.pos[st->keep[i]];
        st->exact[i] |= pos >= t->h.opt->sinks && pos < t->h.opt->protect;
    }
    double mass = (double)st->tail_mass;
    for (int i = 0; i < st->n_keep; i++)
        mass += (double)st->mean[st->keep[i]];
    st->mass = (float)mass;
    return 0;
}

static int merge(struct item *t, struct kv_kept *kept)
{
    const struct kv_options *o = t->h.opt;
    switch (o->merge) {
    case KV_MERGE_DEFAULT:
        TRY(item_references(t));
        if (o->policy->wants_kv)
            TRY(item_kv(t));
        return o->policy->merge_own(&t->h, t->st->score, kept);
    case KV_MERGE_VOTES:
    case KV_MERGE_VALUES:
    case KV_MERGE_FIT: TRY(item_references(t)); return kv_fit(&t->h, kept, o->merge);
    case KV_MERGE_MEAN: TRY(item_kv(t)); return kv_merge_mean(&t->h, kept);
    case KV_MERGE_NONE: break;
    }
    return 0;
}

static void write_pages(const struct press *w, int64_t block, const struct kv_kept *kept, int dim)
{
    const struct kv_pool *p = w->pool;
    int page = pool_narrow_slots(p);
    for (int i = 0; i < kept->n; i += page, block++) {
        char *to = w->out + (size_t)block * p->block_bytes;
        float *beta = (float *)(void *)(w->out_beta + (size_t)block * p->side_bytes);
        const float *k = kept->k + (size_t)i * dim, *v = kept->v + (size_t)i * dim;
        int some = min_int(kept->n - i, page);
        memset(beta, 0, p->side_bytes);
        if (p->shape.narrow_type == KV_NARROW_Q8)
            probe_write_q8(to, beta, dim, k, v, some);
        else
            probe_write(to, p->shape.type, dim, k, v, some);
        memcpy(beta, kept->beta + i, (size_t)some * sizeof *beta);
    }
}

int press_write(struct item *t)
{
    struct press_head *st = t->st;
    struct kv_head *h = &t->h;
    int dim = h->dim, n = st->n_keep;
    st->merged = 0;
    if (n == 0)
        return 0;
    TRY(item_slots(t));
    size_t bytes = (size_t)n * dim * sizeof(float);
    struct kv_kept kept = { .n = n,
                            .keep = st->keep,
                            .exact = st->exact,
                            .k = arena_alloc(h->arena, bytes),
                            .v = arena_alloc(h->arena, bytes),
                            .beta = arena_alloc(h->arena, (size_t)n * sizeof(float)) };
    if (kept.k == NULL || kept.v == NULL || kept.beta == NULL)
        return ERR_NOMEM;
    probe_gather(&t->probe, kept.keep, n, kept.k, kept.v);
    for (int i = 0; i < n; i++)
        kept.beta[i] = h->beta[kept.keep[i]];
    TRY(merge(t, &kept));
    st->merged = kept.merged;
    write_pages(t->w, st->out_block, &kept, dim);
    return 0;
}
