/* The end of a compaction: new pages in place, old ones given back. Nothing of the sequence changes before all is written. */
#include <string.h>

#include "server/base/mem.h"

#include "kvcache/compact_internal.h"
#include "kvcache/score.h"

/* Narrow pages that a head goes on holding: those of its quota when it may be pressed again, since the tail page will then
 * hold fewer tokens. */
static int blocks_of(const struct press *w, int head)
{
    const struct kv_seq *s = w->s;
    bool again = (int64_t)s->max_blocks * KV_PAGE > (int64_t)s->n_tokens + s->opt.tail;
    return pool_narrow_pages(w->pool, w->head[head].n_keep + (again ? w->n_tail : 0));
}

/* The tables that a sequence has for its life as a pressed one, see struct kv_seq. */
static int open_tables(const struct press *w, struct kv_seq *s)
{
    size_t used = 0, n = (size_t)pool_heads(w->pool);
    size_t bytes = n * (2 * sizeof(void *) + 3 * sizeof(int32_t)) + 5 * 64; /* room_piece aligns */
    char *base = mem_zalloc(bytes, 1);
    if (base == NULL)
        return ERR_NOMEM;
    s->narrow = room_piece(base, &used, n * sizeof(void *));
    s->slot = room_piece(base, &used, n * sizeof(void *));
    s->n_narrow = room_piece(base, &used, n * sizeof *s->n_narrow);
    s->n_block = room_piece(base, &used, n * sizeof *s->n_block);
    s->quota = room_piece(base, &used, n * sizeof *s->quota);
    return 0;
}

/* The lists of a layer's heads, one piece of memory at base, which starts with that of the first. */
static size_t lay_out(const struct press *w, struct kv_seq *s, int l, char *base)
{
    size_t used = 0;
    int heads = w->pool->shape.n_kv_heads;
    for (int h = 0; h < heads; h++) {
        const struct press_head *head = &w->head[l * heads + h];
        size_t quota = (size_t)head->n_keep + (size_t)w->n_tail,
               blocks = (size_t)pool_narrow_pages(w->pool, (int)quota);
        void *narrow = room_piece(base, &used, blocks * sizeof **s->narrow);
        void *slot = room_piece(base, &used, quota * sizeof **s->slot);
        if (base != NULL) {
            s->narrow[w->head0 + l * heads + h] = narrow;
            s->slot[w->head0 + l * heads + h] = slot;
        }
    }
    return used;
}

/* Over spare pages. */
static int open_lists(const struct press *w, struct kv_seq *s)
{
    for (int l = 0; l < w->n_layers; l++) {
        char *base = mem_alloc(lay_out(w, s, l, NULL));
        if (base == NULL)
            return ERR_NOMEM;
        lay_out(w, s, l, base);
    }
    for (int i = 0; i < w->n_heads; i++) {
        int to = w->head0 + i;
        s->quota[to] = w->head[i].n_keep + w->n_tail;
        s->n_block[to] = blocks_of(w, i);
        for (int b = 0; b < s->n_block[to]; b++) {
            ASSERT(s->n_spare > 0);
            s->narrow[to][b] = s->spare[--s->n_spare];
        }
    }
    return 0;
}

/* Takes back what open_tables and open_lists gave to next; the spare pages never left s. */
static void undo(const struct press *w, const struct kv_seq *s, struct kv_seq *next)
{
    for (int l = 0; next->narrow != NULL && l < w->n_layers; l++) {
        int first = w->head0 + l * w->pool->shape.n_kv_heads;
        mem_free(next->narrow[first]);
        next->narrow[first] = NULL;
    }
    for (int i = 0; next->narrow != NULL && i < w->n_heads; i++)
        next->n_block[w->head0 + i] = next->quota[w->head0 + i] = 0;
    if (s->narrow == NULL)
        mem_free(next->narrow);
}

static int upload(const struct press *w, const struct kv_seq *s, struct err *e)
{
    struct kv_pool *p = w->pool;
    struct be *be = p->be;
    for (int i = 0; i < w->n_heads; i++) {
        for (int b = 0; b < pool_narrow_pages(p, w->head[i].n_keep); b++) {
            size_t from = (size_t)w->head[i].out_block + (size_t)b;
            int32_t to = s->narrow[w->head0 + i][b];
            be->ops->upload(be, pool_block_at(p, to), w->out + from * p->block_bytes,
                            p->block_bytes);
            be->ops->upload(be, pool_beta_at(p, to), w->out_beta + from * p->side_bytes,
                            p->side_bytes);
        }
    }
    return be->ops->sync(be, e);
}

static float remembered(const struct press *w, const struct press_head *st, int j)
{
    const struct kv_options *o = &w->s->opt;
    float weight = o->policy->global_local ? kv_local_weight(o, kv_seq_pressed(w->s)) : 0;
    return kv_blend(weight, st->local[j], st->global[j]);
}

/* In place: kept candidates rise, so slot c is read no earlier than it is written over. */
static void fill_slots(const struct press *w, struct kv_seq *s, int head)
{
    const struct press_head *st = &w->head[head];
    struct kv_slot *slot = s->slot[w->head0 + head];
    int n_old = st->n - w->n_wide;
    for (int c = 0; c < st->n_keep; c++) {
        int j = st->keep[c];
        int pos = j < n_old ? slot[j].pos : s->wide_pos0 + j - n_old;
        slot[c] = (struct kv_slot){ pos, remembered(w, st, j) };
    }
    s->n_narrow[w->head0 + head] = st->n_keep;
}

/* The next layer takes its turn on the pages. */
static void next_layer(struct kv_seq *s)
{
    s->layer++;
    s->n_tokens = s->n_cached;
}

int press_commit(struct press *w, struct err *e)
{
    struct kv_seq *s = w->s, next = *s;
    bool first = !kv_seq_pressed(s);
    int rc = first && next.narrow == NULL ? open_tables(w, &next) : 0;
    if (rc == 0 && first)
        rc = open_lists(w, &next);
    if (rc < 0)
        (void)err_set(e, rc, "no memory for the tables of a pressed KV cache");
    else
        rc = w->probed ? device_write(w, &next, e) : upload(w, &next, e);
    if (rc < 0) {
        if (first)
            undo(w, s, &next);
        return rc;
    }
    for (int i = 0; i < w->n_heads; i++)
        fill_slots(w, &next, i);
    *s = next;
    if (w->layer0 + w->n_layers < w->pool->shape.n_layers) {
        next_layer(s);
        return 0;
    }
    seq_drop_wide(s, w->pool, w->n_wide / KV_PAGE);
    s->wide_pos0 += w->n_wide;
    seq_release(s, w->pool);
    return 0;
}
