/* Weights: a matrix pressed by a codec, and the products with it.
 *
 * A codec is one folder below quant/ and one line in the list of quant/codec.c. encode/decode in plain C *are* the
 * format; kernels per ISA are found in the codec's own table and tested against decode (tests/ops enumerates the
 * list). Nobody outside quant/ names a codec or holds a pointer into a weight.
 *
 * Panels: all codecs here store rows (outputs) in panels of CODEC_PANEL, so that one SIMD lane is one output: a sum
 * runs down k in one order whatever the number of input rows. That is what makes products batch-invariant.
 */
#ifndef WRING_QUANT_CODEC_H
#define WRING_QUANT_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "quant/dtype.h"
#include "server/base/err.h"

enum { CODEC_PANEL = 16, CODEC_PLANES = 3, CODEC_PARTS = 3 };

/* What a kernel wants its input to look like. */
enum prep {
    PREP_F32,    /* as it is */
    PREP_I8,     /* int8 in halves of a group of 32, an f32 scale each: quant/input.h */
    PREP_BF16,   /* for tensor cores, rounded once to bf16: quant/input_cuda.cuh */
    PREP_BF16X3, /* three bf16 numbers whose sum is the f32 number */
    PREP_N
};

/* An input [n][cols] and its preparations, made on demand and shared by every matrix that reads the same input.
 * ws is backend memory of at least input_ws_bytes(be, n, cols); it belongs to the caller and must outlive the input. */
struct input {
    int n, cols;
    const float *x;
    void *prep[PREP_N]; /* NULL until made */
    char *ws;
    size_t ws_used; /* bytes of ws that preparations have taken, the next one starts behind them */
};
size_t input_ws_bytes(const struct be *be, int n, int cols);
void input_set(struct input *in, const float *x, int n, int cols, void *ws);

/* One matrix y = W x: rows outputs, cols inputs. */
struct weight {
    const struct codec *codec; /* NULL: no such matrix */
    int rows, cols;
    int variant;    /* the codec's own: element type, with or without minimum, ... */
    enum prep prep; /* how its kernel takes the input; chosen by weight_open */
    void *plane[CODEC_PLANES];
    size_t bytes[CODEC_PLANES];
};

/* The kernels of a codec for one ISA level. y[r * ldy + row] = sum_k W[row][k] x[r][k] (+ bias[row] when not NULL) for
 * all rows in panels [p0, p1) and all n inputs; called from inside par_for, so it must not call par_for. The result of
 * a row does not depend on n. */
typedef void codec_mul(const struct weight *w, const struct input *in, const float *bias, float *y,
                       size_t ldy, int p0, int p1);
struct codec_cpu {
    codec_mul *mul[PREP_N];
};

/* A matrix as the sum q + a b, a and b thin and dense: parts of its planes that are not to be closed. */
struct weight_sum {
    struct weight q, a, b;
};
enum { CODEC_RANK = 64 }; /* most rows of b */

/* Panels of w, the last one perhaps not full. */
static inline int weight_panels(const struct weight *w)
{
    return (w->rows + CODEC_PANEL - 1) / CODEC_PANEL;
}

/* The codec that made its codes: that of q where it is a sum. It says whether codes are rotated, and inputs ordered. */
const struct codec *weight_coder(const struct weight *w);

struct matmul;

/* The kernels of a codec on an NVIDIA GPU (<codec>_cuda.cu); the planes are the CPU's, byte for byte. Results are
 * batch-invariant there too. */
struct codec_cuda {
    /* x[r] = row id[r] of w in f32, of the codes' W R^T where the codec rotates; id is backend memory; negative ids give
     * zeros. */
    void (*rows)(struct be *be, const struct weight *w, const int32_t *id, int n, float *x);
    /* Products of n_to (1 to MATMUL_MAX) matrices of this codec, one variant and one preparation, with the input, which
     * has been prepared as they want it. */
    void (*mul)(struct be *be, const struct input *in, const struct matmul *to, int n_to);
};

