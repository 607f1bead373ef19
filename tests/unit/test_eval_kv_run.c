/* wring eval kv on a small real model: a whole run, taken up again; every task. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <unistd.h>

#include "server/cli/eval.h"
#include "server/cli/eval_kv.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/pressing.h"
#include "tests/tools/scratch.h"
#include "tests/tools/toy.h"

static const char *length = "--length=200";

/* The command as a user gives it, its table thrown away. */
static int run_with(const char *model, const char *out_name, const char *policies,
                    const char *budgets, const char *tasks)
{
    char text[512];
    char out[512];
    snprintf(text, sizeof text, "--text=%s", in_root("text.txt"));
    snprintf(out, sizeof out, "--out=%s", in_root(out_name));
    const char *argv[] = { "kv",           in_root(model),      "--samples=2", length, budgets,
                           "--device=cpu", "--log-level=error", text,          out,    policies,
                           tasks };
    int null = open("/dev/null", O_WRONLY);
    int old = dup(STDOUT_FILENO);
    fflush(stdout);
    dup2(null, STDOUT_FILENO);
    int code = eval_kv((int)(sizeof argv / sizeof *argv), (char **)(uintptr_t)argv);
    fflush(stdout);
    dup2(old, STDOUT_FILENO);
    close(old);
    close(null);
    return code;
}

static int run(const char *tasks)
{
    char policies[128];
    const char *name = pressing(0)->name;
    snprintf(policies, sizeof policies, "--policies=%s,%s:sinks=0", name, name);
    return run_with("model", "out", policies, "--budgets=16,64,512", tasks);
}

/* Lines of the CSV without the two columns of times at the end. */
static void cut_times(struct buf *csv)
{
    char *to = csv->data;
    for (const char *p = csv->data; *p != 0;) {
        size_t n = strcspn(p, "\n");
        size_t keep = n;
        for (int k = 0; k < 2; k++)
            while (keep > 0 && p[--keep] != ',')
                ;
        memmove(to, p, keep);
        to[keep] = '\n';
        to += keep + 1;
        p += n + (p[n] == '\n');
    }
    *to = 0;
    csv->len = (size_t)(to - csv->data);
}

static int lines_of(const struct buf *b)
{
    int n = 0;
    for (const char *p = buf_str(b); *p != 0; p++)
        n += *p == '\n';
    return n;
}

/* The first numbers of the first variant's row of a task. */
enum {
    N_AT,
    BYTES_AT,
    SHARE_AT,
    KL_AT,
    KL95_AT,
    ATTENTION_AT,
    TOP1_AT,
    PPL_AT,
    ANSWERS_AT,
    NLL_AT,
    FIRST_AT,
    MASS_AT,
    PRESSINGS_AT,
    N_NUMBERS
};
static void row_of(const struct buf *csv, const char *task, const char *budget,
                   double out[N_NUMBERS])
{
    char head[128];
    int n = snprintf(head, sizeof head, "\n%s,\"%s\",%s,", task, pressing(0)->name, budget);
    const char *p = strstr(buf_str(csv), head);
    assert_non_null(p);
    p += n;
    for (int i = 0; i < N_NUMBERS; i++) {
        char *end;
        out[i] = strtod(p, &end);
        p = end + 1;
    }
}

