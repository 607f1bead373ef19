#include "quant/pvq/pvq_table.h"

#include <pthread.h>

#include "server/base/err.h"

/* ---- halves ------------------------------------------------------------------------------------------------------ */

/* Where the patterns of a quarter begin. */
static uint32_t quarter_from(int pairs, int k)
{
    static const uint32_t begin[] = { 0, 1, 1 + PYRAMID_K * (PYRAMID_K + 1) / 2 };
    uint32_t n = (uint32_t)k;
    return begin[pairs] + (pairs == 2 ? (n + 1) * n * (n - 1) * (n - 2) / 24 : n * (n - 1) / 2);
}

static void quarters_open(struct pvq_tables *t, const struct pyramid *p)
{
    for (int pairs = 0; pairs <= 2; pairs++)
        for (int k = 0; k <= PYRAMID_K; k++)
            for (uint64_t i = 0; i < p->patterns[pairs][k]; i++)
                pyramid_pattern(p, pairs, k, i, t->quarter[quarter_from(pairs, k) + i]);
}

/* Fills the parts of half a point from `part` on, and one more that ends them; returns what is behind. */
static struct pvq_part *half_open(struct pvq_half *h, const struct pyramid *p, int pairs, int k,
                                  struct pvq_part *part)
{
    uint64_t all = p->patterns[pairs][k];
    int first = pairs < 2 ? pairs : 2;
    uint32_t base = 0;
    h->part = part;
    for (int a = 0; a <= k; a++) {
        uint64_t count = p->patterns[pairs - first][k - a];
        uint64_t n = p->patterns[first][a] * count;
        if (n == 0)
            continue;
        *part++ = (struct pvq_part){ .base = base,
                                     .count = (uint32_t)count,
                                     .first = quarter_from(first, a),
                                     .second = quarter_from(pairs - first, k - a),
                                     .inverse = ((1ull << PVQ_SHIFT) - 1) / count + 1 };
        base += (uint32_t)n;
    }
    *part++ = (struct pvq_part){ .base = base };
    while ((all - 1) >> h->shift >= PVQ_HALF_GUESSES)
        h->shift++;
    int a = 0;
    for (uint64_t g = 0; g <= (all - 1) >> h->shift; g++) {
        while (h->part[a + 1].base <= g << h->shift)
            a++;
        h->guess[g] = (uint8_t)a;
    }
    return part;
}

static void halves_open(struct pvq_tables *t, const struct pyramid *p)
{
    struct pvq_part *part = t->part;
    for (int pairs = 0; pairs <= PVQ_HALF_PAIRS; pairs++)
        for (int k = 0; k <= PYRAMID_K; k++)
            if (p->patterns[pairs][k] > 0)
                part = half_open(&t->half[pairs][k], p, pairs, k, part);
}

/* ---- forms ------------------------------------------------------------------------------------------------------- */

static void kind_open(struct pvq_table *t, const struct pyramid *p, const struct pvq_form *f,
                      int pairs)
{
    int kind = PYRAMID_PAIRS - pairs;
    int digits = p->places[pairs] * f->levels;
    uint32_t base = (uint32_t)pyramid_base(p, f->k, f->levels, pairs);
    t->base[kind] = (int32_t)base;
    t->signed_base[kind] = (int32_t)(base ^ 1u << 31);
    t->shift[kind] = 2 * pairs;
    t->digits[kind] = digits;
    t->digits_inverse[kind] = 1 / (float)digits;
    t->places[kind] = p->places[pairs];
    t->places_inverse[kind] = 1 / (float)p->places[pairs];
    t->place_from[kind] = p->place_from[pairs];
    for (int z = PYRAMID_PAIRS; z > pairs; z--)
        t->patterns[kind] += (int32_t)p->patterns[z][f->k];
}

static struct pvq_type *types_open(struct pvq_tables *all, const struct pyramid *p,
                                   const struct pvq_form *f, int pairs, struct pvq_type *type)
{
    int first = pairs < PVQ_HALF_PAIRS ? pairs : PVQ_HALF_PAIRS;
    uint32_t digits = (uint32_t)(p->places[pairs] * f->levels);
    uint64_t base = pyramid_base(p, f->k, f->levels, pairs);
    for (int a = 0; a <= f->k; a++) {
        uint64_t count = p->patterns[pairs - first][f->k - a];
        uint64_t n = p->patterns[first][a] * count;
        if (n == 0)
            continue;
        *type++ = (struct pvq_type){ .base = base,
                                     .digits_inverse = UINT64_MAX / digits + 1,
                                     .inverse = ((1ull << 63) - 1) / count + 1,
                                     .digits = digits,
                                     .count = (uint32_t)count,
                                     .kind = (uint32_t)(PYRAMID_PAIRS - pairs),
                                     .shift = (uint32_t)(2 * pairs),
                                     .half = { &all->half[first][a],
                                               &all->half[pairs - first][f->k - a] } };
        base += n * digits << 2 * pairs;
    }
    return type;
}

static void form_open(struct pvq_tables *all, const struct pyramid *p, int form)
{
    const struct pvq_form *f = &pvq_form[form];
    struct pvq_table *t = &all->form[form];
    struct pvq_type *type = t->type;
    for (int pairs = PYRAMID_PAIRS; pairs > 0; pairs--) {
        kind_open(t, p, f, pairs);
        type = types_open(all, p, f, pairs, type);
    }
    ASSERT(type <= t->type + PVQ_TYPES);
    type->base = UINT64_MAX;
    memcpy(t->gain, f->gain, sizeof f->gain);
    t->last = pyramid_codes(p, f->k, f->levels) - 1;
    int shift = 8 * f->bytes - PVQ_GUESS_BITS;
    int at = 0;
    for (uint64_t g = 0; g < 1 << PVQ_GUESS_BITS; g++) {
        while (t->type[at + 1].base <= g << shift)
            at++;
        t->guess[g] = (uint16_t)at;
    }
}

/* ---- points ------------------------------------------------------------------------------------------------------ */

static void places_open(struct pvq_tables *t, const struct pyramid *p)
{
    for (int i = 0; i < 1 << PYRAMID_PAIRS; i++)
        for (int j = 0, at = 0; j < PYRAMID_PAIRS; j++) {
            bool there = p->place[i] >> j & 1;
            for (int c = 0; c < 2; c++)
                t->place[i][2 * j + c] = (uint8_t)(there ? at++ : 128);
        }
}

static void whole_open(struct pvq_tables *t, const struct pyramid *p)
{
    int k = pvq_form[PVQ2].k;
    uint8_t(*x)[PYRAMID_N] = t->whole;
    for (int pairs = PYRAMID_PAIRS; pairs > 0; pairs--)
        for (uint64_t i = 0; i < p->patterns[pairs][k]; i++)
            pyramid_pattern(p, pairs, k, i, *x++);
    ASSERT(x == t->whole + PVQ_WHOLE);
}

static struct pvq_tables tables;

static void open_once(void)
{
    const struct pyramid *p = pyramid_tables();
    quarters_open(&tables, p);
    halves_open(&tables, p);
    for (int i = 0; i < PVQ_FORMS; i++)
        form_open(&tables, p, i);
    places_open(&tables, p);
    whole_open(&tables, p);
}

const struct pvq_tables *pvq_tables(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_once);
    return &tables;
}