struct moments;

/* Whom long work asks whether to go on; done: the part that is behind, 0 to 1. Called by the thread that presses. */
struct press_watch {
    bool (*go_on)(void *arg, double done);
    void *arg;
};

/* A tensor that a file keeps a pressed matrix in, as "<module>.<name>". */
struct codec_part {
    const char *name;
    enum dtype type;
    int n_dims;
    int64_t dim[4]; /* outermost first */
};

/* A code of a row that may become another one. */
struct codec_move {
    float gain; /* what the loss is thought to lose by it; <= 0: nothing */
    int at, code;
};
/* For codes that stand alone: one of them changes, and nothing but the numbers of the row that it makes. Matrices are the
 * host's; threads may share one, but not a panel of it. */
struct codec_moves {
    /* The moves that a row offers: one for every place, at most cols. */
    int (*count)(const struct weight *w);
    /* out[count]: the best move of every place, where a row's numbers changed by d [cols] change the loss by
     * sum of grad d + curve d^2 / 2. grad, curve [cols], curve >= 0; room [3][cols] is scratch. */
    void (*find)(const struct weight *w, int row, const float *grad, const float *curve,
                 float *room, struct codec_move *out);
    /* Code `at` of the row, as a move has it, becomes `code`; returns what it was. */
    int (*make)(struct weight *w, int row, int at, int code);
};

struct codec {
    const char *name;
    int step; /* panels that are encoded, and best multiplied, together; rows are cut at multiples of it; 0 is 1 */
    /* The codes are of W R^T and its kernels want R x: quant/rotate.h. decode and rows give W all the same. */
    bool rotated;
    /* NULL: takes no part in words. Whether the user's word ("q4", "trellis2", ...) names a form of this codec. */
    bool (*knows)(const char *word);
    /* Chooses variant for data of this type and says how good the choice is: 2 the data is kept without any loss,
     * 1 it can be encoded with loss, 0 it cannot (shape). name: the user's word ("q4", "bf16", ...) or NULL for auto. */
    int (*fits)(const char *name, enum dtype from, int rows, int cols, int *variant);
    void (*size)(const struct weight *w,
                 size_t bytes[CODEC_PLANES]); /* exact sizes of the planes */
    /* The form of embedding and head that goes with it unless the user says otherwise; NULL: q8. */
    const char *head;
    /* Rows [row0, row0 + n) from f32 [n][cols]; row0 is a multiple of step panels, n too except at the end.
     * NULL: files bring this form, or press_all makes it. */
    void (*encode)(struct weight *w, int row0, int n, const float *src);
    /* The same knowing the inputs' second moments m, so that tr((W - W^) H (W - W^)^T) becomes small: error feedback from
     * column to column, quant/feedback.h. src and m are in the space of the codes: rotated where the codec rotates. A pure
     * function of its arguments, for any thread; it may allocate. NULL: the codec gains nothing from them. */
    int (*press)(struct weight *w, int row0, int n, const float *src, const struct moments *m,
                 struct err *e);
    /* For forms whose rows share what has to be learned from all of them: the whole of w from src [rows][cols], in the place
     * of encode and press. m NULL: all inputs count the same. Spreads over par; the bits do not depend on its threads.
     * ERR_NOMEM; ERR_CANCELLED: watch (NULL: nobody) said so. */
    int (*press_all)(struct weight *w, const float *src, const struct moments *m, struct par *par,
                     const struct press_watch *watch, struct err *e);
    bool (*pressable)(const struct weight *w); /* whether press_all makes this variant */
    /* How files keep a matrix: fills out, returns how many parts there are. NULL: the planes as they are, U8, under the
     * names of plane_name. */
    int (*parts)(const struct weight *w, struct codec_part out[CODEC_PARTS]);
    const char *plane_name[CODEC_PLANES];
    /* Bytes [offset, offset + n) of a part, from or to a file, in any order; with parts only. */
    void (*put)(struct weight *w, int part, size_t offset, size_t n, const void *src);
    void (*get)(const struct weight *w, int part, size_t offset, size_t n, void *dst);
    /* The same from blocks on disk without loss; NULL or false when type has no exact form here. */
    bool (*take)(struct weight *w, int row0, int n, enum dtype type, const void *src);
    void (*decode)(const struct weight *w, int row, float *dst); /* one row to f32 [cols] */
    /* Multiplies a row by factor: its scales, each rounded to the type that it is kept in. */
    void (*rescale)(struct weight *w, int row, float factor);
    const struct codec_moves *moves; /* NULL: codes do not stand alone */
    const char *(*form)(
        const struct weight *w); /* "q4", "q4m", "bf16", ...: what weight_form() shows */
    /* Preferred preparation given what the user allows (int8 activations or not) and the machine. NULL: PREP_I8 where he
     * allows it, else PREP_F32. */
    enum prep (*prepare)(const struct weight *w, enum cpu_isa isa, bool int8_ok);
    const struct codec_cpu
        *cpu[CPU_ISA_N]; /* NULL or a NULL slot: the next lower level; [CPU_REF] is complete */
    const struct codec_cuda *cuda; /* NULL: not in this build */
    bool ordered;                  /* press takes the inputs in the order of moments_reorder() */
    /* NULL, or w is a sum, see weight_coder(): weight_matmul multiplies by the parts, cpu has nothing. */
    struct weight_sum (*split)(const struct weight *w);
    /* Sees all rows of W at once, in the space of the codes and times their shares, before they are pressed; press may then be
     * called without moments. NULL: rows do not know of each other. */
    int (*plan)(struct weight *w, const float *src, const float *share, enum cpu_isa isa,
                struct err *e);
};

