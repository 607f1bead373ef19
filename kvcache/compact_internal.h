/* What the files of a compaction share. The order of things: compact.c.
 *
 * A compaction makes three passes over the heads, each head one item of the workers' loop: probe (compact_probe.c), choose and
 * write (compact_write.c). Forks of a prompt that are pressed one after the other share the probe. Between them only what struct
 * press_head points to is kept; keys, values and queries are read again by a pass that wants them, which choose does not. On a
 * backend whose memory the CPU cannot read, the device probes and writes all heads at once (compact_device.c), so that of the
 * passes only scores and choice are left; where it cannot, a pass that reads goes layer by layer, each brought to the host first
 * (compact_source.c). compact_commit.c puts the result in place.
 */
#ifndef WRING_KVCACHE_COMPACT_INTERNAL_H
#define WRING_KVCACHE_COMPACT_INTERNAL_H

#include "kernels/probe.h"
#include "kvcache/compact.h"
#include "kvcache/kv_internal.h"

/* Memory that grows and stays. */
struct room {
    char *at;
    size_t bytes;
};
/* At least that many bytes, contents undefined. ERR_NOMEM: as it was. */
int room_reserve(struct room *r, size_t bytes, struct err *e) WARN_UNUSED;
void room_close(struct room *r);
/* The next piece of a room that starts at base, 64-byte aligned; with base NULL the pieces are only counted. */
void *room_piece(char *base, size_t *used, size_t bytes);

/* What the probe of a prompt depends on; numbers without padding. */
struct probe_key {
    uint64_t root; /* kv_seq.root; 0: no prompt */
    int n_tokens, n_window, n_samples, n_global;
    int queries, stride, question0, question1;
};

struct kv_compactor {
    struct kv_pool *pool;
    struct kv_rope rope;
    float *inv_freq; /* rope's */
    int group;
    float scale;
    int n_threads;
    struct arena *arena; /* [n_threads] */
    struct room probe;   /* scratch of kernels/probe.h, of every thread */
    size_t probe_bytes;  /* of one */
    struct room heads, stage, out;
    struct probe_key key; /* of what a probe left in heads, the last one there */
    uint64_t probe_ns;    /* the time that it took */
};

/* One layer of the sequence in memory that the CPU can read. Numbers of pages and blocks count in `pool`. */
struct source {
    const char *pool, *sample;
    const float *beta;
    const int32_t *wide, *query;  /* pages */
    const int32_t *const *narrow; /* [n_kv_heads] blocks; NULL: none */
};

/* What is kept of one head from pass to pass. */
struct press_head {
    int n;                                             /* candidates */
    float *local, *global, *last, *mean, *rms, *score; /* [n] */
    float *ref_o, *ref_lse, *ref_weight;               /* as in struct kv_head */
    float *beta, *tail_lse;                            /* of a device: be_probe_out; ref_o is not */
    float tail_mass;                                   /* of the references, on the wide tail */
    int n_protected;                                   /* candidates that stay in any case */
    int n_keep;                                        /* its share of the budget */
    int32_t *keep;                                     /* [n_keep] */
    bool *exact;                                       /* [n_keep] */
    int64_t out_block;                                 /* where it starts in out */
    float mass; /* of the references, on what is kept, the wide tail included */
    int merged; /* candidates that a merge took in */
    int rc;
};

/* One compaction: of all layers, or of one. Heads and layers of `head` and `source` count from the first of them; those of
 * the sequence's tables from layer 0. */
