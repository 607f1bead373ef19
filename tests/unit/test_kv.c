/* The KV pool, the tables and the prefix index: rules R1 to R4 under random operations, against a simple model that
 * remembers what was written into every slot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/kv_internal.h"
#include "server/base/mem.h"

enum { LAYERS = 3, HEADS = 2, PAGES_A_LAYER = 12, SEQS = 6, TOKENS = 7 * KV_PAGE };

static void *fake_alloc(struct be *be, size_t bytes)
{
    (void)be;
    return mem_map(bytes);
}

static void fake_free(struct be *be, void *p, size_t bytes)
{
    (void)be;
    mem_unmap(p, bytes);
}

/* A device of 64 MiB, for messages. */
static void fake_memory(struct be *be, size_t *free_bytes, size_t *total)
{
    (void)be;
    *free_bytes = *total = (size_t)64 << 20;
}

static const struct be_ops fake_ops = {
    .name = "fake", .alloc = fake_alloc, .free = fake_free, .memory = fake_memory
};
static struct be fake_be = { .ops = &fake_ops };
static const struct kv_shape shape = {
    .n_layers = LAYERS, .n_kv_heads = HEADS, .head_dim = 4, .type = KV_F16
};
/* The same with the queries of four heads, whose record takes 48 bytes of a page's 1024. */
static const struct kv_shape scored = { LAYERS, HEADS, 4, KV_F16, 4, 2, KV_NARROW_SAME };
static const struct kv_options all = { 0 };
static const struct kv_policy press = { .name = "press" };

static struct kv_pool *open_pool(int pages_a_layer)
{
    struct kv_pool *p;
    struct err e;
    assert_int_equal(kv_pool_open(&p, &fake_be, &shape, (int64_t)pages_a_layer * KV_PAGE, &e), 0);
    return p;
}

static void open_seq(struct kv_seq *s, struct kv_pool *p, int max_tokens)
{
    struct err e;
    assert_int_equal(kv_seq_open(s, p, &all, max_tokens, max_tokens, &e), 0);
}

static struct kv_stats stats(const struct kv_pool *p)
{
    struct kv_stats s;
    kv_pool_stats(p, &s);
    return s;
}

static uint64_t rng_state;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

/* A token list of one of a few families that share beginnings, and later pages below different beginnings. */
static void make_tokens(int32_t *t, int n, uint32_t family)
{
    for (int i = 0; i < n; i++) {
        uint32_t bit = i < 2 * KV_PAGE ? 0 : i < 4 * KV_PAGE ? 1 : 2;
        uint32_t branch = family >> bit & 1;
        t[i] = (int32_t)((uint32_t)i * 7u + branch * 1000u);
    }
}

/* ---- single rules -------------------------------------------------------------------------------------------- */

static void fill(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, int n, uint64_t salt)
{
    assert_int_equal(kv_seq_reserve(s, p, n), 0);
    s->n_tokens = n;
    kv_prefix_publish(s, p, tokens, salt);
}

static void test_sizes(void **state)
{
    (void)state;
    assert_int_equal(kv_token_bytes(&shape), 2 * 3 * 2 * 4 * 2);
    struct kv_pool *p = open_pool(5);
    assert_int_equal(stats(p).pages, 15);
    assert_int_equal(stats(p).page_bytes, HEADS * kv_block_bytes(KV_F16, 4));
    assert_non_null(kv_pool_base(p));
    assert_non_null(kv_pool_beta(p));
    kv_pool_close(p);
    struct err e;
    assert_int_equal(kv_pool_open(&p, &fake_be, &shape, 0, &e), ERR_INVALID);
    assert_int_equal(kv_pool_open(&p, &fake_be, &shape, INT64_MAX, &e), ERR_LIMIT);
    struct kv_shape odd = scored;
    odd.samples = 3;
    assert_int_equal(kv_pool_open(&p, &fake_be, &odd, 100, &e), ERR_INVALID);
    kv_pool_close(NULL);
}

