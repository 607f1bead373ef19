/* Probing a KV head: the definition against a softmax in doubles with its whole matrix, every instruction set against the
 * definition, and what the header promises besides. Slots that nobody may read are NaN. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/probe.h"
#include "server/base/mem.h"
#include "tests/tools/elem.h"
#include "tests/tools/levels.h"

enum { DIM_MAX = 128, SLOTS_MAX = 1100, QUERIES_MAX = 100, BLOCKS = 2 * SLOTS_MAX / KV_PAGE + 8 };

struct shape {
    int n_narrow, n_wide, dim, n;
    enum { SEE_ALL, SEE_RISING, SEE_ANY } see;
    bool beta;
};

/* A head, its queries, and the tensors they were made from; results of one level and of the definition. */
struct world {
    struct shape s;
    struct probe_head h;
    struct probe_queries q;
    int n_slots;
    char *pool;
    size_t pool_bytes;
    float beta[BLOCKS][KV_PAGE];
    int32_t blocks[BLOCKS], see[QUERIES_MAX];
    float k[SLOTS_MAX * DIM_MAX], v[SLOTS_MAX * DIM_MAX], bias[SLOTS_MAX];
    float queries[QUERIES_MAX * DIM_MAX], weight[QUERIES_MAX];
    char *scratch;
};

struct result {
    float o[QUERIES_MAX * DIM_MAX], lse[QUERIES_MAX], sum[SLOTS_MAX], square[SLOTS_MAX];
};

static struct world world;

static size_t elem_at(const struct world *w, int slot, int i)
{
    return (size_t)slot * (size_t)w->s.dim + (size_t)i;
}

static void spoil(struct world *w, char *block, size_t i)
{
    size_t bytes = kv_elem_bytes(w->h.type);
    memset(block + i * bytes, 0xff, bytes);
}

/* Writes a page of the head; what lies behind its n slots becomes NaN, but for the value that shares a pair. */
static void fill_page(struct world *w, int32_t block, int slot0, int n)
{
    int dim = w->s.dim;
    char *p = w->pool + (size_t)block * kv_block_bytes(w->h.type, dim);
    probe_write(p, w->h.type, dim, w->k + elem_at(w, slot0, 0), w->v + elem_at(w, slot0, 0), n);
    for (int t = 0; t < KV_PAGE; t++) {
        w->beta[block][t] = t < n ? w->bias[slot0 + t] : NAN;
        for (int i = 0; i < dim && t >= n; i++) {
            spoil(w, p, kv_k_index(t, i));
            if (t >= (n + 1) / 2 * 2)
                spoil(w, p, (size_t)(KV_PAGE * dim) + kv_v_index(t, i, dim));
        }
    }
}

static void fill_lane(struct world *w, const int32_t *blocks, int slot0, int n)
{
    for (int at = 0; at < n; at += KV_PAGE)
        fill_page(w, blocks[at / KV_PAGE], slot0 + at, n - at < KV_PAGE ? n - at : KV_PAGE);
}

/* Shuffles the pool's blocks; behind the last one of either list lies one that must not be touched. */
static void fill_blocks(struct world *w)
{
    int n_narrow = (w->s.n_narrow + KV_PAGE - 1) / KV_PAGE;
    int n_wide = (w->s.n_wide + KV_PAGE - 1) / KV_PAGE;
    for (int i = 0; i < BLOCKS; i++) {
        int32_t j = (int32_t)(rnd_bits() % (uint32_t)(i + 1));
        w->blocks[i] = w->blocks[j];
        w->blocks[j] = i;
    }
    w->blocks[n_narrow] = w->blocks[n_narrow + 1 + n_wide] = INT32_MIN;
    w->h.narrow = w->blocks;
    w->h.wide = w->blocks + n_narrow + 1;
}

static void fill_see(struct world *w)
{
    const struct shape *s = &w->s;
    for (int i = 0; i < s->n; i++) {
        int any = (int)(rnd_bits() % (uint32_t)(s->n_wide + 5)) - 2;
        w->see[i] = s->see == SEE_ANY ? any : (i + 1) * (s->n_wide + 1) / s->n;
    }
    w->q = (struct probe_queries){ .q = w->queries,
                                   .see = s->see == SEE_ALL ? NULL : w->see,
                                   .n = s->n };
}

