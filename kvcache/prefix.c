/* The prefix index: entries of KV_PAGE tokens in hash chains, idle ones in an LRU list.
 *
 * An entry is found from its parent: same hash, same parent (by serial), same salt, same tokens; a hash alone proves
 * nothing. A sequence lets go of its last pages first, so children are older than parents in the LRU list and a chain is
 * taken back from its end. Where a policy lets go in another order, a child may outlive its parent: it can then not be found
 * any more, and it is freed as soon as it is idle, or by age.
 *
 * Counting: an entry with a reference to any of its pages counts as in use with all of them.
 */
#include <string.h>
#include <xxhash.h>

#include "server/base/mem.h"

#include "kvcache/kv_internal.h"

int prefix_open(struct kv_pool *p)
{
    p->n_entries = p->n_pages / p->shape.n_layers;
    p->n_buckets = 16;
    while (p->n_buckets < p->n_entries && p->n_buckets < 1 << 30)
        p->n_buckets *= 2;
    p->hash_mask = ~(uint64_t)0;
    p->entry = mem_map((size_t)p->n_entries * sizeof *p->entry);
    p->entry_page =
        mem_map((size_t)p->n_entries * (size_t)p->shape.n_layers * sizeof *p->entry_page);
    p->bucket = mem_map((size_t)p->n_buckets * sizeof *p->bucket);
    return p->entry == NULL || p->entry_page == NULL || p->bucket == NULL ? ERR_NOMEM : 0;
}

void prefix_close(struct kv_pool *p)
{
    size_t n = (size_t)p->n_entries;
    if (p->bucket != NULL)
        mem_unmap(p->bucket, (size_t)p->n_buckets * sizeof *p->bucket);
    if (p->entry_page != NULL)
        mem_unmap(p->entry_page, n * (size_t)p->shape.n_layers * sizeof *p->entry_page);
    if (p->entry != NULL)
        mem_unmap(p->entry, n * sizeof *p->entry);
}

static int32_t *pages_of(const struct kv_pool *p, int32_t i)
{
    return p->entry_page + (size_t)i * (size_t)p->shape.n_layers;
}

/* ---- the LRU list of idle entries ---------------------------------------------------------------------------- */

static void lru_push(struct kv_pool *p, int32_t i)
{
    struct entry *t = &p->entry[i];
    t->lru_newer = 0;
    t->lru_older = p->lru_newest;
    if (p->lru_newest != 0)
        p->entry[p->lru_newest - 1].lru_newer = i + 1;
    else
        p->lru_oldest = i + 1;
    p->lru_newest = i + 1;
    p->n_cached += p->shape.n_layers;
}

static void lru_remove(struct kv_pool *p, int32_t i)
{
    struct entry *t = &p->entry[i];
    if (t->lru_newer != 0)
        p->entry[t->lru_newer - 1].lru_older = t->lru_older;
    else
        p->lru_newest = t->lru_older;
    if (t->lru_older != 0)
        p->entry[t->lru_older - 1].lru_newer = t->lru_newer;
    else
        p->lru_oldest = t->lru_newer;
    t->lru_newer = t->lru_older = 0;
    p->n_cached -= p->shape.n_layers;
}

/* ---- entries ------------------------------------------------------------------------------------------------- */

static int32_t *bucket_of(const struct kv_pool *p, uint64_t hash)
{
    return &p->bucket[hash & (uint64_t)(p->n_buckets - 1)];
}

/* Takes entry i out of the index. Its pages lose their mark; those without a reference become free. */
static void forget(struct kv_pool *p, int32_t i)
{
    struct entry *t = &p->entry[i];
    int32_t *at = bucket_of(p, t->hash);
    while (*at != i + 1)
        at = &p->entry[*at - 1].next;
    *at = t->next;
    if (t->n_ref == 0)
        lru_remove(p, i);
    for (int l = 0; l < p->shape.n_layers; l++) {
        int32_t page = pages_of(p, i)[l];
        p->page[page].entry = 0;
        if (p->page[page].ref == 0)
            pool_page_free(p, page);
    }
    t->serial = 0;
    t->next = p->entry_list;
    p->entry_list = i + 1;
}

