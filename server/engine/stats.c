#include "server/engine/stats.h"

/* Bounds in seconds as vLLM has them, so that dashboards fit; finer below 10 ms, where small models live. */
static const double ttft[] = { .001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                               1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560 };
static const double token[] = { .001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3,
                                .4,   .5,    .75,  1,   2.5,  5,   7.5,  10, 20,  40, 80 };
static const double request[] = { .01, .05, .1, .3, .5, .8, 1,   1.5, 2,   2.5, 5,   10,
                                  15,  20,  30, 40, 50, 60, 120, 240, 480, 960, 1920 };
static const double rows[] = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192 };
static const double length[] = { 1,    2,    5,    10,    20,    50,    100,    200,    500,
                                 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000 };
static const double pressing[] = { .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05,
                                   .1,    .25,    .5,    1,    2.5,   5,    10,  30 };
static const double share[] = { .01, .02, .03, .05, .075, .1, .15, .2,  .25, .3,  .4,
                                .5,  .6,  .7,  .8,  .85,  .9, .95, .97, .98, .99, 1 };

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define BOUNDS(h, a)                                                                               \
    do {                                                                                           \
        _Static_assert(COUNT(a) < COUNT((h).count), "one bucket more than bounds");                \
        (h).bound = (a);                                                                           \
        (h).n = (int)COUNT(a);                                                                     \
    } while (0)

void stats_init(struct engine_stats *s)
{
    BOUNDS(s->ttft, ttft);
    BOUNDS(s->inter_token, token);
    BOUNDS(s->e2e, request);
    BOUNDS(s->queue_time, request);
    BOUNDS(s->prefill_time, request);
    BOUNDS(s->decode_time, request);
    BOUNDS(s->batch_rows, rows);
    BOUNDS(s->prompt_len, length);
    BOUNDS(s->output_len, length);
    BOUNDS(s->compaction_time, pressing);
    BOUNDS(s->kv_ratio, share);
    BOUNDS(s->kv_mass, share);
}

void histogram_observe(struct histogram *h, double v)
{
    int i = 0;
    if (!(v >= 0)) /* of a model that makes NaNs: the sum would be lost for good */
        return;
    while (i < h->n && v > h->bound[i])
        i++;
    atomic_fetch_add_explicit(&h->count[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, (uint64_t)(v * 1e6 + 0.5), memory_order_relaxed);
}
