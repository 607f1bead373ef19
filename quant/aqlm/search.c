#include "quant/aqlm/search.h"

#include <float.h>
#include <string.h>

#include "kernels/dense.h"
#include "server/base/mem.h"

enum { ROUNDS = 3 }; /* over the pairs of more than two codebooks */

/* ---- tables ------------------------------------------------------------------------------------------------------ */

void aqlm_scan_ref(const float *t, const float *cross, int na, int nb, float *least)
{
    for (int a = 0; a < na; a++) {
        float *to = least + (size_t)a * AQLM_LANES;
        for (int i = 0; i < AQLM_LANES; i++)
            to[i] = FLT_MAX;
        for (int b = 0; b < nb; b++, cross++)
            for (int i = 0; i < AQLM_LANES; i++) {
                float v = t[(size_t)b * AQLM_LANES + (size_t)i] + *cross;
                to[i] = v < to[i] ? v : to[i];
            }
    }
}

static size_t entries(const struct aqlm_search *s)
{
    return (size_t)1 << s->shape.bits;
}

int aqlm_search_open(struct aqlm_search *s, struct aqlm_shape shape, enum cpu_isa isa,
                     struct err *e)
{
    *s = (struct aqlm_search){ .shape = shape, .isa = isa };
    s->scan = isa >= CPU_AVX512 ? aqlm_scan_avx512
              : isa >= CPU_AVX2 ? aqlm_scan_avx2
                                : aqlm_scan_ref;
    size_t n = entries(s), pairs = (size_t)shape.books / 2;
    size_t image = aqlm_numbers(shape), own = (size_t)shape.books * n, t = n * AQLM_LANES;
    s->image = mem_zalloc(image + own + pairs * n * n + 3 * t, sizeof(float));
    if (s->image == NULL)
        return err_set(e, ERR_NOMEM, "no memory to search %d codebooks of %zu entries", shape.books,
                       n);
    s->own = s->image + image;
    s->cross = s->own + own;
    s->t = s->cross + pairs * n * n;
    s->least = s->t + 2 * t;
    return 0;
}

void aqlm_search_close(struct aqlm_search *s)
{
    mem_free(s->image);
    *s = (struct aqlm_search){ 0 };
}

void aqlm_search_set(struct aqlm_search *s, const float *entry, const float *d)
{
    size_t g = (size_t)s->shape.group, n = entries(s);
    struct dense_product p = { .c = s->image, .a = entry, .b = d, .scale = 1, .b_col = 1 };
    s->entry = entry;
    p.m = s->shape.books << s->shape.bits;
    p.n = p.k = s->shape.group;
    p.a_row = p.b_row = p.c_row = g;
    p.a_col = 1;
    dense_product(s->isa, &p);
    for (int i = 0; i < p.m; i++) {
        const float *c = entry + (size_t)i * g, *dc = s->image + (size_t)i * g;
        s->own[i] = 0;
        for (size_t t = 0; t < g; t++)
            s->own[i] += c[t] * dc[t];
    }
    for (int m = 0; m + 1 < s->shape.books; m += 2)
        dense_nt(s->isa, s->cross + (size_t)(m / 2) * n * n, entry + (size_t)m * n * g,
                 s->image + (size_t)(m + 1) * n * g, (int)n, (int)n, (int)g, 2);
}

/* ---- sixteen rows ------------------------------------------------------------------------------------------------ */

struct lanes {
    float u[AQLM_GROUP_MAX][AQLM_LANES];
    int code[AQLM_BOOKS_MAX][AQLM_LANES];
};

/* u -= sign * D entry for what each lane has of codebook m */
static void take_off(const struct aqlm_search *s, struct lanes *x, int m, float sign)
{
    size_t g = (size_t)s->shape.group;
    for (int i = 0; i < AQLM_LANES; i++) {
        const float *c = s->image + ((size_t)m * entries(s) + (size_t)x->code[m][i]) * g;
        for (size_t t = 0; t < g; t++)
            x->u[t][i] -= sign * c[t];
    }
}

