/* Reading by both methods, with and without the page cache: every byte arrives, short files and refusals are errors. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/io.h"

enum { SIZE = (9 << 20) + 12345, MAX_REQUESTS = 64 };

static char path[64];
static int fd;

static uint8_t byte_at(uint64_t i)
{
    return (uint8_t)((i * 2654435761u) >> 13);
}

struct check {
    bool seen[MAX_REQUESTS];
    const struct io_request *req;
    int calls, stop_at;
    bool wrong;
};

static int on_done(void *arg, const struct io_request *r, const void *data)
{
    struct check *c = arg;
    const uint8_t *p = data;
    c->wrong = c->wrong || c->seen[r - c->req];
    c->seen[r - c->req] = true;
    for (size_t i = 0; i < r->bytes; i++)
        c->wrong = c->wrong || p[i] != byte_at(r->offset + i);
    return ++c->calls == c->stop_at ? ERR_CANCELLED : 0;
}

/* The whole file in pieces of uneven sizes, from small to the largest possible; the last ends with the file. */
static int cut(struct io_request *req)
{
    static const size_t size[] = { 1, 100, 4096, 70000, 4095, 4 << 20, 1 << 20, 5000 };
    uint64_t at = 0;
    int n = 0;
    for (; at < SIZE; n++) {
        size_t left = (size_t)(SIZE - at);
        size_t bytes = size[n % 8] < left ? size[n % 8] : left;
        req[n] = (struct io_request){ .fd = fd, .path = path, .offset = at, .bytes = bytes };
        at += bytes;
    }
    return n;
}

static void drop_cache(void)
{
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

static int read_file(enum io_method method, int depth, struct check *c, struct io_report *rep,
                     struct err *e)
{
    struct io_request req[MAX_REQUESTS];
    int n = cut(req);
    memset(c, 0, sizeof *c);
    c->req = req;
    int rc = io_read(req, n, &(struct io_options){ method, depth }, on_done, c, rep, e);
    if (rc == 0) {
        assert_int_equal(c->calls, n);
        assert_int_equal(rep->bytes, SIZE);
    }
    assert_false(c->wrong);
    return rc;
}

static void reads(enum io_method method)
{
    static const int depth[] = { 0, 1, 3, 64 };
    struct check c;
    struct io_report rep;
    struct err e;
    for (int cached = 0; cached < 2; cached++)
        for (int i = 0; i < 4; i++) {
            if (cached == 0)
                drop_cache();
            if (read_file(method, depth[i], &c, &rep, &e) < 0)
                fail_msg("%s", e.text);
            if (method == IO_PREAD)
                assert_memory_equal(rep.method, "pread", 5);
        }
}

static void reads_by_pread(void **state)
{
    (void)state;
    reads(IO_PREAD);
}

/* io_uring where this kernel permits it. */
static void reads_by_either(void **state)
{
    (void)state;
    reads(IO_AUTO);
}

static void reads_nothing(void **state)
{
    (void)state;
    struct io_report rep;
    struct err e;
    assert_int_equal(io_read(NULL, 0, &(struct io_options){ 0 }, on_done, NULL, &rep, &e), 0);
    assert_int_equal(rep.bytes, 0);
}

static void names_short_files(void **state)
{
    (void)state;
    static const enum io_method method[] = { IO_PREAD, IO_AUTO };
    struct err e;
    struct io_report rep;
    char where[32];
    for (int i = 0; i < 4; i++) {
        struct io_request req = { .fd = fd, .path = path, .offset = SIZE - 100, .bytes = 101 };
        struct check c = { .req = &req };
        if (i >= 2)
            drop_cache();
        assert_int_equal(io_read(&req, 1, &(struct io_options){ .method = method[i % 2] }, on_done,
                                 &c, &rep, &e),
                         ERR_IO);
        assert_non_null(strstr(e.text, path));
        snprintf(where, sizeof where, "ends at byte %d", SIZE);
        assert_non_null(strstr(e.text, where));
        assert_int_equal(c.calls, 0);
    }
}

static void stops_when_told(void **state)
{
    (void)state;
    static const enum io_method method[] = { IO_PREAD, IO_AUTO };
    struct err e;
    struct io_report rep;
    struct io_request req[MAX_REQUESTS];
    int n = cut(req);
    for (int i = 0; i < 2; i++) {
        struct check c = { .req = req, .stop_at = 3 };
        assert_int_equal(
            io_read(req, n, &(struct io_options){ .method = method[i] }, on_done, &c, &rep, &e),
            ERR_CANCELLED);
        assert_int_equal(c.calls, 3);
    }
}

static void survives_no_memory(void **state)
{
    (void)state;
    struct mem_stats before;
    struct mem_stats after;
    struct check c;
    struct io_report rep;
    struct err e;
    mem_stats(&before);
    for (int m = 0; m < 2; m++)
        for (uint64_t n = 1; n < 20; n++) {
            mem_fail_at(n);
            int rc = read_file(m ? IO_PREAD : IO_AUTO, 0, &c, &rep, &e);
            mem_fail_at(0);
            if (rc == 0)
                break;
            assert_int_equal(rc, ERR_NOMEM);
        }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

/* A child whose kernel refuses io_uring reads by pread, unless io_uring was asked for by name. */
static int refused_child(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { sizeof code / sizeof code[0], code };
    struct check c;
    struct io_report rep;
    struct err e;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) != 0)
        return 77; /* no filters here */
    if (read_file(IO_AUTO, 0, &c, &rep, &e) != 0 || strncmp(rep.method, "pread", 5) != 0)
        return 1;
    if (read_file(IO_URING, 0, &c, &rep, &e) != ERR_UNSUPPORTED ||
        strstr(e.text, "not permitted") == NULL)
        return 2;
    return 0;
}

static void takes_a_refusal(void **state)
{
    (void)state;
    int status = 0;
    pid_t pid = fork();
    if (pid == 0)
        _exit(refused_child());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int set_up(void **state)
{
    (void)state;
    log_setup(&(struct log_config){ .level = LOG_E });
    snprintf(path, sizeof path, "/tmp/wring-test-io.XXXXXX");
    fd = mkstemp(path);
    uint8_t *p = mem_alloc(SIZE);
    if (fd < 0 || p == NULL)
        return -1;
    for (uint64_t i = 0; i < SIZE; i++)
        p[i] = byte_at(i);
    ssize_t n = write(fd, p, SIZE);
    mem_free(p);
    return n == SIZE ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    close(fd);
    unlink(path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_by_pread),  cmocka_unit_test(reads_by_either),
        cmocka_unit_test(reads_nothing),   cmocka_unit_test(names_short_files),
        cmocka_unit_test(stops_when_told), cmocka_unit_test(survives_no_memory),
        cmocka_unit_test(takes_a_refusal),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