static void test_reserve(void **state)
{
    (void)state;
    struct kv_pool *p = open_pool(4);
    struct kv_seq a, b;
    open_seq(&a, p, 4 * KV_PAGE);
    open_seq(&b, p, 4 * KV_PAGE);
    assert_int_equal(kv_seq_need(&a, p, 1), LAYERS);
    assert_int_equal(kv_seq_need(&a, p, KV_PAGE), LAYERS);
    assert_int_equal(kv_seq_need(&a, p, KV_PAGE + 1), 2 * LAYERS);
    assert_int_equal(kv_seq_reserve(&a, p, KV_PAGE + 1), 0);
    assert_int_equal(kv_seq_need(&a, p, 2 * KV_PAGE), 0);
    assert_int_equal(kv_seq_bytes(&a, p), 2 * LAYERS * stats(p).page_bytes);
    assert_int_equal(kv_pool_available(p), 2 * LAYERS);
    /* all or nothing */
    assert_int_equal(kv_seq_reserve(&b, p, 3 * KV_PAGE), ERR_LIMIT);
    assert_int_equal(kv_pool_available(p), 2 * LAYERS);
    assert_int_equal(b.n_blocks, 0);
    assert_int_equal(kv_seq_reserve(&b, p, 2 * KV_PAGE), 0);
    assert_int_equal(kv_seq_reserve(&b, p, 5 * KV_PAGE), ERR_LIMIT);
    assert_true(kv_pool_check(p));
    kv_seq_clear(&a, p);
    assert_int_equal(kv_pool_available(p), 2 * LAYERS);
    assert_int_equal(kv_seq_reserve(&a, p, KV_PAGE), 0);
    kv_seq_close(&a, p);
    kv_seq_close(&b, p);
    kv_seq_close(&b, p);
    assert_int_equal(stats(p).free, stats(p).pages);
    assert_true(kv_pool_check(p));
    kv_pool_close(p);
}

static void test_prefix(void **state)
{
    (void)state;
    int32_t t[TOKENS], u[TOKENS];
    struct kv_pool *p = open_pool(PAGES_A_LAYER);
    struct kv_seq a, b;
    make_tokens(t, TOKENS, 0);
    make_tokens(u, TOKENS, 2);
    open_seq(&a, p, TOKENS);
    assert_int_equal(kv_prefix_match(&a, p, t, 3 * KV_PAGE + 5, 0), 0);
    fill(&a, p, t, 3 * KV_PAGE + 5, 0);
    assert_int_equal(a.n_hashed, 3 * KV_PAGE);
    /* the same tokens: at most n - 1 of them */
    open_seq(&b, p, TOKENS);
    assert_int_equal(kv_prefix_match(&b, p, t, 3 * KV_PAGE, 0), 2 * KV_PAGE);
    assert_ptr_not_equal(a.wide, b.wide);
    assert_int_equal(a.wide[1], b.wide[1]);
    kv_seq_clear(&b, p);
    assert_int_equal(kv_prefix_match(&b, p, t, 3 * KV_PAGE + 1, 0), 3 * KV_PAGE);
    kv_seq_clear(&b, p);
    /* another branch after two pages, another salt, too short */
    assert_int_equal(kv_prefix_match(&b, p, u, 6 * KV_PAGE, 0), 2 * KV_PAGE);
    assert_int_equal(b.n_cached, 2 * KV_PAGE);
    kv_seq_clear(&b, p);
    assert_int_equal(kv_prefix_match(&b, p, t, 6 * KV_PAGE, 1), 0);
    assert_int_equal(kv_prefix_match(&b, p, t, 1, 0), 0);
    /* pages outlive their sequence as cached ones */
    kv_seq_close(&a, p);
    assert_int_equal(stats(p).cached, 3 * LAYERS);
    assert_int_equal(kv_pool_available(p), stats(p).pages);
    assert_int_equal(kv_prefix_match(&b, p, t, TOKENS, 0), 3 * KV_PAGE);
    assert_int_equal(stats(p).cached, 0);
    kv_prefix_clear(p);
    assert_int_equal(stats(p).used, 3 * LAYERS);
    assert_true(kv_pool_check(p));
    /* a cleared index: what hangs below the forgotten pages cannot be published */
    fill(&b, p, t, TOKENS, 0);
    assert_int_equal(b.n_hashed, 3 * KV_PAGE);
    kv_seq_close(&b, p);
    assert_int_equal(stats(p).free, stats(p).pages);
    assert_true(kv_pool_check(p));
    kv_pool_close(p);
}

