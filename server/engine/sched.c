#include "server/engine/sched.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Of a step, for prompts. */
struct share {
    int rows;
    int out; /* rows of logits for those that score */
};

/* Rows that s can still use when it has got some. */
static int wants(const struct sched_seq *s, int got, int out)
{
    int n = min_int(s->todo, s->room) - got;
    return s->all_out ? min_int(n, out) : n;
}

/* Gives s at most `most` of what is left. */
static void give(const struct sched_seq *s, struct share most, struct share *left, int *got)
{
    int n = min_int(wants(s, *got, most.out), most.rows);
    *got += n;
    left->rows -= n;
    left->out -= s->all_out ? n : 0;
}

/* The prompt that is through soonest, of those that can use what is left; the older of two alike. -1: none. */
static int shortest(const struct sched_seq *seq, int n, struct share left, const int *rows)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!sched_decodes(&seq[i]) && wants(&seq[i], rows[i], left.out) > 0 &&
            (best < 0 || seq[i].todo - rows[i] < seq[best].todo - rows[best]))
            best = i;
    return left.rows > 0 ? best : -1;
}

static int oldest(const struct sched_seq *seq, int n)
{
    for (int i = 0; i < n; i++)
        if (!sched_decodes(&seq[i]))
            return i;
    return -1;
}

void sched_plan(const struct sched_seq *seq, int n, const struct sched_limits *l, int *rows)
{
    struct share left = { l->max_rows, l->max_out };
    for (int i = 0; i < n; i++) {
        rows[i] = sched_decodes(&seq[i]) && left.rows > 0;
        left.rows -= rows[i];
        /* who may come to its last row has its logits, whoever scores beside it */
        left.out -= !seq[i].all_out && seq[i].room >= seq[i].todo;
    }
    if (left.rows < l->max_rows)
        left.rows = min_int(left.rows, l->prompt_rows);
    struct share half = { (left.rows + 1) / 2, (left.out + 1) / 2 };
    int i = oldest(seq, n);
    if (i >= 0)
        give(&seq[i], half, &left, &rows[i]);
    while ((i = shortest(seq, n, left, rows)) >= 0)
        give(&seq[i], left, &left, &rows[i]);
}
