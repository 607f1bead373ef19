/* What runs in the next step: pure functions from what is running to a plan.
 *
 * Decoding sequences (one token to do) come first, a row each; the rest of the batch goes to prompts, cut where the batch is
 * full: half of it to the oldest, which so gets through whoever comes, the rest to the one with the fewest tokens left, then the
 * next, so that short prompts do not wait for long ones, and equal ones come one after the other. Beside decoding sequences
 * prompts get fewer rows, so that a long prompt does not stall the streams of others. Pages are taken before the plan is made:
 * those of a prompt at its admission, the next one of a decoding sequence by step.c.
 */
#ifndef WRING_SERVER_ENGINE_SCHED_H
#define WRING_SERVER_ENGINE_SCHED_H

#include <stdbool.h>
#include <stdint.h>

struct sched_seq {
    int todo;     /* tokens that are not in the cache yet, at least 1 */
    int room;     /* of them, those that fit the pages it has; at least 1 when todo is 1 */
    bool all_out; /* wants logits for every row, not for the last one only */
};

struct sched_limits {
    int max_rows; /* of a step, at least one a sequence */
    int max_out; /* rows of logits, at least one a sequence; what those leave is for prompts with all_out */
    int prompt_rows; /* most prompt rows beside decoding sequences */
};

/* Whether the next row of s is that of a token to come after it, not one of its prompt's. */
static inline bool sched_decodes(const struct sched_seq *s)
{
    return s->todo == 1 && !s->all_out;
}

/* seq[n]: oldest first, decoding ones with room for their row. Fills rows[n]. */
void sched_plan(const struct sched_seq *seq, int n, const struct sched_limits *l, int *rows);

#endif
