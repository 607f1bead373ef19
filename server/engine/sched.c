#include "server/engine/sched.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* The rows of one prompt; takes what it uses off rows and out. */
static int chunk(const struct sched_seq *s, int *rows, int *out)
{
    int n = min_int(min_int(s->todo, s->room), *rows);
    if (s->all_out) {
        n = min_int(n, *out);
        *out -= n;
    } else if (n == s->todo) {
        if (*out > 0)
            *out -= 1;
        else
            n--;
    }
    *rows -= n;
    return n;
}

void sched_plan(const struct sched_seq *seq, int n, const struct sched_limits *l, int *rows)
{
    int left = l->max_rows, out = l->max_out;
    for (int i = 0; i < n; i++) {
        rows[i] = 0;
        if (!sched_decodes(&seq[i]) || left == 0)
            continue;
        rows[i] = 1;
        left--;
        out--;
    }
    if (left < l->max_rows)
        left = min_int(left, l->prompt_rows);
    for (int i = 0; i < n; i++)
        if (!sched_decodes(&seq[i]))
            rows[i] = chunk(&seq[i], &left, &out);
}
