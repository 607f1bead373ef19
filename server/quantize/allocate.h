/* wring quantize --bits, --size: what form of a family each matrix of the layers gets, so that all of them together take no
 * more than that many bits a weight, or the tensors of the folder no more than that many bytes.
 *
 * A family is what the words of its forms begin with: "trellis" of trellis2, trellis3, trellis4. --allocate says who chooses:
 *
 *   dp       The linearity theorem of HIGGS (arXiv 2411.17525, theorem 1): errors of the matrices raise the divergence of the
 *            outputs by sum over matrices of alpha * t^2, t^2 = |W - W^|^2 / |W|^2. t^2 of a form is measured on Gaussian
 *            numbers, alpha of a matrix by a probe: noise of a known t^2 in the place of W's error.
 *   hawq     HAWQ-V2 (arXiv 1911.03852): sum of Tr(H) / n * |Q(W) - W|^2, H the Hessian of the divergence. Its trace is
 *            Hutchinson's: as random signs in the place of W's error raise the divergence; Q rounds W itself.
 *   lgreco   L-GreCo (arXiv 2210.17357): the sum of what each matrix lost of its own outputs when it was really pressed to the
 *            form, error feedback and all.
 *   baq      BAQ (arXiv 2506.05664), with matrices for its columns: at b bits error feedback loses 4^-b |w|^2 / U_jj^2 in column j,
 *            U from the inputs' second moments; each matrix gets the bits at which it loses the same part of its outputs.
 *   evopress EvoPress (arXiv 2410.14649): generations of choices, judged by the divergence of models that are spliced of
 *            pressed matrices. The first parent is dp's.
 *   uniform  The widest form that fits for all.
 *
 * For dp, hawq and lgreco the sum is made least by allocate_dp; baq is allocate_level, evopress evolve_generation.
 *
 * All of it is noted in quantize.json, below "allocation": "forms" has t^2 by form; "alpha", "curvature" and "spread" what dp,
 * hawq and baq know of each matrix; "parent" and "score" how far evopress has come (with --pareto the budget's bytes stand
 * behind these names); "points" what --pareto found; "choice" a word for every matrix. Numbers are rounded to float, which
 * nine digits keep, so a run that goes on computes with what the first one did.
 *
 * allocate.c chooses, family.c knows the forms and their sizes, error.c what they cost by dp and hawq, spread.c the same for
 * baq, probe.c measures alpha and curvature, gauss.c makes Gaussian numbers and presses some, bank.c keeps every matrix in
 * every form, judge.c splices models of them and judges those, evolve.c runs generations, pareto.c budgets.
 */
#ifndef WRING_SERVER_QUANTIZE_ALLOCATE_H
#define WRING_SERVER_QUANTIZE_ALLOCATE_H

#include "quant/allocate.h"
#include "server/quantize/quantize.h"

/* Whether --codec is a form, or with a budget a family. ERR_INVALID says what would be right. */
int quantize_check_codec(struct be *be, const struct config *c, struct err *e) WARN_UNUSED;
/* Whether the loaded model fits into the budget, where there is one. ERR_INVALID says the least that would do. */
int quantize_check_budget(struct quantize *q, struct err *e) WARN_UNUSED;
/* Notes a choice for every matrix, where there is a budget and no choice yet. ERR_CANCELLED after a signal: what was measured
 * of layers that were done is kept. */
int quantize_allocate(struct quantize *q, struct err *e) WARN_UNUSED;
/* Of --pareto, before anything that takes long: whether its list can be read, and OUT be written. */
int quantize_check_pareto(const struct config *c, struct err *e) WARN_UNUSED;
/* --pareto, all of it: OUT holds pareto.csv, pareto.md, pareto.png and the notes, by which a run that was stopped goes on.
 * ERR_INVALID: a budget is too small, or the text has nothing left to judge with. */
int quantize_pareto(struct quantize *q, struct err *e) WARN_UNUSED;
/* Prints its table; returns the exit code. */
int quantize_pareto_report(struct quantize *q);
/* The word that a layer's matrix is to be pressed to. */
const char *quantize_form(const struct quantize *q, const struct slot *s);

/* ---- families ---------------------------------------------------------------------------------------------------- */

enum { FAMILY_FORMS = 8, FORM_NAME = 32 };

struct family {
    char word[FAMILY_FORMS][FORM_NAME]; /* narrow ones first */
    int n;
};

/* A matrix of a layer, in every word of the family. */
struct matrix {
    const struct slot *slot;
    const char *form[FAMILY_FORMS]; /* another one where that does not fit the shape */
    bool rotated;                   /* the codec of form[0] rotates */
    size_t bytes[FAMILY_FORMS];
    double error[FAMILY_FORMS]; /* what it costs, in the units of whoever chooses */
};

/* What there is to choose from, and what was chosen. */
struct allocation {
    struct quantize *q;
    struct family family;
    struct matrix *matrix;      /* [n] in the order of the layers */
    struct allocate_item *item; /* [n] bytes and error of matrix[] */
    int *choice;                /* [n] */
    int n;
    double weights;    /* numbers in all matrices */
    size_t rest;       /* bytes of the folder's other tensors */
    double bits;       /* a weight, as asked for; with --size 0 */
    size_t budget;     /* bytes that the matrices may take */
    struct bank *bank; /* open while others need it too; NULL: who needs one opens it */
};

