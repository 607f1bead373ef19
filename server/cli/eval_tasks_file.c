/* The file of tasks: lines become strings where they lie. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "server/base/mem.h"
#include "server/cli/eval_tasks.h"

enum { MAX_BYTES = 64 << 20, MAX_LINE = 16384, LINES = 2 + TASK_ENDINGS };

/* Makes a string of the line at *p and moves on; n_line counts it. Line ends may be those of DOS. */
static int take_line(char **p, const char *end, int *n_line, const char **out, struct err *e)
{
    ++*n_line;
    if (*p == end)
        return err_set(e, ERR_FORMAT,
                       "line %d: the file ends within a task, which has %d lines: context, number "
                       "of the right ending, %d endings",
                       *n_line, LINES, TASK_ENDINGS);
    char *line = *p;
    char *stop = memchr(line, '\n', (size_t)(end - line));
    *p = stop != NULL ? stop + 1 : line + (end - line);
    size_t n = (size_t)(*p - line) - (stop != NULL);
    if (n > 0 && line[n - 1] == '\r')
        n--;
    if (n == 0 || n > MAX_LINE || memchr(line, 0, n) != NULL)
        return err_set(e, ERR_FORMAT, "line %d: %s", *n_line,
                       n == 0         ? "is empty"
                       : n > MAX_LINE ? "is too long for a sentence"
                                      : "is not text");
    line[n] = 0;
    *out = line;
    return 0;
}

static int take_task(char **p, const char *end, int *n_line, struct task *t, struct err *e)
{
    const char *right;
    t->line = *n_line + 1;
    TRY(take_line(p, end, n_line, &t->context, e));
    TRY(take_line(p, end, n_line, &right, e));
    t->right = right[0] - '0';
    if (t->right < 0 || t->right >= TASK_ENDINGS || right[1] != 0)
        return err_set(e, ERR_FORMAT, "line %d: \"%.20s\" is no number of an ending, 0 to %d",
                       *n_line, right, TASK_ENDINGS - 1);
    for (int i = 0; i < TASK_ENDINGS; i++)
        TRY(take_line(p, end, n_line, &t->ending[i], e));
    return 0;
}

static int count_lines(const struct buf *b)
{
    int n = b->len > 0 && b->data[b->len - 1] != '\n';
    for (size_t i = 0; i < b->len; i++)
        n += b->data[i] == '\n';
    return n;
}

static int parse(struct tasks *t, struct err *e)
{
    if (strncmp(buf_str(&t->text), "BZh", 3) == 0)
        return err_set(e, ERR_UNSUPPORTED, "the file is packed; unpack it first: bunzip2 -k");
    int n_line = 0;
    int n = (count_lines(&t->text) + LINES - 1) / LINES;
    if (n == 0)
        return err_set(e, ERR_FORMAT, "the file is empty");
    t->task = mem_zalloc((size_t)n, sizeof *t->task);
    if (t->task == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d tasks", n);
    char *p = t->text.data;
    for (const char *end = p + t->text.len; p < end; t->n++)
        TRY(take_task(&p, end, &n_line, &t->task[t->n], e));
    return 0;
}

struct drawn {
    uint64_t key;
    struct task task;
};

static int by_key(const void *a, const void *b)
{
    const struct drawn *x = a;
    const struct drawn *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return (x->task.line > y->task.line) - (x->task.line < y->task.line);
}

/* A task's place is a hash of its number: the first n of them are among the first n + 1. */
static int shuffle(struct tasks *t, uint64_t seed, struct err *e)
{
    struct drawn *d = mem_zalloc((size_t)t->n, sizeof *d);
    if (d == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d tasks", t->n);
    for (int i = 0; i < t->n; i++)
        d[i] = (struct drawn){ XXH3_64bits_withSeed(&i, sizeof i, seed), t->task[i] };
    qsort(d, (size_t)t->n, sizeof *d, by_key);
    for (int i = 0; i < t->n; i++)
        t->task[i] = d[i].task;
    mem_free(d);
    return 0;
}

int tasks_open(struct tasks *t, const char *path, uint64_t seed, struct err *e)
{
    *t = (struct tasks){ 0 };
    buf_init(&t->text, MAX_BYTES);
    int rc = buf_read_file(&t->text, path, e);
    if (rc == 0 && (rc = parse(t, e)) < 0)
        err_prefix(e, "%s", path);
    if (rc == 0)
        rc = shuffle(t, seed, e);
    if (rc < 0)
        tasks_close(t);
    return rc;
}

void tasks_close(struct tasks *t)
{
    mem_free(t->task);
    buf_free(&t->text);
    *t = (struct tasks){ 0 };
}
