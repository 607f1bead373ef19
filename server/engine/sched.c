#include "server/engine/sched.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* The rows of one prompt; takes what it uses off rows and out, the rows of logits for those that score. */
static int chunk(const struct sched_seq *s, int *rows, int *out)
{
    int n = min_int(min_int(s->todo, s->room), *rows);
    if (s->all_out) {
        n = min_int(n, *out);
        *out -= n;
    }
    *rows -= n;
    return n;
}

void sched_plan(const struct sched_seq *seq, int n, const struct sched_limits *l, int *rows)
{
    int left = l->max_rows, out = l->max_out;
    for (int i = 0; i < n; i++) {
        rows[i] = sched_decodes(&seq[i]) && left > 0;
        left -= rows[i];
        /* who may come to its last row has its logits, whoever scores beside it */
        out -= !seq[i].all_out && seq[i].room >= seq[i].todo;
    }
    if (left < l->max_rows)
        left = min_int(left, l->prompt_rows);
    for (int i = 0; i < n; i++)
        if (!sched_decodes(&seq[i]))
            rows[i] = chunk(&seq[i], &left, &out);
}