static void world_fill(struct world *w, const struct shape *s, enum kv_type type)
{
    w->s = *s;
    w->n_slots = s->n_narrow + s->n_wide;
    rnd_fill(w->k, (size_t)(w->n_slots * s->dim), 1);
    rnd_fill(w->v, (size_t)(w->n_slots * s->dim), 1);
    rnd_fill(w->bias, (size_t)w->n_slots, 2);
    rnd_fill(w->queries, (size_t)(s->n * s->dim), 2);
    for (int i = 0; i < s->n; i++)
        w->weight[i] = (1.0f + rnd_unit()) / (float)s->n;
    w->pool_bytes = BLOCKS * kv_block_bytes(type, s->dim);
    w->pool = level[CPU_REF]->ops->alloc(level[CPU_REF], w->pool_bytes);
    w->scratch = level[CPU_REF]->ops->alloc(level[CPU_REF], probe_scratch_bytes(s->dim));
    assert_true(w->pool && w->scratch);
    memset(w->pool, 0xff, w->pool_bytes);
    memset(w->scratch, 0xff, probe_scratch_bytes(s->dim));
    w->h = (struct probe_head){ .pool = w->pool,
                                .beta = s->beta ? w->beta[0] : NULL,
                                .type = type,
                                .dim = s->dim,
                                .n_narrow = s->n_narrow,
                                .n_wide = s->n_wide,
                                .scale = 1 / sqrtf((float)s->dim) };
    fill_blocks(w);
    fill_lane(w, w->h.narrow, 0, s->n_narrow);
    fill_lane(w, w->h.wide, s->n_narrow, s->n_wide);
    fill_see(w);
}

static void world_empty(struct world *w)
{
    struct be *be = level[CPU_REF];
    be->ops->free(be, w->pool, w->pool_bytes);
    be->ops->free(be, w->scratch, probe_scratch_bytes(w->s.dim));
}

static int seen(const struct world *w, int i)
{
    int n = w->q.see ? w->q.see[i] : w->s.n_wide;
    n = n < 0 ? 0 : n > w->s.n_wide ? w->s.n_wide : n;
    return w->s.n_narrow + n;
}

/* Attention and column sums of a level; the sums by its own lse, or by the one given. */
static void ask(const struct world *w, int isa, const float *lse, struct result *r)
{
    probe_attend(isa, &w->h, &w->q, r->o, r->lse, w->scratch);
    memset(r->sum, 0, sizeof(r->sum));
    memset(r->square, 0, sizeof(r->square));
    probe_sums(isa, &w->h, &w->q, lse ? lse : r->lse, w->weight, r->sum, r->square, w->scratch);
}

/* ---- against doubles ------------------------------------------------------------------------------------------------ */

struct truth {
    double o[QUERIES_MAX * DIM_MAX], lse[QUERIES_MAX], sum[SLOTS_MAX], square[SLOTS_MAX];
};

/* Exact but for what a level with a bf16 dot product rounds before it multiplies: q * scale * log2(e). */
static double truth_logit(const struct world *w, int i, int j, bool rough)
{
    const float log2e = 1.44269504088896340736f;
    double dot = 0;
    for (int d = 0; d < w->s.dim; d++) {
        float q = w->queries[elem_at(w, i, d)];
        double x = rough ? (double)elem_rounded(KV_BF16, q * (w->h.scale * log2e)) * log(2)
                         : (double)q * (double)w->h.scale;
        dot += x * (double)elem_rounded(w->h.type, w->k[elem_at(w, j, d)]);
    }
    return dot + (w->s.beta && j < w->s.n_narrow ? (double)w->bias[j] : 0);
}

static void truth_of(const struct world *w, bool rough, struct truth *t)
{
    static double x[SLOTS_MAX];
    memset(t, 0, sizeof(*t));
    for (int i = 0; i < w->s.n; i++) {
        double max = -INFINITY, l = 0;
        for (int j = 0; j < seen(w, i); j++)
            max = fmax(max, x[j] = truth_logit(w, i, j, rough));
        for (int j = 0; j < seen(w, i); j++)
            l += exp(x[j] - max);
        t->lse[i] = max + log(l);
        for (int j = 0; j < seen(w, i); j++) {
            double p = exp(x[j] - max) / l;
            t->sum[j] += (double)w->weight[i] * p;
            t->square[j] += (double)w->weight[i] * p * p;
            for (int d = 0; d < w->s.dim; d++)
                t->o[elem_at(w, i, d)] +=
                    p * (double)elem_rounded(w->h.type, w->v[elem_at(w, j, d)]);
        }
    }
}

