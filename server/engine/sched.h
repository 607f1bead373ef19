/* What runs in the next step: pure functions from what is running and how many pages there are to a plan.
 *
 * Decoding sequences (one token to do) come first, a row each; the rest of the batch goes to prompts, oldest first, cut
 * where the batch is full. Beside decoding sequences prompts get fewer rows, so that a long prompt does not stall the
 * streams of others.
 */
#ifndef WRING_SERVER_ENGINE_SCHED_H
#define WRING_SERVER_ENGINE_SCHED_H

#include <stdbool.h>
#include <stdint.h>

struct sched_seq {
    int todo;     /* tokens that are not in the cache yet, at least 1 */
    int room;     /* of them, those that fit the pages it has */
    bool all_out; /* wants logits for every row, not for the last one only */
};

struct sched_limits {
    int max_rows, max_out; /* of a step; max_out at least the number of sequences */
    int prompt_rows;       /* most prompt rows beside decoding sequences */
    int64_t available;     /* wide pages that can be had */
    int64_t block_pages;   /* wide pages for KV_PAGE more tokens of one sequence: one a layer */
};

/* seq[n]: oldest first. Fills rows[n] and returns -1; or returns the sequence to preempt (the youngest) because a decoding
 * one finds no page: then rows is void, and the plan is made again without it. */
int sched_plan(const struct sched_seq *seq, int n, const struct sched_limits *l, int *rows);

/* Whether a waiting sequence that needs `need` more pages may start. When others run, one more block for each of them stays
 * free, so that it is not preempted at once. */
bool sched_admits(int n_running, int max_seqs, int64_t need, const struct sched_limits *l);

#endif