static void runs_and_goes_on(void **state)
{
    (void)state;
    static const char tasks[] = "--tasks=continue,number,greedy,stream";
    struct buf csv[3];
    struct buf md[2];
    struct buf log;
    struct err e;
    assert_int_equal(run(tasks), 0);
    read_file(&csv[0], "out/kv.csv");
    read_file(&md[0], "out/kv.md");
    read_file(&log, "out/kv.jsonl");
    int lines = lines_of(&log);
    assert_true(lines >=
                3 * 2 * 7 + 2); /* all are judged everywhere, `number` where it is answered */
    assert_int_equal(access(in_root("out/kv-continue.png"), R_OK), 0);
    assert_int_equal(access(in_root("out/kv-number.png"), R_OK), 0);

    /* a budget that holds the prompt changes nothing, and a smaller one does */
    static const char *const task[] = { "continue", "greedy", "stream" };
    for (int i = 0; i < 3; i++) {
        double small[N_NUMBERS];
        double large[N_NUMBERS];
        row_of(&csv[0], task[i], "16", small);
        row_of(&csv[0], task[i], "512", large);
        assert_true(large[KL_AT] == 0 && large[TOP1_AT] == 1 && large[SHARE_AT] == 1);
        assert_true(large[PPL_AT] == 1 && large[MASS_AT] == 1 && large[PRESSINGS_AT] == 0);
        assert_true(large[ATTENTION_AT] == 0 && small[ATTENTION_AT] > 0 && small[ATTENTION_AT] < 2);
        assert_true(small[KL_AT] > 0 && small[SHARE_AT] < 1 && small[MASS_AT] < 1);
        assert_true(small[FIRST_AT] < large[FIRST_AT]);
        assert_true(i < 2 ? small[PRESSINGS_AT] == 1 : small[PRESSINGS_AT] > 1);
    }

    /* all is there: nothing is measured again, the tables are the same to the byte */
    assert_int_equal(run(tasks), 0);
    read_file(&csv[1], "out/kv.csv");
    read_file(&md[1], "out/kv.md");
    assert_string_equal(buf_str(&csv[0]), buf_str(&csv[1]));
    assert_string_equal(buf_str(&md[0]), buf_str(&md[1]));

    /* half of it, and a line cut short: the rest is measured again, all but the times the same */
    size_t cut = log.len / 2;
    cut -= log.data[cut - 1] == '\n';
    assert_int_equal(file_write_atomic(in_root("out/kv.jsonl"), log.data, cut, &e), 0);
    assert_int_equal(run(tasks), 0);
    read_file(&csv[2], "out/kv.csv");
    cut_times(&csv[1]);
    cut_times(&csv[2]);
    assert_string_equal(buf_str(&csv[1]), buf_str(&csv[2]));
    buf_free(&log);
    read_file(&log, "out/kv.jsonl");
    assert_int_equal(lines_of(&log), lines + 1); /* the line cut short swallows none */
    for (int i = 0; i < 3; i++)
        buf_free(&csv[i]);
    buf_free(&md[0]);
    buf_free(&md[1]);
    buf_free(&log);
}

/* Every task makes cases that fit, whatever the model answers. */
static void makes_all_tasks(void **state)
{
    (void)state;
    struct session s = { 0 };
    struct kv_maker m;
    struct kv_case c = { 0 };
    struct err e;
    eval_model(&s);
    assert_int_equal(kv_maker_open(&m, s.model, in_root("text.txt"), 500, 0, &e), 0);
    assert_int_equal(m.run, s.model->config.ctx_train);
    for (int f = 0; kv_families[f] != NULL; f++)
        for (const struct kv_task *t = kv_families[f]; t->name != NULL; t++)
            for (int i = 0; i < 3; i++) {
                kv_maker_seed(&m, 1, t->name, i);
                if (t->make(&m, &c, &e) < 0)
                    fail_msg("%s: %s", t->name, e.text);
                int question = c.question1 - c.question0;
                assert_int_equal(c.prompt.n - question, t->kind == KV_LONG ? m.run / 8 : 500);
                assert_true(question == 0 || c.question1 == c.prompt.n);
                assert_true(c.n_answers >= (t->kind != KV_CHOICE) && c.n_answers <= KV_ANSWERS);
                int judged = 0;
                for (int k = 1; k < c.n_probe; k++)
                    judged += c.answer[k] != 0;
                assert_int_equal(c.answer[0], 0);
                if (t->kind == KV_LONG)
                    assert_int_equal(judged, m.run - m.run / 8 - 1);
                else if (t->kind == KV_CHOICE)
                    assert_true(judged == 0 && c.n_probe > 0);
                else
                    assert_true(judged > 0 && judged <= KV_JUDGED);
                assert_ptr_equal(kv_task_find(t->name), t);
            }
    const struct kv_task *stream = kv_task_find("stream"); /* runs of 512 tokens: 128 are enough */
    assert_int_equal(kv_task_samples(stream, &m, 200), 128);
    assert_int_equal(kv_task_samples(stream, &m, 3), 3);
    assert_int_equal(kv_task_samples(kv_task_find("continue"), &m, 200), 200);
    kv_maker_close(&m);
    assert_int_equal(kv_maker_open(&m, s.model, in_root("text.txt"), 500, 7, &e), 0);
    assert_int_equal(stream->make(&m, &c, &e), ERR_INVALID); /* an eighth of it is no prompt */
    kv_maker_close(&m);
    assert_int_equal(kv_maker_open(&m, s.model, in_root("text.txt"), 4000, 100, &e), 0);
    assert_int_equal(m.run, 100);
    kv_maker_seed(&m, 1, "x", 0);
    assert_int_equal(kv_maker_context(&m, NULL, 0, &c, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "too short"));
    kv_maker_close(&m);
    tok_ids_free(&c.prompt);
    session_close(&s);
}