static void close_to(const struct world *w, int isa, const char *what, const float *got,
                     const double *want, int n, double tol)
{
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tol) && (double)got[i] != want[i])
            fail_msg("%s %s dim %d, %d + %d slots, %d queries: %s %d is %.9g, not %.9g",
                     cpu_isa_name(isa), kv_type_name(w->h.type), w->s.dim, w->s.n_narrow,
                     w->s.n_wide, w->s.n, what, i, (double)got[i], want[i]);
}

/* The sums are of weights that sum to about 1: in f32 they are right to 1e-6, also by the level's own lse. With the bf16
 * dot product they are so against the rounded queries; its lse and outputs come from weights rounded to 2^-9. */
static void test_truth(void **state)
{
    (void)state;
    static const struct shape shape[] = {
        { 0, 1, 64, 1, SEE_ALL, false },     { 100, 1000, 64, 50, SEE_RISING, true },
        { 333, 0, 64, 7, SEE_ALL, true },    { 65, 600, 80, 97, SEE_ANY, true },
        { 1, 130, 128, 13, SEE_ANY, false },
    };
    static struct truth t;
    static struct result r;
    float lse[QUERIES_MAX];
    for (size_t k = 0; k < 3 * sizeof(shape) / sizeof(shape[0]); k++) {
        world_fill(&world, &shape[k / 3], k % 3);
        const struct shape *s = &world.s;
        for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
            bool rough = isa == CPU_BF16 && world.h.type == KV_BF16;
            truth_of(&world, rough, &t);
            for (int i = 0; i < s->n; i++)
                lse[i] = (float)t.lse[i];
            ask(&world, isa, rough ? lse : NULL, &r);
            close_to(&world, isa, "output", r.o, t.o, s->n * s->dim, rough ? 4e-3 : 2e-6);
            close_to(&world, isa, "lse", r.lse, t.lse, s->n, rough ? 2e-3 : 3e-6);
            close_to(&world, isa, "sum", r.sum, t.sum, world.n_slots, rough ? 4e-6 : 1e-6);
            close_to(&world, isa, "square", r.square, t.square, world.n_slots, rough ? 8e-6 : 1e-6);
        }
        world_empty(&world);
    }
}

/* ---- every level against the definition ----------------------------------------------------------------------------- */

static void compare(const struct world *w, int isa, const char *what, const float *got,
                    const float *want, int n, float tol)
{
    for (int i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= tol) && got[i] != want[i])
            fail_msg("%s %s dim %d, %d + %d slots, %d queries: %s %d is %.9g, not %.9g",
                     cpu_isa_name(isa), kv_type_name(w->h.type), w->s.dim, w->s.n_narrow,
                     w->s.n_wide, w->s.n, what, i, (double)got[i], (double)want[i]);
}

static void check_shape(const struct shape *s)
{
    static struct result want, got;
    for (int type = 0; type < KV_TYPE_N; type++) {
        world_fill(&world, s, type);
        ask(&world, CPU_REF, NULL, &want);
        for (int isa = CPU_REF + 1; isa <= (int)cpu_isa_best(); isa++) {
            /* Queries and weights of 2^-9 each: logits of up to 3 are off by 6e-3. */
            float tol = isa == CPU_BF16 && type == KV_BF16 ? 1e-2f : 3e-6f;
            ask(&world, isa, NULL, &got);
            compare(&world, isa, "output", got.o, want.o, s->n * s->dim, tol);
            compare(&world, isa, "lse", got.lse, want.lse, s->n, tol);
            compare(&world, isa, "sum", got.sum, want.sum, SLOTS_MAX, tol);
            compare(&world, isa, "square", got.square, want.square, SLOTS_MAX, 2 * tol);
        }
        world_empty(&world);
    }
}

