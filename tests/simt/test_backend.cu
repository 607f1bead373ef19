/* The CUDA backend as its caller sees it: opening, memory, and a device that fails. On the simulated device, because a
 * real one cannot be made to fail. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <vector>

extern "C" {
#include <cmocka.h>

#include "kernels/backend.h"
#include "server/base/mem.h"
#include "tests/tools/forms.h"
}
#include "tests/simt/simt.h"

static struct be *open_cuda(const char *device = "cuda")
{
    struct be *be = NULL;
    struct err e;
    struct be_config c = {};
    c.device = device;
    c.n_threads = 1;
    if (be_open(&be, &c, &e) < 0)
        fail_msg("%s", e.text);
    return be;
}

static int open_fails(const char *device, const char *says)
{
    struct be *be = NULL;
    struct err e;
    struct be_config c = {};
    c.device = device;
    int rc = be_open(&be, &c, &e);
    assert_true(rc < 0);
    assert_null(be);
    if (strstr(e.text, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
    return rc;
}

static int reset(void **state)
{
    (void)state;
    simt_reset();
    simt_set_devices(1);
    simt_set_capability(9, 0);
    simt_set_loads(1);
    simt_set_memory((size_t)8 << 30);
    struct simt_stats s;
    simt_stats(&s);
    return s.device_allocations == 0 && s.pinned_allocations == 0 ? 0 : -1;
}

static void test_names(void **)
{
    struct be *be = open_cuda();
    assert_string_equal(be->ops->name, "cuda");
    assert_false(be->host);
    assert_int_equal(strncmp(be->device, "cuda:0 (", 8), 0);
    be_close(be);
    assert_int_equal(open_fails("cuda:1", "no GPU 1"), ERR_DEVICE);
    assert_int_equal(open_fails("cuda:x", "cuda:N"), ERR_INVALID);
    assert_int_equal(open_fails("cuda:", "cuda:N"), ERR_INVALID);
    assert_int_equal(open_fails("cudas", "unknown device"), ERR_INVALID);
    simt_set_devices(0);
    assert_int_equal(open_fails("cuda", "no NVIDIA GPU"), ERR_DEVICE);
    simt_set_devices(1);
    simt_set_capability(7, 5);
    assert_int_equal(open_fails("cuda", "sm_75"), ERR_DEVICE);
    simt_set_capability(12, 0);
    simt_set_loads(0);
    assert_int_equal(open_fails("cuda", "sm_120: its driver takes no code"), ERR_DEVICE);
}

/* Every allocation of an open may fail, on either side: an error, and nothing stays behind. */
static void test_open_out_of_memory(void **)
{
    struct mem_stats before, after;
    mem_stats(&before);
    for (int device = 0; device < 2; device++) {
        int rc = -1;
        for (uint64_t n = 1; rc < 0; n++) {
            struct be *be = NULL;
            struct err e;
            struct be_config c = {};
            c.device = "cuda";
            c.n_threads = 1;
            assert_true(n < 100);
            device ? simt_fail_malloc_at(n) : mem_fail_at(n);
            rc = be_open(&be, &c, &e);
            simt_fail_malloc_at(0);
            mem_fail_at(0);
            if (rc < 0)
                assert_int_equal(rc, ERR_NOMEM);
            be_close(be);
            struct simt_stats s;
            simt_stats(&s);
            mem_stats(&after);
            assert_int_equal(after.blocks, before.blocks);
            assert_int_equal(s.device_allocations + s.pinned_allocations, 0);
        }
    }
}

static void *alloc_there(void *be)
{
    return ((struct be *)be)->ops->alloc((struct be *)be, 1000);
}

/* A thread that has done nothing yet, as the engine's, allocates on the GPU that another one opened. */
static void test_other_threads(void **)
{
    struct err e;
    pthread_t thread;
    void *p = NULL;
    simt_set_devices(2);
    struct be *be = open_cuda("cuda:1");
    assert_int_equal(strncmp(be->device, "cuda:1 (", 8), 0);
    assert_int_equal(pthread_create(&thread, NULL, alloc_there, be), 0);
    assert_int_equal(pthread_join(thread, &p), 0);
    assert_non_null(p);
    assert_int_equal(be->ops->sync(be, &e), 0);
    be->ops->free(be, p, 1000);
    be_close(be);
}

