/* Codebooks for the aqlm encoder: where they begin, and how they are fitted to codes. */
#include "quant/aqlm/press.h"

#include <string.h>

#include "server/base/mem.h"

/* ---- k-means ----------------------------------------------------------------------------------------------------- */

enum { VECTORS = 16384, PER_ENTRY = 16, ITERATIONS = 12 };

struct kmeans {
    const struct aqlm_press *p;
    int n;          /* vectors, a multiple of AQLM_UNIT unless there are fewer groups than that */
    float *y;       /* [blocks][group][AQLM_UNIT] what earlier codebooks left */
    float *q;       /* the same, the entries chosen */
    uint16_t *code; /* [n] */
    float *entry;   /* [2^bits][group] of the codebook under way */
    double *sum;    /* [2^bits][group] */
    int *count;     /* [2^bits] */
};

static float *vector_at(const struct kmeans *k, float *of, int i)
{
    return of + (ptrdiff_t)(i / AQLM_UNIT) * k->p->shape.group * AQLM_UNIT + i % AQLM_UNIT;
}

/* Group `group` of row i of the rows, over its scale. */
static void take_vector(const struct kmeans *k, int row, int group, float *to)
{
    const struct aqlm_press *p = k->p;
    int unit = row / AQLM_UNIT, g = p->shape.group;
    int n = aqlm_unit_rows(p, unit);
    const float *w = aqlm_unit_w(p, unit) + row % AQLM_UNIT;
    float scale = p->rows.scale[row];
    for (int t = 0; t < g; t++)
        to[(ptrdiff_t)t * AQLM_UNIT] =
            scale > 0 ? w[(size_t)(group * g + t) * (size_t)n] / scale : 0;
}

/* Numbers that look random: where vectors are taken, and what an entry becomes that nothing chose. */
static uint32_t mixed(uint32_t i)
{
    i = (i + 1) * 0x9e3779b1u;
    i ^= i >> 15;
    i *= 0x85ebca6bu;
    return i ^ i >> 13;
}

static void set_entry(const struct kmeans *k, size_t c, int i)
{
    const float *y = vector_at(k, k->y, i);
    for (int t = 0; t < k->p->shape.group; t++)
        k->entry[c * (size_t)k->p->shape.group + (size_t)t] = y[(ptrdiff_t)t * AQLM_UNIT];
}

static void nearest_vectors(void *arg, int first, int last, int i_thread)
{
    const struct kmeans *k = arg;
    int g = k->p->shape.group;
    struct aqlm_search *s = &k->p->desk[i_thread].search;
    float d[AQLM_GROUP_MAX * AQLM_GROUP_MAX] = { 0 };
    struct aqlm_shape all = s->shape;
    for (int t = 0; t < g; t++)
        d[t * g + t] = 1;
    s->shape.books = 1;
    aqlm_search_set(s, k->entry, d);
    for (int b = first; b < last; b++) {
        size_t at = (size_t)b * (size_t)g * AQLM_UNIT;
        aqlm_search_run(s, k->y + at, AQLM_UNIT, false, k->code + (ptrdiff_t)b * AQLM_UNIT,
                        k->q + at);
    }
    s->shape = all;
}

/* Every entry becomes the mean of what chose it; returns nothing new where nothing did but a vector. */
static void move_entries(struct kmeans *k, int iteration)
{
    size_t g = (size_t)k->p->shape.group, n = (size_t)1 << k->p->shape.bits;
    memset(k->sum, 0, n * g * sizeof *k->sum);
    memset(k->count, 0, n * sizeof *k->count);
    for (int i = 0; i < k->n; i++) {
        const float *y = vector_at(k, k->y, i);
        double *sum = k->sum + k->code[i] * g;
        k->count[k->code[i]]++;
        for (size_t t = 0; t < g; t++)
            sum[t] += (double)y[t * AQLM_UNIT];
    }
    for (size_t c = 0; c < n; c++)
        if (k->count[c] == 0)
            set_entry(k, c, (int)(mixed((uint32_t)(c + n * (size_t)iteration)) % (uint32_t)k->n));
        else
            for (size_t t = 0; t < g; t++)
                k->entry[c * g + t] = (float)(k->sum[c * g + t] / k->count[c]);
}