/* The forms whose words are the family's and a digit; none is no error. ERR_NOMEM. */
int family_find(struct family *f, struct be *be, const char *name, struct err *e) WARN_UNUSED;
bool quantize_has_budget(const struct config *c);
/* ERR_NOMEM; what weight_open() says. */
int allocation_open(struct allocation *a, struct quantize *q, struct err *e) WARN_UNUSED;
void allocation_close(struct allocation *a);                 /* a zeroed one is accepted */
void allocation_set_bits(struct allocation *a, double bits); /* another budget, for all matrices */
/* Whether the budget is enough for the way that --allocate names. ERR_INVALID says the least that would do. */
int allocation_check(const struct allocation *a, struct err *e) WARN_UNUSED;
/* Makes choice[n], as --allocate says. */
int allocation_choose(struct allocation *a, struct err *e) WARN_UNUSED;
/* Of all matrices in form c of the family; -1: each in its smallest. */
size_t allocation_bytes(const struct allocation *a, int c);
/* Whether there is something to measure of matrix i: it has forms of different sizes, and is not in the notes yet. */
bool allocation_wants(const struct allocation *a, int i, const json_t *notes);

/* ---- what forms cost --------------------------------------------------------------------------------------------- */

/* Each fills in matrix[].error as the allocator of its name has it. Probes are noted. */
int quantize_error_dp(struct allocation *a, struct err *e) WARN_UNUSED;
int quantize_error_hawq(struct allocation *a, struct err *e) WARN_UNUSED;

/* want[n] of allocate_level(): half the logarithm, to base 2, of what a matrix loses of its outputs at no bits at all. */
int quantize_spread(struct allocation *a, double *want, struct err *e) WARN_UNUSED;

/* The errors that are put into a matrix, one after the other, to see what they cost. */
enum noise {
    NOISE_ROWS, /* Gaussian, as large in a row as the row, as codecs err: "alpha" = divergence / t^2 */
    NOISE_EVEN /* signs, the same size everywhere: "curvature" = divergence / t^2, half of Tr(H) / n * |W|^2 */
};
/* Sees to it that every matrix that has a choice has a number below that name. */
int quantize_probe(struct allocation *a, enum noise kind, struct err *e) WARN_UNUSED;
const char *quantize_probe_name(enum noise kind);

/* x[n] of a normal distribution with mean 0 and variance 1: a function of seed and stream. */
void gauss_fill(float *x, int n, uint64_t seed, uint64_t stream);
double mean_square(const float *x, int n);
/* The same of all numbers of w; row: [cols] scratch. */
double weight_square(const struct weight *w, float *row);
/* t^2 of encoding x[rows][cols] to w, without feedback; scratch as large. */
int rounding_error(struct weight *w, const float *x, float *scratch, double *t2,
                   struct err *e) WARN_UNUSED;
/* The same of a form, for Gaussian numbers. */
int gauss_error(struct be *be, const char *form, double *t2, struct err *e) WARN_UNUSED;

/* ---- trials ------------------------------------------------------------------------------------------------------ */

/* Every matrix in every form of a family: a folder for each form, as wring quantize --codec FORM makes it, in --forms or
 * OUT.forms. */
struct bank {
    struct model *form[FAMILY_FORMS]; /* on the backend of the teacher */
    struct weight *own;               /* [n_slots] what form[0] came with */
    int *slot;                        /* [n] which slot of theirs a matrix of the allocation is */
};
/* Presses what is not there. Goes on where it was stopped, and takes what another run with the same options has left.
 * ERR_INVALID: that had other options. */
int bank_fill(struct allocation *a, struct err *e) WARN_UNUSED;
/* matrix[].error becomes the relative error that pressing it to each form noted: L-GreCo's. Nothing is loaded. */
int bank_errors(struct allocation *a, struct err *e) WARN_UNUSED;
/* Loads all forms of a bank that is full. */
int bank_open(struct bank *b, const struct allocation *a, struct err *e) WARN_UNUSED;
void bank_close(struct bank *b); /* a zeroed one is accepted */
/* Gives the matrices of form[0] the forms choice[n]. */
void bank_splice(struct bank *b, const struct allocation *a, const int *choice);
/* Removes OUT.forms; --forms stays. */
void bank_remove(const struct quantize *q);

/* How far models are from the teacher on some sequences. */
struct judge {
    struct quantize *q; /* the teacher */
    const struct sequences *text;
    int n, len;        /* sequences of the text, tokens of each that count */
    float *truth;      /* [n][len][dim] what the teacher's last layer leaves */
    float *x;          /* [len][dim] */
    struct runner run; /* of the student */
};
/* At most n sequences with at most len tokens, which is at most what the teacher's runner takes. ERR_NOMEM, ERR_CANCELLED. */
int judge_open(struct judge *j, struct quantize *q, const struct sequences *text, int n, int len,
               const struct model *student, struct err *e) WARN_UNUSED;
void judge_close(struct judge *j); /* a zeroed one is accepted */
/* kl[k]: the mean divergence of the student, as it is now, from the teacher on sequence (first + k) % n, k < count, in nats
 * a token. ERR_CANCELLED. */
int judge_run(struct judge *j, int first, int count, double *kl, struct err *e) WARN_UNUSED;

/* --generations of choices, from a->choice to a->choice, with the bank open. What a generation found is noted. */
int quantize_evolve(struct allocation *a, struct err *e) WARN_UNUSED;

#endif
