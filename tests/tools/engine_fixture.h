/* Jobs for tests of the engine: a toy model, jobs that remember everything that was said about them, and what must hold when
 * all is over. Uses cmocka's assertions.
 */
#ifndef WRING_TESTS_TOOLS_ENGINE_FIXTURE_H
#define WRING_TESTS_TOOLS_ENGINE_FIXTURE_H

#include <semaphore.h>

#include "server/engine/engine.h"
#include "tests/tools/pressing.h"
#include "tests/tools/toy.h"

enum { MAX_EVENTS = 700, MAX_TEXT = 8192, MAX_PROMPT = 1200 };
enum { PRESS_BUDGET = 48, PRESS_TAIL = 32 };

extern struct toy toy; /* opened by open_toy, a group's setup */
int open_toy(void **state);
int close_toy(void **state);

/* A job and everything that was said about it. */
struct run {
    struct job job;
    int32_t prompt[MAX_PROMPT];
    struct sample_result result[MAX_EVENTS];
    int n_tokens, n_scored, n_prompt_events, n_done;
    struct sample_result score[MAX_PROMPT];
    char text[MAX_TEXT];
    size_t text_len;
    enum finish_reason finish;
    int code;
    struct job_usage usage;
    uint64_t calls_early, calls_late; /* allocations ever made, at two tokens of the answer */
    struct engine *cancel_in;         /* cancel itself at this many tokens */
    int cancel_at;
    sem_t *gate; /* the engine waits for it at the first token: until all jobs are in the queue */
    sem_t done;
};

void on_event(struct job *j, const struct job_event *ev); /* job->on_event of a run */
/* Kinds of jobs: greedy, drawn, with penalties (kind % 3). A kind and a length give the same prompt always. */
void make_run(struct run *r, int kind, int n_prompt, int max_tokens);
/* A job whose cache pressing(i) presses to PRESS_BUDGET slots. */
void make_pressed(struct run *r, int i, int kind, int n_prompt, int max_tokens);
struct engine *open_engine(const struct engine_config *c);
int try_submit(struct engine *en, struct run *r, struct err *e) WARN_UNUSED;
void submit(struct engine *en, struct run *r); /* which must not fail */
/* n of them, at most 64, at once: the engine cannot be ahead of who submits. */
void submit_all(struct engine *en, struct run *r, int n);
void wait_done(struct run *r);
/* Waits until nothing runs and nothing waits; then the pages must add up. */
void check_clean(struct engine *en);
/* The same tokens, text and log-probabilities, bit for bit. */
void assert_same(const struct run *a, const struct run *b);
uint64_t histogram_count(const struct histogram *h);
/* One job in an engine of its own. */
void run_one(const struct engine_config *c, struct run *r);

#endif
