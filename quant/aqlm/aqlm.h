/* The aqlm codec's own: shapes of its planes, and its kernels per ISA. The format is in aqlm.c. */
#ifndef WRING_QUANT_AQLM_AQLM_H
#define WRING_QUANT_AQLM_AQLM_H

#include "quant/input.h"
#include "quant/tiledot.h"

enum { AQLM_BOOKS_MAX = 8, AQLM_BITS_MAX = 16, AQLM_GROUP_MAX = 32, AQLM_SLACK = 8 };

/* The numbers in a form's name, "aqlm<books>x<bits>g<group>". */
struct aqlm_shape {
    int books; /* codebooks: so many entries are added up */
    int bits;  /* a codebook has 2^bits entries */
    int group; /* inputs that an entry covers: 8, 16 or 32 */
};

CODEC_INLINE struct aqlm_shape aqlm_shape(int variant)
{
    return (struct aqlm_shape){ variant & 15, variant >> 4 & 31, variant >> 9 };
}
static inline int aqlm_variant(struct aqlm_shape s)
{
    return s.books | s.bits << 4 | s.group << 9;
}
CODEC_INLINE int aqlm_code_bytes(struct aqlm_shape s)
{
    return s.bits <= 8 ? 1 : 2;
}
/* Numbers in all codebooks of a matrix. */
static inline size_t aqlm_numbers(struct aqlm_shape s)
{
    return ((size_t)s.books << s.bits) * (size_t)s.group;
}

/* Plane 1 begins with this, the f16 codebooks and the integer ones behind it. */
struct aqlm_head {
    float
        step; /* what 1 in a code of the integer codebooks' sum is worth, before the row's scale */
    uint32_t unused[15];
};

static inline const struct aqlm_head *aqlm_head(const struct weight *w)
{
    return (const struct aqlm_head *)w->plane[1];
}
/* [books][2^bits][group], as in the file. */
static inline uint16_t *aqlm_books(const struct weight *w)
{
    return (uint16_t *)((char *)w->plane[1] + sizeof(struct aqlm_head));
}
/* Bytes of a number of the integer codebooks: 1, or 2 where more than two are added up. */
static inline int aqlm_fast_bytes(struct aqlm_shape s)
{
    return s.books <= 2 ? 1 : 2;
}
/* The integer codebooks, [books][2^bits][group]. AQLM_SLACK bytes behind them may be read. */
static inline void *aqlm_fast(const struct weight *w)
{
    return aqlm_books(w) + aqlm_numbers(aqlm_shape(w->variant));
}
/* Whether the bytes of the integer codebooks are there once more, input by input: where a byte is looked up by a byte. */
static inline bool aqlm_has_transposed(struct aqlm_shape s)
{
    return s.books <= 2 && s.bits == 8 && s.group == 8;
}
/* [books][group][2^bits], behind the integer codebooks and at a multiple of 64 bytes, if aqlm_has_transposed. */
static inline uint8_t *aqlm_transposed(const struct weight *w)
{
    return (uint8_t *)aqlm_fast(w) + aqlm_numbers(aqlm_shape(w->variant));
}
/* Codes of sixteen rows, one behind the other, for a codebook and a group of inputs. */
static inline const uint8_t *aqlm_codes(const struct weight *w, struct aqlm_shape s, int panel,
                                        int group, int book)
{
    size_t cell = (size_t)panel * (size_t)(w->cols / s.group) + (size_t)group;
    return (const uint8_t *)w->plane[0] +
           (cell * (size_t)s.books + (size_t)book) * CODEC_PANEL * (size_t)aqlm_code_bytes(s);
}
/* The entry of a codebook that a code in aqlm_codes means. Files keep codes signed; the mask takes the sign's bits off. */
CODEC_INLINE size_t aqlm_entry(const uint8_t *code, struct aqlm_shape s, int row, int book)
{
    unsigned c = s.bits <= 8 ? code[row] : ((const uint16_t *)(const void *)code)[row];
    return ((size_t)book << s.bits) + (c & ((1u << s.bits) - 1));
}
static inline const uint16_t *aqlm_scales(const struct weight *w)
{
    return (const uint16_t *)w->plane[2];
}

/* Group j of a row, as the numbers that the reference has; the definition. */
void aqlm_decode_group(const struct weight *w, struct aqlm_shape s, int row, int j, float *out);

/* The f16 codebooks, and the integer ones made of them. */
void aqlm_set_books(struct weight *w, const uint16_t *book);

/* The encoder: press.c. */
int aqlm_press_all(struct weight *w, const float *src, const struct moments *m, struct par *par,
                   const struct press_watch *watch, struct err *e);

extern const struct codec_moves aqlm_moves; /* moves.c */
extern const struct codec codec_aqlm;
extern const struct codec_cpu aqlm_ref, aqlm_avx2, aqlm_avx512, aqlm_vbmi;
extern const struct codec_cuda aqlm_cuda;

#endif
