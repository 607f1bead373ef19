/* Pressing on a device that does it by itself, on the simulated one: the same slots as on the CPU, with values as close as f32
 * sums in another order are; no page goes over the bus; a device or an allocation that fails leaves all as it was. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

extern "C" {
#include <cmocka.h>

#include "server/base/mem.h"
#include "tests/tools/kv_world.h"
}
#include "tests/simt/simt.h"

static struct kv_world cpu, gpu;
static struct be_ops ops; /* the device's, with changes */
static size_t downloaded;
static int n_uploads;
enum { MOST_UPLOADS = 25 }; /* tables; pages would be more */

static void counted_download(struct be *be, void *dst, const void *src, size_t bytes)
{
    downloaded += bytes;
    gpu.be->ops->download(be, dst, src, bytes);
}

static void counted_upload(struct be *be, void *dst, const void *src, size_t bytes)
{
    n_uploads++;
    gpu.be->ops->upload(be, dst, src, bytes);
}

static void open_q8(bool q8, enum kv_type type)
{
    if (q8)
        kv_world_open_q8(&cpu, 2, false);
    else
        kv_world_open(&cpu, type, 2, false);
    kv_world_open_cuda(&gpu, type, q8 ? KV_NARROW_Q8 : KV_NARROW_SAME);
    ops = *gpu.be->ops;
    ops.download = counted_download;
    ops.upload = counted_upload;
    gpu.far.ops = &ops;
    gpu.far.isa = CPU_REF; /* of the fits, as on the CPU */
}

static void open_both(enum kv_type type)
{
    open_q8(false, type);
}

static void close_both()
{
    struct mem_stats m;
    kv_world_close(&cpu);
    kv_world_close(&gpu);
    mem_stats(&m);
    assert_int_equal(m.blocks, 0);
}

static void check_close(double got, double want, double tolerance, const char *what)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s is %g, not %g", what, got, want);
}

/* The same slots, and what lies in them: kept as it was or, where a merge changed it, within `tolerance`. */
static void check_same_slots(const struct kv_seq *a, const struct kv_seq *b, double tolerance)
{
    static struct kv_slots want, got;
    for (int i = 0; i < KV_ALL; i++) {
        kv_slots_read(&cpu, a, i / KV_HEADS, i % KV_HEADS, &want);
        kv_slots_read(&gpu, b, i / KV_HEADS, i % KV_HEADS, &got);
        assert_int_equal(got.n, want.n);
        for (int j = 0; j < want.n; j++) {
            assert_int_equal(got.pos[j], want.pos[j]);
            check_close(got.beta[j], want.beta[j], tolerance, "a bias");
            for (int d = 0; d < KV_DIM; d++) {
                check_close(got.k[j][d], want.k[j][d], tolerance, "a key");
                check_close(got.v[j][d], want.v[j][d], tolerance, "a value");
            }
        }
        for (int j = 0; j < a->n_narrow[i]; j++)
            check_close(b->slot[i][j].score, a->slot[i][j].score, 1e-6, "a score");
    }
}

/* Pressed after the prompt, and again when it has grown. */
static void check_policy(const struct kv_options *o, double tolerance)
{
    struct kv_seq a, b;
    kv_world_start(&cpu, &a, o, 300, 600);
    kv_world_start(&gpu, &b, o, 300, 600);
    for (int again = 0; again < 2; again++) {
        struct kv_report want = kv_world_press(&cpu, &a);
        downloaded = 0;
        n_uploads = 0;
        struct kv_report got = kv_world_press(&gpu, &b);
        assert_int_equal(downloaded, 0);
        assert_true(n_uploads < MOST_UPLOADS);
        assert_int_equal(got.kept, want.kept);
        assert_int_equal(got.merged, want.merged);
        check_close(got.mass_min, want.mass_min, 1e-5, "the least mass");
        check_close(got.mass_mean, want.mass_mean, 1e-5, "the mean mass");
        check_same_slots(&a, &b, tolerance);
        kv_world_grow(&cpu, &a, 460);
        kv_world_grow(&gpu, &b, 460);
    }
    kv_seq_close(&a, cpu.p);
    kv_seq_close(&b, gpu.p);
}

