/* Tuning: the pass is the engine's, its gradient the slope that finite differences find, for every kind of parameter of every
 * variant of the family; factors go into the model; codes move down the slope. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/cli/logits.h"
#include "server/cli/runner.h"
#include "server/tune/tune_internal.h"
#include "tests/tools/worst.h"

enum { LEN = 100, RUN = 128 };

/* A model, unpressed and pressed, and a text. */
struct pair {
    struct be *be;
    struct model *model[2]; /* teacher, student */
    struct runner run[2];
    int32_t token[LEN];
    float *x; /* [LEN][dim] */
    struct tune *tune;
    struct tune_text text;
    int n;
    float *log, *at; /* [n] */
    double *grad;
};

static uint32_t next_random(uint32_t *state)
{
    return *state = *state * 1664525u + 1013904223u;
}

static void run_teacher(struct pair *p)
{
    struct err e;
    struct runner *r = &p->run[0];
    assert_true(kv_seq_reserve(&r->seq[0], r->pool, LEN) >= 0);
    for (int i = 0; i < LEN; i++)
        r->pos[i] = i;
    for (int l = 0; l < p->model[0]->config.n_layers; l++) {
        r->batch_seq[0] = (struct batch_seq){ .kv = &r->seq[0], .n_rows = LEN };
        struct batch b = {
            .n_rows = LEN, .n_seqs = 1, .token = p->token, .pos = r->pos, .seq = r->batch_seq
        };
        assert_int_equal(model_layer(p->model[0], r->ws, r->pool, &b, l, NULL, p->x, &e), 0);
    }
}

static void open_pair(struct pair *p, const char *folder, const char *form, int threads)
{
    struct err e;
    uint32_t state = 7;
    const char *const form_of[2] = { "f32", form };
    *p = (struct pair){ 0 };
    assert_int_equal(be_open(&p->be, &(struct be_config){ .n_threads = threads }, &e), 0);
    for (int i = 0; i < 2; i++) {
        struct model_options o = { .weights = form_of[i] };
        if (model_open(&p->model[i], folder, &o, p->be, &e) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(runner_open(&p->run[i], p->model[i], KV_F32, 1, RUN, RUN, RUN, &e), 0);
    }
    for (int i = 0; i < LEN; i++)
        p->token[i] = (int32_t)(next_random(&state) >> 8) % p->model[0]->config.vocab;
    p->x = mem_zalloc((size_t)LEN * (size_t)p->model[0]->config.dim, sizeof *p->x);
    run_teacher(p);
    if (tune_open(&p->tune, p->model[1], p->model[0], LEN, &e) < 0)
        fail_msg("%s", e.text);
    p->text = (struct tune_text){ p->token, p->x, LEN };
    p->n = tune_count_all(p->model[1]);
    p->log = mem_zalloc((size_t)p->n, sizeof *p->log);
    p->at = mem_zalloc((size_t)p->n, sizeof *p->at);
    p->grad = mem_zalloc((size_t)p->n, sizeof *p->grad);
    assert_true(p->x != NULL && p->log != NULL && p->at != NULL && p->grad != NULL);
}

static void close_pair(struct pair *p)
{
    tune_close(p->tune);
    mem_free(p->grad);
    mem_free(p->at);
    mem_free(p->log);
    mem_free(p->x);
    for (int i = 0; i < 2; i++) {
        runner_close(&p->run[i]);
        model_close(p->model[i]);
    }
    be_close(p->be);
}

static double loss_at(struct pair *p, const float *log)
{
    tune_set(p->tune, log);
    return tune_loss(p->tune, &p->text, NULL);
}

/* Anywhere but at factors of 1. */
static void move_away(struct pair *p)
{
    uint32_t state = 3;
    for (int i = 0; i < p->n; i++)
        p->log[i] = (float)(next_random(&state) >> 8) * 0x1p-24f * .4f - .2f;
}

/* What the engine's pass gives. */
static double engine_loss(struct pair *p)
{
    struct err e;
    const float *z[2];
    double kl = 0;
    int vocab = p->model[0]->config.vocab;
    for (int i = 0; i < 2; i++) {
        runner_reset(&p->run[i]);
        assert_int_equal(runner_append(&p->run[i], 0, p->token, LEN, LEN, &z[i], &e), 0);
    }
    for (int r = 0; r < LEN; r++, z[0] += vocab, z[1] += vocab)
        kl += logits_kl(z[0], z[1], vocab, logits_peak(z[0], vocab).lse,
                        logits_peak(z[1], vocab).lse);
    return kl;
}

/* ---- slopes ------------------------------------------------------------------------------------------------------ */

/* "attn_q.weight" of "blk.3.attn_q.weight" */
static const char *kind_of(const struct slot *s)
{
    const char *dot = strncmp(s->name, "blk.", 4) == 0 ? strchr(s->name + 4, '.') : NULL;
    return dot != NULL ? dot + 1 : s->name;
}

/* dir[n]: of unit length, within the slots of a kind; along the gradient, or a random one. 0: the model has none. */
static int direction(const struct pair *p, const char *kind, bool random, float *dir)
{
    const struct model *m = p->model[1];
    uint32_t state = 11;
    double norm = 0;
    int at = 0;
    int n = 0;
    for (int i = 0; i < m->n_slots; i++) {
        bool mine = strcmp(kind_of(&m->slot[i]), kind) == 0;
        for (int k = tune_count(&m->slot[i]); k > 0; k--, at++) {
            float v = random ? (next_random(&state) >> 16 & 1 ? 1.0f : -1.0f) : (float)p->grad[at];
            dir[at] = mine ? v : 0;
            norm += (double)dir[at] * (double)dir[at];
            n += mine;
        }
    }
    for (int i = 0; i < p->n && norm > 0; i++)
        dir[i] /= (float)sqrt(norm);
    return n;
}

static double slope(struct pair *p, const float *dir, float h)
{
    double side[2];
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < p->n; i++)
            p->at[i] = p->log[i] + (s == 0 ? h : -h) * dir[i];
        side[s] = loss_at(p, p->at);
    }
    return (side[0] - side[1]) / (2 * (double)h);
}

