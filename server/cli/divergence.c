#include "server/cli/divergence.h"

#include <math.h>

struct peak peak_of(const float *x, int n)
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

double divergence(const float *p, const float *q, int n, double lse_p, double lse_q)
{
    double sum = 0;
    double shift = lse_q - lse_p;
    for (int i = 0; i < n; i++)
        sum += (double)expf(p[i] - (float)lse_p) * ((double)p[i] - (double)q[i] + shift);
    return sum > 0 ? sum : 0;
}
