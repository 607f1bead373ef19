/* Efron's percentile bootstrap: pairs are drawn with replacement, their mean taken, 10,000 times over. */
#include "server/cli/bootstrap.h"

#include <math.h>
#include <stdint.h>

#include "server/base/mem.h"
#include "server/cli/cli.h"

static double mean_of(const double *d, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += d[i];
    return sum / n;
}

/* Marsaglia's xorshift with Vigna's multiplier: one stream for all draws. */
static uint64_t next_bits(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1du;
}

static double draw_mean(const double *d, int n, uint64_t *state)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += d[(next_bits(state) >> 32) * (uint64_t)n >> 32];
    return sum / n;
}

int bootstrap_mean(const double *d, int n, struct interval *out)
{
    *out = (struct interval){ NAN, NAN, NAN };
    if (n == 0)
        return 0;
    double *mean = mem_alloc(BOOTSTRAP_DRAWS * sizeof *mean);
    if (mean == NULL)
        return ERR_NOMEM;
    uint64_t state = 1;
    for (int k = 0; k < BOOTSTRAP_DRAWS; k++)
        mean[k] = draw_mean(d, n, &state);
    cli_sort(mean, BOOTSTRAP_DRAWS);
    *out = (struct interval){ mean_of(d, n), mean[BOOTSTRAP_DRAWS / 40],
                              mean[BOOTSTRAP_DRAWS - 1 - BOOTSTRAP_DRAWS / 40] };
    mem_free(mean);
    return 0;
}
