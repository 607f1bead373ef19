/* wring inspect on the toy model: its tables as JSON, one object a line, and its answers to wrong use. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/cli/cli.h"
#include "server/cli/fetch.h"
#include "tests/tools/toy.h"
#include "tests/tools/writing.h"

static char model[64];
static const char *inspected = model;

/* Runs the command; what it prints goes to out. */
static int inspect(struct buf *out, const char *a, const char *b, const char *c)
{
    char *argv[] = { (char *)inspected, (char *)a, (char *)b, (char *)c };
    int argc = c != NULL ? 4 : b != NULL ? 3 : a != NULL ? 2 : 1;
    char path[] = "/tmp/wring-test-inspect-out.XXXXXX";
    struct err e;
    int fd = mkstemp(path);
    int old = dup(STDOUT_FILENO);
    assert_true(fd >= 0 && old >= 0);
    fflush(stdout);
    dup2(fd, STDOUT_FILENO);
    int code = cmd_inspect(argc, argv);
    fflush(stdout);
    dup2(old, STDOUT_FILENO);
    close(old);
    close(fd);
    buf_init(out, 1 << 20);
    assert_int_equal(buf_read_file(out, path, &e), 0);
    unlink(path);
    return code;
}

/* The number `field` of the row whose `key` is `value`; -1: there is none. */
static double number_of(const struct buf *out, const char *key, const char *value,
                        const char *field)
{
    double number = -1;
    for (const char *p = buf_str(out); *p != 0;) {
        size_t n = strcspn(p, "\n");
        json_t *row = json_loadb(p, n, 0, NULL);
        assert_non_null(row);
        const char *s = json_string_value(json_object_get(row, key));
        if (s != NULL && strcmp(s, value) == 0) {
            assert_true(json_is_number(json_object_get(row, field)));
            number = json_number_value(json_object_get(row, field));
        }
        json_decref(row);
        p += n + (p[n] == '\n');
    }
    return number;
}

static double bytes_of(const struct buf *out, const char *key, const char *value)
{
    return number_of(out, key, value, "bytes");
}

static void prints_objects(void **state)
{
    (void)state;
    struct buf out;
    assert_int_equal(inspect(&out, "--json", "--ctx=100", "--kv-type=f32"), 0);
    int head = TOY_DIM / TOY_HEADS;
    assert_true(number_of(&out, "property", "layers", "value") == TOY_LAYERS);
    assert_true(number_of(&out, "property", "norm epsilon", "value") == 1e-5);
    /* As the pool of a server counts it: four pages, with the queries of four tokens each and the biases of narrow ones. */
    const struct kv_shape shape = { .n_layers = TOY_LAYERS,
                                    .n_kv_heads = TOY_KV_HEADS,
                                    .head_dim = head,
                                    .type = KV_F32,
                                    .n_heads = TOY_HEADS,
                                    .samples = 4 };
    double span = (double)kv_span_bytes(&shape);
    assert_true(span > KV_PAGE * 2.0 * TOY_LAYERS * TOY_KV_HEADS * head * sizeof(float));
    assert_true(bytes_of(&out, "memory", "kv cache f32") == 4 * span);
    assert_true(bytes_of(&out, "memory", "kv cache f16") == -1);
    assert_true(bytes_of(&out, "tensor", "output_norm.weight") == TOY_DIM * sizeof(float));
    double all = bytes_of(&out, "type", "all");
    assert_true(all > 0);
    assert_true(bytes_of(&out, "memory", "weights f32") >= bytes_of(&out, "memory", "weights q8"));
    assert_true(bytes_of(&out, "memory", "weights q8") > bytes_of(&out, "memory", "weights q4"));
    buf_free(&out);
}

static void prints_tables(void **state)
{
    (void)state;
    struct buf out;
    assert_int_equal(inspect(&out, NULL, NULL, NULL), 0);
    assert_non_null(strstr(buf_str(&out), "architecture"));
    assert_non_null(strstr(buf_str(&out), "blk.1.ffn_down.weight"));
    buf_free(&out);
}

/* A pressed matrix is one line, whatever tensors it is kept in, and is loaded as it is. */
static void shows_forms(void **state)
{
    (void)state;
    char folder[] = "/tmp/wring-test-inspect.XXXXXX";
    struct buf out;
    struct be *be;
    struct err e;
    inspected = mkdtemp(folder);
    assert_non_null(inspected);
    assert_int_equal(be_open(&be, &(struct be_config){ .device = "cpu", .n_threads = 1 }, &e), 0);
    writing_model(be, "tests/golden/archs/qwen2-biases", "q8", folder);
    be_close(be);
    assert_int_equal(inspect(&out, "--json", NULL, NULL), 0);
    double matrix = 96 * 64 * 8.5 / 8;
    assert_true(bytes_of(&out, "tensor", "blk.1.ffn_up.weight") == matrix);
    assert_true(bytes_of(&out, "tensor", "blk.1.ffn_up.codes") == -1);
    assert_true(bytes_of(&out, "tensor", "blk.1.attn_q.bias") == 64 * sizeof(float));
    double all = bytes_of(&out, "type", "all");
    assert_true(bytes_of(&out, "type", "q8") + bytes_of(&out, "type", "F32") == all);
    assert_true(bytes_of(&out, "memory", "weights auto") == all);
    assert_true(bytes_of(&out, "memory", "weights q4") == -1);
    buf_free(&out);
    fetch_remove(folder);
    inspected = model;
}

static void refuses_wrong_use(void **state)
{
    (void)state;
    struct buf out;
    assert_int_equal(inspect(&out, "--ctx", "0", NULL), 2);
    assert_int_equal(inspect(&out, "--ctx", NULL, NULL), 2);
    assert_int_equal(inspect(&out, "--kv-type", "q9", NULL), 2);
    assert_int_equal(inspect(&out, "second", NULL, NULL), 2);
    assert_int_equal(out.len, 0);
    assert_int_equal(inspect(&out, "--help", NULL, NULL), 0);
    assert_memory_equal(buf_str(&out), "Usage: wring inspect", 20);
    buf_free(&out);
}

static int set_up(void **state)
{
    (void)state;
    struct err e;
    snprintf(model, sizeof model, "/tmp/wring-test-inspect.XXXXXX");
    int fd = mkstemp(model);
    return fd < 0 || close(fd) < 0 ? -1 : toy_write(model, 1, &e);
}

static int tear_down(void **state)
{
    (void)state;
    unlink(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prints_objects),
        cmocka_unit_test(prints_tables),
        cmocka_unit_test(shows_forms),
        cmocka_unit_test(refuses_wrong_use),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
