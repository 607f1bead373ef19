/* Every op of every instruction set of this machine against the plain C definition; opening and memory.
 * Attention has a file of its own (test_attend.c). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "kernels/half.h"
#include "server/base/mem.h"
#include "tests/tools/elem.h"
#include "tests/tools/levels.h"

enum { MAX = 1 << 16 };

static float xa[MAX], xb[MAX], w[MAX], add[MAX], ya[MAX], yb[MAX];

static void same_bits(const void *a, const void *b, size_t bytes, const char *op, int isa)
{
    if (memcmp(a, b, bytes))
        fail_msg("%s: %s differs from ref", op, cpu_isa_name(isa));
}

#define EACH_ISA(i)                                                                                \
    for (int i = CPU_REF + 1; i < CPU_ISA_N; i++)                                                  \
        if (level[i])

static void test_open(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct be *b = NULL;
    struct be_config no_device = { .device = "abacus" }, no_isa = { .isa = "mmx" };
    assert_int_equal(be_open(&b, &no_device, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "abacus"));
    assert_int_equal(be_open(&b, &no_isa, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "mmx"));
    assert_null(b);
    be_close(NULL);
    struct be_config best = { 0 };
    assert_int_equal(be_open(&b, &best, &e), 0);
    assert_int_equal(b->isa, cpu_isa_best());
    assert_string_equal(b->ops->name, "cpu");
    be_close(b);
}

/* Every allocation of an open may fail: an error, no leak. */
static void test_open_out_of_memory(void **state)
{
    (void)state;
    struct mem_stats before, after;
    mem_stats(&before);
    int rc = -1;
    for (uint64_t n = 1; rc < 0; n++) {
        struct be *b = NULL;
        struct be_config c = { .n_threads = 2 };
        struct err e = { 0 };
        assert_true(n < 100);
        mem_fail_at(n);
        rc = be_open(&b, &c, &e);
        mem_fail_at(0);
        if (rc < 0)
            assert_int_equal(rc, ERR_NOMEM);
        be_close(b);
        mem_stats(&after);
        assert_int_equal(after.blocks, before.blocks);
    }
}

static void test_memory(void **state)
{
    (void)state;
    static const size_t sizes[] = { 1, 63, 64, 1000, 300000, 5 << 20 };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        char *p = level[CPU_REF]->ops->alloc(level[CPU_REF], sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_int_equal(p[0] | p[sizes[i] / 2] | p[sizes[i] - 1], 0);
        level[CPU_REF]->ops->upload(level[CPU_REF], p, "x", 1);
        char c = 0;
        level[CPU_REF]->ops->download(level[CPU_REF], &c, p, 1);
        assert_int_equal(c, 'x');
        level[CPU_REF]->ops->free(level[CPU_REF], p, sizes[i]);
    }
    level[CPU_REF]->ops->free(level[CPU_REF], NULL, 1);
    assert_int_equal(level[CPU_REF]->ops->sync(level[CPU_REF], NULL), 0);
}

static const int dims[] = { 1, 2, 8, 15, 16, 17, 31, 48, 63, 64, 100, 576, 1000 };
static const int counts[] = { 1, 2, 5, 60 };

#define EACH_SHAPE(n, dim)                                                                         \
    for (size_t i_n = 0; i_n < sizeof(counts) / sizeof(counts[0]); i_n++)                          \
        for (size_t i_d = 0; i_d < sizeof(dims) / sizeof(dims[0]); i_d++)                          \
            for (int n = counts[i_n], dim = dims[i_d], once = 1; once; once = 0)

static void test_rmsnorm(void **state)
{
    (void)state;
    EACH_SHAPE(n, dim)
    {
        size_t bytes = (size_t)n * (size_t)dim * sizeof(float);
        rnd_fill(w, dim, 2);
        EACH_ISA(i)
        {
            for (int with_add = 0; with_add < 2; with_add++) {
                rnd_fill(xa, n * dim, 3);
                rnd_fill(add, n * dim, 1);
                memcpy(xb, xa, bytes);
                level[CPU_REF]->ops->rmsnorm(level[CPU_REF], ya, xa, with_add ? add : NULL, w, n,
                                             dim, 1e-5f);
                level[i]->ops->rmsnorm(level[i], yb, xb, with_add ? add : NULL, w, n, dim, 1e-5f);
                same_bits(ya, yb, bytes, "rmsnorm", i);
                same_bits(xa, xb, bytes, "rmsnorm residual", i);
                level[i]->ops->rmsnorm(level[i], xb, xb, NULL, w, n, dim, 1e-5f);
                level[CPU_REF]->ops->rmsnorm(level[CPU_REF], xa, xa, NULL, w, n, dim, 1e-5f);
                same_bits(xa, xb, bytes, "rmsnorm in place", i);
            }
        }
    }
}

