/* The head: bias and penalties, sums, the largest logits, a drawn id. Against sums in doubles and a list of the row itself;
 * what must be exact (order of the list, ids, the largest logit) is compared to the bit with the row that came back. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/levels.h"

enum { ROWS = 5, IDS = 40 };

/* Lists of rows: host memory that lives as long as the case. */
struct lists {
    int32_t bias_id[IDS], seen_id[IDS];
    float bias[IDS];
    uint32_t count[IDS];
};

/* Distinct ids, rising. */
static int pick_ids(int32_t *id, int vocab)
{
    int n = vocab < IDS ? vocab : IDS, step = vocab / n;
    for (int i = 0; i < n; i++)
        id[i] = i * step + (int32_t)(rnd_bits() % (uint32_t)step);
    return n;
}

/* Kinds of requests: as it is, drawn, penalties, bias, all of it. */
static struct be_head_row make_row(struct lists *l, int kind, int vocab)
{
    struct be_head_row r = { .repetition = 1, .pick = vocab / 2 };
    int n = pick_ids(l->bias_id, vocab), m = pick_ids(l->seen_id, vocab);
    for (int i = 0; i < IDS; i++) {
        l->bias[i] = rnd_unit() * 10;
        l->count[i] = rnd_bits() % 4;
    }
    if (kind == 1 || kind == 4) {
        r.draw = true;
        r.u = (double)rnd_bits() * 0x1p-24;
        r.temperature = kind == 1 ? 1 : 0.3f;
    }
    if (kind == 2 || kind == 4) {
        r.seen_id = l->seen_id;
        r.count = l->count;
        r.n_seen = m;
        r.repetition = 1.3f;
        r.presence = 0.5f;
        r.frequency = 0.25f;
        r.temperature = r.draw ? r.temperature : 1.5f;
    }
    if (kind >= 3) {
        r.bias_id = l->bias_id;
        r.bias = l->bias;
        r.n_bias = n;
    }
    return r;
}

static void adjust(float *x, const struct be_head_row *r)
{
    for (int i = 0; i < r->n_bias; i++)
        x[r->bias_id[i]] += r->bias[i];
    for (int i = 0; i < r->n_seen; i++) {
        float *y = &x[r->seen_id[i]];
        *y = *y > 0 ? *y / r->repetition : *y * r->repetition;
        if (r->count[i] > 0)
            *y -= r->presence + r->frequency * (float)r->count[i];
    }
}

static const float *sort_row;
static int by_logit(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    float x = sort_row[i], y = sort_row[j];
    return x != y ? (x < y) - (x > y) : (i > j) - (i < j);
}

static void check_list(struct check *c, const float *x, int vocab, const struct be_head_out *o)
{
    int32_t *id = check_host(c, (size_t)vocab * sizeof *id);
    int n = 0;
    for (int32_t i = 0; i < vocab; i++)
        if (x[i] > -INFINITY)
            id[n++] = i;
    sort_row = x;
    qsort(id, (size_t)n, sizeof *id, by_logit);
    float max = n > 0 ? x[id[0]] : -INFINITY;
    check_that(c, CHECK_HEAD, o->max == max, "max is %.9g, not %.9g", (double)o->max, (double)max);
    n = n < BE_HEAD_TOP ? n : BE_HEAD_TOP;
    check_that(c, CHECK_HEAD, o->n == n, "%d entries, not %d", o->n, n);
    for (int i = 0; i < n && i < o->n; i++)
        check_that(c, CHECK_HEAD, o->id[i] == id[i] && o->logit[i] == x[id[i]],
                   "entry %d is id %d with %.9g, not %d with %.9g", i, o->id[i],
                   (double)o->logit[i], id[i], (double)x[id[i]]);
}

static double weight(float x, float max, double t)
{
    return isnan(x) ? 0 : exp(((double)x - (double)max) / t);
}

/* The id that u draws may be one of its neighbours when u falls within rounding of their border. */
static void check_draw(struct check *c, const float *x, int vocab, const struct be_head_row *r,
                       const struct be_head_out *o)
{
    double sum = 0, below = 0, slack = 2e-6;
    for (int i = 0; i < vocab; i++)
        sum += weight(x[i], o->max, (double)r->temperature);
    if (o->pick < 0 || o->pick >= vocab) {
        check_that(c, CHECK_HEAD, false, "id %d was drawn", o->pick);
        return;
    }
    for (int i = 0; i < o->pick; i++)
        below += weight(x[i], o->max, (double)r->temperature);
    double w = weight(x[o->pick], o->max, (double)r->temperature);
    check_that(c, CHECK_HEAD,
               w > 0 && below <= (r->u + slack) * sum && below + w > (r->u - slack) * sum,
               "u %.9g drew id %d, which spans %.9g to %.9g", r->u, o->pick, below / sum,
               (below + w) / sum);
}