/* t[c][lane] = own[c] - 2 c u for codebook m */
static void price(const struct aqlm_search *s, const struct lanes *x, int m, float *to)
{
    size_t g = (size_t)s->shape.group, n = entries(s);
    struct dense_product p = { .c = to, .b = x->u[0], .scale = -2, .add = true, .b_col = 1 };
    for (size_t c = 0; c < n; c++)
        for (int i = 0; i < AQLM_LANES; i++)
            to[c * AQLM_LANES + (size_t)i] = s->own[(size_t)m * n + c];
    p.a = s->entry + (size_t)m * n * g;
    p.m = (int)n;
    p.n = AQLM_LANES;
    p.k = (int)g;
    p.a_row = g;
    p.a_col = 1;
    p.b_row = p.c_row = AQLM_LANES;
    dense_product(s->isa, &p);
}

/* The entry with the least cost, of equal ones the first. more, apart from each other, is added where it is not NULL. */
static int cheapest(const float *cost, const float *more, size_t apart, size_t n)
{
    float least = FLT_MAX;
    int best = 0;
    for (size_t c = 0; c < n; c++) {
        float v = cost[c * AQLM_LANES] + (more != NULL ? more[c * apart] : 0);
        best = v < least ? (int)c : best;
        least = v < least ? v : least;
    }
    return best;
}

/* The best codes of codebook m and, where there is one, the next. */
static void choose(struct aqlm_search *s, struct lanes *x, int m)
{
    size_t n = entries(s);
    const float *cross = s->cross + (size_t)(m / 2) * n * n;
    float *ta = s->t, *tb = s->t + n * AQLM_LANES;
    bool pair = m + 1 < s->shape.books;
    price(s, x, m, ta);
    if (pair) {
        price(s, x, m + 1, tb);
        s->scan(tb, cross, (int)n, (int)n, s->least);
    }
    for (int i = 0; i < AQLM_LANES; i++) {
        int a = x->code[m][i] = cheapest(ta + i, pair ? s->least + i : NULL, AQLM_LANES, n);
        if (pair)
            x->code[m + 1][i] = cheapest(tb + i, cross + (size_t)a * n, 1, n);
    }
}

static void search_lanes(struct aqlm_search *s, struct lanes *x, bool go_on)
{
    int books = s->shape.books;
    int rounds = books > 2 ? ROUNDS : 1;
    for (int m = 0; go_on && m < books; m++)
        take_off(s, x, m, 1);
    for (int round = 0; round < rounds; round++)
        for (int m = 0; m < books; m += 2) {
            int end = m + 2 < books ? m + 2 : books;
            for (int k = m; k < end && (go_on || round > 0); k++)
                take_off(s, x, k, -1);
            choose(s, x, m);
            for (int k = m; k < end && books > 2; k++)
                take_off(s, x, k, 1);
        }
}

void aqlm_search_run(struct aqlm_search *s, const float *u, int n, bool go_on, uint16_t *code,
                     float *q)
{
    int g = s->shape.group, books = s->shape.books;
    struct lanes x;
    for (int r = 0; r < n; r += AQLM_LANES) {
        int some = n - r < AQLM_LANES ? n - r : AQLM_LANES;
        memset(&x, 0, sizeof x);
        for (int i = 0; i < some; i++) {
            for (int t = 0; t < g; t++)
                x.u[t][i] = u[(size_t)t * (size_t)n + (size_t)(r + i)];
            for (int m = 0; m < books && go_on; m++)
                x.code[m][i] = code[(size_t)m * (size_t)n + (size_t)(r + i)];
        }
        search_lanes(s, &x, go_on);
        for (int i = 0; i < some; i++) {
            for (int t = 0; t < g; t++)
                q[(size_t)t * (size_t)n + (size_t)(r + i)] = 0;
            for (int m = 0; m < books; m++) {
                const float *c =
                    s->entry + ((size_t)m * entries(s) + (size_t)x.code[m][i]) * (size_t)g;
                code[(size_t)m * (size_t)n + (size_t)(r + i)] = (uint16_t)x.code[m][i];
                for (int t = 0; t < g; t++)
                    q[(size_t)t * (size_t)n + (size_t)(r + i)] += c[t];
            }
        }
    }
}