/* A full device refuses and goes on. */
static void test_full(void **)
{
    struct err e;
    struct be *be = open_cuda();
    size_t room, total;
    be->ops->memory(be, &room, &total);
    assert_true(room > 0 && room <= total);
    assert_null(be->ops->alloc(be, total + 1));
    char *p = (char *)be->ops->alloc(be, 1000);
    assert_non_null(p);
    char back[1000];
    be->ops->download(be, back, p, sizeof back);
    for (size_t i = 0; i < sizeof back; i++)
        assert_int_equal(back[i], 0);
    assert_int_equal(be->ops->sync(be, &e), 0);
    be->ops->free(be, p, 1000);
    be_close(be);
}

/* More than the pinned buffer at once, in both directions. */
static void test_long_copies(void **)
{
    struct err e;
    struct be *be = open_cuda();
    size_t n = (20 << 20) + 13;
    unsigned char *src = (unsigned char *)mem_alloc(n), *dst = (unsigned char *)mem_alloc(n);
    for (size_t i = 0; i < n; i++)
        src[i] = (unsigned char)(i * 2654435761u >> 24);
    void *p = be->ops->alloc(be, n);
    be->ops->upload(be, p, src, n);
    be->ops->download(be, dst, p, n);
    assert_int_equal(be->ops->sync(be, &e), 0);
    assert_memory_equal(src, dst, n);
    be->ops->free(be, p, n);
    mem_free(src);
    mem_free(dst);
    be_close(be);
}

/* Many small ones, together more than the pinned buffer; each source is free again when the upload returns. */
static void test_many_uploads(void **)
{
    enum { N = 3001, BYTES = 5003 };
    struct err e;
    struct be *be = open_cuda();
    unsigned char src[BYTES], *dst = (unsigned char *)mem_alloc((size_t)N * BYTES);
    char *p = (char *)be->ops->alloc(be, (size_t)N * BYTES);
    for (int i = 0; i < N; i++) {
        memset(src, i % 251, sizeof src);
        be->ops->upload(be, p + (size_t)i * BYTES, src, sizeof src);
    }
    be->ops->download(be, dst, p, (size_t)N * BYTES);
    assert_int_equal(be->ops->sync(be, &e), 0);
    for (int i = 0; i < N; i++) {
        memset(src, i % 251, sizeof src);
        assert_memory_equal(dst + (size_t)i * BYTES, src, sizeof src);
    }
    be->ops->free(be, p, (size_t)N * BYTES);
    mem_free(dst);
    be_close(be);
}

/* From the failure on nothing runs, nothing crashes, and sync() tells the first reason each time. */
static void test_lost_device(void **)
{
    struct err e = {}, again = {};
    struct be *be = open_cuda();
    enum { N = 64 };
    float host[N] = { 1 };
    float *x = (float *)be->ops->alloc(be, sizeof host);
    float *y = (float *)be->ops->alloc(be, sizeof host);
    be->ops->upload(be, x, host, sizeof host);
    be->ops->add(be, y, x, 1, N);
    assert_int_equal(be->ops->sync(be, &e), 0);
    simt_lose_device_after(1);
    be->ops->add(be, y, x, 1, N);
    be->ops->add(be, y, x, 1, N);
    assert_int_equal(be->ops->sync(be, &e), ERR_DEVICE);
    assert_non_null(strstr(e.text, "GPU 0 failed"));
    be->ops->add(be, y, x, 1, N);
    be->ops->download(be, host, y, sizeof host);
    assert_true(host[0] == 0);
    assert_null(be->ops->alloc(be, 16));
    assert_int_equal(be->ops->sync(be, &again), ERR_DEVICE);
    assert_string_equal(e.text, again.text);

    struct be_step step = {};
    int32_t zero = 0;
    struct be_seq seq = {};
    seq.n_rows = 1;
    seq.kv.wide = &zero;
    step.n_rows = step.n_seqs = step.n_layers = step.n_kv_heads = 1;
    step.token = step.pos = &zero;
    step.seqs = &seq;
    assert_true(be->ops->step_begin(be, &step, be));
    be->ops->step_end(be);
    assert_int_equal(be->ops->sync(be, &again), ERR_DEVICE);
    be->ops->free(be, x, sizeof host);
    be->ops->free(be, y, sizeof host);
    be_close(be);
}

/* One decode step of one row, in which x is added to y. True: it was replayed. */
static bool add_in_step(struct be *be, const void *owner, float *y, const float *x, int n)
{
    struct be_step step = {};
    struct be_seq seq = {};
    int32_t zero = 0;
    seq.n_rows = 1;
    seq.kv.wide = &zero;
    step.n_rows = step.n_seqs = step.n_out = step.n_layers = step.n_kv_heads = 1;
    step.token = step.pos = step.out_row = &zero;
    step.seqs = &seq;
    bool replayed = be->ops->step_begin(be, &step, owner);
    if (!replayed)
        be->ops->add(be, y, x, 1, n);
    be->ops->step_end(be);
    return replayed;
}