bool prefix_evict(struct kv_pool *p)
{
    if (p->lru_oldest == 0)
        return false;
    forget(p, p->lru_oldest - 1);
    p->evictions += (uint64_t)p->shape.n_layers;
    return true;
}

void prefix_ref(struct kv_pool *p, int32_t i)
{
    if (p->entry[i].n_ref++ == 0)
        lru_remove(p, i);
}

void prefix_unref(struct kv_pool *p, int32_t i)
{
    struct entry *t = &p->entry[i];
    if (--t->n_ref > 0)
        return;
    lru_push(p, i);
    if (t->parent_serial != 0 && p->entry[t->parent].serial != t->parent_serial)
        forget(p, i);
}

static uint64_t hash_page(const struct kv_pool *p, uint64_t parent_hash, const int32_t *token)
{
    return XXH3_64bits_withSeed(token, KV_PAGE * sizeof *token, parent_hash) & p->hash_mask;
}

/* The entry below `parent` (-1: the front) with these tokens, or -1. */
static int32_t find(const struct kv_pool *p, uint64_t hash, int32_t parent, uint64_t salt,
                    const int32_t *token)
{
    uint64_t serial = parent < 0 ? 0 : p->entry[parent].serial;
    for (int32_t i = *bucket_of(p, hash); i != 0; i = p->entry[i - 1].next) {
        const struct entry *t = &p->entry[i - 1];
        if (t->hash == hash && t->parent_serial == serial && t->salt == salt &&
            memcmp(t->token, token, sizeof t->token) == 0)
            return i - 1;
    }
    return -1;
}

/* Block b of the sequence becomes an entry; its pages have one reference each, the sequence's. */
static int32_t add(struct kv_pool *p, const struct kv_seq *s, int b, uint64_t hash, int32_t parent,
                   uint64_t salt, const int32_t *token)
{
    int32_t i;
    if (p->entry_list != 0) {
        i = p->entry_list - 1;
        p->entry_list = p->entry[i].next;
    } else {
        ASSERT(p->entry_fresh < p->n_entries);
        i = p->entry_fresh++;
    }
    struct entry *t = &p->entry[i];
    int32_t *bucket = bucket_of(p, hash);
    *t = (struct entry){ .hash = hash,
                         .serial = ++p->last_serial,
                         .parent_serial = parent < 0 ? 0 : p->entry[parent].serial,
                         .salt = salt,
                         .parent = parent,
                         .next = *bucket };
    memcpy(t->token, token, sizeof t->token);
    *bucket = i + 1;
    for (int l = 0; l < p->shape.n_layers; l++) {
        int32_t page = s->wide[(size_t)l * (size_t)s->max_blocks + (size_t)b];
        pages_of(p, i)[l] = page;
        p->page[page].entry = i + 1;
        t->n_ref += p->page[page].ref;
    }
    return i;
}

/* ---- sequences ----------------------------------------------------------------------------------------------- */

int kv_prefix_match(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, int n,
                    uint64_t salt)
{
    ASSERT(s->n_tokens == 0 && s->n_blocks == 0 && s->wide_pos0 == 0);
    int find_n = n - 1;
    if (s->want_query > 0 && find_n > seq_window0(s)) /* its last queries are to be seen */
        find_n = seq_window0(s);
    int most = find_n / KV_PAGE < s->max_blocks ? find_n / KV_PAGE : s->max_blocks;
    int32_t parent = -1;
    int b = 0;
    s->hash = salt;
    for (; b < most; b++) {
        const int32_t *token = tokens + (size_t)b * KV_PAGE;
        uint64_t hash = hash_page(p, s->hash, token);
        int32_t i = find(p, hash, parent, salt, token);
        if (i < 0)
            break;
        for (int l = 0; l < p->shape.n_layers; l++) {
            int32_t page = pages_of(p, i)[l];
            s->wide[(size_t)l * (size_t)s->max_blocks + (size_t)b] = page;
            pool_page_ref(p, page);
        }
        s->hash = hash;
        parent = i;
    }
    s->n_blocks = b;
    s->n_tokens = s->n_cached = s->n_hashed = b * KV_PAGE;
    p->prefix_queries += (uint64_t)n;
    p->prefix_hits += (uint64_t)s->n_cached;
    return s->n_cached;
}

