/* wring eval tasks: files good and bad, and a toy model's answers against a plain loop over its logits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "server/cli/eval.h"
#include "server/cli/eval_tasks.h"
#include "server/cli/runner.h"
#include "tests/tools/printed.h"
#include "tests/tools/scratch.h"
#include "tests/tools/toy.h"

enum { MANY = 24, ROOM = 128 };

static struct toy toy;

static int open_toy(void **state)
{
    struct err e;
    TRY(scratch_open(state));
    return toy_open(&toy, 7, NULL, 2, NULL, &e);
}

static int close_toy(void **state)
{
    toy_close(&toy);
    return scratch_close(state);
}

static const char *write_text(const char *name, const char *text)
{
    const char *path = in_root(name);
    assert_int_equal(file_write_atomic(path, text, strlen(text), NULL), 0);
    return path;
}

/* ---- files ---------------------------------------------------------------------------------------------------------- */

#define GOOD "a cat sat\n1\non a mat\nin a hat\nthe end\nno\n"

static void reads_tasks(void **state)
{
    struct tasks t;
    struct err e;
    (void)state;
    /* line ends of DOS, none at the end */
    assert_int_equal(tasks_open(&t, write_text("two", GOOD "x\r\n3\r\na\r\nb\r\nc\r\nd"), 1, &e),
                     0);
    assert_int_equal(t.n, 2);
    const struct task *a = t.task[0].line == 1 ? &t.task[0] : &t.task[1];
    const struct task *b = a == t.task ? a + 1 : t.task;
    assert_string_equal(a->context, "a cat sat");
    assert_string_equal(a->ending[0], "on a mat");
    assert_string_equal(a->ending[3], "no");
    assert_true(a->right == 1 && a->line == 1);
    assert_string_equal(b->context, "x");
    assert_string_equal(b->ending[0], "a");
    assert_string_equal(b->ending[3], "d");
    assert_true(b->right == 3 && b->line == 7);
    tasks_close(&t);
}

static void says_which_line_is_wrong(void **state)
{
    static const struct {
        const char *text, *says;
        int code;
    } bad[] = {
        { "", "bad: the file is empty", ERR_FORMAT },
        { GOOD "x\n4\na\nb\nc\nd\n", "bad: line 8: \"4\" is no number of an ending, 0 to 3",
          ERR_FORMAT },
        { GOOD "x\nthe\na\nb\nc\nd\n", "line 8: \"the\"", ERR_FORMAT },
        { GOOD "x\n1 \na\nb\nc\nd\n", "line 8: \"1 \"", ERR_FORMAT },
        { GOOD "x\n1\na\n\nc\nd\n", "line 10: is empty", ERR_FORMAT },
        { GOOD "\n" GOOD, "line 7: is empty", ERR_FORMAT },
        { GOOD "x\n1\na\nb\n", "line 11: the file ends within a task", ERR_FORMAT },
        { "BZh91AY&SY", "bunzip2", ERR_UNSUPPORTED },
    };
    struct tasks t;
    struct err e;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(tasks_open(&t, write_text("bad", bad[i].text), 1, &e), bad[i].code);
        if (strstr(e.text, bad[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", e.text, bad[i].says);
    }
    assert_int_equal(tasks_open(&t, in_root("none"), 1, &e), ERR_NOTFOUND);
}

/* ---- order ---------------------------------------------------------------------------------------------------------- */

static const char *const word[] = { "the dog", "and a cat", "is in", "on the or", "he", "not so" };

/* A file of n tasks; right NULL: the third ending is right everywhere. */
static const char *write_tasks(const char *name, int n, const int *right)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    for (int i = 0; i < n; i++) {
        buf_addf(&b, "task %d is %s\n%d\n", i, word[i % 6], right != NULL ? right[i] : 2);
        for (int k = 0; k < TASK_ENDINGS; k++)
            buf_addf(&b, "%s %s%c\n", word[(i + k) % 6], word[i * 5 % (k + 2)], 'a' + i % 7 + k);
    }
    assert_int_equal(b.bad, 0);
    const char *path = write_text(name, buf_str(&b));
    buf_free(&b);
    return path;
}

static void has_one_order_a_seed(void **state)
{
    struct tasks t[3];
    struct err e;
    int moved = 0, differ = 0, seen[MANY] = { 0 };
    (void)state;
    const char *path = write_tasks("many", MANY, NULL);
    for (int i = 0; i < 3; i++)
        assert_int_equal(tasks_open(&t[i], path, i < 2 ? 1 : 2, &e), 0);
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(t[0].task[i].line, t[1].task[i].line);
        moved += t[0].task[i].line != 1 + 6 * i;
        differ += t[0].task[i].line != t[2].task[i].line;
        seen[t[0].task[i].line / 6]++;
    }
    assert_true(moved > MANY / 2 && differ > MANY / 2);
    for (int i = 0; i < MANY; i++)
        assert_int_equal(seen[i], 1);
    for (int i = 0; i < 3; i++)
        tasks_close(&t[i]);
}

