/* Counted memory, arenas, bounded buffers and files: contents, ceilings, and every allocation failing in turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/err.h"
#include "server/base/mem.h"
#include "server/base/table.h"

static struct mem_stats before;

static int setup(void **state)
{
    (void)state;
    mem_stats(&before);
    return 0;
}

/* Nothing a test allocates may outlive it. */
static int teardown(void **state)
{
    (void)state;
    struct mem_stats now;
    mem_fail_at(0);
    mem_stats(&now);
    return now.blocks == before.blocks && now.bytes == before.bytes ? 0 : -1;
}

static void test_counts(void **state)
{
    (void)state;
    struct mem_stats s;
    char *p = mem_alloc(100);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 16, 0);
    mem_stats(&s);
    assert_int_equal(s.calls - before.calls, 1);
    assert_int_equal(s.blocks - before.blocks, 1);
    assert_int_equal(s.bytes - before.bytes, 100);
    memset(p, 7, 100);
    p = mem_realloc(p, 5000);
    assert_non_null(p);
    assert_int_equal(p[99], 7);
    mem_stats(&s);
    assert_int_equal(s.bytes - before.bytes, 5000);
    assert_true(s.peak >= before.bytes + 5000);
    mem_free(p);
    mem_free(NULL);
}

static void test_bad_sizes(void **state)
{
    (void)state;
    assert_null(mem_alloc(0));
    assert_null(mem_alloc(SIZE_MAX));
    assert_null(mem_alloc((size_t)PTRDIFF_MAX));
    assert_null(mem_zalloc(SIZE_MAX / 2, 3));
    assert_null(mem_zalloc(0, 8));
    assert_null(mem_map(0));
    assert_null(mem_map(SIZE_MAX));
    assert_null(mem_strndup("x", SIZE_MAX));
    char *p = mem_alloc(8);
    assert_null(mem_realloc(p, 0));
    assert_null(mem_realloc(p, SIZE_MAX));
    mem_free(p);
}

static void test_zero_and_dup(void **state)
{
    (void)state;
    unsigned char *p = mem_zalloc(1000, 3);
    for (int i = 0; i < 3000; i++)
        assert_int_equal(p[i], 0);
    mem_free(p);
    char *s = mem_strdup("wring");
    assert_string_equal(s, "wring");
    mem_free(s);
    s = mem_strndup("wring", 2);
    assert_string_equal(s, "wr");
    mem_free(s);
}

static void test_map(void **state)
{
    (void)state;
    size_t n = (size_t)64 << 20;
    unsigned char *p = mem_map(n);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 4096, 0);
    assert_int_equal(p[0] | p[n / 2] | p[n - 1], 0);
    p[n - 1] = 1;
    mem_unmap(p, n);
    mem_unmap(NULL, 1);
}

static void test_fail_at(void **state)
{
    (void)state;
    mem_fail_at(2);
    void *a = mem_alloc(1);
    void *b = mem_alloc(1);
    void *c = mem_alloc(1);
    assert_non_null(a);
    assert_null(b);
    assert_non_null(c); /* it fails once */
    mem_fail_at(1);
    assert_null(mem_map(4096));
    mem_fail_at(1);
    assert_null(mem_realloc(a, 64)); /* a stays valid */
    mem_free(a);
    mem_free(c);
}

static void test_arena(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a, 100000);
    unsigned char *last = NULL;
    for (size_t i = 1; i < 200; i++) {
        unsigned char *p = arena_alloc(&a, i);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t k = 0; k < i; k++)
            assert_int_equal(p[k], 0);
        memset(p, 0xFF, i);
        assert_ptr_not_equal(p, last);
        last = p;
    }
    assert_string_equal(arena_strndup(&a, "abcdef", 3), "abc");
    assert_non_null(arena_alloc(&a, 50000)); /* larger than a chunk */
    assert_null(arena_alloc(&a, 50000));     /* past the ceiling */
    assert_null(arena_alloc(&a, 0));
    assert_null(arena_alloc(&a, SIZE_MAX));
    assert_non_null(arena_alloc(&a, 16));
    arena_clear(&a);
    assert_non_null(arena_alloc(&a, 100000));
    arena_clear(&a);
    arena_init(&a, SIZE_MAX);
    assert_null(arena_alloc(&a, SIZE_MAX - 3));
    arena_clear(&a);
}