/* Another sequence published the same page first: take its pages (the same bits, since a row's result depends on its
 * tokens alone) and give our own back, so that a child never hangs below a page that nobody holds. */
static void adopt(struct kv_pool *p, struct kv_seq *s, int b, int32_t i)
{
    for (int l = 0; l < p->shape.n_layers; l++) {
        int32_t *slot = &s->wide[(size_t)l * (size_t)s->max_blocks + (size_t)b];
        int32_t page = pages_of(p, i)[l];
        pool_page_ref(p, page);
        pool_page_unref(p, *slot);
        *slot = page;
    }
}

void kv_prefix_publish(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, uint64_t salt)
{
    if (s->wide_pos0 != 0 || s->layer_major)
        return;
    while (s->n_hashed + KV_PAGE <= s->n_tokens) {
        int b = s->n_hashed / KV_PAGE;
        int32_t parent = -1;
        if (b > 0) {
            parent = p->page[s->wide[b - 1]].entry - 1;
            if (parent < 0) /* the index was cleared under it */
                return;
        } else {
            s->hash = salt;
        }
        const int32_t *token = tokens + s->n_hashed;
        uint64_t hash = hash_page(p, s->hash, token);
        int32_t i = find(p, hash, parent, salt, token);
        if (i >= 0)
            adopt(p, s, b, i);
        else
            add(p, s, b, hash, parent, salt, token);
        s->hash = hash;
        s->n_hashed += KV_PAGE;
    }
}

void kv_prefix_clear(struct kv_pool *p)
{
    for (int32_t i = 0; i < p->entry_fresh; i++)
        if (p->entry[i].serial != 0)
            forget(p, i);
}

/* ---- the proof ----------------------------------------------------------------------------------------------- */

static bool check_entry(const struct kv_pool *p, int32_t i)
{
    const struct entry *t = &p->entry[i];
    int64_t refs = 0;
    for (int l = 0; l < p->shape.n_layers; l++) {
        const struct page *g = &p->page[pages_of(p, i)[l]];
        if (g->entry != i + 1)
            return false;
        refs += g->ref;
    }
    int32_t at = *bucket_of(p, t->hash);
    while (at != 0 && at != i + 1)
        at = p->entry[at - 1].next;
    return at != 0 && refs == t->n_ref;
}

bool prefix_check(const struct kv_pool *p)
{
    int64_t live = 0, idle = 0, unused = 0, listed = 0, marked = 0;
    for (int32_t i = 0; i < p->entry_fresh; i++) {
        if (p->entry[i].serial == 0) {
            unused++;
            continue;
        }
        if (!check_entry(p, i))
            return false;
        live++;
        idle += p->entry[i].n_ref == 0;
    }
    for (int32_t i = p->entry_list; i != 0; i = p->entry[i - 1].next)
        if (p->entry[i - 1].serial != 0 || --unused < 0)
            return false;
    for (int32_t i = p->lru_oldest, older = 0; i != 0; older = i, i = p->entry[i - 1].lru_newer) {
        const struct entry *t = &p->entry[i - 1];
        if (t->serial == 0 || t->n_ref != 0 || t->lru_older != older || ++listed > idle)
            return false;
    }
    for (int32_t i = 0; i < p->n_fresh; i++)
        marked += p->page[i].entry != 0;
    return unused == 0 && listed == idle && idle * p->shape.n_layers == p->n_cached &&
           marked == live * p->shape.n_layers;
}