static void test_same_slots(void **)
{
    open_both(KV_F32);
    struct kv_options o = kv_world_options(&kv_world_evict, 64);
    check_policy(&o, 0);
    o.question0 = 280;
    o.question1 = 290;
    check_policy(&o, 0);
    o = kv_world_options(kv_policy_find("ems"), 64);
    o.merge = KV_MERGE_VOTES;
    check_policy(&o, 1e-4);
    o.merge = KV_MERGE_VALUES;
    check_policy(&o, 1e-3);
    o.merge = KV_MERGE_FIT;
    check_policy(&o, 1e-3);
    o.split = KV_SPLIT_ADA; /* heads of different sizes */
    check_policy(&o, 1e-3);
    close_both();
}

/* Layer by layer, each probed alone: the bits of all at once, and no page comes to the host either. */
static void test_by_layer(void **)
{
    for (int type = 0; type < KV_TYPE_N; type++) {
        open_both((enum kv_type)type);
        struct kv_options o = kv_world_options(kv_policy_find("ems"), 64);
        o.merge = KV_MERGE_FIT;
        uint64_t bits[2];
        for (int way = 0; way < 2; way++) {
            struct kv_seq s;
            struct kv_report r = {};
            struct err e;
            o.layer_major = way;
            kv_world_start(&gpu, &s, &o, 300, 600);
            while (!kv_seq_pressed(&s)) {
                kv_world_grow(&gpu, &s, 300);
                downloaded = 0;
                assert_int_equal(kv_compact(gpu.c, &s, &r, &e), 0);
                assert_int_equal(downloaded, 0);
            }
            assert_int_equal(r.n_compactions, 1);
            bits[way] = kv_world_bits(&gpu, &s);
            kv_seq_close(&s, gpu.p);
        }
        assert_true(bits[0] == bits[1]);
        close_both();
    }
}

/* 16-bit caches round queries and weights: other slots may be kept, but they hold as much attention. */
static void test_same_mass(void **)
{
    for (int type = 0; type < KV_TYPE_N; type++) {
        open_both((enum kv_type)type);
        struct kv_options o = kv_world_options(&kv_world_evict, 64);
        struct kv_seq a, b;
        kv_world_start(&cpu, &a, &o, 300, 300);
        kv_world_start(&gpu, &b, &o, 300, 300);
        struct kv_report want = kv_world_press(&cpu, &a), got = kv_world_press(&gpu, &b);
        check_close(got.mass_mean, want.mass_mean, 2e-3, "the mean mass");
        kv_seq_close(&a, cpu.p);
        kv_seq_close(&b, gpu.p);
        close_both();
    }
}

static int no_probe(struct be *, const struct be_probe *)
{
    return 0;
}

/* There is room for one slot less than a head keeps: the budget is 64, and 12 tokens of 300 are in the last page. */
static int short_probe(struct be *be, const struct be_probe *p)
{
    assert_true(gpu.be->ops->probe(be, p) > 64);
    return 64 - 12 - 1;
}

/* Pressed again, so that q8 pages are probed and read, on the device and over the host. */
static void test_q8(void **)
{
    for (int over_host = 0; over_host < 2; over_host++) {
        open_q8(true, KV_BF16);
        struct kv_options o = kv_world_options(&kv_world_evict, 100);
        struct kv_seq a, b;
        if (over_host)
            ops.probe = no_probe;
        kv_world_start(&cpu, &a, &o, 300, 600);
        kv_world_start(&gpu, &b, &o, 300, 600);
        for (int again = 0; again < 2; again++) {
            struct kv_report want = kv_world_press(&cpu, &a), got = kv_world_press(&gpu, &b);
            assert_int_equal(got.kept, want.kept);
            check_close(got.mass_mean, want.mass_mean, 2e-3, "the mean mass");
            if (over_host)
                check_same_slots(&a, &b, 0);
            kv_world_grow(&cpu, &a, 460);
            kv_world_grow(&gpu, &b, 460);
        }
        kv_seq_close(&a, cpu.p);
        kv_seq_close(&b, gpu.p);
        close_both();
    }
}

