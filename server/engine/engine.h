/* The engine: one thread that owns the KV pool, the sequences and the batch, and runs the model.
 *
 * Other threads see two doors: engine_submit() puts jobs into a bounded queue, and job->on_event() tells what became of
 * it. on_event runs on the engine thread: it must not block and must not call the engine back (except
 * engine_cancel). A job belongs to the caller until engine_submit returns 0, then to the engine until on_event has been
 * called with a JOB_DONE event, and to the caller again from then on. Every submitted job gets exactly one JOB_DONE.
 *
 * Scheduling: continuous batching; rows of decoding sequences first, then prompt chunks up to max_batch rows (sched.h); a
 * sequence is admitted when the pages of its prompt, and those that pressing it will need, are there; when a decoding sequence
 * finds no page, the youngest one is preempted and later recomputed, or, when its cache was pressed, swapped to ordinary memory.
 * A long prompt that is to be pressed may go through the model layer by layer, one such prompt at a time; the next waits, and
 * those behind it do not; it is preempted for the oldest only. With the prefix cache, of jobs with one prompt the first computes
 * it and the others wait for its pages; those behind them do not. As long as running and waiting so are no more than
 * max_seqs: behind more, all wait. A job's tokens do not depend on any of this, bit for bit.
 */
#ifndef WRING_SERVER_ENGINE_ENGINE_H
#define WRING_SERVER_ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kvcache/compact.h"
#include "kvcache/kv.h"
#include "server/engine/sample.h"
#include "server/model/model.h"

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR };
const char *finish_name(enum finish_reason r); /* "stop", "length", "cancelled", "error" */

/* Token counts and times of a finished job. */
struct job_usage {
    int prompt_tokens, completion_tokens, cached_tokens;
    uint64_t queued_ns, prefill_ns, decode_ns; /* waiting, until the first token, after it */
    size_t kv_bytes,
        kv_full_bytes; /* physical bytes held at the end, and what a full cache takes */
    int preemptions;
    const char *kv_policy;
    int kv_budget; /* slots per KV head; 0: the policy keeps all */
    struct kv_report
        kv; /* zeroed when nothing was pressed; of a prompt that ended between its layers, of those that were */
};

/* What pressing the prompt left, for those who asked for it (job.kv_detail). Valid during the event. */
struct job_kv {
    int n_layers, n_kv_heads;
    const int32_t *slots;  /* [n_layers * n_kv_heads] kept by each head, the wide tail included */
    const float *survival; /* [n_prompt] share of all heads that kept the token's own key */
    const struct kv_report *report;
};

enum event_kind {
    JOB_PROMPT, /* the prompt is in the cache, pressed if it was to be. With prompt_logprobs: once a prompt
                 * token instead, with its logprob, and once more for kv */
    JOB_TOKEN, /* a token was chosen */
    JOB_DONE   /* the end; text holds what was held back */
};

struct job;
struct job_event {
    enum event_kind kind;
    int32_t id; /* JOB_TOKEN (not the token that stopped it), JOB_PROMPT with logprobs */
    const char
        *text; /* whole UTF-8; may be empty while a code point or a stop string is held back */
    size_t text_len;
    bool has_logprob; /* the logprobs of result are wanted and filled */
    const struct sample_result *result;
    enum finish_reason finish;     /* JOB_DONE */
    const struct err *err;         /* JOB_DONE with FINISH_ERROR */
    const struct job_usage *usage; /* JOB_DONE */
    const struct job_kv
        *kv; /* JOB_PROMPT, when kv_detail was asked for and the prompt was pressed */
};

/* One generation. All pointers are the caller's and live until JOB_DONE. */
struct job {
    const int32_t *prompt;
    int n_prompt; /* at least 1 */
    int max_tokens; /* new tokens; 0: the prompt only (FINISH_LENGTH); -1: until the context is full */
    struct sample_params sample;
    const char *const *stop; /* strings; the text before the first one is the answer */
    int n_stop;
    const int32_t *stop_id;
    int n_stop_id;
    bool ignore_eos;
    bool
        prompt_logprobs; /* JOB_PROMPT events carry the log-probability of each prompt token but the first */
    struct kv_options kv; /* zeroed: the cache stays whole */
    bool kv_detail;
    bool no_prefix_cache;
    void (*on_event)(struct job *j, const struct job_event *ev);
    void *user;
    /* the engine's own */
    _Atomic int cancelled;
    struct job *next;
    _Atomic bool waits; /* to be admitted, and is counted */
    uint64_t submit_ns;
};

