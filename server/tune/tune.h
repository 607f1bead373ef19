/* Tuning a pressed model: what is continuous in it moves until its outputs are as near the unpressed model's as they get.
 *
 * What moves are factors: one for every row of the layers' matrices, which goes into the scales of that row, and one for every
 * number of the vectors (norms; biases where a model has them). This is the first half of PV-Tuning (Malinovskii et al. 2024,
 * arXiv 2405.14852: the P step, with codebooks left alone); the second moves codes, once the factors are settled. The loss is
 * the paper's: KL(teacher || student) of the next token, in nats, over all tokens of calibration sequences.
 *
 * A matrix with factors f gives y = diag(f) W x. So dloss / dlog f_r is the sum over tokens of dy_r y_r, and what a layer passes
 * down is dx = W^T diag(f) dy: factors need no gradient of a matrix, and a step of theirs costs about three passes of the model.
 * What norms pass on obeys the same formula. Factors are steered by their logarithms, so that one step size suits them all.
 *
 * Numbers are f32, with f64 for sums over tokens. Every sum has one order: results do not depend on the number of threads.
 * Factors stand in the order of the model's slots: of those that have any, one a row.
 *
 * tune.c has the factors, loss.c the whole pass, layer.c a layer and its reverse, attend.c attention in it,
 * rows.c products, norms and activations, adam.c the steps, codes.c the moves of codes.
 *
 * Thread: the owner's; loops inside spread over the backend's workers.
 */
#ifndef WRING_SERVER_TUNE_TUNE_H
#define WRING_SERVER_TUNE_TUNE_H

#include "server/base/buf.h"
#include "server/model/arch.h"

/* ---- factors ----------------------------------------------------------------------------------------------------- */

/* Factors of a slot of the model; 0: it stays as it is (embedding, head, rope's divisors, what the model lacks). */
int tune_count(const struct slot *s);
/* The sum over all slots. */
int tune_count_all(const struct model *m);
/* Multiplies the slot's rows or numbers, in host memory, by factor[tune_count(s)], as its form keeps them. */
void tune_apply(const struct slot *s, const float *factor);

/* ---- the student ------------------------------------------------------------------------------------------------- */

struct tune;

/* For sequences of at most len tokens. Both are of the llama family, of one vocabulary, on one backend whose memory is the
 * host's. They are borrowed; the student's vectors are the tuner's until tune_close(). Memory: the student's matrices and both
 * heads in f32, the residual stream of a sequence behind every layer, one layer's activations, some rows of logits. ERR_NOMEM. */
int tune_open(struct tune **out, struct model *student, const struct model *teacher, int len,
              struct err *e) WARN_UNUSED;
void tune_close(struct tune *t); /* NULL is accepted */

/* The factors become exp(log[tune_count_all]). */
void tune_set(struct tune *t, const float *log);
/* What the factors make of the student goes into its slots, rounded as they are kept, and is what losses are of from now on,
 * with factors of 1. */
void tune_settle(struct tune *t);

/* ---- the loss ---------------------------------------------------------------------------------------------------- */

struct tune_text {
    const int32_t *token; /* [len] */
    /* [len][dim] what the teacher's last layer left, as model_layer() has it; NULL: the text is the teacher */
    const float *x;
    int len;
};

/* The sum of KL(teacher || student) over all tokens, in nats; where the text is the teacher, that of -log p of the tokens after
 * the first. grad[tune_count_all] += d(that sum) / dlog f, unless NULL. */
double tune_loss(struct tune *t, const struct tune_text *text, double *grad);
/* The same, and what an error in each row r of the matrices costs: info[tune_count_all] += sum over tokens of
 * (dloss / dy_r)^2 |x|^2, its Fisher information where the text is the teacher and tokens are taken for independent of each other
 * (FWSVD, arXiv 2207.00112: there the squares are of gradients summed up over a batch). */
double tune_fisher(struct tune *t, const struct tune_text *text, double *grad, double *info);

/* ---- codes ------------------------------------------------------------------------------------------------------- */

/* The other half of PV-Tuning (the V step): codes that stand alone (codec->moves) move, a few of a row at a time. What a change d
 * of row r of a matrix costs is taken to be
 *
 *   g_r d + caution s_r d H d / 2      g = dloss / dW, H = the mean of x x^T, s_r = the mean of (dloss / dy_r)^2 / (2 loss)
 *
 * (a parabola bends by the square of its slope over twice its height), and as long as a move lowers that, the one that does most
 * is made. So a move knows of those before it in its row; that rows and layers do not know of each other caution makes up for. */
struct tune_move {
    int32_t slot, row, at, code, was; /* code `at` of the row was `was`; codec->moves */
};

/* From now on tune_loss() with a gradient also sums up what the formula needs, of every matrix whose codes stand alone. Memory:
 * these matrices in f32 once more, and H of every input of a layer. ERR_NOMEM. */
int tune_codes_open(struct tune *t, struct err *e) WARN_UNUSED;
/* Forgets all sums. */
void tune_codes_clear(struct tune *t);
/* Makes moves in the student, whose factors are settled, and appends them, struct tune_move, to moves. What was summed up stays.
 * ERR_NOMEM, ERR_LIMIT (moves are full): then the student is good for nothing. */
int tune_codes_move(struct tune *t, float caution, struct buf *moves, struct err *e) WARN_UNUSED;
/* Unmakes move[n], the last one first. */
void tune_codes_undo(struct tune *t, const struct tune_move *move, size_t n);
/* Makes the moves in a model that no tuner has read yet. */
void tune_codes_make(const struct model *m, const struct tune_move *move, size_t n);

/* ---- steps ------------------------------------------------------------------------------------------------------- */

/* Adam (Kingma and Ba 2014, arXiv 1412.6980, algorithm 1). */
struct adam {
    int n, step;
    float *mean, *square; /* [n] of the gradient, decaying */
};
int adam_open(struct adam *a, int n, struct err *e) WARN_UNUSED;
void adam_close(struct adam *a); /* a zeroed one is accepted */
/* x[n] -= rate * what Adam makes of grad[n]. */
void adam_step(struct adam *a, const double *grad, float rate, float *x);

#endif