/* ---- scores --------------------------------------------------------------------------------------------------------- */

/* log p(ending | context), token by token, in double. */
static double likelihood(const struct task *t, int ending)
{
    const struct model *m = toy.model;
    struct tok_ids head = { 0 }, all = { 0 };
    struct runner r;
    struct err e;
    const float *x;
    char text[256];
    double sum = 0;
    snprintf(text, sizeof text, "%s %s", t->context, t->ending[ending]);
    assert_int_equal(tok_encode(m->tok, t->context, strlen(t->context), TOK_ADD_BOS, &head), 0);
    assert_int_equal(tok_encode(m->tok, text, strlen(text), TOK_ADD_BOS, &all), 0);
    assert_memory_equal(head.id, all.id, (size_t)head.n * sizeof *head.id); /* words end there */
    assert_int_equal(runner_open(&r, m, KV_F32, 1, ROOM, 1, 1, &e), 0);
    for (int i = 0; i < all.n - 1; i++) {
        double total = 0;
        assert_int_equal(runner_append(&r, 0, all.id + i, 1, 1, &x, &e), 0);
        for (int k = 0; k < TOY_VOCAB; k++)
            total += exp((double)x[k]);
        if (i >= head.n - 1)
            sum += (double)x[all.id[i + 1]] - log(total);
    }
    runner_close(&r);
    tok_ids_free(&head);
    tok_ids_free(&all);
    return sum;
}