/* Names a codec's CUDA kernels in its table where they are built. */
#ifdef WRING_CUDA
#    define CODEC_CUDA(kernels) (&(kernels))
#else
#    define CODEC_CUDA(kernels) NULL
#endif

/* A function that kernels for a GPU may call as well. */
#ifdef __CUDACC__
#    define CODEC_INLINE static inline __host__ __device__
#else
#    define CODEC_INLINE static inline
#endif
/* Before it: one that makes constants there. */
#ifdef __cplusplus
#    define CODEC_CONSTEXPR constexpr
#else
#    define CODEC_CONSTEXPR
#endif

extern const struct codec *const codec_list[]; /* NULL-terminated */

/* Rows that a codec encodes together: a multiple of CODEC_PANEL. */
int codec_step(const struct codec *c);
/* Words that weight_open takes: "auto" and the usual forms of every codec that encodes rows as they come, ", " between them. */
const char *codec_names(void);

/* Makes a weight for data of type `from`: word "auto" keeps what can be kept without loss and re-encodes the rest near
 * losslessly (q8, else dense); any other word re-encodes to it (falling back to a wider form where the shape does not
 * fit). int8_ok: kernels may round activations to int8. Allocates the planes from be. ERR_INVALID for an unknown word,
 * ERR_NOMEM. */
int weight_open(struct weight *w, struct be *be, const char *word, bool int8_ok, enum dtype from,
                int rows, int cols, struct err *e) WARN_UNUSED;
/* The same for f32 data that is to be pressed, by codec->press_all where there is that, else by weight_press: so words of
 * codecs that do not encode are taken too. ERR_UNSUPPORTED besides: a form that is read, but not made. */
int weight_open_press(struct weight *w, struct be *be, const char *word, int rows, int cols,
                      struct err *e) WARN_UNUSED;
/* The form of embedding and head that goes with matrices of a form. */
const char *weight_head(const char *word);
/* A weight of exactly this form (a word some codec knows, as weight_form() gives it) without planes: enough for
 * weight_parts(). ERR_UNSUPPORTED: no codec knows the form or it does not fit the shape. */
