#include <math.h>

#include "server/base/mem.h"
#include "server/tune/tune.h"

/* The usual decay of the mean, a faster one of the squares than .999: there are tens of steps, not thousands. */
static const float BETA_MEAN = .9f, BETA_SQUARE = .95f, EPS = 1e-8f;

int adam_open(struct adam *a, int n, struct err *e)
{
    *a = (struct adam){ .n = n };
    a->mean = mem_zalloc((size_t)n, sizeof *a->mean);
    a->square = mem_zalloc((size_t)n, sizeof *a->square);
    if (a->mean != NULL && a->square != NULL)
        return 0;
    adam_close(a);
    return err_set(e, ERR_NOMEM, "no memory for the steps of %d numbers", n);
}

void adam_close(struct adam *a)
{
    mem_free(a->mean);
    mem_free(a->square);
    *a = (struct adam){ 0 };
}

void adam_step(struct adam *a, const double *grad, float rate, float *x)
{
    a->step++;
    double mean = 1 / (1 - pow((double)BETA_MEAN, a->step));
    double square = 1 / (1 - pow((double)BETA_SQUARE, a->step));
    for (int i = 0; i < a->n; i++) {
        float g = (float)grad[i];
        a->mean[i] += (1 - BETA_MEAN) * (g - a->mean[i]);
        a->square[i] += (1 - BETA_SQUARE) * (g * g - a->square[i]);
        double size = sqrt(square * (double)a->square[i]) + (double)EPS;
        x[i] -= rate * (float)(mean * (double)a->mean[i] / size);
    }
}