/* A device without memory for one more recorded pass gives that of the others to it. */
static void test_full_of_passes(void **)
{
    enum { N = 64 };
    struct err e;
    struct be *be = open_cuda();
    float host[N] = { 1 }, back[N];
    float *x = (float *)be->ops->alloc(be, sizeof host);
    float *y = (float *)be->ops->alloc(be, sizeof host);
    be->ops->upload(be, x, host, sizeof host);
    const int one = 0, two = 0;
    assert_false(add_in_step(be, &one, y, x, N)); /* seen, recorded, replayed */
    assert_false(add_in_step(be, &one, y, x, N));
    assert_true(add_in_step(be, &one, y, x, N));
    assert_false(add_in_step(be, &two, y, x, N));
    simt_fail_malloc_at(1);
    assert_false(add_in_step(be, &two, y, x, N));
    assert_true(add_in_step(be, &two, y, x, N));
    assert_false(add_in_step(be, &one, y, x, N));
    be->ops->download(be, back, y, sizeof back);
    assert_int_equal(be->ops->sync(be, &e), 0);
    assert_true(back[0] == 7); /* y began with zeros: every step has run once */
    be->ops->free(be, x, sizeof host);
    be->ops->free(be, y, sizeof host);
    be_close(be);
}

enum { ROWS = 80, COLS = 256 };

/* y = W x of n rows by a device of that capability. */
static std::vector<float> product(const struct form *f, const uint8_t *raw, int major, int minor,
                                  int n)
{
    struct err e;
    struct weight w = {};
    std::vector<float> x((size_t)n * COLS), y((size_t)n * ROWS);
    simt_set_capability(major, minor);
    struct be *be = open_cuda();
    if (form_open(&w, be, f, true, ROWS, COLS, raw, &e) < 0)
        fail_msg("%s: %s", f->form, e.text);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = (float)(i * 2654435761u % 1001) / 500 - 1;
    size_t ws_bytes = input_ws_bytes(be, n, COLS);
    void *dx = be->ops->alloc(be, x.size() * sizeof(float));
    float *dy = (float *)be->ops->alloc(be, y.size() * sizeof(float));
    void *ws = be->ops->alloc(be, ws_bytes);
    be->ops->upload(be, dx, x.data(), x.size() * sizeof(float));
    struct input in;
    input_set(&in, (const float *)dx, n, COLS, ws);
    struct matmul to = { &w, NULL, dy };
    weight_matmul(be, &in, &to, 1);
    be->ops->download(be, y.data(), dy, y.size() * sizeof(float));
    if (be->ops->sync(be, &e) < 0)
        fail_msg("%s, %d rows on sm_%d%d: %s; %s", f->form, n, major, minor, e.text, simt_report());
    be->ops->free(be, dx, x.size() * sizeof(float));
    be->ops->free(be, dy, y.size() * sizeof(float));
    be->ops->free(be, ws, ws_bytes);
    weight_close(&w, be);
    be_close(be);
    return y;
}

/* Products of many rows are another kernel's where a warpgroup multiplies together: with the same bits, for all forms. */
static void test_products_of_both_kinds(void **)
{
    static const int rows[] = { 20, 40, 72 };
    std::vector<uint8_t> raw(ROWS * COLS * 4);
    for (const struct form &f : form_list)
        for (int n : rows) {
            form_blocks(f.from, raw.data(), ROWS, COLS);
            std::vector<float> old = product(&f, raw.data(), 8, 0, n);
            std::vector<float> wide = product(&f, raw.data(), 9, 0, n);
            if (memcmp(old.data(), wide.data(), old.size() * sizeof(float)) != 0)
                fail_msg("%s, %d rows: other bits on sm_90", f.form, n);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_names, reset, reset),
        cmocka_unit_test_setup_teardown(test_open_out_of_memory, reset, reset),
        cmocka_unit_test_setup_teardown(test_other_threads, reset, reset),
        cmocka_unit_test_setup_teardown(test_full, reset, reset),
        cmocka_unit_test_setup_teardown(test_long_copies, reset, reset),
        cmocka_unit_test_setup_teardown(test_many_uploads, reset, reset),
        cmocka_unit_test_setup_teardown(test_lost_device, reset, reset),
        cmocka_unit_test_setup_teardown(test_full_of_passes, reset, reset),
        cmocka_unit_test_setup_teardown(test_products_of_both_kinds, reset, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
