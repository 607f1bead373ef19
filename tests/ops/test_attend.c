/* Attention: the definition against a naive softmax in doubles, every instruction set against the definition, and
 * the promise that a row's bits depend on that row alone. The cache is filled with NaN first, so that a read of a slot
 * that nobody wrote shows. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "server/base/mem.h"
#include "tests/tools/elem.h"
#include "tests/tools/levels.h"
#include "tests/tools/world.h"

static float *room(size_t n)
{
    float *p = mem_alloc(n * sizeof(float));
    assert_non_null(p);
    return p;
}

/* ---- the definition against doubles --------------------------------------------------------------------------------- */

/* Without narrow slots: straight from the tensors. */
static void naive_row(const struct world *w, int i, int r, int h, double *out, double *lse)
{
    static double p[8192];
    const struct world_shape *s = &w->s;
    int pos = w->seqs[i].pos0 + r, lo = s->from[i];
    if (s->window && pos + 1 - s->window > lo)
        lo = pos + 1 - s->window;
    size_t at = (size_t)((w->seqs[i].row0 + r) * s->n_kv * s->group + h) * (size_t)s->dim;
    double max = -INFINITY, sum = 0;
    for (int j = lo; j <= pos; j++) {
        size_t kat = (size_t)((j - s->from[i]) * s->n_kv + h / s->group) * (size_t)s->dim;
        p[j] = 0;
        for (int d = 0; d < s->dim; d++)
            p[j] += (double)w->q[at + (size_t)d] *
                    (double)elem_rounded(w->kv.type, w->k[i][kat + (size_t)d]);
        p[j] /= sqrt(s->dim);
        max = fmax(max, p[j]);
    }
    memset(out, 0, (size_t)s->dim * sizeof(*out));
    for (int j = lo; j <= pos; j++) {
        size_t vat = (size_t)((j - s->from[i]) * s->n_kv + h / s->group) * (size_t)s->dim;
        sum += exp(p[j] - max);
        for (int d = 0; d < s->dim; d++)
            out[d] += exp(p[j] - max) * (double)elem_rounded(w->kv.type, w->v[i][vat + (size_t)d]);
    }
    for (int d = 0; d < s->dim; d++)
        out[d] /= sum;
    *lse = max + log(sum);
}

static void test_definition(void **state)
{
    (void)state;
    static const struct world_shape shape = { .n_kv = 2,
                                              .group = 3,
                                              .dim = 48,
                                              .n_seqs = 3,
                                              .len = { 1, 65, 1100 },
                                              .rows = { 1, 65, 3 },
                                              .from = { 0, 0, 32 } };
    static struct world w;
    double out[64], lse;
    for (int k = 0; k < 2 * KV_TYPE_N; k++) {
        struct world_shape s = shape;
        s.window = k % 2 ? 40 : 0;
        world_open(&w, level[CPU_REF], &s, k / 2);
        struct be_attend a = world_ask(&w, w.out, w.lse);
        level[CPU_REF]->ops->attend(level[CPU_REF], &a);
        for (int i = 0; i < s.n_seqs; i++) {
            for (int r = 0; r < s.rows[i]; r++) {
                for (int h = 0; h < s.n_kv * s.group; h++) {
                    naive_row(&w, i, r, h, out, &lse);
                    size_t at = (size_t)((w.seqs[i].row0 + r) * s.n_kv * s.group + h);
                    for (int d = 0; d < s.dim; d++)
                        assert_true(fabs(out[d] - (double)w.out[at * 48 + (size_t)d]) < 2e-6);
                    assert_true(fabs(lse - (double)w.lse[at]) < 1e-5);
                }
            }
        }
        world_close(&w);
    }
}

/* ---- every level against the definition ------------------------------------------------------------------------------- */

/* Values are in [-1, 1]. f32 arithmetic: logits of up to 10 are off by 1e-6 of their size, weights by as much. With
 * the bf16 dot product q and the weights carry 2^-9 each, logits of size 3 so about 6e-3, and errors average out. */