static void test_buf(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 20);
    assert_string_equal(buf_str(&b), "");
    assert_int_equal(buf_adds(&b, "hello"), 0);
    assert_int_equal(buf_addc(&b, ' '), 0);
    assert_int_equal(buf_addf(&b, "%d-%s", 42, "x"), 0);
    assert_string_equal(b.data, "hello 42-x");
    buf_shift(&b, 6);
    assert_string_equal(b.data, "42-x");
    assert_int_equal(buf_add(&b, "0123456789abcdef", 16), 0);
    assert_int_equal(b.len, 20);
    assert_int_equal(buf_addc(&b, '!'), ERR_LIMIT); /* all or nothing */
    assert_int_equal(b.len, 20);
    buf_shift(&b, 5);
    assert_int_equal(buf_adds(&b, "x"), ERR_LIMIT); /* bad until cleared */
    assert_null(buf_detach(&b));
    assert_int_equal(buf_adds(&b, "again"), 0);
    char *p = buf_detach(&b);
    assert_string_equal(p, "again");
    mem_free(p);
    p = buf_detach(&b);
    assert_string_equal(p, "");
    mem_free(p);
    buf_shift(&b, 10);
    buf_init(&b, SIZE_MAX);
    assert_int_equal(buf_reserve(&b, SIZE_MAX), ERR_LIMIT);
    buf_clear(&b);
    assert_int_equal(buf_adds(&b, "x"), 0);
    buf_free(&b);
}

/* A little of everything that allocates; true when all of it worked. */
static bool exercise(void)
{
    struct arena a;
    struct buf b;
    struct table *t = NULL;
    const struct table_col col[] = { { "k", "K" }, { "v", "V" } };
    arena_init(&a, (size_t)1 << 20);
    buf_init(&b, (size_t)1 << 20);
    bool ok = true;
    for (int i = 0; i < 100; i++)
        ok = arena_alloc(&a, 1000) != NULL && ok;
    if (table_open(&t, col, 2) == 0) {
        for (int i = 0; i < 100; i++) {
            table_str(t, "name");
            table_num(t, i, 2);
        }
        int rc = table_print(t, false, &b);
        assert_true(rc == 0 || rc == ERR_NOMEM);
        assert_true(rc == 0 || rc == table_print(t, true, &b));
        ok = ok && rc == 0;
    } else {
        ok = false;
    }
    assert_int_equal(b.bad, b.bad == 0 ? 0 : ERR_NOMEM);
    for (int i = 0; i < 1000; i++)
        buf_addf(&b, "%d ", i);
    ok = ok && b.bad == 0;
    char *p = buf_detach(&b);
    ok = ok && p != NULL;
    mem_free(p);
    table_close(t);
    arena_clear(&a);
    return ok;
}

static void test_each_allocation_fails(void **state)
{
    (void)state;
    struct mem_stats was;
    struct mem_stats now;
    assert_true(exercise());
    for (uint64_t n = 1;; n++) {
        mem_stats(&was);
        mem_fail_at(n);
        bool ok = exercise();
        mem_fail_at(0);
        mem_stats(&now);
        assert_int_equal(now.blocks, was.blocks);
        assert_int_equal(now.bytes, was.bytes);
        if (now.calls - was.calls < n) {
            assert_true(ok); /* more than there were: every one has failed once */
            assert_true(n > 20);
            return;
        }
        assert_false(ok);
    }
}

static int entries(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n - 2;
}

static void test_files(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct buf b;
    const char *tmp = getenv("TMPDIR");
    char dir[256];
    char path[300];
    snprintf(dir, sizeof dir, "%s/wring-file-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a", dir);
    assert_int_equal(file_write_atomic(path, "one", 3, &e), 0);
    assert_int_equal(file_write_atomic(path, "second", 6, &e), 0);
    assert_int_equal(entries(dir), 1);
    buf_init(&b, 6);
    assert_int_equal(buf_read_file(&b, path, &e), 0);
    assert_string_equal(buf_str(&b), "second");
    buf_free(&b);
    buf_init(&b, 5);
    assert_int_equal(buf_read_file(&b, path, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, path));
    buf_free(&b);
    assert_int_equal(buf_read_file(&b, "/nonexistent/x", &e), ERR_NOTFOUND);
    assert_int_equal(buf_read_file(&b, dir, NULL), ERR_IO);
    buf_free(&b);
    unlink(path);
    /* The target is a directory: rename fails, and the temporary file is gone. */
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(file_write_atomic(path, "x", 1, &e), ERR_IO);
    assert_int_equal(entries(dir), 1);
    rmdir(path);
    assert_int_equal(file_write_atomic("/nonexistent/x", "x", 1, &e), ERR_IO);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_zero_and_dup, setup, teardown),
        cmocka_unit_test_setup_teardown(test_map, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fail_at, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arena, setup, teardown),
        cmocka_unit_test_setup_teardown(test_buf, setup, teardown),
        cmocka_unit_test_setup_teardown(test_each_allocation_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(test_files, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
