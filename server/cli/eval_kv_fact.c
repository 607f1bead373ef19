/* Tasks that ask for facts planted in a long text: needles, one or several, asked for before or after pressing.
 *
 * Numbers are answered digit by digit: only the first digit is attended to from the question, so a policy that keeps just
 * what the question looks at loses the rest. The form of the question is one that small models can answer.
 */
#include <stdio.h>

#include "server/cli/eval_kv.h"

static const char *const cities[] = { "Tokyo",  "Paris",  "London", "Cairo",  "Berlin", "Madrid",
                                      "Rome",   "Sydney", "Moscow", "Dublin", "Vienna", "Boston",
                                      "Lisbon", "Prague", "Athens", "Oslo" };
static const char *const words[] = { "apple",  "river",  "candle", "silver", "garden", "window",
                                     "bridge", "copper", "forest", "castle", "mirror", "pepper",
                                     "button", "ladder", "orange", "velvet" };
enum {
    N_CITIES = sizeof cities / sizeof *cities,
    N_WORDS = sizeof words / sizeof *words,
    MANY = 8,
    FIVE = 5,
    VALUES = 3
};

/* Facts that a city has a number, n of them; the first stands at the depth that goes round with the samples. */
struct numbers {
    int city[MANY], value[MANY];
    struct kv_fact fact[MANY];
};

static void draw_numbers(struct kv_maker *m, struct numbers *x, int n)
{
    kv_draw_some(m, x->city, n, N_CITIES);
    for (int i = 0; i < n; i++) {
        x->value[i] = 1000 + kv_draw(m, 9000);
        snprintf(x->fact[i].text, sizeof x->fact[i].text, " The special magic number for %s is %d.",
                 cities[x->city[i]], x->value[i]);
        x->fact[i].depth = i == 0 ? kv_sample_depth(m) : kv_draw_depth(m);
    }
}

static int feed_number(struct kv_maker *m, struct kv_case *c, int value, int answer, struct err *e)
{
    char text[16];
    snprintf(text, sizeof text, " %d", value);
    return kv_maker_feed(m, c, text, answer, e);
}

/* n cities; the first one's number is asked for, before the cache is pressed or after. */
static int make_number_of(struct kv_maker *m, struct kv_case *c, int n, bool shown, struct err *e)
{
    struct numbers x;
    char question[128];
    char lead[128];
    draw_numbers(m, &x, n);
    const char *city = cities[x.city[0]];
    snprintf(question, sizeof question, "\n\nWhat is the special magic number for %s?", city);
    snprintf(lead, sizeof lead, "The special magic number for %s is", city);
    TRY(kv_maker_context(m, x.fact, n, c, e));
    TRY(kv_maker_ask(m, c, question, lead, e));
    if (shown)
        TRY(kv_maker_show(c, e));
    return feed_number(m, c, x.value[0], 1, e);
}

static int make_number(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    return make_number_of(m, c, 2, true, e);
}

static int make_hidden(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    return make_number_of(m, c, 2, false, e);
}

static int make_multikey(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    return make_number_of(m, c, MANY, true, e);
}

static int make_word(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    int city[2];
    int word[2];
    struct kv_fact fact[2];
    char question[128];
    char text[128];
    kv_draw_some(m, city, 2, N_CITIES);
    kv_draw_some(m, word, 2, N_WORDS);
    for (int i = 0; i < 2; i++) {
        snprintf(fact[i].text, sizeof fact[i].text, " The secret word for %s is %s.",
                 cities[city[i]], words[word[i]]);
        fact[i].depth = i == 0 ? kv_sample_depth(m) : kv_draw_depth(m);
    }
    TRY(kv_maker_context(m, fact, 2, c, e));
    snprintf(question, sizeof question, "\n\nWhat is the secret word for %s?", cities[city[0]]);
    snprintf(text, sizeof text, "The secret word for %s is", cities[city[0]]);
    TRY(kv_maker_ask(m, c, question, text, e));
    TRY(kv_maker_show(c, e));
    snprintf(text, sizeof text, " %s", words[word[0]]);
    return kv_maker_feed(m, c, text, 1, e);
}

/* One city, three numbers in three places, to be named in the order of the text; each is judged by itself. */
static int make_multivalue(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    static const char *const rank[VALUES] = { "first", "second", "third" };
    struct kv_fact fact[VALUES];
    int value[VALUES];
    char question[128];
    char text[128];
    const char *city = cities[kv_draw(m, N_CITIES)];
    for (int i = 0; i < VALUES; i++) {
        value[i] = 1000 + kv_draw(m, 9000);
        snprintf(fact[i].text, sizeof fact[i].text, " The %s magic number for %s is %d.", rank[i],
                 city, value[i]);
        fact[i].depth = (i + kv_draw_depth(m)) / VALUES;
    }
    TRY(kv_maker_context(m, fact, VALUES, c, e));
    c->depth = -1;
    snprintf(question, sizeof question, "\n\nWhat are the three magic numbers for %s?", city);
    for (int i = 0; i < VALUES; i++) {
        snprintf(text, sizeof text, "%sThe %s magic number for %s is", i == 0 ? "" : ". ", rank[i],
                 city);
        if (i == 0) {
            TRY(kv_maker_ask(m, c, question, text, e));
            TRY(kv_maker_show(c, e));
        } else {
            TRY(kv_maker_feed(m, c, text, 0, e));
        }
        TRY(feed_number(m, c, value[i], i + 1, e));
    }
    return 0;
}

/* Five facts, all asked for one after the other, none of it known when the cache was pressed. */
static int make_five(struct kv_maker *m, struct kv_case *c, struct err *e)
{
    struct numbers x;
    char question[192];
    char text[128];
    draw_numbers(m, &x, FIVE);
    TRY(kv_maker_context(m, x.fact, FIVE, c, e));
    c->depth = -1;
    const char *city[FIVE];
    for (int i = 0; i < FIVE; i++)
        city[i] = cities[x.city[i]];
    snprintf(question, sizeof question,
             "\n\nWhat are the special magic numbers for %s, %s, %s, %s and %s?", city[0], city[1],
             city[2], city[3], city[4]);
    for (int i = 0; i < FIVE; i++) {
        snprintf(text, sizeof text, "%sThe special magic number for %s is", i == 0 ? "" : ". ",
                 city[i]);
        TRY(i == 0 ? kv_maker_ask(m, c, question, text, e) : kv_maker_feed(m, c, text, 0, e));
        TRY(feed_number(m, c, x.value[i], i + 1, e));
    }
    return 0;
}

const struct kv_task kv_fact_tasks[] = {
    { "number", "a planted number, question seen", KV_ANSWER, make_number },
    { "word", "a planted word, question seen", KV_ANSWER, make_word },
    { "hidden", "a planted number, question not seen", KV_ANSWER, make_hidden },
    { "multikey", "one of eight planted numbers, question seen", KV_ANSWER, make_multikey },
    { "multivalue", "three planted numbers of one key, question seen", KV_ANSWER, make_multivalue },
    { "five", "five questions to one pressed context, not seen", KV_ANSWER, make_five },
    { NULL, NULL, KV_TEXT, NULL },
};
