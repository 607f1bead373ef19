/* q8 pages: what writing one leaves, and attention and probes over them against doubles. Every instruction set against the
 * definition of attention: test_attend.c. */
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
#include "tests/tools/world.h"

enum { DIM = 80, SIDE = 3 * KV_PAGE_Q8 };

/* ---- writing ---------------------------------------------------------------------------------------------------- */

struct page {
    int8_t number[2 * KV_PAGE_Q8 * DIM];
    float side[SIDE];
};

static void read_page(const struct page *p, int n, float *k, float *v)
{
    static const int32_t block = 0;
    int32_t slot[KV_PAGE_Q8];
    struct probe_head h = { .pool = p->number,
                            .beta = p->side,
                            .type = KV_BF16,
                            .narrow_type = KV_NARROW_Q8,
                            .dim = DIM,
                            .narrow = &block,
                            .n_narrow = n };
    for (int i = 0; i < n; i++)
        slot[i] = i;
    probe_gather(&h, slot, n, k, v);
}

/* Slots of sizes from 1e-20 to 1e20. */
static void make_up(float *x)
{
    for (int t = 0; t < KV_PAGE_Q8; t++) {
        rnd_fill(x + t * DIM, DIM, 1);
        for (int i = 0; i < DIM; i++)
            x[t * DIM + i] *= powf(10, (float)(t % 41 - 20));
    }
}

static void check_near(const float *got, const float *want, const float *scale, int n)
{
    for (int t = 0; t < n; t++) {
        float most = 0;
        for (int i = 0; i < DIM; i++) {
            float x = want[t * DIM + i];
            most = fmaxf(most, fabsf(x));
            assert_true(fabsf(got[t * DIM + i] - x) <= scale[t] * 0.50001f);
        }
        assert_true(scale[t] * 127 >= most && scale[t] * 127 <= most * 1.0001f);
    }
}

/* The error is at most half a scale; what was read is written again with the same bits; behind the slots are zeros. */
static void test_write(void **state)
{
    (void)state;
    static float k[KV_PAGE_Q8 * DIM], v[sizeof k / 4], k2[sizeof k / 4], v2[sizeof k / 4];
    static struct page a, b;
    for (int n = 0; n <= KV_PAGE_Q8; n += n < 3 ? 1 : 61) {
        make_up(k);
        make_up(v);
        memset(&a, 0x77, sizeof a);
        probe_write_q8(a.number, a.side, DIM, k, v, n);
        read_page(&a, n, k2, v2);
        check_near(k2, k, a.side + KV_PAGE_Q8, n);
        check_near(v2, v, a.side + 2 * KV_PAGE_Q8, n);
        memset(&b, 0x55, sizeof b);
        probe_write_q8(b.number, b.side, DIM, k2, v2, n);
        assert_memory_equal(&a, &b, sizeof a);
        for (int t = 0; t < KV_PAGE_Q8; t++) {
            assert_true(a.side[t] == 0);
            for (int i = 0; i < DIM && t >= n; i++)
                assert_true(a.number[kv_k_index_q8(t, i)] == 0 &&
                            a.number[KV_PAGE_Q8 * DIM + kv_v_index(t, i, DIM)] == 0);
            if (t >= n)
                assert_true(a.side[KV_PAGE_Q8 + t] == 0 && a.side[2 * KV_PAGE_Q8 + t] == 0);
        }
    }
}

