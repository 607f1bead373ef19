#include "server/cli/logits.h"

#include <math.h>
#include <stddef.h>

struct peak logits_peak(const float *x, int n)
{
    struct peak p = { 0, 0 };
    double sum = 0;
    for (int i = 1; i < n; i++)
        p.best = x[i] > x[p.best] ? i : p.best;
    for (int i = 0; i < n; i++)
        sum += (double)expf(x[i] - x[p.best]);
    p.lse = (double)x[p.best] + log(sum);
    return p;
}

double logits_kl(const float *p, const float *q, int n, double lse_p, double lse_q)
{
    double sum = 0;
    double shift = lse_q - lse_p;
    for (int i = 0; i < n; i++)
        sum += (double)expf(p[i] - (float)lse_p) * ((double)p[i] - (double)q[i] + shift);
    return sum < 0 ? 0 : sum; /* rounding; what is no number stays so */
}

struct pairs {
    const float *p, *q;
    double *kl;
    int vocab;
};

static void kl_of_rows(void *arg, int first, int last, int i_thread)
{
    struct pairs *k = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        const float *p = k->p + (ptrdiff_t)r * k->vocab;
        const float *q = k->q + (ptrdiff_t)r * k->vocab;
        k->kl[r] =
            logits_kl(p, q, k->vocab, logits_peak(p, k->vocab).lse, logits_peak(q, k->vocab).lse);
    }
}

void logits_kls(struct par *par, const float *p, const float *q, int vocab, int n, double *kl)
{
    struct pairs k = { p, q, kl, vocab };
    par_for(par, n, 1, kl_of_rows, &k);
}

struct rows {
    const float *x;
    const int32_t *next;
    double *nll;
    int vocab;
};

static void nll_of_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *k = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        const float *x = k->x + (ptrdiff_t)r * k->vocab;
        k->nll[r] = logits_peak(x, k->vocab).lse - (double)x[k->next[r]];
    }
}

void logits_nll(struct par *par, const float *x, int vocab, const int32_t *next, int n, double *nll)
{
    struct rows k = { x, next, nll, vocab };
    par_for(par, n, 1, nll_of_rows, &k);
}