/* What asks for keys and values, and a head that does not fit to be probed or to be pressed, take the way over the host. */
static void test_over_the_host(void **)
{
    open_both(KV_F32);
    struct kv_options o = kv_world_options(&kv_world_evict, 64);
    for (int i = 0; i < 3; i++) {
        struct kv_seq a, b;
        o.merge = i == 0 ? KV_MERGE_MEAN : i == 1 ? KV_MERGE_NONE : KV_MERGE_FIT;
        if (i > 0)
            ops.probe = i == 1 ? no_probe : short_probe;
        kv_world_start(&cpu, &a, &o, 300, 300);
        kv_world_start(&gpu, &b, &o, 300, 300);
        kv_world_press(&cpu, &a);
        downloaded = 0;
        kv_world_press(&gpu, &b);
        assert_true(downloaded > 0);
        check_same_slots(&a, &b, 1e-5);
        kv_seq_close(&a, cpu.p);
        kv_seq_close(&b, gpu.p);
    }
    close_both();
}

/* Each host allocation of a compaction fails in turn: the sequence stays what it was, then is pressed. */
static void test_out_of_memory(void **)
{
    open_both(KV_F32);
    struct kv_options o = kv_world_options(&kv_world_evict, 64);
    struct kv_seq s;
    struct kv_report r = {};
    struct err e;
    kv_world_start(&gpu, &s, &o, 300, 300);
    uint64_t bits = kv_world_bits(&gpu, &s);
    int rc = -1, failed = 0;
    for (uint64_t n = 1; rc < 0; n++) {
        kv_world_compactor(&gpu);
        mem_fail_at(n);
        rc = kv_compact(gpu.c, &s, &r, &e);
        mem_fail_at(0);
        if (rc < 0) {
            failed++;
            assert_int_equal(rc, ERR_NOMEM);
            assert_true(kv_world_bits(&gpu, &s) == bits);
        }
        assert_true(n < 1000);
    }
    assert_true(failed >= 5);
    assert_true(kv_pool_check(gpu.p));
    kv_seq_close(&s, gpu.p);
    close_both();
}

/* The device is lost at its n-th kernel: an error, and nothing is held after the sequence is closed. How many kernels there
 * were. */
static int kernels_lost(enum kv_merge merge)
{
    int lost = 0;
    for (uint64_t n = 1; n < 1000; n++) {
        open_both(KV_F32);
        struct kv_options o = kv_world_options(&kv_world_evict, 64);
        struct kv_seq s;
        struct kv_report r = {};
        struct err e;
        o.merge = merge;
        kv_world_start(&gpu, &s, &o, 300, 300);
        simt_lose_device_after(n);
        int rc = kv_compact(gpu.c, &s, &r, &e);
        simt_lose_device_after(0);
        if (rc < 0) {
            lost++;
            assert_int_equal(rc, ERR_DEVICE);
            assert_false(kv_seq_pressed(&s));
            assert_int_equal(r.n_compactions, 0);
        }
        kv_seq_close(&s, gpu.p);
        close_both();
        simt_reset();
        if (rc == 0)
            break;
    }
    return lost;
}

static void test_lost(void **)
{
    /* turn_rows, probe_rows, probe_columns; gather_kept, write_pages */
    assert_int_equal(kernels_lost(KV_MERGE_NONE), 5);
    /* and turn_rows, probe_rows again, logits, soften_rows, fit_votes */
    assert_int_equal(kernels_lost(KV_MERGE_VOTES), 10);
    /* and weigh_rows, residual, gram, columns, solve_values, add_values */
    assert_int_equal(kernels_lost(KV_MERGE_FIT), 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_slots),
        cmocka_unit_test(test_same_mass),
        cmocka_unit_test(test_q8),
        cmocka_unit_test(test_by_layer),
        cmocka_unit_test(test_over_the_host),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