/* The definition itself, against doubles. */
static void test_rmsnorm_value(void **state)
{
    (void)state;
    int dim = 577;
    rnd_fill(xa, dim, 3);
    rnd_fill(w, dim, 1);
    double sum = 0;
    for (int i = 0; i < dim; i++)
        sum += (double)xa[i] * (double)xa[i];
    double s = 1 / sqrt(sum / dim + 1e-5);
    level[CPU_REF]->ops->rmsnorm(level[CPU_REF], ya, xa, NULL, w, 1, dim, 1e-5f);
    for (int i = 0; i < dim; i++)
        assert_true(fabs((double)ya[i] - (double)xa[i] * s * (double)w[i]) < 1e-6);
}

static void test_add_gather(void **state)
{
    (void)state;
    static const int32_t row[] = { 4, 0, 4, 2, 1 };
    EACH_SHAPE(n, dim)
    {
        size_t bytes = (size_t)n * (size_t)dim * sizeof(float);
        EACH_ISA(i)
        {
            rnd_fill(xa, n * dim, 1);
            rnd_fill(add, n * dim, 1);
            memcpy(xb, xa, bytes);
            level[CPU_REF]->ops->add(level[CPU_REF], xa, add, n, dim);
            level[i]->ops->add(level[i], xb, add, n, dim);
            same_bits(xa, xb, bytes, "add", i);
            if (n < 5)
                continue;
            level[i]->ops->gather(level[i], yb, xa, row, 5, dim);
            for (size_t r = 0; r < 5; r++)
                same_bits(yb + r * (size_t)dim, xa + (size_t)row[r] * (size_t)dim,
                          (size_t)dim * sizeof(float), "gather", i);
        }
    }
}

/* exp(-g) carries the rounding of g * log2(e): relative 6e-8 times |g|, so 1e-5 for all gates that matter. */
static void near_or_same_kind(const float *a, const float *b, int n, float rel, const char *op)
{
    for (int i = 0; i < n; i++) {
        if (isnan(a[i]) && isnan(b[i]))
            continue;
        if (a[i] == b[i] || fabsf(a[i] - b[i]) <= rel * fabsf(a[i]) + 1e-37f)
            continue;
        fail_msg("%s: element %d is %g instead of %g", op, i, (double)b[i], (double)a[i]);
    }
}

static void test_swiglu(void **state)
{
    (void)state;
    static const float edge[] = { 0,    -0.0f, 1e-30f,  -1e-30f,   88,       -88, 89,    -89,
                                  -104, 200,   -200.0f, -INFINITY, INFINITY, NAN, 1e30f, -1e30f };
    EACH_SHAPE(n, dim)
    {
        EACH_ISA(i)
        {
            rnd_fill(xa, n * dim, 20);
            rnd_fill(w, n * dim, 2);
            for (int j = 0; j < 16 && j < n * dim && n == 5; j++)
                xa[j] = edge[j];
            level[CPU_REF]->ops->swiglu(level[CPU_REF], ya, xa, w, n, dim);
            level[i]->ops->swiglu(level[i], yb, xa, w, n, dim);
            near_or_same_kind(ya, yb, n * dim, 1e-5f, "swiglu");
            level[i]->ops->swiglu(level[i], xa, xa, w, n, dim);
            assert_memory_equal(xa, yb, (size_t)(n * dim) * sizeof(float));
        }
    }
}