static int best_of(const double *x)
{
    int best = 0;
    for (int i = 1; i < TASK_ENDINGS; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static void measure(const char *path, const char *more, struct tasks_result *out)
{
    const char *argv[] = { "--kv-type=f32", more };
    struct config c;
    struct tasks t;
    struct err e;
    int n = more != NULL ? 2 : 1;
    assert_int_equal(config_parse(&c, CONFIG_EVAL_TASKS, n, (char **)(uintptr_t)argv, &e), 0);
    assert_int_equal(tasks_open(&t, path, 1, &e), 0);
    if (tasks_measure(toy.model, &t, &c, out, &e) < 0)
        fail_msg("%s", e.text);
    tasks_close(&t);
    config_free(&c);
}

static void answers_as_a_plain_loop(void **state)
{
    int by_sum[MANY], by_byte[MANY], both = 0, third = 0;
    struct tasks t;
    struct tasks_result r;
    struct err e;
    (void)state;
    const char *path = write_tasks("many", MANY, NULL);
    assert_int_equal(tasks_open(&t, path, 1, &e), 0);
    for (int i = 0; i < MANY; i++) {
        double sum[TASK_ENDINGS], norm[TASK_ENDINGS];
        for (int k = 0; k < TASK_ENDINGS; k++) {
            sum[k] = likelihood(&t.task[i], k);
            norm[k] = sum[k] / (double)strlen(t.task[i].ending[k]);
        }
        by_sum[t.task[i].line / 6] = best_of(sum);
        by_byte[t.task[i].line / 6] = best_of(norm);
        both += best_of(sum) == best_of(norm);
        third += best_of(sum) == 2;
    }
    tasks_close(&t);
    assert_true(both < MANY); /* the two ways to judge are told apart */
    measure(path, NULL, &r);
    assert_true(r.n == MANY && fabs(r.acc - (double)third / MANY) < 1e-12);
    assert_true(fabs(r.acc_err - sqrt(r.acc * (1 - r.acc) / (MANY - 1))) < 1e-12);
    measure(write_tasks("by_sum", MANY, by_sum), NULL, &r);
    assert_true(r.acc == 1 && r.acc_err == 0 && fabs(r.norm - (double)both / MANY) < 1e-12);
    measure(write_tasks("by_byte", MANY, by_byte), NULL, &r);
    assert_true(r.norm == 1 && r.norm_err == 0 && fabs(r.acc - (double)both / MANY) < 1e-12);
    measure(path, "--samples=1", &r);
    assert_true(r.n == 1 && isnan(r.acc_err));
    measure(path, "--max-batch=3", &r);
    assert_true(r.n == MANY && fabs(r.acc - (double)third / MANY) < 1e-12);
}

static void refuses_what_does_not_fit(void **state)
{
    const char *argv[] = { "--ctx=12" };
    struct config c;
    struct tasks t;
    struct tasks_result r;
    struct err e;
    (void)state;
    assert_int_equal(config_parse(&c, CONFIG_EVAL_TASKS, 1, (char **)(uintptr_t)argv, &e), 0);
    assert_int_equal(tasks_open(&t, write_text("long", GOOD), 1, &e), 0);
    assert_int_equal(tasks_measure(toy.model, &t, &c, &r, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "the task at line 1: "));
    assert_non_null(strstr(e.text, "--ctx"));
    tasks_close(&t);
    config_free(&c);
}

/* NaN is not the likeliest ending, nor is the first for want of a likelier. */
static void refuses_no_numbers(void **state)
{
    struct toy bad;
    struct config c;
    struct tasks t;
    struct tasks_result r;
    struct err e;
    (void)state;
    assert_int_equal(toy_open(&bad, 7, NULL, 1, NULL, &e), 0);
    model_close(bad.model);
    toy_spoil(bad.path, "output_norm.weight");
    assert_int_equal(
        model_open(&bad.model, bad.path, &(struct model_options){ .weights = "auto" }, bad.be, &e),
        0);
    assert_int_equal(config_parse(&c, CONFIG_EVAL_TASKS, 0, NULL, &e), 0);
    assert_int_equal(tasks_open(&t, write_text("good", GOOD), 1, &e), 0);
    assert_int_equal(tasks_measure(bad.model, &t, &c, &r, &e), ERR_FORMAT);
    assert_non_null(
        strstr(e.text, "the task at line 1: what the model makes of its endings is no number"));
    tasks_close(&t);
    config_free(&c);
    toy_close(&bad);
}

static void prints_json(void **state)
{
    (void)state;
    const char *argv[] = { "tasks",    toy.path,       write_tasks("many", MANY, NULL),
                           "--json",   "--samples=10", "--device=cpu",
                           "--seed=3", "--threads=1",  "--log-level=error" };
    struct buf b;
    assert_int_equal(printed(eval_tasks, sizeof argv / sizeof *argv, argv, &b), 0);
    json_t *o = json_loads(buf_str(&b), 0, NULL);
    assert_non_null(o);
    assert_int_equal(json_integer_value(json_object_get(o, "tasks")), 10);
    assert_true(json_is_real(json_object_get(o, "acc")) &&
                json_is_real(json_object_get(o, "acc_norm_err")));
    json_decref(o);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tasks),
        cmocka_unit_test(says_which_line_is_wrong),
        cmocka_unit_test(has_one_order_a_seed),
        cmocka_unit_test(answers_as_a_plain_loop),
        cmocka_unit_test(refuses_what_does_not_fit),
        cmocka_unit_test(refuses_no_numbers),
        cmocka_unit_test(prints_json),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
