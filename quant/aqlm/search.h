/* Which entries to add up: codes for a group of inputs of many rows, in the metric of what errors cost.
 *
 * A group's vector is q = sum over codebooks m of entry[m][code[m]], and its loss is q D q - 2 q u + a constant. With u = D y that
 * is |y - q|^2 in the metric D. Written out over two codebooks it is
 *
 *      own[0][a] - 2 entry[0][a] u  +  own[1][b] - 2 entry[1][b] u  +  cross[a][b],     own = c D c, cross = 2 c D c'
 *
 * so all pairs are tried at two operations each, the table `cross` being that of all rows: 1.3 us for the 65,536 pairs of 2x8
 * (Zen 3, AVX2). More codebooks are searched pair by pair, a few rounds; of an odd number the last one is alone.
 */
#ifndef WRING_QUANT_AQLM_SEARCH_H
#define WRING_QUANT_AQLM_SEARCH_H

#include "quant/aqlm/aqlm.h"

enum { AQLM_LANES = 16 };

/* least[a][lane] = the least of t[b][lane] + cross[a][b] over b; na is a multiple of 4 or below it. */
typedef void aqlm_scan_fn(const float *t, const float *cross, int na, int nb, float *least);
aqlm_scan_fn aqlm_scan_ref, aqlm_scan_avx2, aqlm_scan_avx512;

/* One thread's. */
struct aqlm_search {
    struct aqlm_shape shape;
    enum cpu_isa isa;
    aqlm_scan_fn *scan;
    const float *entry; /* [books][2^bits][group] */
    float *image;       /* the same of D entry */
    float *own;         /* [books][2^bits] */
    float *cross;       /* [books / 2][2^bits][2^bits] */
    float *t;           /* [2][2^bits][AQLM_LANES] the rows' part of the loss */
    float *least;       /* [2^bits][AQLM_LANES] */
};

/* ERR_NOMEM. */
int aqlm_search_open(struct aqlm_search *s, struct aqlm_shape shape, enum cpu_isa isa,
                     struct err *e) WARN_UNUSED;
void aqlm_search_close(struct aqlm_search *s); /* a zeroed one is accepted */
/* What the searches that follow are about: entries [books][2^bits][group], borrowed, and the symmetric d[group][group]. */
void aqlm_search_set(struct aqlm_search *s, const float *entry, const float *d);
/* Codes [books][n] and their sums q[group][n] for u[group][n]. go_on: code has some already, which are only changed for better
 * ones; else they are found from nothing. A row's codes do not depend on n. */
void aqlm_search_run(struct aqlm_search *s, const float *u, int n, bool go_on, uint16_t *code,
                     float *q);

#endif