static void rope_case(int i, int head_dim, int half, bool split, bool norm)
{
    enum { N = 5, HEADS = 3 };
    static float cs[N * 128], sn[N * 128], freq[128], cs2[N * 128], sn2[N * 128];
    static const int32_t pos[N] = { 0, 1, 77, 8191, 131071 };
    size_t bytes = (size_t)(N * HEADS * head_dim) * sizeof(float);
    for (int j = 0; j < half; j++)
        freq[j] = powf(10000.0f, -(float)j / (float)half);
    level[CPU_REF]->ops->rope_table(level[CPU_REF], cs, sn, pos, freq, 1.25f, N, half);
    level[i]->ops->rope_table(level[i], cs2, sn2, pos, freq, 1.25f, N, half);
    near_or_same_kind(cs, cs2, N * half, 1e-6f, "rope_table");
    near_or_same_kind(sn, sn2, N * half, 1e-6f, "rope_table");
    for (int j = 0; j < half; j++) {
        double angle = (double)((float)pos[3] * freq[j]);
        assert_true(fabs((double)cs[3 * half + j] - cos(angle) * 1.25) < 1e-6);
        assert_true(fabs((double)sn[3 * half + j] - sin(angle) * 1.25) < 1e-6);
    }
    rnd_fill(xa, N * HEADS * head_dim, 2);
    rnd_fill(w, head_dim, 1);
    memcpy(xb, xa, bytes);
    memcpy(ya, xa, bytes);
    level[CPU_REF]->ops->rope(level[CPU_REF], xa, cs, sn, norm ? w : NULL, 1e-6f, N, HEADS,
                              head_dim, half, split);
    level[i]->ops->rope(level[i], xb, cs, sn, norm ? w : NULL, 1e-6f, N, HEADS, head_dim, half,
                        split);
    same_bits(xa, xb, bytes, "rope", i);
    if (norm)
        return;
    for (int j = 2 * half; j < head_dim; j++)
        assert_true(xb[j] == ya[j]);
    int j = half - 1, a = split ? j : 2 * j, b = split ? j + half : 2 * j + 1, at = 2 * head_dim;
    at += 2 * HEADS * head_dim; /* row 2, head 2 */
    double c = (double)cs[2 * half + j], s = (double)sn[2 * half + j];
    assert_true(fabs((double)xa[at + a] - ((double)ya[at + a] * c - (double)ya[at + b] * s)) <
                1e-5);
    assert_true(fabs((double)xa[at + b] - ((double)ya[at + a] * s + (double)ya[at + b] * c)) <
                1e-5);
}

static void test_rope(void **state)
{
    (void)state;
    static const int shape[][2] = { { 2, 1 },   { 8, 4 },   { 32, 16 },  { 48, 24 }, { 64, 32 },
                                    { 64, 16 }, { 80, 40 }, { 128, 64 }, { 96, 45 }, { 256, 128 } };
    EACH_ISA(i)
    {
        for (size_t s = 0; s < sizeof(shape) / sizeof(shape[0]); s++)
            for (int split = 0; split < 2; split++)
                for (int norm = 0; norm < 2; norm++)
                    rope_case(i, shape[s][0], shape[s][1], split, norm);
    }
}

/* Conversions: all 65536 halves survive, ties go to even, limits. */
static void test_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = half_from_f16((uint16_t)h), b = half_from_bf16((uint16_t)h);
        if (!isnan(f))
            assert_int_equal(half_to_f16(f), h);
        else
            assert_true(isnan(half_from_f16(half_to_f16(f))));
        if (!isnan(b))
            assert_int_equal(half_to_bf16(b), h);
        else
            assert_true(isnan(half_from_bf16(half_to_bf16(b))));
    }
    assert_int_equal(half_to_f16(65519.0f), 0x7bff);
    assert_int_equal(half_to_f16(65520.0f), 0x7c00);
    assert_int_equal(half_to_f16(0x1p-25f), 0);
    assert_int_equal(half_to_f16(0x1.8p-25f), 1);
    assert_int_equal(half_to_f16(1 + 0x1p-11f), 0x3c00);
    assert_int_equal(half_to_f16(1 + 0x3p-11f), 0x3c02);
    assert_int_equal(half_to_bf16(1 + 0x1p-8f), 0x3f80);
    assert_int_equal(half_to_bf16(1 + 0x3p-8f), 0x3f82);
}

