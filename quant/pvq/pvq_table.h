/* Tables for the fast kernels of pvq: what pyramid_point() works out step by step, looked up. Which codes they give points
 * to, and which, is said by pyramid.h alone.
 */
#ifndef WRING_QUANT_PVQ_PVQ_TABLE_H
#define WRING_QUANT_PVQ_PVQ_TABLE_H

#include "quant/pvq/pvq.h"

enum {
    PVQ_KINDS = PYRAMID_PAIRS, /* points by how many of their pairs are not 0: kind 8 - z */
    PVQ_QUARTERS = 251126,     /* patterns of at most two pairs, PYRAMID_K pulses at most */
    PVQ_WHOLE = 17519,         /* patterns of pvq2 */
    PVQ_GUESS_BITS = 12,
    PVQ_TYPES = 178, /* of pvq4, which has most */
    PVQ_HALF_GUESSES = 256,
    PVQ_HALF_PAIRS = PYRAMID_PAIRS / 2,
    PVQ_PARTS = (PVQ_HALF_PAIRS + 1) * (PYRAMID_K + 1) * (PYRAMID_K + 4) / 2,
};

/* Quotients in halves are number * inverse / 2^PVQ_SHIFT, those in points number * inverse / 2^64 or twice that / 2^64 (where
 * a count may be 1), with inverses rounded up: exact where number * count is below 2^PVQ_SHIFT or 2^63. Up to PYRAMID_K
 * pulses it is below 2^35 in halves, 2^62 in points. */
enum { PVQ_SHIFT = 36 };

/* The patterns of half a point whose first quarter has the same pulses; where those of its quarters begin. */
struct pvq_part {
    uint32_t base, count;
    uint32_t first, second;
    uint64_t inverse;
};

/* Half a point of so many pairs and pulses: its first part, and the parts of the first of the numbers whose bits from
 * `shift` on are the index. */
struct pvq_half {
    const struct pvq_part *part;
    uint32_t shift;
    uint8_t guess[PVQ_HALF_GUESSES];
};

/* The codes whose points have the same pairs and the same pulses in the first half. */
struct pvq_type {
    uint64_t base;
    uint64_t digits_inverse, inverse; /* 2^64 / digits and 2^63 / count, rounded up */
    uint32_t digits;                  /* levels * places */
    uint32_t count;                   /* patterns of the second half */
    uint32_t kind, shift;             /* 2 z */
    const struct pvq_half *half[2];
};

/* A form's. What kinds have is for vector look-ups in eight entries. */
struct pvq_table {
    int32_t base[PVQ_KINDS];        /* of pvq2 only, like digits and patterns */
    int32_t signed_base[PVQ_KINDS]; /* with the top bit turned */
    int32_t shift[PVQ_KINDS];       /* 2 z */
    int32_t digits[PVQ_KINDS], patterns[PVQ_KINDS];
    float digits_inverse[PVQ_KINDS];
    int32_t places[PVQ_KINDS], place_from[PVQ_KINDS];
    float places_inverse[PVQ_KINDS];
    float gain[16];
    uint64_t last;
    uint16_t guess[1 << PVQ_GUESS_BITS];
    struct pvq_type type[PVQ_TYPES + 1]; /* and one more, whose base is past all codes */
};

/* For each element of a point, place says which of the pattern it is, or 128: it is 0. */
struct pvq_tables {
    struct pvq_table form[PVQ_FORMS];
    uint8_t place[1 << PYRAMID_PAIRS][PYRAMID_N];
    uint8_t whole[PVQ_WHOLE][PYRAMID_N]; /* patterns of pvq2 */
    uint8_t quarter[PVQ_QUARTERS][4];
    struct pvq_half half[PVQ_HALF_PAIRS + 1][PYRAMID_K + 1];
    struct pvq_part part[PVQ_PARTS];
};

/* Constants, worked out by the first thread that asks. Any thread. */
const struct pvq_tables *pvq_tables(void);

/* The upper half of a product. */
static inline uint64_t pvq_upper(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)a * b >> 64);
}

#endif