static void test_slots(void **state)
{
    (void)state;
    static const int size[] = { 0, 1, 31, 32, 33, 64, 65, 100 };
    static const int dim[] = { 16, 64, 80, 128 };
    int n = (int)(sizeof(size) / sizeof(size[0])), turn = 0;
    for (int i = 0; i < n * n; i++) {
        for (int d = 0; d < 4; d++, turn++) {
            struct shape s = { size[i / n], size[i % n], dim[d], 1 + turn % 7, 0, turn % 2 };
            s.see = turn % 3;
            check_shape(&s);
        }
    }
}

static void test_queries(void **state)
{
    (void)state;
    static const int n[] = { 0, 1, 6, 12, 47, 48, 49, 96, 100 };
    for (size_t i = 0; i < sizeof(n) / sizeof(n[0]); i++) {
        for (int see = SEE_ALL; see <= SEE_ANY; see++) {
            struct shape s = { 40, 200, 64, n[i], 0, true };
            s.see = see;
            check_shape(&s);
        }
    }
}

/* ---- odd cases ------------------------------------------------------------------------------------------------------ */

/* A query that sees nothing gives 0 and -inf and adds nothing to any sum; a slot without votes has no weight. */
static void test_nothing_seen(void **state)
{
    (void)state;
    static const struct shape shape = { 0, 70, 64, 9, SEE_ANY, false };
    static const struct shape voted = { 70, 3, 64, 9, SEE_ALL, true };
    static struct result r;
    for (int k = 0; k < KV_TYPE_N * CPU_ISA_N; k++) {
        int isa = k / KV_TYPE_N;
        if (!level[isa])
            continue;
        world_fill(&world, &shape, k % KV_TYPE_N);
        world.see[0] = world.see[4] = 0;
        world.see[8] = -7;
        ask(&world, isa, NULL, &r);
        for (int d = 0; d < 64; d++)
            assert_true(r.o[d] == 0 && r.o[4 * 64 + d] == 0 && r.o[8 * 64 + d] == 0);
        assert_true(r.lse[0] == -INFINITY && r.lse[4] == -INFINITY && r.lse[8] == -INFINITY);
        world_empty(&world);

        world_fill(&world, &voted, k % KV_TYPE_N);
        world.beta[world.blocks[0]][0] = world.beta[world.blocks[1]][3] = -INFINITY;
        ask(&world, isa, NULL, &r);
        float total = 0, weights = 0;
        for (int j = 0; j < 73; j++)
            total += r.sum[j];
        for (int i = 0; i < 9; i++)
            weights += world.weight[i];
        assert_true(r.sum[0] == 0 && r.sum[KV_PAGE + 3] == 0 && r.square[KV_PAGE + 3] == 0);
        assert_true(fabsf(total - weights) < 4e-3f);
        world_empty(&world);
    }
}

/* A query whose lse is -inf has no weight anywhere, whatever it sees. */
static void test_infinite_lse(void **state)
{
    (void)state;
    static const struct shape shape = { 33, 70, 64, 9, SEE_ALL, true };
    static struct result r;
    float lse[9];
    for (int k = 0; k < KV_TYPE_N * CPU_ISA_N; k++) {
        int isa = k / KV_TYPE_N;
        if (!level[isa])
            continue;
        world_fill(&world, &shape, k % KV_TYPE_N);
        for (int i = 0; i < 9; i++)
            lse[i] = -INFINITY;
        ask(&world, isa, lse, &r);
        for (int j = 0; j < world.n_slots; j++)
            assert_true(r.sum[j] == 0 && r.square[j] == 0);
        world_empty(&world);
    }
}

/* Sums are added to what is there, squares are only made where asked for, and neither writes past the last slot. */
static void test_adds(void **state)
{
    (void)state;
    static const struct shape shape = { 35, 37, 64, 60, SEE_RISING, true };
    static struct result r;
    static float sum[SLOTS_MAX];
    for (int k = 0; k < KV_TYPE_N * CPU_ISA_N; k++) {
        int isa = k / KV_TYPE_N;
        if (!level[isa])
            continue;
        world_fill(&world, &shape, k % KV_TYPE_N);
        ask(&world, isa, NULL, &r);
        for (int j = 0; j < SLOTS_MAX; j++)
            sum[j] = 5;
        probe_sums(isa, &world.h, &world.q, r.lse, world.weight, sum, NULL, world.scratch);
        for (int j = 0; j < SLOTS_MAX; j++)
            assert_true(fabsf(sum[j] - 5 - r.sum[j]) < 2e-6f);
        for (int j = world.n_slots; j < SLOTS_MAX; j++)
            assert_true(sum[j] == 5 && r.sum[j] == 0 && r.square[j] == 0);
        world_empty(&world);
    }
}