static void compare(const struct world *w, int isa, const float *out, const float *lse)
{
    bool rough = isa == CPU_BF16 && w->kv.type == KV_BF16;
    float tol = rough ? 2e-2f : 2e-5f;
    size_t n = world_floats(w);
    for (size_t j = 0; j < n; j++)
        if (!(fabsf(out[j] - w->out[j]) <= tol))
            fail_msg("%s %s dim %d group %d window %d: out %zu of %zu is %g, not %g",
                     cpu_isa_name(isa), kv_type_name(w->kv.type), w->s.dim, w->s.group, w->s.window,
                     j, n, (double)out[j], (double)w->out[j]);
    for (size_t j = 0; j < n / (size_t)w->s.dim; j++)
        if (!(fabsf(lse[j] - w->lse[j]) <= tol * 2))
            fail_msg("%s %s dim %d: lse %zu is %g, not %g", cpu_isa_name(isa),
                     kv_type_name(w->kv.type), w->s.dim, j, (double)lse[j], (double)w->lse[j]);
}

static void check_shape(const struct world_shape *s)
{
    static struct world w;
    for (int type = 0; type < KV_TYPE_N; type++) {
        if (s->narrow_type == KV_NARROW_Q8 && type == KV_F32)
            continue;
        world_open(&w, level[CPU_REF], s, type);
        struct be_attend a = world_ask(&w, w.out, w.lse);
        level[CPU_REF]->ops->attend(level[CPU_REF], &a);
        float *out = room(world_floats(&w)), *lse = room(world_floats(&w));
        for (int i = CPU_REF + 1; i < CPU_ISA_N; i++) {
            if (!level[i])
                continue;
            a = world_ask(&w, out, lse);
            level[i]->ops->attend(level[i], &a);
            compare(&w, i, out, lse);
        }
        mem_free(out);
        mem_free(lse);
        world_close(&w);
    }
}

static void test_lengths(void **state)
{
    (void)state;
    static const int len[] = { 1, 2, 31, 32, 33, 63, 64, 65, 511, 512, 513, 1100 };
    for (size_t i = 0; i < sizeof(len) / sizeof(len[0]); i++) {
        for (int rows = 1; rows <= 4; rows += 3) {
            struct world_shape s = { .n_kv = 3, .group = 3, .dim = 64, .n_seqs = 1 };
            s.len[0] = len[i];
            s.rows[0] = rows < len[i] ? rows : len[i];
            check_shape(&s);
        }
    }
}

static void test_dims_and_groups(void **state)
{
    (void)state;
    static const int dims[] = { 2, 8, 32, 48, 64, 80, 96, 120, 128, 256 };
    static const int groups[] = { 1, 2, 3, 4, 5, 7, 8 };
    for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
        for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++) {
            struct world_shape s = { .n_kv = 2,
                                     .group = groups[g],
                                     .dim = dims[d],
                                     .n_seqs = 1,
                                     .len = { 97 },
                                     .rows = { 5 } };
            check_shape(&s);
        }
    }
}

static void test_windows(void **state)
{
    (void)state;
    static const int windows[] = { 1, 2, 31, 64, 65, 100, 512, 600, 5000 };
    for (size_t i = 0; i < sizeof(windows) / sizeof(windows[0]); i++) {
        struct world_shape s = { .n_kv = 2,
                                 .group = 2,
                                 .dim = 32,
                                 .window = windows[i],
                                 .n_seqs = 2,
                                 .len = { 700, 1100 },
                                 .rows = { 40, 3 },
                                 .from = { 0, 448 } };
        check_shape(&s);
    }
}

static void test_narrow(void **state)
{
    (void)state;
    static const int narrow[] = { 1, 31, 32, 63, 64, 65, 511, 513 };
    for (size_t i = 0; i < sizeof(narrow) / sizeof(narrow[0]); i++) {
        struct world_shape s = { .n_kv = 3,
                                 .group = 3,
                                 .dim = 64,
                                 .n_seqs = 3,
                                 .len = { 130, 900, 608 },
                                 .rows = { 2, 20, 1 },
                                 .from = { 96, 864, 0 } };
        s.narrow[0] = s.narrow[1] = narrow[i];
        check_shape(&s);
        s.narrow_type = KV_NARROW_Q8;
        check_shape(&s);
    }
}

