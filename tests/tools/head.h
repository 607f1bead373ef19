/* What tests of cache policies share: one KV head of random content, and what a policy keeps of it. */
#ifndef WRING_TESTS_TOOLS_HEAD_H
#define WRING_TESTS_TOOLS_HEAD_H

#include "kvcache/policy.h"

enum { HEAD_N = 300, HEAD_DIM = 16, HEAD_REFS = 24, HEAD_GROUP = 3 };

/* A head, all that it points to, and what is kept of it. */
struct head {
    struct kv_head h;
    struct kv_options opt;
    struct kv_rope rope;
    struct arena arena;
    int32_t pos[HEAD_N], ref_pos[HEAD_REFS], ref_turn[HEAD_REFS];
    float beta[HEAD_N], local[HEAD_N], global[HEAD_N], last[HEAD_N], mean[HEAD_N], rms[HEAD_N];
    float k[HEAD_N * HEAD_DIM], v[HEAD_N * HEAD_DIM], inv_freq[HEAD_DIM / 2];
    float ref_q[HEAD_REFS * HEAD_GROUP * HEAD_DIM];
    struct kv_kept kept;
    int32_t keep[HEAD_N];
    bool exact[HEAD_N];
    float kept_k[HEAD_N * HEAD_DIM], kept_v[HEAD_N * HEAD_DIM], kept_beta[HEAD_N];
};
extern struct head f; /* the only one */

/* n <= HEAD_N candidates of a sequence of twice as many tokens, 4 sinks, a window of 8. Keys and values come in kinds, so that
 * some are alike. ref_o, ref_lse and ref_weight stay NULL. */
void head_make(int n, enum cpu_isa isa);
int head_close(void **state); /* a cmocka group's end: -1 when memory is left behind */
void head_score(const char *policy, float *score); /* no +inf yet */
void head_protect(float *score);                   /* sinks and window: +inf */
/* Fills f.kept as compaction does: n candidates, copies of their keys and values. */
int head_choose(const struct kv_policy *p, const float *score, int n) WARN_UNUSED;
bool head_keeps(int j);
/* How many unprotected candidates are better than j by `by`: the definition of rank. */
int head_rank(int j, const float *by, const float *score);

/* Within eps; NaN is near nothing. */
static inline bool is_near(double got, double want, double eps)
{
    double off = got - want;
    return off <= eps && -off <= eps;
}

/* In double precision. */
double head_dot(const float *a, const float *b, int n);
double head_cosine(const float *a, const float *b, int n); /* 0 for a vector of length 0 */

#endif