/* The error of central differences falls with the square of the step: two of them cancel it. */
static double best_slope(struct pair *p, const float *dir)
{
    enum { H = 8 };
    double wide = slope(p, dir, 1.0f / H);
    double narrow = slope(p, dir, .5f / H);
    return (4 * narrow - wide) / 3;
}

static void check_kind(struct pair *p, const char *kind, float *dir, double *worst)
{
    for (int random = 0; random < 2; random++) {
        if (direction(p, kind, random, dir) == 0)
            return;
        double want = best_slope(p, dir);
        double got = 0;
        double size = 0;
        for (int i = 0; i < p->n; i++) {
            got += p->grad[i] * (double)dir[i];
            size += dir[i] != 0 ? p->grad[i] * p->grad[i] : 0;
        }
        double off = fabs(got - want) / sqrt(size);
        if (!(off < 1e-3))
            fail_msg("%s, %s: %g, by differences %g (all %g)", kind, random ? "at random" : "along",
                     got, want, sqrt(size));
        *worst = worst_of(*worst, off);
    }
}

static void is_the_slope(void **state)
{
    static const char *const kind[] = {
        "output_norm.weight", "attn_norm.weight",   "attn_q.weight",      "attn_k.weight",
        "attn_v.weight",      "attn_output.weight", "attn_q.bias",        "attn_k.bias",
        "attn_v.bias",        "attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight",
        "ffn_gate.weight",    "ffn_up.weight",      "ffn_down.weight",
    };
    char folder[256];
    struct pair p;
    double worst = 0;
    snprintf(folder, sizeof folder, "tests/golden/archs/%s", (const char *)*state);
    open_pair(&p, folder, "q4", 2);
    double want = engine_loss(&p);
    assert_true(want > 1e-2 && fabs(loss_at(&p, p.log) - want) < 1e-3 * want);
    move_away(&p);
    tune_set(p.tune, p.log);
    double kl = tune_loss(p.tune, &p.text, p.grad);
    assert_true(kl == loss_at(&p, p.log));
    float *dir = mem_zalloc((size_t)p.n, sizeof *dir);
    assert_non_null(dir);
    for (size_t i = 0; i < sizeof kind / sizeof *kind; i++)
        check_kind(&p, kind[i], dir, &worst);
    print_message("%s: %d factors, KL %.3f nats a token, worst slope %.1e off\n", folder, p.n,
                  kl / LEN, worst);
    mem_free(dir);
    close_pair(&p);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

/* One thread or three, the same bits. */
static void any_number_of_threads(void **state)
{
    struct pair p[2];
    double kl[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        open_pair(&p[i], "tests/golden/archs/qwen2-biases", "q4", i == 0 ? 1 : 3);
        move_away(&p[i]);
        tune_set(p[i].tune, p[i].log);
        kl[i] = tune_loss(p[i].tune, &p[i].text, p[i].grad);
    }
    assert_true(kl[0] == kl[1]);
    assert_memory_equal(p[0].grad, p[1].grad, (size_t)p[0].n * sizeof *p[0].grad);
    close_pair(&p[0]);
    close_pair(&p[1]);
}

/* Settled factors are in the model: the engine gives the loss that they promised, but for rounding of the scales. */
static void settles(void **state)
{
    struct pair p;
    (void)state;
    open_pair(&p, "tests/golden/archs/qwen3-head-norms", "q4", 2);
    move_away(&p);
    double want = loss_at(&p, p.log);
    tune_settle(p.tune);
    memset(p.log, 0, (size_t)p.n * sizeof *p.log);
    double got = loss_at(&p, p.log);
    double engine = engine_loss(&p);
    assert_true(fabs(got - want) < .02 * want);
    assert_true(fabs(got - engine) < 1e-3 * engine);
    close_pair(&p);
}

/* Some steps on a text make the model nearer on it. */
static void steps_down(void **state)
{
    enum { STEPS = 12 };
    struct pair p;
    struct adam a;
    struct err e;
    (void)state;
    open_pair(&p, "tests/golden/archs/llama3-scaling", "q4", 2);
    assert_int_equal(adam_open(&a, p.n, &e), 0);
    double before = loss_at(&p, p.log);
    for (int i = 0; i < STEPS; i++) {
        memset(p.grad, 0, (size_t)p.n * sizeof *p.grad);
        tune_set(p.tune, p.log);
        tune_loss(p.tune, &p.text, p.grad);
        adam_step(&a, p.grad, .005f, p.log);
    }
    double after = loss_at(&p, p.log);
    print_message("%d steps: KL %.4f to %.4f nats a token\n", STEPS, before / LEN, after / LEN);
    assert_true(after < .8 * before);
    adam_close(&a);
    close_pair(&p);
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */

static void open_codes(struct pair *p, const char *arch, int threads)
{
    struct err e;
    char folder[256];
    snprintf(folder, sizeof folder, "tests/golden/archs/%s", arch);
    open_pair(p, folder, "planes3g32", threads);
    if (tune_codes_open(p->tune, &e) < 0)
        fail_msg("%s", e.text);
    tune_loss(p->tune, &p->text, p->grad);
}

/* The loss with the matrix moved by h along dir, as far as its slope is long. */
static double loss_off(struct pair *p, const struct tune_matrix *m, const float *dir, double h)
{
    size_t n = (size_t)m->stored->rows * (size_t)m->stored->cols;
    float *was = mem_alloc(n * sizeof *was);
    assert_non_null(was);
    memcpy(was, m->w, n * sizeof *was);
    for (size_t i = 0; i < n; i++)
        m->w[i] += (float)h * dir[i];
    double kl = tune_loss(p->tune, &p->text, NULL);
    memcpy(m->w, was, n * sizeof *was);
    mem_free(was);
    return kl;
}

static double check_matrix(struct pair *p, const struct tune_matrix *m)
{
    enum { H = 16 };
    size_t n = (size_t)m->stored->rows * (size_t)m->stored->cols;
    float *dir = mem_alloc(n * sizeof *dir);
    double size = 0;
    assert_non_null(dir);
    for (size_t i = 0; i < n; i++)
        size += (double)m->slopes.g[i] * (double)m->slopes.g[i];
    size = sqrt(size);
    for (size_t i = 0; i < n; i++)
        dir[i] = m->slopes.g[i] / (float)size;
    double slope[2];
    for (int i = 0; i < 2; i++) {
        double h = 1.0 / (H << i);
        slope[i] = (loss_off(p, m, dir, h) - loss_off(p, m, dir, -h)) / (2 * h);
    }
    mem_free(dir);
    return fabs((4 * slope[1] - slope[0]) / 3 / size - 1);
}

static void matrices_have_slopes(void **state)
{
    static const char *const arch[] = { "llama3-scaling", "qwen2-biases", "qwen3-head-norms" };
    (void)state;
    for (size_t i = 0; i < sizeof arch / sizeof *arch; i++) {
        struct tune_matrix *all[TUNE_MATRICES];
        struct pair p;
        double worst = 0;
        open_codes(&p, arch[i], 2);
        for (int l = 0; l < p.model[1]->config.n_layers; l++) {
            tune_matrices(&p.tune->layer[l], all);
            for (int k = 0; k < TUNE_MATRICES; k++)
                worst = worst_of(worst, check_matrix(&p, all[k]));
        }
        print_message("%s: worst slope of a matrix %.1e off\n", arch[i], worst);
        assert_true(worst < 2e-3);
        close_pair(&p);
    }
}

/* The first layer's activations are those that the pass ended with. */
static void sums_up_inputs(void **state)
{
    struct pair p;
    (void)state;
    open_codes(&p, "llama3-scaling", 2);
    const struct tune_layer *l = &p.tune->layer[0];
    int dim = p.model[1]->config.dim;
    assert_ptr_equal(l->q.slopes.h, l->v.slopes.h);
    assert_ptr_equal(l->gate.slopes.h, l->up.slopes.h);
    for (int i = 0; i < dim; i += 7) {
        double want = 0;
        for (int r = 0; r < LEN; r++)
            want += (double)p.tune->a.xn[r * dim + i] * (double)p.tune->a.xn[r * dim + dim - 1 - i];
        double got = (double)l->q.slopes.h[i * dim + dim - 1 - i];
        assert_true(fabs(got - want) < 1e-3 * (1 + fabs(want)));
    }
    close_pair(&p);
}

/* ---- information ------------------------------------------------------------------------------------------------- */

/* With the text for a teacher the loss is -log p of its tokens, as the engine has it. */
static void the_text_teaches(void **state)
{
    struct pair p;
    struct err e;
    const float *z;
    double want = 0;
    (void)state;
    open_pair(&p, "tests/golden/archs/llama3-scaling", "planes3g32", 2);
    int vocab = p.model[1]->config.vocab;
    assert_int_equal(runner_append(&p.run[1], 0, p.token, LEN, LEN, &z, &e), 0);
    for (int r = 0; r + 1 < LEN; r++, z += vocab)
        want += logits_peak(z, vocab).lse - (double)z[p.token[r + 1]];
    p.text.x = NULL;
    double got = tune_loss(p.tune, &p.text, NULL);
    assert_true(fabs(got - want) < 1e-4 * want);
    close_pair(&p);
}

/* Of a row, the squares of its slopes: of two tokens only the first has any, so that tokens cannot but be independent. */
static double squares_of(struct pair *p, const struct tune_matrix *m, int row)
{
    const float h = 0x1p-7f;
    double sum = 0;
    for (int k = 0; k < m->stored->cols; k++) {
        float *w = m->w + (size_t)row * (size_t)m->stored->cols + k, was = *w;
        *w = was + h;
        double up = tune_loss(p->tune, &p->text, NULL);
        *w = was - h;
        double slope = (up - tune_loss(p->tune, &p->text, NULL)) / (2 * (double)h);
        *w = was;
        sum += slope * slope;
    }
    return sum;
}

static void rows_have_information(void **state)
{
    struct tune_matrix *all[TUNE_MATRICES];
    struct pair p;
    (void)state;
    open_pair(&p, "tests/golden/archs/qwen3-head-norms", "f32", 2);
    double *info = mem_zalloc((size_t)p.n, sizeof *info);
    assert_non_null(info);
    p.text.x = NULL;
    p.text.len = 2;
    tune_fisher(p.tune, &p.text, p.grad, info);
    tune_matrices(&p.tune->layer[0], all);
    for (int k = 0; k < TUNE_MATRICES; k++)
        for (int i = 0; i < 2; i++) {
            int row = i * 5 % all[k]->stored->rows;
            double want = squares_of(&p, all[k], row);
            double got = info[all[k]->at + row];
            if (k < 2) /* nobody asks where there is but one token to attend to */
                assert_true(got < 1e-9 && want < 1e-9);
            else /* differences of a loss in f32 show no less than 1e-5 */
                assert_true(fabs(got - want) < 1e-3 * want + 1e-5);
        }
    mem_free(info);
    close_pair(&p);
}

/* ---- steps of codes ---------------------------------------------------------------------------------------------- */

/* A step makes the loss less, the engine says so too, and unmaking it brings back every bit. */
static void codes_step_down(void **state)
{
    struct pair p;
    struct buf moves;
    struct err e;
    (void)state;
    buf_init(&moves, SIZE_MAX);
    open_codes(&p, "llama3-scaling", 2);
    double before = tune_loss(p.tune, &p.text, NULL);
    assert_int_equal(tune_codes_move(p.tune, 160, &moves, &e), 0);
    double after = tune_loss(p.tune, &p.text, NULL);
    double engine = engine_loss(&p);
    const struct tune_move *move = (const void *)moves.data;
    size_t n = moves.len / sizeof *move;
    print_message("%zu moves: KL %.4f to %.4f nats a token\n", n, before / LEN, after / LEN);
    assert_true(n > 0 && after < before);
    assert_true(fabs(after - engine) < 1e-3 * engine);
    tune_codes_undo(p.tune, move, n);
    assert_true(tune_loss(p.tune, &p.text, NULL) == before);
    tune_codes_make(p.model[1], move, n);
    tune_read(p.tune);
    assert_true(tune_loss(p.tune, &p.text, NULL) == after);
    buf_free(&moves);
    close_pair(&p);
}

static void moves_for_any_threads(void **state)
{
    struct buf moves[2];
    struct err e;
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct pair p;
        buf_init(&moves[i], SIZE_MAX);
        open_codes(&p, "qwen2-biases", i == 0 ? 1 : 3);
        assert_int_equal(tune_codes_move(p.tune, 60, &moves[i], &e), 0);
        close_pair(&p);
    }
    assert_true(moves[0].len > 0);
    assert_int_equal(moves[0].len, moves[1].len);
    assert_memory_equal(moves[0].data, moves[1].data, moves[0].len);
    buf_free(&moves[0]);
    buf_free(&moves[1]);
}

static int open_both(struct pair *p, struct tune **t, struct err *e)
{
    TRY(tune_open(t, p->model[1], p->model[0], LEN, e));
    int rc = tune_codes_open(*t, e);
    tune_close(*t);
    return rc;
}

static void lacks_memory(void **state)
{
    struct pair p;
    struct tune *t;
    struct err e;
    struct mem_stats before;
    struct mem_stats after;
    (void)state;
    open_pair(&p, "tests/golden/archs/linear-scaling", "planes4", 1);
    mem_stats(&before);
    uint64_t calls = 0;
    for (int rc = ERR_NOMEM; rc != 0;) {
        mem_fail_at(++calls);
        rc = open_both(&p, &t, &e);
        mem_fail_at(0);
        assert_true(rc == 0 || rc == ERR_NOMEM);
        mem_stats(&after);
        assert_int_equal(after.blocks, before.blocks);
    }
    assert_true(calls > 8);
    close_pair(&p);
}

#define CASE(name)                                                                                 \
    {                                                                                              \
        "slope " name, is_the_slope, NULL, NULL, (void *)name                                      \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE("llama3-scaling"),
        CASE("linear-scaling"),
        CASE("mistral-window"),
        CASE("qwen2-biases"),
        CASE("qwen3-head-norms"),
        cmocka_unit_test(any_number_of_threads),
        cmocka_unit_test(settles),
        cmocka_unit_test(steps_down),
        cmocka_unit_test(matrices_have_slopes),
        cmocka_unit_test(sums_up_inputs),
        cmocka_unit_test(the_text_teaches),
        cmocka_unit_test(rows_have_information),
        cmocka_unit_test(codes_step_down),
        cmocka_unit_test(moves_for_any_threads),
        cmocka_unit_test(lacks_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