/* Another model of the same name and size has results of its own. */
static void knows_the_model(void **state)
{
    int lines[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct buf log;
        struct err e;
        assert_int_equal(toy_write(in_root("toy.gguf"), i == 0 ? 3 : 4, &e), 0);
        assert_int_equal(
            run_with("toy.gguf", "toys", "--policies=window", "--budgets=32", "--tasks=continue"),
            0);
        read_file(&log, "toys/kv.jsonl");
        lines[i] = lines_of(&log);
        buf_free(&log);
    }
    assert_true(lines[0] > 0);
    assert_int_equal(lines[1], 2 * lines[0]);
    assert_int_equal(lines[2], lines[1]);
}

static void refuses_wrong_use(void **state)
{
    (void)state;
    const char *no_model[] = { "kv" };
    assert_int_equal(eval_kv(1, (char **)(uintptr_t)no_model), 2);
    assert_int_equal(run("--tasks=nosuch"), 2);
    assert_int_equal(run("--tasks=number,number"), 2);
    const char *ask = "--tasks=continue";
    assert_int_equal(run_with("model", "no", "--policies=ems,ems", "--budgets=32", ask), 2);
    assert_int_equal(run_with("model", "no", "--policies=ems", "--budgets=32,32", ask), 2);
    assert_int_equal(access(in_root("no"), F_OK), -1);
}

/* What the command says when it fails. */
static void must_say(const char *tasks, const char *says)
{
    struct buf b;
    fflush(stderr);
    int old = dup(STDERR_FILENO);
    int fd = open(in_root("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(old >= 0 && fd >= 0);
    dup2(fd, STDERR_FILENO);
    int code = run_with("model", "no", "--policies=window", "--budgets=32", tasks);
    dup2(old, STDERR_FILENO);
    close(fd);
    close(old);
    read_file(&b, "stderr");
    if (code != 2 || strstr(buf_str(&b), says) == NULL)
        fail_msg("%d: %s", code, buf_str(&b));
    buf_free(&b);
    assert_int_equal(access(in_root("no"), F_OK), -1);
}

/* Positions that the model was not trained for, of a prompt or of what is fed after it. The model has 512. */
static void stays_in_the_context(void **state)
{
    (void)state;
    length = "--length=0";
    must_say("--tasks=stream,continue", "prompts of 2048 tokens; ");
    length = "--length=100000";
    must_say("--tasks=continue", "trained for a context of 512");
    length = "--length=448";
    must_say("--tasks=stream,continue", "a case of \"continue\" of 513 tokens; ");
    must_say("--tasks=greedy", "a case of \"greedy\" of 513 tokens; ");
    length = "--length=447";
    assert_int_equal(
        run_with("model", "fits", "--policies=window", "--budgets=32", "--tasks=continue,greedy"),
        0);
    length = "--length=0"; /* of no meaning to a stream */
    assert_int_equal(
        run_with("model", "fits", "--policies=window", "--budgets=32", "--tasks=stream"), 0);
    length = "--length=200";
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_and_goes_on),     cmocka_unit_test(makes_all_tasks),
        cmocka_unit_test(knows_the_model),      cmocka_unit_test(refuses_wrong_use),
        cmocka_unit_test(stays_in_the_context),
    };
    return cmocka_run_group_tests(tests, eval_open, scratch_close);
}
