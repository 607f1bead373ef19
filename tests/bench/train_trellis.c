/* Makes the tables of the trellis codec (quant/trellis/table.c): train_trellis BITS [FIRST-SEED [LAST-SEED
 * [STREAMS]]].
 *
 * For every seed two random permutations and Lloyd's algorithm on normal numbers: find the best paths, then set each entry of
 * the two tables to the mean of what chose it, in turns. The entries of the best seed are rounded to whole numbers and
 * printed as C.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/trellis/trellis.h"
#include "quant/trellis/viterbi.h"
#include "server/base/err.h"
#include "server/base/mem.h"

enum { ROUNDS = 24, TURNS = 4, LENGTH = VITERBI_LENGTH };

struct trial {
    int bits;
    uint8_t q[16], r[16];
    double s[16], m[16]; /* value = s[n0 ^ q[n1] ^ r[n2]] + m[n2] */
};

struct data {
    int streams;
    uint64_t random;
    float *x;        /* [streams][LENGTH] */
    uint8_t *symbol; /* the same */
    struct viterbi v;
};

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* In [0, 1): splitmix64. */
static double unit(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static double normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(1 - unit(state)));
    return radius * cos(2 * 3.14159265358979323846 * unit(state));
}

/* The number that a normal one is below with probability p. */
static double quantile(double p)
{
    double lo = -8;
    double hi = 8;
    for (int i = 0; i < 60; i++) {
        double mid = (lo + hi) / 2;
        if (erfc(-mid / sqrt(2)) / 2 < p)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

static void permute(uint8_t *p, uint64_t *state)
{
    for (int i = 0; i < 16; i++)
        p[i] = (uint8_t)i;
    for (int i = 15; i > 0; i--) {
        int j = (int)(unit(state) * (i + 1));
        uint8_t keep = p[i];
        p[i] = p[j];
        p[j] = keep;
    }
}

static void fill(struct data *d, uint64_t seed)
{
    d->random = seed;
    for (int i = 0; i < d->streams * LENGTH; i++)
        d->x[i] = (float)normal(&d->random);
}

/* ---- Lloyd ------------------------------------------------------------------------------------------------------- */

static int index_of(const struct trial *t, int w)
{
    return (w & 15) ^ t->q[w >> 4 & 15] ^ t->r[w >> 8];
}

/* Finds the paths; returns the mean squared error. */
static double encode(struct data *d, const struct trial *t)
{
    float value[256];
    for (int i = 0; i < 256; i++)
        value[i] = (float)(t->m[i / 16] + t->s[i % 16]);
    viterbi_open(&d->v, t->bits, t->q, t->r, value, cpu_isa_best());
    double sum = 0;
    for (int i = 0; i < d->streams; i++) {
        const float *x = d->x + (size_t)i * LENGTH;
        uint8_t *symbol = d->symbol + (size_t)i * LENGTH;
        viterbi_run(&d->v, x, LENGTH, symbol);
        for (int p = 0; p < LENGTH; p++) {
            int w = viterbi_window_at(t->bits, symbol, LENGTH, p);
            double e = x[p] - value[(w >> 8) * 16 + index_of(t, w)];
            sum += e * e;
        }
    }
    return sum / d->streams / LENGTH;
}

/* Entries of s (of_m: m) become the mean of what the other table leaves of the numbers that chose them. */
static void means(const struct data *d, struct trial *t, bool of_m)
{
    double sum[16] = { 0 };
    double n[16] = { 0 };
    for (int i = 0; i < d->streams * LENGTH; i++) {
        int w = viterbi_window_at(t->bits, d->symbol + i / LENGTH * LENGTH, LENGTH, i % LENGTH);
        int k = index_of(t, w);
        int to = of_m ? w >> 8 : k;
        sum[to] += d->x[i] - (of_m ? t->s[k] : t->m[w >> 8]);
        n[to] += 1;
    }
    for (int k = 0; k < 16; k++)
        if (n[k] > 0)
            (of_m ? t->m : t->s)[k] = sum[k] / n[k];
}

static double train(struct data *d, struct trial *t, uint64_t seed)
{
    uint64_t state = seed;
    uint8_t order[2][16];
    permute(t->q, &state);
    permute(t->r, &state);
    permute(order[0], &state);
    permute(order[1], &state);
    for (int i = 0; i < 16; i++) {
        t->s[i] = quantile((order[0][i] + .5) / 16) * (t->bits == 2 ? 1 : .7);
        t->m[i] = t->bits == 2 ? 0 : quantile((order[1][i] + .5) / 16) * .7;
    }
    for (int i = 0; i < ROUNDS; i++) {
        fill(d, 1000 + (uint64_t)i);
        encode(d, t);
        for (int j = 0; j < (t->bits == 2 ? 1 : TURNS); j++) {
            means(d, t, false);
            if (t->bits > 2)
                means(d, t, true);
        }
    }
    fill(d, 99);
    return encode(d, t);
}

/* ---- whole numbers ----------------------------------------------------------------------------------------------- */

static void range(const double *v, double *lo, double *hi)
{
    *lo = *hi = v[0];
    for (int i = 1; i < 16; i++) {
        *lo = v[i] < *lo ? v[i] : *lo;
        *hi = v[i] > *hi ? v[i] : *hi;
    }
}

/* Codes for a step: m from 0 on, s such that 64 stands for zero. False: they do not fit 0 ... 127. */
static bool round_to(const struct trial *t, double step, struct trellis_table *out)
{
    double lo;
    double hi;
    range(t->m, &lo, &hi);
    *out = (struct trellis_table){ .step = (float)step };
    memcpy(out->q, t->q, sizeof out->q);
    memcpy(out->r, t->r, sizeof out->r);
    long top = lround((hi - lo) / step);
    for (int i = 0; i < 16; i++) {
        long s = lround((t->s[i] + lo) / step) + TRELLIS_ZERO;
        if (s < 0 || s + top > 127)
            return false;
        out->s[i] = (uint8_t)s;
        out->m[i] = (uint8_t)lround((t->m[i] - lo) / step);
    }
    return true;
}

static void print_row(const char *name, const uint8_t *v)
{
    printf("    .%s = {", name);
    for (int i = 0; i < 16; i++)
        printf(" %d%s", v[i], i < 15 ? "," : " },\n");
}

/* Prints the table with the finest step that fits, and what it costs on numbers that nothing was trained or chosen by. */
static void finish(struct data *d, const struct trial *t)
{
    struct trellis_table table;
    struct trial whole = *t;
    double step = 0.02;
    while (!round_to(t, step, &table))
        step *= 1.005;
    for (int i = 0; i < 16; i++) {
        whole.s[i] = (table.s[i] - TRELLIS_ZERO) * (double)table.step;
        whole.m[i] = table.m[i] * (double)table.step;
    }
    fill(d, 98);
    double exact = encode(d, t);
    printf("{ /* %d bits: mean squared error %.5f, before rounding %.5f */\n    .step = %.5ff,\n",
           t->bits, encode(d, &whole), exact, (double)table.step);
    print_row("q", table.q);
    print_row("r", table.r);
    print_row("s", table.s);
    print_row("m", table.m);
    printf("},\n");
}

static int number(int argc, char **argv, int i, int otherwise)
{
    return argc > i ? (int)strtol(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    int bits = number(argc, argv, 1, 0);
    int first = number(argc, argv, 2, 1);
    int last = number(argc, argv, 3, 100);
    struct data *d = mem_map(sizeof *d);
    ASSERT(d != NULL);
    d->streams = number(argc, argv, 4, 600);
    if (bits < 2 || bits > 4 || d->streams < 1) {
        printf("usage: train_trellis BITS [FIRST-SEED [LAST-SEED [STREAMS]]]\n");
        return 2;
    }
    d->x = mem_alloc((size_t)d->streams * LENGTH * sizeof *d->x);
    d->symbol = mem_alloc((size_t)d->streams * LENGTH);
    ASSERT(d->x != NULL && d->symbol != NULL);
    struct trial best = { .bits = bits };
    double least = 1e30;
    for (int i = first; i <= last; i++) {
        struct trial t = { .bits = bits };
        double e = train(d, &t, (uint64_t)i);
        if (e >= least)
            continue;
        printf("/* seed %d: %.5f */\n", i, e);
        (void)fflush(stdout);
        least = e;
        best = t;
    }
    finish(d, &best);
    mem_free(d->symbol);
    mem_free(d->x);
    mem_unmap(d, sizeof *d);
    return 0;
}
