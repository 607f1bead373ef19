/* Inside the aqlm encoder: rows being pressed, and what is done to all of them. press.c says how it goes together.
 *
 * Rows lie in units of AQLM_UNIT, the last one with what is left: a unit is a task for a thread, and sums over rows are made unit
 * by unit in one order, so that bits do not depend on threads. In a unit columns are contiguous, [cols][n].
 */
#ifndef WRING_QUANT_AQLM_PRESS_H
#define WRING_QUANT_AQLM_PRESS_H

#include <stdatomic.h>

#include "quant/aqlm/search.h"
#include "quant/moments.h"

enum { AQLM_UNIT = 128 };

/* Some rows, or all, of a matrix W, and W^ = scale * (sum of entries). */
struct aqlm_rows {
    int n, units;
    float *w;       /* [units][cols][rows of the unit] */
    float *scale;   /* [n] */
    uint16_t *code; /* [units][cols / group][books][rows of the unit] */
    float *sum;     /* [units][numbers] what every unit adds to a sum over all rows */
};

/* A thread's own. */
struct aqlm_desk {
    struct aqlm_search search;
    float *x, *y, *z; /* [cols][AQLM_UNIT] each */
};

struct aqlm_press {
    struct aqlm_shape shape;
    const struct moments *m;
    struct par *par;
    int cols;
    float *book;            /* [books][2^bits][group] */
    struct aqlm_desk *desk; /* [threads] */
    struct aqlm_rows rows;
};

static inline int aqlm_unit_rows(const struct aqlm_press *p, int unit)
{
    int left = p->rows.n - unit * AQLM_UNIT;
    return left < AQLM_UNIT ? left : AQLM_UNIT;
}
static inline float *aqlm_unit_w(const struct aqlm_press *p, int unit)
{
    return p->rows.w + (size_t)unit * AQLM_UNIT * (size_t)p->cols;
}
/* Codes of a unit's group of inputs, [books][rows of the unit]. */
static inline uint16_t *aqlm_unit_code(const struct aqlm_press *p, int unit, int group)
{
    size_t books = (size_t)p->shape.books;
    return p->rows.code + ((size_t)unit * AQLM_UNIT * (size_t)(p->cols / p->shape.group) +
                           (size_t)group * (size_t)aqlm_unit_rows(p, unit)) *
                              books;
}

/* Codebooks to begin with, by k-means on groups of the rows, one codebook on what those before it left. ERR_NOMEM. */
int aqlm_learn_start(struct aqlm_press *p, struct err *e) WARN_UNUSED;
/* Codebooks that make tr((W - W^) H (W - W^)^T) of the rows smaller, codes and scales being what they are. It is a quadratic
 * form in the entries: some steps of conjugate gradients. ERR_NOMEM. */
int aqlm_learn_books(struct aqlm_press *p, struct err *e) WARN_UNUSED;

/* to[cols][n] = scale * sum of the entries that a unit's codes choose from `book`. */
void aqlm_unit_sum(const struct aqlm_press *p, const float *book, int unit, float *to);
/* to[cols][n] = H x */
void aqlm_weigh(const struct aqlm_press *p, const float *x, int n, float *to);

#endif