int weight_set_form(struct weight *w, const char *form, int rows, int cols,
                    struct err *e) WARN_UNUSED;
/* The same with empty planes, to be filled by weight_put(). ERR_NOMEM besides. */
int weight_open_form(struct weight *w, struct be *be, const char *form, bool int8_ok, int rows,
                     int cols, struct err *e) WARN_UNUSED;
void weight_close(struct weight *w, struct be *be);
/* The tensors that a file keeps w in; w->codec, variant, rows and cols are what counts. */
int weight_parts(const struct weight *w, struct codec_part out[CODEC_PARTS]);
size_t codec_part_bytes(const struct codec_part *p);
/* Bytes [offset, offset + n) of a part of w, whose planes are the host's: from a file, to a file. */
void weight_put(struct weight *w, int part, size_t offset, size_t n, const void *src);
void weight_get(const struct weight *w, int part, size_t offset, size_t n, void *dst);
/* What must precede weight_press where the codec has a plan: src [rows][cols] is all of W, scratch as large, as there. share
 * [rows], positive: how much an error in each row counts, as a factor of it; NULL: alike. */
int weight_plan(struct weight *w, const float *src, const float *share, float *scratch,
                enum cpu_isa isa, struct err *e) WARN_UNUSED;
/* Presses rows [row0, row0 + n) of a host matrix whose codec has no press_all: with moments (of the inputs as they are or
 * rotated, as the codec wants them) by press, else by encode. src [n][cols] is W itself, scratch as large: it is rotated
 * there. */
int weight_press(struct weight *w, int row0, int n, const float *src, float *scratch,
                 const struct moments *m, struct err *e) WARN_UNUSED;
/* Fills rows [row0, row0 + n) from disk data of the type given to weight_open: take when lossless, else decode and
 * encode. Safe to call from many threads for different panels. scratch: cols * n floats. */
void weight_fill(struct weight *w, int row0, int n, enum dtype type, const void *src,
                 float *scratch);
/* Where rows of w are pressed when the host cannot write w's planes: a host matrix of n rows (a multiple of CODEC_PANEL,
 * or the last rows) to be filled from row 0 on, then brought to row0 of w. Planes are cut by panels: those of some
 * panels lie side by side, with the sizes that size() gives for that many rows. weight_stage_close frees it. ERR_UNSUPPORTED: some rows of a sum,
 * whose factor b belongs to all; ERR_NOMEM. */
int weight_stage_open(struct weight *stage, const struct weight *w, int n,
                      struct err *e) WARN_UNUSED;
void weight_stage_upload(const struct weight *stage, struct weight *w, struct be *be, int row0);
void weight_stage_close(struct weight *stage);
size_t weight_bytes(const struct weight *w);
double weight_bits(const struct weight *w); /* bits per weight */
const char *weight_form(
    const struct weight *w); /* "q4", "q4m" (with minimum), "bf16", ...: for tables */

/* Row `row` of w, whose planes are the host's, as f32 [cols]. Any thread. */
void weight_row(const struct weight *w, int row, float *dst);
/* Multiplies row `row` of w, whose planes are the host's, by factor, as near as the numbers that hold it allow: 16 bits of
 * float for a pressed one. Threads may share w, not one panel of it. */
void weight_rescale(struct weight *w, int row, float factor);
/* x[r] = row id[r] of w: the embedding look-up. id: backend memory. */
void weight_rows(const struct weight *w, struct be *be, const int32_t *id, int n, float *x);

/* Products that share one input: y[i] = W[i] x (+ bias[i]), [n][rows] each. All of them are one parallel loop. */
struct matmul {
    const struct weight *w;
    const float *bias; /* [rows] or NULL */
    float *y;          /* [n][rows] */
};
enum { MATMUL_MAX = 4 };
/* An input serves one call where a codec rotates: the rotated one is made anew each time. */
void weight_matmul(struct be *be, struct input *in, const struct matmul *m, int n_m);

#endif
