/* The head in plain C, its definition: what a request does to its row of logits, and what is left of it. Rows are shared
 * out among the threads. The engine's samplers read rows in ordinary memory themselves (server/engine/sample.h), so
 * nothing waits for this and it is written to be read.
 */
#include <math.h>

#include "kernels/cpu/cpu.h"

struct head {
    float *logits;
    int vocab;
    const struct be_head_row *row;
    struct be_head_out *out;
};

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

/* The largest ones by insertion: nearly every logit fails the first comparison. */
static void list_top(const float *x, int vocab, struct be_head_out *o)
{
    o->n = 0;
    for (int32_t i = 0; i < vocab; i++) {
        bool full = o->n == BE_HEAD_TOP;
        if (!(x[i] > (full ? o->logit[BE_HEAD_TOP - 1] : -INFINITY)))
            continue;
        int at = full ? BE_HEAD_TOP - 1 : o->n++;
        for (; at > 0 && x[i] > o->logit[at - 1]; at--) {
            o->logit[at] = o->logit[at - 1];
            o->id[at] = o->id[at - 1];
        }
        o->logit[at] = x[i];
        o->id[at] = i;
    }
    o->max = o->n > 0 ? o->logit[0] : -INFINITY;
    for (int i = o->n; i < BE_HEAD_TOP; i++) {
        o->id[i] = 0;
        o->logit[i] = 0;
    }
}

/* exp((x - max) / t), max finite. */
static double weight(float x, float max, float t)
{
    return isnan(x) ? 0 : (double)expf((x - max) * (1 / t));
}

static void sum_up(const float *x, int vocab, float t, struct be_head_out *o)
{
    o->sum = o->warm_sum = 0;
    for (int i = 0; i < vocab && !isinf(o->max); i++) {
        o->sum += weight(x[i], o->max, 1);
        o->warm_sum += t > 0 ? weight(x[i], o->max, t) : 0;
    }
}

static int32_t draw(const float *x, int vocab, const struct be_head_row *r,
                    const struct be_head_out *o)
{
    double run = 0;
    int32_t last = r->pick;
    for (int32_t i = 0; i < vocab && o->warm_sum > 0 && run <= r->u * o->warm_sum; i++) {
        double w = weight(x[i], o->max, r->temperature);
        run += w;
        last = w > 0 ? i : last;
    }
    return last;
}

static void head_rows(void *arg, int first, int last, int i_thread)
{
    struct head *h = arg;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        float *x = h->logits + (size_t)i * (size_t)h->vocab;
        const struct be_head_row *r = &h->row[i];
        struct be_head_out *o = &h->out[i];
        adjust(x, r);
        list_top(x, h->vocab, o);
        sum_up(x, h->vocab, r->temperature, o);
        o->pick = r->draw ? draw(x, h->vocab, r, o) : r->pick;
        o->pick_logit = x[o->pick];
    }
}

static void cpu_head(struct be *be, float *logits, int n, int vocab, const struct be_head_row *row,
                     struct be_head_out *out)
{
    struct head h = { logits, vocab, row, out };
    cpu_for(be, n, 1, (size_t)n * (size_t)vocab * sizeof *logits, head_rows, &h);
}

void cpu_ops_head(struct be_ops *ops)
{
    ops->head = cpu_head;
}
