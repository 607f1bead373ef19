#include "server/quantize/allocate.h"

#include <math.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/model/arch.h"

/* ---- the ways ---------------------------------------------------------------------------------------------------- */

static int choose_least(struct allocation *a, struct err *e)
{
    return allocate_dp(a->item, a->n, a->budget, a->choice, e);
}

static int choose_dp(struct allocation *a, struct err *e)
{
    TRY(quantize_error_dp(a, e));
    return choose_least(a, e);
}

static int choose_hawq(struct allocation *a, struct err *e)
{
    TRY(quantize_error_hawq(a, e));
    return choose_least(a, e);
}

static int choose_lgreco(struct allocation *a, struct err *e)
{
    TRY(bank_fill(a, e));
    TRY(bank_errors(a, e));
    return choose_least(a, e);
}

static int choose_baq(struct allocation *a, struct err *e)
{
    double *want = mem_zalloc((size_t)a->n + 1, 2 * sizeof *want);
    if (want == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d matrices", a->n);
    double *weights = want + a->n;
    for (int i = 0; i < a->n; i++)
        weights[i] = (double)a->matrix[i].slot->rows * a->matrix[i].slot->cols;
    int rc = quantize_spread(a, want, e);
    if (rc == 0)
        rc = allocate_level(a->item, weights, want, a->n, a->budget, a->choice, e);
    mem_free(want);
    return rc;
}

/* The widest form that fits for all. */
static int choose_uniform(struct allocation *a, struct err *e)
{
    size_t most = 0;
    int best = 0;
    (void)e;
    for (int c = 0; c < a->family.n; c++) {
        size_t bytes = allocation_bytes(a, c);
        if (bytes <= a->budget && bytes > most) {
            best = c;
            most = bytes;
        }
    }
    for (int i = 0; i < a->n; i++)
        a->choice[i] = best;
    return 0;
}

static int choose_evopress(struct allocation *a, struct err *e)
{
    struct bank bank = { 0 };
    TRY(choose_dp(a, e));
    if (a->bank != NULL)
        return quantize_evolve(a, e);
    TRY(bank_fill(a, e));
    TRY(bank_open(&bank, a, e));
    a->bank = &bank;
    int rc = quantize_evolve(a, e);
    a->bank = NULL;
    bank_close(&bank);
    return rc;
}

int allocation_choose(struct allocation *a, struct err *e)
{
    static const struct {
        const char *word;
        int (*choose)(struct allocation *a, struct err *e);
    } way[] = { { "dp", choose_dp },         { "uniform", choose_uniform },
                { "hawq", choose_hawq },     { "baq", choose_baq },
                { "lgreco", choose_lgreco }, { "evopress", choose_evopress } };
    for (size_t i = 0; i < sizeof way / sizeof way[0]; i++)
        if (strcmp(way[i].word, a->q->config->allocate) == 0)
            return way[i].choose(a, e);
    return err_set(e, ERR_INVALID, "allocate: there is no %s", a->q->config->allocate);
}

/* ---- the budget -------------------------------------------------------------------------------------------------- */

/* What the way needs at least. */
static size_t least_bytes(const struct allocation *a)
{
    if (strcmp(a->q->config->allocate, "uniform") != 0)
        return allocation_bytes(a, -1);
    size_t least = allocation_bytes(a, 0);
    for (int c = 1; c < a->family.n; c++)
        least = allocation_bytes(a, c) < least ? allocation_bytes(a, c) : least;
    return least;
}

int allocation_check(const struct allocation *a, struct err *e)
{
    const struct config *c = a->q->config;
    size_t least = least_bytes(a);
    if (least <= a->budget)
        return 0;
    if (c->size > 0)
        return err_set(e, ERR_INVALID,
                       "size: %lld bytes are too few, the smallest that %s can do here is %zu, of "
                       "which %zu are no layer's matrices",
                       (long long)c->size, quantize_codec(c), least + a->rest, a->rest);
    /* rounded up: what is said does */
    return err_set(e, ERR_INVALID,
                   "bits: %g bits a weight are too few, the smallest that %s can do here is %.4f",
                   a->bits, quantize_codec(c), ceil(8 * (double)least / a->weights * 1e4) / 1e4);
}

int quantize_check_budget(struct quantize *q, struct err *e)
{
    struct allocation a;
    if (!quantize_has_budget(q->config))
        return 0;
    TRY(allocation_open(&a, q, e));
    int rc = allocation_check(&a, e);
    allocation_close(&a);
    return rc;
}

/* ---- the choice -------------------------------------------------------------------------------------------------- */

static int note_choices(struct allocation *a, json_t *choices, struct err *e)
{
    for (int i = 0; i < a->n; i++) {
        json_t *word = json_string(a->family.word[a->choice[i]]);
        if (json_object_set_new(choices, a->matrix[i].slot->name, word) < 0)
            return err_set(e, ERR_NOMEM, "no memory for the notes");
    }
    return quantize_state_save(a->q, e);
}

int quantize_allocate(struct quantize *q, struct err *e)
{
    struct allocation a;
    json_t *choices;
    int rc = 0;
    if (!quantize_has_budget(q->config))
        return 0;
    TRY(quantize_state_map(q, "choice", &choices, e));
    TRY(allocation_open(&a, q, e));
    if ((int)json_object_size(choices) != a.n) {
        rc = allocation_choose(&a, e);
        if (rc == 0)
            rc = note_choices(&a, choices, e);
    }
    allocation_close(&a);
    return rc;
}

const char *quantize_form(const struct quantize *q, const struct slot *s)
{
    const json_t *choices = json_object_get(json_object_get(q->state, "allocation"), "choice");
    const char *word = json_string_value(json_object_get(choices, s->name));
    return word != NULL ? word : quantize_codec(q->config);
}