static void check_row(struct check *c, const float *x, int vocab, const struct be_head_row *r,
                      const struct be_head_out *o)
{
    double sum = 0, warm = 0;
    check_list(c, x, vocab, o);
    for (int i = 0; i < vocab && isfinite(o->max); i++) {
        sum += weight(x[i], o->max, 1);
        warm += r->temperature > 0 ? weight(x[i], o->max, (double)r->temperature) : 0;
    }
    check_error(c, CHECK_HEAD, "sum", fabs(o->sum - sum) / (sum > 0 ? sum : 1));
    check_error(c, CHECK_HEAD, "warm_sum", fabs(o->warm_sum - warm) / (warm > 0 ? warm : 1));
    if (r->draw && warm > 0)
        check_draw(c, x, vocab, r, o);
    else
        check_that(c, CHECK_HEAD, o->pick == r->pick, "pick is %d, not %d", o->pick, r->pick);
    if (o->pick >= 0 && o->pick < vocab)
        check_same(c, CHECK_HEAD, "the logit of the pick", &o->pick_logit, &x[o->pick],
                   sizeof(float));
}

static void head_on(struct check *c, float *x, int n, int vocab, const struct be_head_row *row,
                    struct be_head_out *out)
{
    size_t bytes = (size_t)n * (size_t)vocab * sizeof *x;
    float *dx = check_put(c, c->be, x, bytes);
    c->be->ops->head(c->be, dx, n, vocab, row, out);
    check_get(c, c->be, x, dx, bytes);
    /* entries behind n are nobody's */
    for (int i = 0; i < n; i++)
        for (int j = 0; j < out[i].n; j++)
            c->hash = c->hash * 31 + (uint64_t)out[i].id[j];
}

/* Rows of all kinds together, then one of them alone: the same bits. */
static void check_rows_of(struct check *c, int vocab, void (*spoil)(float *x, int vocab),
                          const char *what)
{
    check_case(c, "head, %d ids%s", vocab, what);
    size_t n = (size_t)ROWS * (size_t)vocab;
    struct lists *l = check_host(c, ROWS * sizeof *l);
    struct be_head_row row[ROWS];
    struct be_head_out *out = check_host(c, (ROWS + 1) * sizeof *out), *alone = out + ROWS;
    float *x = check_floats(c, n, 8), *want = check_host(c, n * sizeof *want);
    for (int i = 0; i < ROWS; i++) {
        row[i] = make_row(&l[i], i, vocab);
        if (spoil != NULL)
            spoil(x + (size_t)i * (size_t)vocab, vocab);
    }
    float *one = check_host(c, (size_t)vocab * sizeof *one), *last = x + 4 * (size_t)vocab;
    memcpy(one, last, (size_t)vocab * sizeof *one);
    memcpy(want, x, n * sizeof *want);
    head_on(c, x, ROWS, vocab, row, out);
    for (int i = 0; i < ROWS; i++) {
        adjust(want + (size_t)i * (size_t)vocab, &row[i]);
        check_row(c, x + (size_t)i * (size_t)vocab, vocab, &row[i], &out[i]);
    }
    check_near(c, CHECK_HEAD, x, want, n, 8);
    head_on(c, one, 1, vocab, &row[4], alone);
    check_same(c, CHECK_HEAD, "a row alone", one, last, (size_t)vocab * sizeof *one);
    check_that(c, CHECK_HEAD,
               alone->sum == out[4].sum && alone->warm_sum == out[4].warm_sum &&
                   alone->pick == out[4].pick && alone->n == out[4].n &&
                   memcmp(alone->id, out[4].id, (size_t)alone->n * sizeof *alone->id) == 0,
               "a row alone has sums %.17g, %.17g, not %.17g, %.17g", alone->sum, alone->warm_sum,
               out[4].sum, out[4].warm_sum);
    check_close(c, CHECK_HEAD);
}

static void all_equal(float *x, int vocab)
{
    for (int i = 0; i < vocab; i++)
        x[i] = 2.5f;
}

static void few_values(float *x, int vocab)
{
    for (int i = 0; i < vocab; i++)
        x[i] = (float)(int)(x[i] / 2);
}

static void all_nan(float *x, int vocab)
{
    for (int i = 0; i < vocab; i++)
        x[i] = NAN;
}

/* Most of it -inf, as after a grammar; some NaN. */
static void mostly_gone(float *x, int vocab)
{
    for (int i = 0; i < vocab; i++)
        x[i] = i % 100 == 7 ? x[i] : i % 50 == 3 ? NAN : -INFINITY;
}

static void infinite(float *x, int vocab)
{
    x[vocab / 3] = INFINITY;
    x[vocab - 1] = NAN;
}

/* One logit far above the others, the largest last. */
static void steep(float *x, int vocab)
{
    for (int i = 0; i < vocab; i++)
        x[i] = (float)i * 0.01f;
    x[vocab - 1] += 90;
}

void check_head(struct check *c)
{
    static const int vocabs[] = { 1, 300, 1025, 2, 255, 256, 257, 1024, 4099, 32000, 128256 };
    static void (*const spoil[])(float *, int) = { all_equal,   few_values, all_nan,
                                                   mostly_gone, infinite,   steep };
    static const char *const what[] = { ", all equal",   ", few values", ", all NaN",
                                        ", mostly -inf", ", infinite",   ", steep" };
    if (c->be->ops->head == NULL)
        return;
    for (int i = 0; i < (c->small ? 3 : COUNT(vocabs)); i++)
        check_rows_of(c, vocabs[i], NULL, "");
    for (int k = 0; k < COUNT(spoil); k++)
        check_rows_of(c, c->small ? 700 : 5000, spoil[k], what[k]);
}