struct engine_config {
    int ctx; /* most tokens a sequence may have; 0: the model's, at most what the pool holds. One that was asked
              * for may be more than that for those that go layer by layer: engine_room() */
    int max_seqs; /* sequences running at once; 0: 64 */
    int max_batch; /* rows a step, at least max_seqs; 0: 512. Beside decoding ones prompts get a quarter */
    int max_queue; /* jobs waiting, without cancelled ones; more are ERR_BUSY, see engine_submit; 0: 1024 */
    int64_t kv_tokens; /* tokens in the KV pool; 0: from kv_bytes */
    size_t
        kv_bytes; /* bytes of the KV pool; 0 with kv_tokens 0: on the CPU ctx * min(max_seqs, 4) tokens, at most
                   * a quarter of the memory that is there (machine.h); on a device ctx * max_seqs, as far as they fit */
    enum kv_type kv_type;
    enum kv_narrow kv_narrow; /* of what pressing leaves */
    int kv_samples; /* queries kept with every page, see struct kv_shape; 0: no policy can score */
    int layer_major; /* a prompt of so many tokens that is to be pressed is computed layer by layer; INT_MAX: only
                      * one that the pool cannot hold otherwise; 0: none */
    bool prefix_cache;
};

/* Numbers for /metrics; atomics, readable from any thread at any time. Times are histograms filled by the engine. */
struct histogram {
    const double *bound; /* upper bounds, rising; n of them and one more for the rest */
    int n;
    _Atomic uint64_t count[24];
    _Atomic uint64_t sum_us; /* seconds * 1e6, or plain units * 1e6 */
};
struct engine_stats {
    _Atomic int64_t running, waiting;
    _Atomic int64_t kv_pages, kv_used, kv_cached; /* wide pages */
    _Atomic int64_t kv_split, kv_narrow;          /* wide pages split, narrow pages in use */
    _Atomic uint64_t prompt_tokens, generation_tokens, steps, preemptions;
    _Atomic uint64_t prefix_queries, prefix_hits;
    _Atomic uint64_t layer_major; /* prompts computed layer by layer */
    _Atomic uint64_t compactions, swaps, kv_evicted, kv_merged,
        kv_guarded; /* guarded: budgets raised */
    _Atomic uint64_t finished[FINISH_ERROR + 1];
    struct histogram ttft, inter_token, e2e, queue_time, prefill_time, decode_time, batch_rows,
        prompt_len, output_len;
    struct histogram compaction_time; /* s, of every pressing */
    struct histogram kv_ratio,
        kv_mass; /* of a sequence's first: bytes of a full cache's, mass_mean */
};

struct engine;
/* Starts the thread. The model outlives the engine. Prints nothing; the plan is model_plan(). ERR_INVALID: settings that
 * cannot be, a pool that this machine's memory cannot hold beside the weights among them; ERR_NOMEM; ERR_DEVICE. */
int engine_open(struct engine **out, const struct model *m, const struct engine_config *c,
                struct err *e) WARN_UNUSED;
/* Cancels what is left, waits for the thread, frees everything. */
void engine_close(struct engine *en);
/* Takes all n jobs of a request, or none: 0; ERR_BUSY when they do not fit the queue, into which any number goes while nobody
 * waits, or the engine drains; ERR_LIMIT when a prompt leaves no room in the context: e says how many tokens there were and how
 * many there may be (max_tokens beyond the context is cut, and ends with FINISH_LENGTH), or when the pool cannot hold it and what
 * pressing it takes; ERR_INVALID; ERR_UNSUPPORTED; ERR_DEVICE when the device was lost. Any thread. */
int engine_submit(struct engine *en, struct job *const *job, int n, struct err *e) WARN_UNUSED;
/* Asks for the end of a submitted job; its JOB_DONE (FINISH_CANCELLED unless it ended before) comes within one step. Any thread. */
void engine_cancel(struct engine *en, struct job *j);
/* No new jobs; running ones go on. engine_idle() tells when none is left. */
void engine_drain(struct engine *en);
bool engine_idle(const struct engine *en);
/* 0, or why the engine does nothing any more: ERR_DEVICE when the device was lost. What ran then ended with FINISH_ERROR. */
int engine_error(struct engine *en, struct err *e);
/* What engine_submit would refuse of the job itself, whatever runs beside it: ERR_LIMIT, ERR_INVALID, ERR_UNSUPPORTED. */
int engine_check(const struct engine *en, const struct job *j, struct err *e) WARN_UNUSED;
const struct engine_stats *engine_stats(const struct engine *en);
int engine_ctx(const struct engine *en);
/* Most tokens of a sequence with that policy (NULL: the one that keeps all), of settings with every 0 filled in: a cache that
 * stays whole has to fit the pool. */
int engine_room(const struct engine_config *c, const struct kv_policy *policy);
const struct engine_config *engine_settings(const struct engine *en); /* with every 0 filled in */
int engine_plan(const struct engine *en,
                struct table **out) WARN_UNUSED; /* the memory plan as a table */

#endif