/* Two sequences that compute the same prompt at once end up on the same pages. */
static void test_adopt(void **state)
{
    (void)state;
    int32_t t[TOKENS];
    struct kv_pool *p = open_pool(PAGES_A_LAYER);
    struct kv_seq a, b;
    make_tokens(t, TOKENS, 0);
    open_seq(&a, p, TOKENS);
    open_seq(&b, p, TOKENS);
    assert_int_equal(kv_seq_reserve(&a, p, 3 * KV_PAGE), 0);
    assert_int_equal(kv_seq_reserve(&b, p, 3 * KV_PAGE), 0);
    assert_int_equal(stats(p).used, 6 * LAYERS);
    a.n_tokens = 2 * KV_PAGE;
    b.n_tokens = 3 * KV_PAGE;
    kv_prefix_publish(&a, p, t, 0);
    kv_prefix_publish(&b, p, t, 0);
    assert_int_equal(stats(p).used, 4 * LAYERS);
    assert_int_equal(a.wide[0], b.wide[0]);
    assert_int_equal(a.wide[1], b.wide[1]);
    assert_int_not_equal(a.wide[2], b.wide[2]);
    assert_true(kv_pool_check(p));
    kv_seq_close(&a, p);
    kv_seq_close(&b, p);
    assert_int_equal(stats(p).cached, 3 * LAYERS);
    kv_pool_close(p);
}

static void test_lru(void **state)
{
    (void)state;
    int32_t t[2][TOKENS];
    struct kv_pool *p = open_pool(6);
    struct kv_seq s;
    for (int i = 0; i < 2; i++) {
        make_tokens(t[i], TOKENS, (uint32_t)i);
        open_seq(&s, p, TOKENS);
        fill(&s, p, t[i], 3 * KV_PAGE, 0);
        kv_seq_close(&s, p);
    }
    assert_int_equal(stats(p).cached, 6 * LAYERS);
    /* touching the first list makes the second the older one */
    open_seq(&s, p, TOKENS);
    assert_int_equal(kv_prefix_match(&s, p, t[0], TOKENS, 0), 3 * KV_PAGE);
    kv_seq_clear(&s, p);
    int32_t other[TOKENS] = { 0 };
    fill(&s, p, other, KV_PAGE, 0);
    assert_int_equal(stats(p).evictions, LAYERS);
    kv_seq_close(&s, p);
    open_seq(&s, p, TOKENS);
    assert_int_equal(kv_prefix_match(&s, p, t[1], TOKENS, 0), 2 * KV_PAGE); /* from its end */
    kv_seq_clear(&s, p);
    assert_int_equal(kv_prefix_match(&s, p, t[0], TOKENS, 0), 3 * KV_PAGE);
    kv_seq_close(&s, p);
    assert_true(kv_pool_check(p));
    kv_pool_close(p);
}

/* A child in use whose parent was let go and taken back: not found any more, and freed when idle. */
static void test_orphan(void **state)
{
    (void)state;
    int32_t t[TOKENS];
    struct kv_pool *p = open_pool(4);
    struct kv_seq a, b;
    make_tokens(t, TOKENS, 0);
    open_seq(&a, p, 4 * KV_PAGE);
    fill(&a, p, t, 2 * KV_PAGE, 0);
    for (int l = 0; l < LAYERS; l++) { /* as a window policy does */
        int32_t *w = a.wide + (size_t)l * (size_t)a.max_blocks;
        pool_page_unref(p, w[0]);
        w[0] = w[1];
    }
    a.n_blocks = 1;
    a.wide_pos0 = KV_PAGE;
    assert_int_equal(stats(p).cached, LAYERS);
    assert_true(kv_pool_check(p));
    open_seq(&b, p, 4 * KV_PAGE);
    assert_int_equal(kv_seq_reserve(&b, p, 3 * KV_PAGE), 0);
    assert_int_equal(stats(p).evictions, LAYERS);
    assert_true(kv_pool_check(p));
    kv_seq_close(&a, p);
    assert_int_equal(stats(p).cached, 0);
    assert_int_equal(stats(p).free, LAYERS);
    kv_seq_close(&b, p);
    assert_true(kv_pool_check(p));
    kv_pool_close(p);
}