static void learn_one(struct kmeans *k, int m)
{
    size_t g = (size_t)k->p->shape.group, n = (size_t)1 << k->p->shape.bits;
    int blocks = k->n / AQLM_UNIT;
    k->entry = k->p->book + (size_t)m * n * g;
    for (size_t c = 0; c < n; c++)
        set_entry(k, c, (int)((uint64_t)c * (uint64_t)k->n / n));
    for (int i = 0; i < ITERATIONS; i++) {
        par_for(k->p->par, blocks, 1, nearest_vectors, k);
        move_entries(k, i + 1);
    }
    par_for(k->p->par, blocks, 1, nearest_vectors, k);
    for (size_t i = 0; i < (size_t)k->n * g; i++)
        k->y[i] -= k->q[i];
}

static int open_kmeans(struct kmeans *k, const struct aqlm_press *p, struct err *e)
{
    size_t g = (size_t)p->shape.group, entries = (size_t)1 << p->shape.bits;
    int want = (int)(PER_ENTRY * entries > VECTORS ? PER_ENTRY * entries : VECTORS);
    *k = (struct kmeans){ .p = p, .n = want };
    k->y = mem_zalloc((size_t)want * g, 2 * sizeof *k->y);
    k->code = mem_zalloc((size_t)want, sizeof *k->code);
    k->sum = mem_zalloc(entries * g, sizeof *k->sum);
    k->count = mem_zalloc(entries, sizeof *k->count);
    if (k->y == NULL || k->code == NULL || k->sum == NULL || k->count == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d vectors", want);
    k->q = k->y + (size_t)want * g;
    return 0;
}

int aqlm_learn_start(struct aqlm_press *p, struct err *e)
{
    struct kmeans k;
    int rc = open_kmeans(&k, p, e);
    for (int i = 0; rc == 0 && i < k.n; i++)
        take_vector(&k, (int)(mixed(2 * (uint32_t)i) % (uint32_t)p->rows.n),
                    (int)(mixed(2 * (uint32_t)i + 1) % (uint32_t)(p->cols / p->shape.group)),
                    vector_at(&k, k.y, i));
    for (int m = 0; rc == 0 && m < p->shape.books; m++)
        learn_one(&k, m);
    mem_free(k.y);
    mem_free(k.code);
    mem_free(k.sum);
    mem_free(k.count);
    return rc;
}

/* ---- entries fitted to codes ------------------------------------------------------------------------------------- */

enum { STEPS = 8 };

/* The linear map of entries to what they are pulled by: all of it, or the residual of W. */
struct fit {
    struct aqlm_press *p;
    const float *of;                       /* entries; NULL: W - W^ is pulled back */
    float *pull, *diagonal, *step, *image; /* [numbers] each */
};

/* sum of the unit += scale * x[group][row] for every entry that a code names */
static void pull_back(const struct aqlm_press *p, int unit, const float *x, float *sum)
{
    size_t n = (size_t)aqlm_unit_rows(p, unit), g = (size_t)p->shape.group;
    const float *scale = p->rows.scale + (ptrdiff_t)unit * AQLM_UNIT;
    memset(sum, 0, aqlm_numbers(p->shape) * sizeof *sum);
    for (int j = 0; j < p->cols / p->shape.group; j++, x += g * n) {
        const uint16_t *code = aqlm_unit_code(p, unit, j);
        for (int m = 0; m < p->shape.books; m++)
            for (size_t r = 0; r < n; r++, code++) {
                float *to = sum + (((size_t)m << p->shape.bits) + *code) * g;
                for (size_t t = 0; t < g; t++)
                    to[t] += scale[r] * x[t * n + r];
            }
    }
}

static void fit_units(void *arg, int first, int last, int i_thread)
{
    const struct fit *f = arg;
    struct aqlm_press *p = f->p;
    struct aqlm_desk *d = &p->desk[i_thread];
    for (int u = first; u < last; u++) {
        int n = aqlm_unit_rows(p, u);
        const float *w = aqlm_unit_w(p, u);
        aqlm_unit_sum(p, f->of != NULL ? f->of : p->book, u, d->x);
        for (size_t i = 0; f->of == NULL && i < (size_t)n * (size_t)p->cols; i++)
            d->x[i] = w[i] - d->x[i];
        aqlm_weigh(p, d->x, n, d->y);
        pull_back(p, u, d->y, p->rows.sum + (size_t)u * aqlm_numbers(p->shape));
    }
}

/* to = the pull of `of`, units in their order. */
static void apply(struct fit *f, const float *of, float *to)
{
    size_t n = aqlm_numbers(f->p->shape);
    f->of = of;
    par_for(f->p->par, f->p->rows.units, 1, fit_units, f);
    memset(to, 0, n * sizeof *to);
    for (int u = 0; u < f->p->rows.units; u++)
        for (size_t i = 0; i < n; i++)
            to[i] += f->p->rows.sum[(size_t)u * n + i];
}

/* The diagonal of the map, without what an entry does to itself across groups. */
static void find_diagonal(const struct fit *f)
{
    const struct aqlm_press *p = f->p;
    size_t g = (size_t)p->shape.group, cols = (size_t)p->cols;
    memset(f->diagonal, 0, aqlm_numbers(p->shape) * sizeof *f->diagonal);
    for (int u = 0; u < p->rows.units; u++)
        for (size_t j = 0; j < cols / g; j++) {
            const uint16_t *code = aqlm_unit_code(p, u, (int)j);
            for (int m = 0; m < p->shape.books; m++)
                for (int r = 0; r < aqlm_unit_rows(p, u); r++, code++) {
                    float s = p->rows.scale[u * AQLM_UNIT + r];
                    float *to = f->diagonal + (((size_t)m << p->shape.bits) + *code) * g;
                    for (size_t t = 0; t < g; t++)
                        to[t] += s * s * p->m->h[(j * g + t) * (cols + 1)];
                }
        }
}

/* x over the diagonal; an entry that no code names stays as it is. */
static float over_diagonal(const struct fit *f, size_t i)
{
    return f->diagonal[i] > 0 ? f->pull[i] / f->diagonal[i] : 0;
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Conjugate gradients from where the codebooks are. */
static void descend(struct fit *f)
{
    size_t n = aqlm_numbers(f->p->shape);
    double was = 0;
    find_diagonal(f);
    apply(f, NULL, f->pull);
    for (int k = 0; k < STEPS; k++) {
        double is = 0;
        for (size_t i = 0; i < n; i++)
            is += (double)f->pull[i] * (double)over_diagonal(f, i);
        float keep = was > 0 ? (float)(is / was) : 0;
        for (size_t i = 0; i < n; i++)
            f->step[i] = over_diagonal(f, i) + keep * f->step[i];
        apply(f, f->step, f->image);
        double along = dot(f->step, f->image, n);
        if (!(along > 0))
            return;
        float far = (float)(is / along);
        for (size_t i = 0; i < n; i++) {
            f->p->book[i] += far * f->step[i];
            f->pull[i] -= far * f->image[i];
        }
        was = is;
    }
}

int aqlm_learn_books(struct aqlm_press *p, struct err *e)
{
    size_t n = aqlm_numbers(p->shape);
    struct fit f = { .p = p, .pull = mem_zalloc(4 * n, sizeof(float)) };
    if (f.pull == NULL)
        return err_set(e, ERR_NOMEM, "no memory to fit codebooks of %zu numbers", n);
    f.diagonal = f.pull + n;
    f.step = f.diagonal + n;
    f.image = f.step + n;
    descend(&f);
    mem_free(f.pull);
    return 0;
}
