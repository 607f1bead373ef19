/* Inside the tuner: what its files share. Activations are [rows][width], a row a token. */
#ifndef WRING_SERVER_TUNE_TUNE_INTERNAL_H
#define WRING_SERVER_TUNE_TUNE_INTERNAL_H

#include "kernels/dense.h"
#include "server/tune/tune.h"

/* Queries of a head, and rows of logits, that are worked on together. With 64 rows products with the head take 1.3 times as
 * long for a row (32,000 x 288), with 256 no less. */
enum { TUNE_SPAN = 64, TUNE_OUT = 128 };

/* What tokens say of a matrix as stored, summed up over them: tune.h has the formula. All NULL: nobody asked. */
struct tune_slopes {
    float *g;  /* [rows][cols] dloss / dW */
    double *s; /* [rows] sum of the squares of dloss / dy_r */
    float *h;  /* [cols][cols] sum of x x^T; it is the first's of the matrices that read the same */
    bool sums; /* this one is the first */
};

/* A matrix of a layer and the bias behind it. */
struct tune_matrix {
    const struct weight *stored;
    int slot;
    struct tune_slopes slopes;
    float *w;          /* [rows][cols] as stored, without factors */
    int at;            /* its first factor */
    const float *bias; /* [rows] with its factors, or NULL */
    int bias_at;
};

struct tune_layer {
    struct tune_matrix q, k, v, o, gate, up, down;
    int attn_norm, ffn_norm, q_norm, k_norm; /* first factors */
};

enum { TUNE_MATRICES = 7 };
/* Those that read the same follow each other. */
static inline void tune_matrices(struct tune_layer *l, struct tune_matrix *out[TUNE_MATRICES])
{
    struct tune_matrix *const all[TUNE_MATRICES] = { &l->q,    &l->k,  &l->v,   &l->o,
                                                     &l->gate, &l->up, &l->down };
    for (int i = 0; i < TUNE_MATRICES; i++)
        out[i] = all[i];
}

/* One layer's activations, made by tune_forward() and read by tune_reverse(). */
struct tune_acts {
    float *xn;              /* [n][dim] the input, normalised */
    float *yq, *yk;         /* as the products left them */
    float *q, *k, *v;       /* rotated; v as it is */
    float *att, *o;         /* attention; its product */
    float *h, *hn;          /* [n][dim] the stream in the middle; normalised */
    float *gate, *up, *act; /* [n][ffn] the products; SwiGLU of them */
    float *down;            /* [n][dim] */
};

/* dloss / d of what has the same name above. */
struct tune_back {
    float *h, *hn, *att, *q, *k, *v, *act, *gate, *up;
    float *row; /* [n][widest] scratch */
};

struct tune {
    struct model *m; /* the student */
    const struct model *teacher;
    struct be *be;
    int len, n;
    float *factor; /* [n] */
    float *vector; /* [n] of vectors' factors: their numbers before them */
    struct tune_layer *layer;
    int out_norm;
    float *head, *wanted_head; /* [vocab][dim] the student's, the teacher's */
    float *cos, *sin;          /* [len][rope_dim / 2] */
    float *minus;              /* -sin: rotates back */
    int32_t *pos;              /* [len] 0, 1, ... */
    float *stream;             /* [n_layers + 1][len][dim] */
    float *dx;                 /* [len][dim] */
    float *logits;             /* [TUNE_OUT][vocab] the student's, or dloss / d of them */
    float *wanted;             /* [TUNE_OUT][vocab] the teacher's */
    float *scores;             /* [threads][2][TUNE_SPAN][len] */
    double kl[TUNE_OUT];       /* of the rows at hand */
    struct tune_acts a;
    struct tune_back d;
    double *info;      /* [n] of tune_fisher; NULL: nobody asked */
    int64_t seen;      /* tokens that slopes are of, */
    double lost;       /* and the sum of their losses */
    float *code_room;  /* codes.c: [threads] of the room that a row takes; NULL: nobody asked */
    size_t code_width; /* the most inputs of a matrix */
    float *room;       /* what all of the activations above lie in */
};

/* ---- rows.c ------------------------------------------------------------------------------------------------------ */

/* The product, its columns spread over the workers. */
void tune_product(const struct be *be, const struct dense_product *p);
/* y[n][rows] = diag(f) W x + bias, and the way back: dx[n][cols] (+)= W^T diag(f) dy, with what the factors of matrix and bias
 * get added to grad, and slopes where they are wanted. dy is scratch afterwards. */
void tune_multiply(const struct tune *t, const struct tune_matrix *m, const float *x, float *y,
                   int n);
void tune_multiply_back(const struct tune *t, const struct tune_matrix *m, float *dy,
                        const float *x, const float *y, float *dx, bool add, int n, double *grad);
/* The way back through y = rmsnorm(x) with the weights w [dim], whose first factor is at: dx = base + ..., base NULL for 0. dx
 * may be dy or base. */
void tune_norm_back(const struct tune *t, const float *x, const float *y, const float *w, int at,
                    const float *dy, const float *base, float *dx, int n, int dim, double *grad);
/* The way back through act = silu(gate) up. */
void tune_swiglu_back(const struct tune *t, const float *gate, const float *up, const float *dact,
                      float *dgate, float *dup, int n);

/* ---- codes.c ----------------------------------------------------------------------------------------------------- */

/* Adds what n tokens say. dy [n][rows] is dloss / d(W x), x [n][cols]. */
void tune_slopes_add(const struct tune *t, const struct tune_matrix *m, const float *dy,
                     const float *x, int n);
void tune_codes_close(struct tune *t); /* nothing open is accepted */

/* ---- tune.c ------------------------------------------------------------------------------------------------------ */

/* All matrices in f32, as they are stored. */
void tune_read(struct tune *t);

/* ---- attend.c ---------------------------------------------------------------------------------------------------- */

/* Causal attention of n rows from position 0 on, a.q, a.k, a.v to a.att; and d.att to d.q, d.k, d.v. */
void tune_attend(const struct tune *t, int n);
void tune_attend_back(const struct tune *t, int n);

/* ---- layer.c ----------------------------------------------------------------------------------------------------- */

/* x [n][dim] through a layer to out; t->a has what happened on the way. */
void tune_forward(struct tune *t, int layer, const float *x, float *out, int n);
/* t->dx from behind the layer to before it. x and t->a as the layer's tune_forward() had and left them. */
void tune_reverse(struct tune *t, int layer, const float *x, int n, double *grad);

#endif