/* Heads of every size: a row of values of a q8 page need not end with a register. */
static void test_q8_dims(void **state)
{
    (void)state;
    static const int dims[] = { 2, 4, 6, 8, 30, 48, 64, 80, 120, 128, 256 };
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++) {
        for (int rows = 1; rows <= 20; rows += 19) {
            struct world_shape s = { .n_kv = 2,
                                     .group = 2,
                                     .dim = dims[i],
                                     .n_seqs = 1,
                                     .len = { 70 },
                                     .rows = { rows },
                                     .from = { 32 },
                                     .narrow = { 90 },
                                     .narrow_type = KV_NARROW_Q8 };
            check_shape(&s);
        }
    }
}

/* ---- the same bits in any company --------------------------------------------------------------------------------- */

static void same(const struct world *w, int isa, const char *what, const float *a, const float *b,
                 size_t n)
{
    if (memcmp(a, b, n * sizeof(float)))
        fail_msg("%s %s dim %d: %s differs", cpu_isa_name(isa), kv_type_name(w->kv.type), w->s.dim,
                 what);
}

/* Each row alone, over the finished cache, equals the row in the batch. */
static void rows_alone(struct world *w, int isa, struct be *b)
{
    size_t row = (size_t)(w->s.n_kv * w->s.group * w->s.dim);
    float *out = room(world_floats(w));
    for (int i = 0; i < w->s.n_seqs; i++) {
        for (int r = 0; r < w->s.rows[i]; r++) {
            struct be_seq one = w->seqs[i];
            one.row0 += r;
            one.pos0 += r;
            one.n_rows = 1;
            struct be_attend a = world_ask(w, out, NULL);
            a.kv.n_seqs = 1;
            a.kv.seqs = &one;
            b->ops->attend(b, &a);
            size_t at = (size_t)one.row0 * row;
            same(w, isa, "a row alone", out + at, w->out + at, row);
        }
    }
    mem_free(out);
}

/* The sequence built up in chunks, in a cache of its own, as a server would. */
static void rows_in_chunks(struct world *w, int isa, struct be *b, int i, int max_chunk)
{
    static struct world fresh;
    fresh = *w;
    fresh.kv.pool = mem_alloc(w->pool_bytes);
    assert_non_null(fresh.kv.pool);
    memset(fresh.kv.pool, 0xff, w->pool_bytes);
    size_t row = (size_t)(w->s.n_kv * w->s.group * w->s.dim);
    float *out = room(world_floats(w));
    for (int at = 0; at < w->s.len[i];) {
        int n = 1 + (int)(rnd_bits() % (uint32_t)max_chunk);
        n = n < w->s.len[i] - at ? n : w->s.len[i] - at;
        struct be_seq q = { .row0 = at, .n_rows = n, .pos0 = at, .kv = w->seqs[i].kv };
        struct be_kv kv = fresh.kv;
        kv.n_seqs = 1;
        kv.seqs = &q;
        b->ops->kv_append(b, &kv, w->k[i], w->v[i]);
        q.row0 = w->seqs[i].row0 + at;
        struct be_attend a = world_ask(&fresh, out, NULL);
        a.kv = kv;
        b->ops->attend(b, &a);
        at += n;
    }
    size_t from = (size_t)w->seqs[i].row0 * row;
    same(w, isa, "a chunk", out + from, w->out + from, (size_t)w->s.rows[i] * row);
    mem_free(out);
    mem_free(fresh.kv.pool);
}

