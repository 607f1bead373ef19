#include "server/engine/sched.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

static bool decodes(const struct sched_seq *s)
{
    return s->todo == 1 && !s->all_out;
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

int sched_plan(const struct sched_seq *seq, int n, const struct sched_limits *l, int *rows)
{
    int64_t available = l->available;
    int left = l->max_rows, out = l->max_out;
    for (int i = 0; i < n; i++) {
        rows[i] = 0;
        if (!decodes(&seq[i]) || left == 0)
            continue;
        if (seq[i].room < 1) {
            if (available < l->block_pages)
                return n - 1;
            available -= l->block_pages;
        }
        rows[i] = 1;
        left--;
        out--;
    }
    if (left < l->max_rows)
        left = min_int(left, l->prompt_rows);
    for (int i = 0; i < n; i++)
        if (!decodes(&seq[i]))
            rows[i] = chunk(&seq[i], &left, &out);
    return -1;
}

bool sched_admits(int n_running, int max_seqs, int64_t need, const struct sched_limits *l)
{
    return n_running < max_seqs && need + n_running * l->block_pages <= l->available;
}