/* Zeros stay zeros; what is not finite makes its own slot NaN and no other; the smallest numbers do no harm. */
static void test_odd(void **state)
{
    (void)state;
    static float k[4 * DIM], v[4 * DIM], k2[4 * DIM], v2[4 * DIM];
    static struct page p;
    rnd_fill(k, 4 * DIM, 1);
    memset(v, 0, sizeof v);
    k[DIM + 3] = INFINITY;
    k[2 * DIM] = NAN;
    k[2 * DIM + 1] = 5;
    v[3 * DIM] = 1e-45f;
    probe_write_q8(p.number, p.side, DIM, k, v, 4);
    read_page(&p, 4, k2, v2);
    for (int i = 0; i < DIM; i++) {
        assert_true(fabsf(k2[i] - k[i]) < 0.01f && isnan(k2[DIM + i]) && isnan(k2[2 * DIM + i]));
        assert_true(fabsf(k2[3 * DIM + i] - k[3 * DIM + i]) < 0.01f);
        assert_true(v2[i] == 0 && v2[DIM + i] == 0 && fabsf(v2[3 * DIM + i]) < 1e-40f);
    }
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static struct world world;

/* One head of the world as probes see it, without wide slots. */
static struct probe_head head_of(const struct world *w, int seq, int head)
{
    return (struct probe_head){ .pool = w->kv.pool,
                                .beta = w->kv.beta,
                                .type = w->kv.type,
                                .narrow_type = w->kv.narrow_type,
                                .dim = w->s.dim,
                                .narrow = w->narrow[seq][head],
                                .n_narrow = w->n_narrow[seq][head],
                                .scale = 1 / sqrtf((float)w->s.dim) };
}

/* out, lse of one query over the narrow slots of a head, from what gather makes of them. */
static void naive(const struct probe_head *h, const float *q, double *out, double *lse)
{
    static float k[DIM], v[DIM];
    double sum = 0;
    memset(out, 0, (size_t)h->dim * sizeof *out);
    for (int j = 0; j < h->n_narrow; j++) {
        double x = 0;
        const float *side = h->beta + (size_t)h->narrow[j / KV_PAGE_Q8] * SIDE;
        probe_gather(h, &j, 1, k, v);
        for (int i = 0; i < h->dim; i++)
            x += (double)q[i] * (double)k[i];
        x = exp(x / sqrt(h->dim) + (double)side[j % KV_PAGE_Q8]);
        sum += x;
        for (int i = 0; i < h->dim; i++)
            out[i] += x * (double)v[i];
    }
    for (int i = 0; i < h->dim; i++)
        out[i] /= sum;
    *lse = log(sum);
}

static const struct world_shape shape = { .n_kv = 2,
                                          .group = 3,
                                          .dim = DIM,
                                          .n_seqs = 2,
                                          .len = { 33, 40 },
                                          .rows = { 1, 3 },
                                          .from = { 32, 32 },
                                          .narrow = { 1, 700 },
                                          .narrow_type = KV_NARROW_Q8 };

/* Attention and probes of every level. A row before the first wide slot sees the narrow ones alone. */
static void test_truth(void **state)
{
    (void)state;
    static float o[DIM], lse, sum[1024];
    double want[DIM], want_lse;
    char *scratch = level[CPU_REF]->ops->alloc(level[CPU_REF], probe_scratch_bytes(DIM));
    for (int k = 0; k < 2 * CPU_ISA_N; k++) {
        int isa = k / 2, heads = shape.n_kv * shape.group;
        enum kv_type type = k % 2 ? KV_BF16 : KV_F16;
        double tol = isa == CPU_BF16 && type == KV_BF16 ? 1e-2 : 4e-6;
        if (!level[isa])
            continue;
        world_open(&world, level[CPU_REF], &shape, type);
        struct be_seq seq = world.seqs[1];
        seq.pos0 = 31;
        seq.n_rows = 1;
        struct be_attend a = world_ask(&world, world.out, world.lse);
        a.kv.n_seqs = 1;
        a.kv.seqs = &seq;
        level[isa]->ops->attend(level[isa], &a);
        for (int h = 0; h < heads; h++) {
            size_t row = (size_t)(seq.row0 * heads + h);
            struct probe_head head = head_of(&world, 1, h / shape.group);
            struct probe_queries q = { world.q + row * DIM, NULL, 1 };
            naive(&head, q.q, want, &want_lse);
            probe_attend(isa, &head, &q, o, &lse, scratch);
            assert_true(fabs((double)lse - want_lse) < tol);
            assert_true(fabs((double)world.lse[row] - want_lse) < tol);
            for (int i = 0; i < DIM; i++) {
                assert_true(fabs((double)o[i] - want[i]) < tol);
                assert_true(fabs((double)world.out[row * DIM + (size_t)i] - want[i]) < tol);
            }
            float one = 1, all = 0;
            memset(sum, 0, sizeof sum);
            probe_sums(isa, &head, &q, &lse, &one, sum, NULL, scratch);
            for (int j = 0; j < head.n_narrow; j++)
                all += sum[j];
            assert_true(fabsf(all - 1) < (float)tol);
        }
        world_close(&world);
    }
    level[CPU_REF]->ops->free(level[CPU_REF], scratch, probe_scratch_bytes(DIM));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_truth),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