static void append_case(int i, enum kv_type type, int dim, int n_rows, int pos0)
{
    enum { HEADS = 2, PAGES = 4 };
    static const int32_t pages[PAGES] = { 2, 0, 3, 1 };
    size_t bytes = PAGES * HEADS * kv_block_bytes(type, dim);
    char *pa = mem_alloc(bytes), *pb = mem_alloc(bytes);
    assert_true(pa && pb);
    memset(pa, 0xff, bytes);
    memset(pb, 0xff, bytes);
    struct be_seq seq = {
        .row0 = 1, .n_rows = n_rows, .pos0 = 64 + pos0, .kv = { .wide = pages, .wide_pos0 = 64 }
    };
    struct be_kv kv = {
        .type = type, .n_kv_heads = HEADS, .head_dim = dim, .n_seqs = 1, .seqs = &seq
    };
    int n = (n_rows + 1) * HEADS * dim;
    rnd_fill(xa, n, 1);
    rnd_fill(w, n, 70000);
    for (int j = 0; j < n; j += 7)
        xa[j] *= 0x1p-20f;
    size_t from = (size_t)(HEADS + 1) * (size_t)dim + 1; /* row 1, head 1, dim 1 */
    xa[n - 1] = NAN;
    w[n - 1] = INFINITY;
    w[from] = -70001;
    kv.pool = pa;
    level[CPU_REF]->ops->kv_append(level[CPU_REF], &kv, xa, w);
    kv.pool = pb;
    level[i]->ops->kv_append(level[i], &kv, xa, w);
    same_bits(pa, pb, bytes, "kv_append", i);
    int slot = pos0 % KV_PAGE;
    char *block = pa + (size_t)(pages[pos0 / KV_PAGE] * HEADS + 1) * kv_block_bytes(type, dim);
    if (type == KV_F32 && n_rows > 1)
        assert_true(((float *)(void *)block)[kv_k_index(slot, 1)] == xa[from]);
    if (type == KV_BF16 && n_rows > 1)
        assert_int_equal(((uint16_t *)(void *)block)[kv_k_index(slot, 1)], half_to_bf16(xa[from]));
    const uint16_t *values = (const void *)(block + kv_block_bytes(type, dim) / 2);
    if (type == KV_F16 && n_rows > 1) /* the largest that there is, not infinity */
        assert_int_equal(values[kv_v_index(slot, 1, dim)], 0xfbff);
    mem_free(pa);
    mem_free(pb);
}

static void test_kv_append(void **state)
{
    (void)state;
    static const int shape[][2] = {
        { 1, 0 }, { 1, 1 }, { 1, 32 }, { 2, 31 }, { 33, 15 }, { 96, 32 }
    };
    static const int head_dims[] = { 2, 8, 48, 64, 80, 128 };
    EACH_ISA(i)
    {
        for (int type = 0; type < KV_TYPE_N; type++)
            for (size_t s = 0; s < sizeof(shape) / sizeof(shape[0]); s++)
                for (size_t d = 0; d < sizeof(head_dims) / sizeof(head_dims[0]); d++)
                    append_case(i, type, head_dims[d], shape[s][0], shape[s][1]);
    }
}

/* Records, element by element; a NULL keeps nothing. */
static void test_query_keep(void **state)
{
    (void)state;
    enum { N = 3, HEADS = 3, DIM = 6, SIZE = HEADS * DIM };
    static char record[N][2][128];
    for (int type = 0; type < KV_TYPE_N; type++) {
        const struct be_keep keep[N] = { { record[0][0], NULL },
                                         { NULL, NULL },
                                         { record[2][0], record[2][1] } };
        size_t bytes = kv_record_bytes(type, HEADS, DIM), at = kv_record_lse(type, HEADS, DIM);
        assert_int_equal(bytes, type == KV_F32 ? 96 : 64);
        assert_int_equal(at, type == KV_F32 ? 80 : 48);
        memset(record, 0x11, sizeof record);
        rnd_fill(xa, N * SIZE, 3);
        rnd_fill(w, N * HEADS, 30);
        level[CPU_REF]->ops->query_keep(level[CPU_REF], keep, xa, w, type, N, HEADS, DIM);
        for (int r = 0; r < N; r++)
            for (int k = 0; k < 2; k++) {
                bool kept = r == 2 || (r == 0 && k == 0);
                char want[128];
                memset(want, 0x11, sizeof want);
                for (int i = 0; kept && i < SIZE; i++)
                    elem_store(type, want, (size_t)i, xa[r * SIZE + i]);
                if (kept)
                    memcpy(want + at, w + r * HEADS, HEADS * sizeof(float));
                assert_memory_equal(record[r][k], want, sizeof want);
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),       cmocka_unit_test(test_open_out_of_memory),
        cmocka_unit_test(test_memory),     cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_add_gather), cmocka_unit_test(test_rmsnorm_value),
        cmocka_unit_test(test_swiglu),     cmocka_unit_test(test_rope),
        cmocka_unit_test(test_half),       cmocka_unit_test(test_kv_append),
        cmocka_unit_test(test_query_keep),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