static void test_narrow(void **state)
{
    (void)state;
    struct kv_pool *p = open_pool(2);
    int32_t b[2 * LAYERS * HEADS], more;
    for (int i = 0; i < 2 * LAYERS * HEADS; i++) {
        assert_int_equal(kv_narrow_alloc(p, &b[i]), 0);
        for (int k = 0; k < i; k++)
            assert_int_not_equal(b[i], b[k]);
    }
    assert_int_equal(kv_narrow_alloc(p, &more), ERR_LIMIT);
    assert_int_equal(stats(p).split, 2 * LAYERS);
    assert_int_equal(stats(p).narrow, 2 * LAYERS * HEADS);
    assert_true(kv_pool_check(p));
    kv_narrow_free(p, b[1]);
    assert_int_equal(kv_pool_available(p), 0);
    kv_narrow_free(p, b[0]); /* both halves: whole again */
    assert_int_equal(kv_pool_available(p), 1);
    assert_true(kv_pool_check(p));
    for (int i = 2; i < 2 * LAYERS * HEADS; i++)
        kv_narrow_free(p, b[i]);
    assert_int_equal(stats(p).free, stats(p).pages);
    assert_int_equal(stats(p).split, 0);
    assert_true(kv_pool_check(p));
    kv_pool_close(p);
}

static void test_policies(void **state)
{
    (void)state;
    assert_string_equal(kv_policy_list[0]->name, "full");
    assert_ptr_equal(kv_policy_find("full"), kv_policy_list[0]);
    assert_null(kv_policy_find("fuller"));
    for (size_t i = 0; kv_policy_list[i] != NULL; i++)
        assert_non_null(strstr(kv_policy_names(), kv_policy_list[i]->name));
    assert_true(kv_policy_list[0]->shares_prefix);
    assert_true(kv_policy_list[0]->keeps_all);
}

/* ---- random operations --------------------------------------------------------------------------------------- */

/* What the model knows: the tag of the token chain that was written into each slot of each page. */
struct world {
    struct kv_pool *p;
    struct kv_seq seq[SEQS];
    bool live[SEQS];
    int32_t token[SEQS][TOKENS];
    uint64_t salt[SEQS];
    uint64_t written[PAGES_A_LAYER * LAYERS][KV_PAGE];
    int32_t narrow[PAGES_A_LAYER * LAYERS * HEADS];
    int n_narrow;
    uint64_t tag[SEQS][TOKENS];
    uint64_t hits;
};

static int32_t page_of(const struct kv_seq *s, int layer, int pos)
{
    struct kv_view v;
    v.wide = s->wide + (size_t)layer * (size_t)s->max_blocks;
    return v.wide[pos / KV_PAGE];
}

static uint64_t tag_of(const struct world *w, int i, int pos, int layer)
{
    return w->tag[i][pos] * 31 + (uint64_t)layer;
}

static void check_content(const struct world *w, int i)
{
    for (int pos = 0; pos < w->seq[i].n_tokens; pos++)
        for (int l = 0; l < LAYERS; l++)
            assert_true(w->written[page_of(&w->seq[i], l, pos)][pos % KV_PAGE] ==
                        tag_of(w, i, pos, l));
}

static void check_refs(const struct world *w)
{
    int32_t ref[PAGES_A_LAYER * LAYERS] = { 0 };
    for (int i = 0; i < SEQS; i++)
        for (int b = 0; w->live[i] && b < w->seq[i].n_blocks; b++)
            for (int l = 0; l < LAYERS; l++)
                ref[page_of(&w->seq[i], l, b * KV_PAGE)]++;
    for (int g = 0; g < PAGES_A_LAYER * LAYERS; g++)
        assert_int_equal(ref[g], w->p->page[g].ref);
    assert_int_equal(stats(w->p).narrow, w->n_narrow);
}

static void op_open(struct world *w, int i)
{
    uint32_t family = rnd(8);
    make_tokens(w->token[i], TOKENS, family);
    w->salt[i] = rnd(8) == 0;
    uint64_t tag = w->salt[i];
    for (int k = 0; k < TOKENS; k++)
        w->tag[i][k] = tag = (tag ^ (uint64_t)w->token[i][k]) * 0x9e3779b97f4a7c15u + 1;
    open_seq(&w->seq[i], w->p, TOKENS);
    w->live[i] = true;
    w->hits +=
        (uint64_t)kv_prefix_match(&w->seq[i], w->p, w->token[i], (int)rnd(TOKENS) + 1, w->salt[i]);
    check_content(w, i);
}

