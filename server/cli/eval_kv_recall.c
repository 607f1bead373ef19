/* Tasks about the text as a whole: how it goes on, what stood in it word by word, what was to be obeyed, what follows from
 * what. */
#include <stdio.h>

#include "server/cli/eval_kv.h"

enum { CONTINUE = 65, CUE = 24, COPY = 16, HALF = COPY / 2, CHAIN = 3, STREAM_PROMPT = 8 };

/* The book goes on: nothing is asked, so nothing but the text itself says what is needed. */
static int make_continue(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    TRY(kv_maker_context(m, NULL, 0, c, e));
    const int32_t *next = m->body.id + m->next;
    TRY(kv_maker_feed_ids(c, next, 1, 0, e));
    return kv_maker_feed_ids(c, next + 1, CONTINUE - 1, 1, e);
}

/* The same, but what follows is what the model makes of it. */
static int make_greedy(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    TRY(kv_maker_context(m, NULL, 0, c, e));
    return kv_maker_feed_ids(c, m->body.id + m->next, 1, 0, e);
}

/* A run as long as the model's context: an eighth of it is the prompt, all the rest is judged. Positions beyond those that a
 * model was trained for say nothing about its cache, so a longer stream is several runs, each a sample. */
static int make_stream(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    int n = m->run / STREAM_PROMPT;
    TRY(kv_maker_text(m, n, m->run - n, c, e));
    const int32_t *next = m->body.id + m->next;
    TRY(kv_maker_feed_ids(c, next, 1, 0, e));
    return kv_maker_feed_ids(c, next + 1, m->run - n - 1, 1, e);
}

/* A passage is to be finished that stands in the text: every token of it is needed, one after the other. Two answers of
 * eight tokens each. */
static int make_copy(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    int32_t span[CUE + COPY];
    TRY(kv_maker_context(m, NULL, 0, c, e));
    c->depth = kv_sample_depth(m);
    int room = c->prompt.n - m->head.n - CUE - COPY;
    int at = m->head.n + (int)(c->depth * room);
    for (int i = 0; i < CUE + COPY; i++)
        span[i] = c->prompt.id[at + i];
    TRY(kv_maker_ask(m, c, "\n\nRepeat a passage of the text word by word.", "The passage:", e));
    TRY(kv_maker_feed_ids(c, span, CUE, 0, e));
    TRY(kv_maker_show(c, e));
    TRY(kv_maker_feed_ids(c, span + CUE, HALF, 1, e));
    return kv_maker_feed_ids(c, span + CUE + HALF, HALF, 2, e);
}

/* Two instructions stand before the text; both must be obeyed after it. A policy that favours one region loses one. */
static int make_rules(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    static const char *const word[] = { "lemon",  "marble", "thunder", "pillow",
                                        "dragon", "needle", "coffee",  "anchor" };
    int w[2];
    char text[128];
    struct kv_fact fact[2] = { { "", 0 }, { "", 0 } };
    kv_draw_some(m, w, 2, (int)(sizeof word / sizeof *word));
    snprintf(fact[0].text, sizeof fact[0].text, " Rule one: when you meet a friend, say %s.",
             word[w[0]]);
    snprintf(fact[1].text, sizeof fact[1].text, " Rule two: when you leave a friend, say %s.",
             word[w[1]]);
    TRY(kv_maker_context(m, fact, 2, c, e));
    c->depth = -1;
    TRY(kv_maker_ask(m, c, "\n\nWhat are the two rules?", "Rule one: when you meet a friend, say",
                     e));
    TRY(kv_maker_show(c, e));
    snprintf(text, sizeof text, " %s", word[w[0]]);
    TRY(kv_maker_feed(m, c, text, 1, e));
    TRY(kv_maker_feed(m, c, ". Rule two: when you leave a friend, say", 0, e));
    snprintf(text, sizeof text, " %s", word[w[1]]);
    return kv_maker_feed(m, c, text, 2, e);
}

static const char *const people[] = { "Alice", "Peter", "Susan", "David", "Maria", "James",
                                      "Sarah", "Henry", "Laura", "Frank", "Helen", "Oscar" };

/* A value is handed on from name to name (RULER's variable tracking); another chain runs beside it. */
static void draw_chain(struct kv_maker *m, const int *name, int value, struct kv_fact *fact)
{
    for (int i = 0; i < CHAIN; i++) {
        fact[i].depth = (i + kv_draw_depth(m)) / CHAIN;
        if (i == 0)
            snprintf(fact[i].text, sizeof fact[i].text, " The lucky number of %s is %d.",
                     people[name[i]], value);
        else
            snprintf(fact[i].text, sizeof fact[i].text,
                     " The lucky number of %s is the same as that of %s.", people[name[i]],
                     people[name[i - 1]]);
    }
}

/* The last name is asked for, and the way back is fed hop by hop, each hop an answer: so small models can go it. */
static int make_vartrack(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    struct kv_fact fact[2 * CHAIN];
    int name[2 * CHAIN];
    char question[128];
    char text[128];
    int value = 1000 + kv_draw(m, 9000);
    kv_draw_some(m, name, 2 * CHAIN, (int)(sizeof people / sizeof *people));
    draw_chain(m, name, value, fact);
    draw_chain(m, name + CHAIN, 1000 + kv_draw(m, 9000), fact + CHAIN);
    TRY(kv_maker_context(m, fact, 2 * CHAIN, c, e));
    c->depth = -1;
    snprintf(question, sizeof question, "\n\nWhat is the lucky number of %s?",
             people[name[CHAIN - 1]]);
    for (int i = CHAIN - 1; i >= 0; i--) {
        snprintf(text, sizeof text, "%sThe lucky number of %s is%s", i == CHAIN - 1 ? "" : ". ",
                 people[name[i]], i > 0 ? " the same as that of" : "");
        if (i == CHAIN - 1) {
            TRY(kv_maker_ask(m, c, question, text, e));
            TRY(kv_maker_show(c, e));
        } else {
            TRY(kv_maker_feed(m, c, text, 0, e));
        }
        if (i > 0)
            snprintf(text, sizeof text, " %s", people[name[i - 1]]);
        else
            snprintf(text, sizeof text, " %d", value);
        TRY(kv_maker_feed(m, c, text, CHAIN - i, e));
    }
    return 0;
}

const struct kv_task kv_recall_tasks[] = {
    { "continue", "64 tokens of the text that follow", KV_TEXT, make_continue },
    { "greedy", "64 tokens that the whole cache chooses", KV_CHOICE, make_greedy },
    { "stream", "a long text, pressed again and again", KV_LONG, make_stream },
    { "copy", "a passage word by word, question seen", KV_ANSWER, make_copy },
    { "rules", "two instructions in front of the text, question seen", KV_ANSWER, make_rules },
    { "vartrack", "a value handed on from name to name, question seen", KV_ANSWER, make_vartrack },
    { NULL, NULL, KV_TEXT, NULL },
};
