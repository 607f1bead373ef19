/* The end of a compaction: new pages in place, old ones given back. Nothing of the sequence changes before all is written. */
#include <string.h>

#include "server/base/mem.h"

#include "kvcache/compact_internal.h"

/* Narrow pages that a head goes on holding: those of its quota when it may be pressed again, since the tail page will then
 * hold fewer tokens. */
static int blocks_of(const struct press *w, int head)
{
    const struct kv_seq *s = w->s;
    bool again = (int64_t)s->max_blocks * KV_PAGE > (int64_t)s->n_tokens + s->opt.tail;
    return pages_of_slots(w->head[head].n_keep + (again ? w->n_tail : 0));
}

/* One piece of memory, see struct kv_seq. */
static size_t lay_out(const struct press *w, struct kv_seq *s, char *base)
{
    size_t used = 0, n = (size_t)w->n_heads;
    s->narrow = room_piece(base, &used, n * sizeof(void *));
    s->slot = room_piece(base, &used, n * sizeof(void *));
    s->n_narrow = room_piece(base, &used, n * sizeof *s->n_narrow);
    s->n_block = room_piece(base, &used, n * sizeof *s->n_block);
    s->quota = room_piece(base, &used, n * sizeof *s->quota);
    for (int i = 0; i < w->n_heads; i++) {
        size_t quota = (size_t)w->head[i].n_keep + (size_t)w->n_tail, blocks = quota / KV_PAGE + 1;
        void *narrow = room_piece(base, &used, blocks * sizeof **s->narrow);
        void *slot = room_piece(base, &used, quota * sizeof **s->slot);
        if (base != NULL) {
            s->narrow[i] = narrow;
            s->slot[i] = slot;
        }
    }
    return used;
}

/* Tables for the first time, over spare pages. They are the sequence's only once everything is written. */
static int open_tables(const struct press *w, struct kv_seq *s)
{
    char *base = mem_alloc(lay_out(w, s, NULL));
    if (base == NULL)
        return ERR_NOMEM;
    lay_out(w, s, base);
    for (int i = 0; i < w->n_heads; i++) {
        s->quota[i] = w->head[i].n_keep + w->n_tail;
        s->n_block[i] = blocks_of(w, i);
        s->n_narrow[i] = 0;
        for (int b = 0; b < s->n_block[i]; b++) {
            ASSERT(s->n_spare > 0);
            s->narrow[i][b] = s->spare[--s->n_spare];
        }
    }
    return 0;
}

static int upload(const struct press *w, const struct kv_seq *s, struct err *e)
{
    struct kv_pool *p = w->pool;
    struct be *be = p->be;
    for (int i = 0; i < w->n_heads; i++) {
        for (int b = 0; b < pages_of_slots(w->head[i].n_keep); b++) {
            size_t from = (size_t)w->head[i].out_block + (size_t)b;
            int32_t to = s->narrow[i][b];
            be->ops->upload(be, pool_block_at(p, to), w->out + from * p->block_bytes,
                            p->block_bytes);
            be->ops->upload(be, pool_beta_at(p, to), w->out_beta + from * KV_PAGE,
                            KV_PAGE * sizeof(float));
        }
    }
    return be->ops->sync(be, e);
}

/* In place: kept candidates rise, so slot c is read no earlier than it is written over. */
static void fill_slots(const struct press *w, struct kv_seq *s, int head)
{
    const struct press_head *st = &w->head[head];
    int n_old = st->n - w->n_wide;
    for (int c = 0; c < st->n_keep; c++) {
        int j = st->keep[c];
        int pos = j < n_old ? s->slot[head][j].pos : s->wide_pos0 + j - n_old;
        s->slot[head][c] = (struct kv_slot){ pos, st->global[j] };
    }
    s->n_narrow[head] = st->n_keep;
}

int press_commit(struct press *w, struct err *e)
{
    struct kv_seq *s = w->s, next = *s;
    bool first = !kv_seq_pressed(s);
    if (first && open_tables(w, &next) < 0)
        return err_set(e, ERR_NOMEM, "no memory for the tables of a pressed KV cache");
    int rc = upload(w, &next, e);
    if (rc < 0) {
        if (first)
            mem_free(next.narrow);
        return rc;
    }
    for (int i = 0; i < w->n_heads; i++)
        fill_slots(w, &next, i);
    *s = next;
    seq_drop_wide(s, w->pool, w->n_wide / KV_PAGE);
    s->wide_pos0 += w->n_wide;
    seq_release(s, w->pool);
    return 0;
}
