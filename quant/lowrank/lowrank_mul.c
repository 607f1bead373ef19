/* Products with the factors: those of quant/dense, a panel of a at a time. */
#include "quant/input.h"
#include "quant/lowrank/lowrank.h"

enum { BLOCK = 64 }; /* input rows that a panel is multiplied with at a time */

struct thin {
    const struct weight *b;
    const struct input *in;
    codec_mul *mul;
    float *t;
};

static void some_rows(void *arg, int first, int last, int i_thread)
{
    const struct thin *p = arg;
    struct input in = { .n = last - first, .cols = p->in->cols };
    (void)i_thread;
    in.x = p->in->x + (size_t)first * (size_t)in.cols;
    p->mul(p->b, &in, NULL, p->t + (size_t)first * (size_t)p->b->rows, (size_t)p->b->rows, 0,
           weight_panels(p->b));
}

char *lowrank_begin(struct lowrank_mul *l, const struct weight_sum *s, const struct input *in,
                    codec_mul *mul, struct par *par, char *room)
{
    room += (64 - (uintptr_t)room % 64) % 64;
    *l = (struct lowrank_mul){ s->a, mul, (float *)(void *)room, in->n };
    struct thin p = { &s->b, in, mul, l->t };
    if (in->n > INPUT_BLOCK)
        par_for(par, in->n, INPUT_BLOCK, some_rows, &p);
    else
        some_rows(&p, 0, in->n, 0);
    return room + (size_t)in->n * (size_t)s->b.rows * sizeof(float);
}

/* One panel of a for n rows of t. */
static void add_panel(const struct lowrank_mul *l, int panel, const float *t, int n, float *y)
{
    float sum[BLOCK * CODEC_PANEL];
    struct input in = { .n = n, .cols = l->a.cols, .x = t };
    struct weight a = l->a;
    int row = panel * CODEC_PANEL;
    int height = a.rows - row < CODEC_PANEL ? a.rows - row : CODEC_PANEL;
    a.plane[0] = (uint16_t *)a.plane[0] + (size_t)row * (size_t)a.cols;
    a.rows = height;
    l->mul(&a, &in, NULL, sum, CODEC_PANEL, 0, 1);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < height; i++)
            y[(size_t)r * (size_t)l->a.rows + (size_t)(row + i)] += sum[r * CODEC_PANEL + i];
}

void lowrank_add(const struct lowrank_mul *l, float *y, int p0, int p1)
{
    for (int r = 0; r < l->n; r += BLOCK) {
        int n = l->n - r < BLOCK ? l->n - r : BLOCK;
        for (int p = p0; p < p1; p++)
            add_panel(l, p, l->t + (size_t)r * (size_t)l->a.cols, n,
                      y + (size_t)r * (size_t)l->a.rows);
    }
}