static void test_invariance(void **state)
{
    (void)state;
    /* Whole prompts (rows = len), short and long, beside decoding sequences. */
    static const struct world_shape shape[] = {
        { 3, 3, 64, 0, 4, { 600, 70, 1100, 33 }, { 600, 70, 1, 1 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 1, 8, 48, 100, 3, { 300, 1100, 1 }, { 300, 2, 1 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 2,
          1,
          128,
          0,
          3,
          { 530, 1100, 90 },
          { 530, 1, 2 },
          { 0, 0, 64 },
          { 0, 0, 333 },
          KV_NARROW_SAME },
        { 2,
          3,
          48,
          0,
          3,
          { 70, 200, 90 },
          { 70, 9, 2 },
          { 0, 64, 64 },
          { 0, 600, 70 },
          KV_NARROW_Q8 },
    };
    static struct world w;
    struct err e;
    for (int type = 0; type < KV_TYPE_N; type++) {
        for (size_t k = 0; k < sizeof(shape) / sizeof(shape[0]); k++) {
            if (shape[k].narrow_type == KV_NARROW_Q8 && type == KV_F32)
                continue;
            world_open(&w, level[CPU_REF], &shape[k], type);
            for (int i = CPU_REF + 1; i <= (int)cpu_isa_best(); i++) {
                struct be_attend a = world_ask(&w, w.out, NULL);
                level[i]->ops->attend(level[i], &a);
                rows_alone(&w, i, level[i]);
                rows_in_chunks(&w, i, level[i], 0, 2);
                rows_in_chunks(&w, i, level[i], 0, 100);
                for (int threads = 1; threads <= 5; threads += 4) {
                    struct be_config c = { .n_threads = threads, .isa = cpu_isa_name(i) };
                    struct be *b;
                    assert_int_equal(be_open(&b, &c, &e), 0);
                    float *out = room(world_floats(&w));
                    a.out = out;
                    b->ops->attend(b, &a);
                    same(&w, i, "another number of threads", out, w.out, world_floats(&w));
                    mem_free(out);
                    be_close(b);
                }
            }
            world_close(&w);
        }
    }
}

/* More units than are planned at once; more waiting spans than there is room for. */
static void test_limits(void **state)
{
    (void)state;
    static const struct world_shape waves = { 8,         1,         2,     5,     1,
                                              { 28800 }, { 28800 }, { 0 }, { 0 }, KV_NARROW_SAME };
    check_shape(&waves);
    static const struct world_shape wide = {
        8, 8, 256, 0, 3, { 600, 600, 600 }, { 60, 60, 60 }, { 0 }, { 0 }, KV_NARROW_SAME
    };
    static struct world w;
    struct be_config c = { .n_threads = 64 };
    struct be *b;
    struct err e;
    world_open(&w, level[CPU_REF], &wide, KV_BF16);
    struct be_attend a = world_ask(&w, w.out, NULL);
    enum cpu_isa best = cpu_isa_best();
    level[best]->ops->attend(level[best], &a);
    assert_int_equal(be_open(&b, &c, &e), 0);
    float *out = room(world_floats(&w));
    a.out = out;
    b->ops->attend(b, &a);
    same(&w, (int)best, "64 threads", out, w.out, world_floats(&w));
    mem_free(out);
    be_close(b);
    world_close(&w);
}

/* ---- odd input ------------------------------------------------------------------------------------------------------ */

/* Not-a-number and infinities stay in their row; rows that see nothing give zeros. */
static void test_odd_input(void **state)
{
    (void)state;
    static const struct world_shape shape = {
        2, 3, 64, 0, 2, { 600, 40 }, { 5, 1 }, { 0, 32 }, { 0 }, KV_NARROW_SAME
    };
    static struct world w;
    for (int type = 0; type < KV_TYPE_N; type++) {
        world_open(&w, level[CPU_REF], &shape, type);
        size_t row = 2 * 3 * 64;
        float *out = room(world_floats(&w)), *lse = room(world_floats(&w));
        for (int i = 0; i <= (int)cpu_isa_best(); i++) {
            struct be_attend a = world_ask(&w, w.out, NULL);
            level[i]->ops->attend(level[i], &a);
            float keep = w.q[row], keep2 = w.q[2 * row];
            w.q[row] = NAN;
            w.q[2 * row] = INFINITY;
            a = world_ask(&w, out, lse);
            level[i]->ops->attend(level[i], &a);
            same(&w, i, "a row before NaN", out, w.out, row);
            same(&w, i, "rows after NaN", out + 3 * row, w.out + 3 * row, 3 * row);
            assert_true(isnan(out[row]));
            w.q[row] = keep;
            w.q[2 * row] = keep2;
            struct be_seq blind = w.seqs[1];
            blind.pos0 = blind.kv.wide_pos0 - 1;
            a.kv.n_seqs = 1;
            a.kv.seqs = &blind;
            level[i]->ops->attend(level[i], &a);
            assert_true(out[5 * row] == 0 && out[6 * row - 1] == 0);
            assert_true(lse[5 * 6] == -INFINITY);
            a.kv.n_seqs = 0;
            level[i]->ops->attend(level[i], &a);
        }
        mem_free(out);
        mem_free(lse);
        world_close(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),      cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_dims_and_groups), cmocka_unit_test(test_windows),
        cmocka_unit_test(test_narrow),          cmocka_unit_test(test_q8_dims),
        cmocka_unit_test(test_invariance),      cmocka_unit_test(test_odd_input),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