static void op_append(struct world *w, int i)
{
    struct kv_seq *s = &w->seq[i];
    int to = s->n_tokens + 1 + (int)rnd(50);
    if (to > TOKENS)
        to = TOKENS;
    int64_t need = kv_seq_need(s, w->p, to), room = kv_pool_available(w->p);
    int rc = kv_seq_reserve(s, w->p, to);
    assert_int_equal(rc, need > room ? ERR_LIMIT : 0);
    if (rc < 0)
        return;
    for (int pos = s->n_tokens; pos < to; pos++) {
        for (int l = 0; l < LAYERS; l++) {
            int32_t g = page_of(s, l, pos);
            assert_int_equal(w->p->page[g].ref, 1);   /* R1 */
            assert_int_equal(w->p->page[g].entry, 0); /* R2: only full pages are in the index */
            w->written[g][pos % KV_PAGE] = tag_of(w, i, pos, l);
        }
    }
    s->n_tokens = to;
    if (rnd(4) != 0)
        kv_prefix_publish(s, w->p, w->token[i], w->salt[i]);
    check_content(w, i);
}

static void op_narrow(struct world *w)
{
    int32_t b;
    if (rnd(2) == 0 && w->n_narrow > 0) {
        int k = (int)rnd((uint32_t)w->n_narrow);
        kv_narrow_free(w->p, w->narrow[k]);
        w->narrow[k] = w->narrow[--w->n_narrow];
    } else if (w->n_narrow < 8 && kv_narrow_alloc(w->p, &b) == 0) {
        memset(w->written[b / HEADS], 0xee, sizeof w->written[0]);
        w->narrow[w->n_narrow++] = b;
    }
}

static void run_random(uint64_t seed, uint64_t hash_mask, int steps)
{
    static struct world w;
    memset(&w, 0, sizeof w);
    rng_state = seed;
    w.p = open_pool(PAGES_A_LAYER);
    w.p->hash_mask = hash_mask;
    for (int n = 0; n < steps; n++) {
        int i = (int)rnd(SEQS);
        uint32_t op = rnd(100);
        if (!w.live[i]) {
            op_open(&w, i);
        } else if (op < 70) {
            op_append(&w, i);
        } else if (op < 85) {
            kv_seq_close(&w.seq[i], w.p);
            w.live[i] = false;
        } else if (op < 99) {
            op_narrow(&w);
        } else {
            kv_prefix_clear(w.p);
        }
        assert_true(kv_pool_check(w.p));
        check_refs(&w);
    }
    assert_true(w.hits > 0);
    assert_true(stats(w.p).evictions > 0);
    for (int i = 0; i < SEQS; i++)
        kv_seq_close(&w.seq[i], w.p);
    while (w.n_narrow > 0)
        kv_narrow_free(w.p, w.narrow[--w.n_narrow]);
    assert_int_equal(kv_pool_available(w.p), stats(w.p).pages);
    kv_prefix_clear(w.p);
    assert_int_equal(stats(w.p).free, stats(w.p).pages);
    assert_true(kv_pool_check(w.p));
    kv_pool_close(w.p);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 8; seed++)
        run_random(seed, ~(uint64_t)0, 3000);
}

/* With a hash of one bit nearly every lookup collides: tokens decide. */
static void test_collisions(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 8; seed++)
        run_random(seed, seed % 2, 3000);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct mem_stats before, after;
    mem_stats(&before);
    for (uint64_t n = 1;; n++) {
        struct kv_pool *p = NULL;
        struct kv_options pressed = { .policy = &press, .budget = 16 };
        struct kv_seq s;
        struct err e;
        mem_fail_at(n);
        int rc = kv_pool_open(&p, &fake_be, &scored, 200, &e);
        if (rc == 0)
            rc = kv_seq_open(&s, p, &pressed, 40, 100, &e);
        if (rc == 0) {
            int32_t b;
            rc = kv_narrow_alloc(p, &b);
            if (rc == 0)
                kv_narrow_free(p, b);
            kv_seq_close(&s, p);
        }
        mem_fail_at(0);
        kv_pool_close(p);
        if (rc == 0)
            break;
        assert_int_equal(rc, ERR_NOMEM);
        assert_true(n < 50);
    }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    assert_int_equal(before.bytes, after.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),     cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_prefix),    cmocka_unit_test(test_adopt),
        cmocka_unit_test(test_lru),       cmocka_unit_test(test_orphan),
        cmocka_unit_test(test_narrow),    cmocka_unit_test(test_policies),
        cmocka_unit_test(test_random),    cmocka_unit_test(test_collisions),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
