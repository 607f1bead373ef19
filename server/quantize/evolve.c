#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "quant/evolve.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

/* Sequences in each round of selection, of at most so many tokens: 256, 1024 and 4096 tokens, so that a generation takes as long
 * as a pass over some 12,000. EvoPress gives 128 offspring 2,048 to 131,072 tokens, on a GPU. */
enum { LENGTH = 256, MOST = 16, SEED = 1 };
static const int sequences[EVOLVE_ROUNDS] = { 1, 4, MOST };

struct trial {
    struct allocation *a;
    struct judge judge;
    json_t *parent; /* notes: a word for every matrix */
    json_t *score;  /* notes: generations that are done, and the divergence of the parent */
};

/* Generations see different sequences in all rounds but the last. */
static int judge_choice(void *arg, const int *choice, int generation, int round, double *loss,
                        struct err *e)
{
    struct trial *t = arg;
    double kl[MOST];
    int n = sequences[round] < t->judge.n ? sequences[round] : t->judge.n;
    int first = round < EVOLVE_ROUNDS - 1 ? generation * n % t->judge.n : 0;
    bank_splice(t->a->bank, t->a, choice);
    TRY(judge_run(&t->judge, first, n, kl, e));
    *loss = 0;
    for (int i = 0; i < n; i++)
        *loss += kl[i] / n;
    *loss = isfinite(*loss) ? (double)(float)*loss
                            : (double)FLT_MAX; /* as it is noted; the worst there is */
    return 0;
}

/* ---- notes ------------------------------------------------------------------------------------------------------- */

static int note(struct trial *t, int generations, double loss, struct err *e)
{
    struct allocation *a = t->a;
    bool ok = json_object_set_new(t->score, "generations", json_integer(generations)) == 0 &&
              json_object_set_new(t->score, "kl", json_real(loss)) == 0;
    for (int i = 0; i < a->n && ok; i++) {
        json_t *word = json_string(a->family.word[a->choice[i]]);
        ok = json_object_set_new(t->parent, a->matrix[i].slot->name, word) == 0;
    }
    return ok ? quantize_state_save(a->q, e) : err_set(e, ERR_NOMEM, "no memory for the notes");
}

/* Makes the noted parent the choice; false: there is none. */
static bool recall(struct trial *t)
{
    struct allocation *a = t->a;
    for (int i = 0; i < a->n; i++) {
        const char *word = json_string_value(json_object_get(t->parent, a->matrix[i].slot->name));
        int c = 0;
        while (word != NULL && c < a->family.n && strcmp(a->family.word[c], word) != 0)
            c++;
        if (word == NULL || c == a->family.n)
            return false;
        a->choice[i] = c;
    }
    return true;
}

/* ---- generations ------------------------------------------------------------------------------------------------- */

static int run(struct trial *t, struct err *e)
{
    struct allocation *a = t->a;
    int total = (int)a->q->config->generations;
    struct evolve v = { .item = a->item,
                        .n = a->n,
                        .budget = a->budget,
                        .seed = SEED,
                        .judge = judge_choice,
                        .arg = t };
    int g = (int)json_integer_value(json_object_get(t->score, "generations"));
    double loss = json_number_value(json_object_get(t->score, "kl"));
    if (!recall(t)) {
        TRY(judge_choice(t, a->choice, 0, EVOLVE_ROUNDS - 1, &loss, e));
        TRY(note(t, g = 0, loss, e));
    }
    for (; g < total; g++) {
        TRY(evolve_generation(&v, g, a->choice, &loss, e));
        TRY(note(t, g + 1, loss, e));
        progress_add(&a->q->bar, 1);
    }
    return 0;
}

/* The map of this name; with --pareto every budget has its own. */
static int find_notes(const struct allocation *a, const char *name, json_t **out, struct err *e)
{
    char key[40];
    if (a->q->config->pareto[0] == 0)
        return quantize_state_map(a->q, name, out, e);
    snprintf(key, sizeof key, "%s %zu", name, a->budget);
    return quantize_state_map(a->q, key, out, e);
}

int quantize_evolve(struct allocation *a, struct err *e)
{
    struct quantize *q = a->q;
    struct trial t = { .a = a };
    TRY(find_notes(a, "parent", &t.parent, e));
    TRY(find_notes(a, "score", &t.score, e));
    TRY(judge_open(&t.judge, q, &q->text, MOST, LENGTH, a->bank->form[0], e));
    json_int_t done = json_integer_value(json_object_get(t.score, "generations"));
    progress_start(&q->bar, "evolve", "generations", (uint64_t)(q->config->generations - done));
    int rc = run(&t, e);
    progress_end(&q->bar, rc == 0);
    judge_close(&t.judge);
    return rc;
}