struct press {
    struct kv_compactor *c;
    struct kv_pool *pool;
    struct kv_seq *s;
    int layer0, n_layers;
    int head0, n_heads;
    int n_wide;    /* candidates in wide pages, all of them full */
    int n_tail;    /* tokens that stay in the last, partial page */
    int n_samples; /* records in wide pages, the tail's included */
    int n_window;  /* records in query pages */
    int strided0, strided_n,
        n_strided;        /* references: n_strided of samples strided0 ... + strided_n */
    int n_ref;            /* those and the window's */
    struct probe_key key; /* of its probe */
    bool known;           /* a fork of it was pressed just before: what its probe found is there */
    bool raised;
    bool probed;           /* by the device; its pages are not on the host */
    struct be_probe asked; /* then: what it was asked, in c->stage */
    int keep_most; /* then: slots of a head that it can press; 0: a head is too long for it */
    struct press_head *head; /* [n_heads] */
    struct source *source;   /* [n_layers] */
    char *out; /* blocks of all heads, as they will be in the pool, unless the device writes them */
    char *out_beta; /* their sides */
};

/* One head in one pass, in one thread. */
struct item {
    const struct press *w;
    const struct source *src;
    struct press_head *st;
    struct kv_head h;
    struct probe_head probe; /* all candidates */
    const int32_t *tail;     /* the block behind them */
    void *scratch;
};

/* A query that was kept. */
struct record {
    const char *at;
    int pos;
};

typedef int press_fn(struct item *t);
/* Runs fn for every head; fn finds the head opened and, if it reads them, its pages where the CPU can read them. The first
 * error of the lowest head is returned. */
int press_run(struct press *w, press_fn *fn, bool reads_pages, struct err *e) WARN_UNUSED;

/* ---- compact_source.c */
void source_direct(struct press *w);
int source_stage(struct press *w, int l, struct err *e) WARN_UNUSED;
struct record source_sample(const struct press *w, const struct source *src, int i);
struct record source_window(const struct press *w, const struct source *src, int i);
struct record source_reference(const struct press *w, const struct source *src, int i);
/* By how many positions reference i, which stood at pos, is turned. */
int source_turn(const struct press *w, int i, int pos);
/* The wide candidates that a query at pos sees are those below. */
int source_seen(const struct press *w, int pos);
/* Scores and positions; what else a pass wants it asks for, item_slots first. All: ERR_NOMEM. */
int item_open(struct item *t, const struct press *w, int head, int thread) WARN_UNUSED;
int item_slots(struct item *t) WARN_UNUSED;      /* where candidates and tail are, and biases */
int item_references(struct item *t) WARN_UNUSED; /* kv_head.ref_pos, ref_turn, ref_q */
int item_kv(struct item *t) WARN_UNUSED;         /* kv_head.k, .v */
/* The queries of n records for this head: q[n * group][dim], lse[n * group] and, unless NULL, see[n * group]. */
void item_queries(const struct item *t, const struct record *r, int n, float *q, float *lse,
                  int32_t *see);

/* ---- compact_probe.c, compact_write.c */
press_fn press_probe, press_choose, press_write;
/* The local queries, at most KV_WINDOW_QUERIES; returns how many. */
int press_local(const struct press *w, const struct source *src, struct record *r);
/* Those of the global score, at most n_samples; r NULL: only counted. */
int press_global(const struct press *w, const struct source *src, struct record *r);
struct record press_last(const struct press *w, const struct source *src); /* query */
/* True for candidates at that position that stay in any case. */
bool press_protected(const struct press *w, int pos);
int press_candidate_pos(const struct press *w, int head, int j);

/* ---- compact_device.c */
bool device_can(const struct press *w); /* unless a head is too long for it */
/* Probes all heads, if none is too long: w->keep_most. */
int device_probe(struct press *w, struct err *e) WARN_UNUSED;
bool device_fits(const struct press *w); /* what was chosen can be pressed by it */
/* Fits what is kept and writes the narrow pages that s names. ERR_NOMEM: nothing is written. */
int device_write(struct press *w, const struct kv_seq *s, struct err *e) WARN_UNUSED;

/* ---- compact_commit.c: ERR_NOMEM, and ERR_DEVICE the first time: the sequence is as it was; ERR_DEVICE
 * later: its narrow pages are undefined. */
int press_commit(struct press *w, struct err *e) WARN_UNUSED;

#endif