/* The same bits again, whatever is in the scratch; and a query's are its own, alone or among others. */
static void test_same_bits(void **state)
{
    (void)state;
    static const struct shape shape = { 100, 500, 80, 53, SEE_ANY, true };
    static struct result first, again;
    for (int k = 0; k < KV_TYPE_N * CPU_ISA_N; k++) {
        int isa = k / KV_TYPE_N;
        if (!level[isa])
            continue;
        world_fill(&world, &shape, k % KV_TYPE_N);
        ask(&world, isa, NULL, &first);
        memset(world.scratch, 0x3c, probe_scratch_bytes(shape.dim));
        ask(&world, isa, NULL, &again);
        assert_memory_equal(&first, &again, sizeof(first));
        for (int i = 0; i < shape.n; i++) {
            struct probe_queries one = { world.q.q + i * shape.dim, world.q.see + i, 1 };
            probe_attend(isa, &world.h, &one, again.o, again.lse, world.scratch);
            assert_memory_equal(again.o, first.o + i * shape.dim, shape.dim * sizeof(float));
            assert_memory_equal(again.lse, first.lse + i, sizeof(float));
        }
        world_empty(&world);
    }
}

/* ---- in and out of the cache ---------------------------------------------------------------------------------------- */

static void test_gather(void **state)
{
    (void)state;
    static const struct shape shape = { 70, 45, 80, 1, SEE_ALL, false };
    static const int32_t slot[] = { 0, 69, 70, 3, 114, 3, 101 };
    float k[7 * 80], v[7 * 80], only[7 * 80];
    for (int type = 0; type < KV_TYPE_N; type++) {
        world_fill(&world, &shape, type);
        probe_gather(&world.h, slot, 7, k, v);
        for (int j = 0; j < 7; j++) {
            for (int i = 0; i < 80; i++) {
                size_t from = elem_at(&world, slot[j], i);
                assert_true(k[j * 80 + i] == elem_rounded(type, world.k[from]));
                assert_true(v[j * 80 + i] == elem_rounded(type, world.v[from]));
            }
        }
        probe_gather(&world.h, slot, 7, only, NULL);
        assert_memory_equal(only, k, sizeof(k));
        probe_gather(&world.h, slot, 7, NULL, only);
        assert_memory_equal(only, v, sizeof(v));
        probe_gather(&world.h, NULL, 0, NULL, NULL);
        world_empty(&world);
    }
}

/* What attention's own op writes for the same tokens; zeros behind them; nothing behind the block. */
static void test_write(void **state)
{
    (void)state;
    enum { DIM = 48, GUARD = 64 };
    static float k[KV_PAGE * DIM], v[KV_PAGE * DIM];
    static char block[2 * KV_PAGE * DIM * 4 + GUARD], want[sizeof(block)];
    int32_t page = 0;
    for (int type = 0; type < KV_TYPE_N; type++) {
        size_t bytes = kv_block_bytes(type, DIM);
        for (int n = 0; n <= KV_PAGE; n++) {
            rnd_fill(k, KV_PAGE * DIM, 3);
            rnd_fill(v, KV_PAGE * DIM, 3);
            memset(want, 0, bytes);
            memset(want + bytes, 0x77, sizeof(want) - bytes);
            memset(block, 0x77, sizeof(block));
            struct be_seq seq = { .n_rows = n, .kv = { .wide = &page } };
            struct be_kv kv = { want, NULL, type, KV_NARROW_SAME, 1, DIM, 1, &seq };
            level[CPU_REF]->ops->kv_append(level[CPU_REF], &kv, k, v);
            probe_write(block, type, DIM, k, v, n);
            assert_memory_equal(block, want, sizeof(block));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truth),        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_queries),      cmocka_unit_test(test_nothing_seen),
        cmocka_unit_test(test_infinite_lse), cmocka_unit_test(test_adds),
        cmocka_unit_test(test_same_bits),    cmocka_unit_test(test_gather),
        cmocka_unit_test(test_write),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
