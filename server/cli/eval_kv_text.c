/* Contexts of wring eval kv: a piece of a book in one user turn, with facts planted in it. */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/cli/eval_kv.h"

enum {
    MAX_FACTS = 8,
    TOKEN_BYTES = 8, /* of text for each token wanted: twice and more what tokens of books have */
    NEXT = 80,       /* tokens of text that follow a prompt */
    SNAP = 60        /* tokens that a fact moves on to find the end of a sentence */
};

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

static int encode(struct kv_maker *m, const char *s, size_t n, unsigned flags, struct tok_ids *out,
                  struct err *e)
{
    int rc = tok_encode(m->tok, s, n, flags, out);
    return rc < 0 ? err_set(e, rc, "no memory for tokens") : 0;
}

/* The ids of a text that goes on after others: a sentencepiece vocabulary would put a space in front of it, so it is encoded
 * behind a letter whose own tokens are dropped. A text that begins with a letter is taken as it is. */
static int encode_on(struct kv_maker *m, const char *s, struct tok_ids *out, struct err *e)
{
    struct buf b;
    struct tok_ids with = { 0 };
    struct tok_ids anchor = { 0 };
    bool alone = (s[0] | 32) >= 'a' && (s[0] | 32) <= 'z';
    buf_init(&b, 1 << 16);
    buf_addf(&b, "%s%s", alone ? "" : "a", s);
    int rc = b.bad;
    if (rc == 0)
        rc = tok_encode(m->tok, buf_str(&b), b.len, TOK_PARSE_SPECIAL, &with);
    if (rc == 0 && !alone)
        rc = tok_encode(m->tok, "a", 1, 0, &anchor);
    out->n = 0;
    if (rc == 0 && with.n >= anchor.n) {
        *out = with;
        out->n -= anchor.n;
        memmove(out->id, out->id + anchor.n, (size_t)out->n * sizeof *out->id);
    }
    tok_ids_free(&anchor);
    buf_free(&b);
    return rc < 0 ? err_set(e, rc, "no memory for tokens") : 0;
}

/* What the template writes before and after a user's text. */
static int split_template(struct kv_maker *m, const struct model *model, struct err *e)
{
    static const char mark[] = "wring-eval-text";
    struct tmpl_output out = { 0 };
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", mark);
    if (messages == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a message");
    struct tmpl_input in = { .messages = messages,
                             .add_generation_prompt = true,
                             .bos_token = tok_text(m->tok, tok_bos(m->tok)),
                             .eos_token = tok_text(m->tok, tok_eos(m->tok)),
                             .now_unix = clock_wall_s() };
    int rc = tmpl_render(model->tmpl, &in, NULL, &out, e);
    json_decref(messages);
    TRY(rc);
    const char *text = buf_str(&out.text);
    const char *at = strstr(text, mark);
    if (at == NULL)
        rc = err_set(e, ERR_UNSUPPORTED, "the chat template does not show the user's text");
    if (rc == 0)
        rc = encode(m, text, (size_t)(at - text), TOK_PARSE_SPECIAL, &m->head, e);
    if (rc == 0)
        rc = encode_on(m, at + strlen(mark), &m->tail, e);
    tmpl_output_free(&out);
    return rc;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

int kv_maker_open(struct kv_maker *m, const struct model *model, const char *texts, int length,
                  int ctx, struct err *e)
{
    int most = least(model->config.ctx_train, KV_RUN);
    *m = (struct kv_maker){ .tok = model->tok,
                            .length = length,
                            .run = ctx > 0 ? least(ctx, most) : most };
    int rc = texts_open(&m->texts, texts, e);
    if (rc == 0)
        rc = model->tmpl != NULL ? split_template(m, model, e)
                                 : encode(m, "", 0, TOK_ADD_BOS, &m->head, e);
    if (rc < 0)
        kv_maker_close(m);
    return rc;
}

void kv_maker_close(struct kv_maker *m)
{
    texts_close(&m->texts);
    tok_ids_free(&m->head);
    tok_ids_free(&m->tail);
    tok_ids_free(&m->body);
    *m = (struct kv_maker){ 0 };
}

/* ---- chance ------------------------------------------------------------------------------------------------------ */

void kv_maker_seed(struct kv_maker *m, uint64_t seed, const char *task, int sample)
{
    m->key = XXH3_64bits_withSeed(task, strlen(task), seed) + (uint64_t)sample;
    m->n_drawn = 0;
    m->sample = sample;
}

static double draw_unit(struct kv_maker *m)
{
    m->n_drawn++;
    return (double)(XXH3_64bits_withSeed(&m->n_drawn, sizeof m->n_drawn, m->key) >> 11) * 0x1p-53;
}

int kv_draw(struct kv_maker *m, int n)
{
    return (int)(draw_unit(m) * n);
}

double kv_draw_depth(struct kv_maker *m)
{
    return .05 + .85 * draw_unit(m);
}

double kv_sample_depth(struct kv_maker *m)
{
    return .05 + .85 * (m->sample % 10 + draw_unit(m)) / 10;
}

void kv_draw_some(struct kv_maker *m, int *out, int k, int n)
{
    for (int i = 0; i < k; i++) {
        bool again = true;
        while (again) {
            again = false;
            out[i] = kv_draw(m, n);
            for (int j = 0; j < i; j++)
                again |= out[j] == out[i];
        }
    }
}

/* ---- contexts ---------------------------------------------------------------------------------------------------- */

/* Encodes a piece of a book: the books take turns, the place is drawn. */
static int take_body(struct kv_maker *m, int n_tokens, struct err *e)
{
    const struct buf *b = &m->texts.text[m->sample % m->texts.n];
    size_t want = (size_t)n_tokens * TOKEN_BYTES;
    size_t first = b->len / 20;
    if (b->len < first + want)
        return err_set(e, ERR_INVALID, "a text of %zu bytes is too short for %d tokens in a row",
                       b->len, n_tokens);
    size_t room = b->len - first - want;
    const char *p = buf_str(b) + first + (size_t)(draw_unit(m) * (double)room);
    const char *space = memchr(p, ' ', want);
    size_t skip = space != NULL ? (size_t)(space - p) + 1 : 0;
    m->body.n = 0;
    TRY(encode(m, p + skip, want - skip, 0, &m->body, e));
    if (m->body.n < n_tokens)
        return err_set(e, ERR_INVALID, "%zu bytes of text are only %d tokens; %d are wanted", want,
                       m->body.n, n_tokens);
    return 0;
}

static bool ends_sentence(const struct kv_maker *m, int32_t id)
{
    static const char *const end[] = { ".", ".\"", "!", "?", ";" };
    const char *s = tok_text(m->tok, id);
    while (s != NULL && *s == ' ')
        s++;
    for (int i = 0; s != NULL && i < 5; i++)
        if (strcmp(s, end[i]) == 0)
            return true;
    return false;
}

/* The first end of a sentence at or after token i; i itself when there is none near. */
static int snap(const struct kv_maker *m, int i, int n)
{
    for (int k = i; k < i + SNAP && k < n - SNAP; k++)
        if (ends_sentence(m, m->body.id[k]))
            return k + 1;
    return i;
}

static int add_ids(struct tok_ids *out, const int32_t *id, int n, struct err *e)
{
    if (out->n + n > out->cap) {
        int cap = (out->n + n) * 2;
        int32_t *p = mem_realloc(out->id, (size_t)cap * sizeof *p);
        if (p == NULL)
            return err_set(e, ERR_NOMEM, "no memory for %d tokens", cap);
        out->id = p;
        out->cap = cap;
    }
    memcpy(out->id + out->n, id, (size_t)n * sizeof *id);
    out->n += n;
    return 0;
}

struct plant {
    struct tok_ids ids;
    int at; /* in front of this token of the body */
};

/* By place; facts of one place keep their order. */
static void sort_plants(struct plant *p, int n)
{
    for (int i = 1; i < n; i++) {
        struct plant held = p[i];
        int k = i;
        for (; k > 0 && p[k - 1].at > held.at; k--)
            p[k] = p[k - 1];
        p[k] = held;
    }
}

static int lay_out(struct kv_maker *m, const struct plant *p, int n_facts, int n_body,
                   struct kv_case *c, struct err *e)
{
    int from = 0;
    TRY(add_ids(&c->prompt, m->head.id, m->head.n, e));
    for (int i = 0; i < n_facts; i++) {
        TRY(add_ids(&c->prompt, m->body.id + from, p[i].at - from, e));
        TRY(add_ids(&c->prompt, p[i].ids.id, p[i].ids.n, e));
        from = p[i].at;
    }
    m->next = n_body;
    return add_ids(&c->prompt, m->body.id + from, n_body - from, e);
}

static int plant(struct kv_maker *m, struct plant *p, const struct kv_fact *fact, int n_facts,
                 struct kv_case *c, struct err *e)
{
    int n_body = m->length - m->head.n;
    for (int i = 0; i < n_facts; i++) {
        TRY(encode_on(m, fact[i].text, &p[i].ids, e));
        n_body -= p[i].ids.n;
    }
    if (n_body < 2 * SNAP)
        return err_set(e, ERR_INVALID, "length: %d tokens leave no room for a text", m->length);
    TRY(take_body(m, n_body + NEXT, e));
    for (int i = 0; i < n_facts; i++)
        p[i].at = snap(m, (int)(fact[i].depth * n_body), n_body);
    sort_plants(p, n_facts);
    return lay_out(m, p, n_facts, n_body, c, e);
}

static void start_case(struct kv_case *c, double depth)
{
    c->prompt.n = c->n_probe = c->n_answers = c->question0 = c->question1 = 0;
    c->depth = depth;
}

int kv_maker_context(struct kv_maker *m, const struct kv_fact *fact, int n_facts, struct kv_case *c,
                     struct err *e)
{
    struct plant p[MAX_FACTS] = { 0 };
    ASSERT(n_facts <= MAX_FACTS);
    start_case(c, n_facts > 0 ? fact[0].depth : -1);
    int rc = plant(m, p, fact, n_facts, c, e);
    for (int i = 0; i < n_facts; i++)
        tok_ids_free(&p[i].ids);
    return rc;
}

int kv_maker_text(struct kv_maker *m, int n, int n_after, struct kv_case *c, struct err *e)
{
    int n_body = n - m->head.n;
    if (n_body < 1)
        return err_set(e, ERR_INVALID, "ctx: %d tokens leave no room for a text", n + n_after);
    start_case(c, -1);
    TRY(take_body(m, n_body + n_after, e));
    return lay_out(m, NULL, 0, n_body, c, e);
}

/* ---- what is fed ------------------------------------------------------------------------------------------------- */

int kv_maker_feed_ids(struct kv_case *c, const int32_t *id, int n, int answer, struct err *e)
{
    if (c->n_probe + n > KV_PROBE)
        return err_set(e, ERR_LIMIT, "more than %d tokens to be fed", KV_PROBE);
    for (int i = 0; i < n; i++) {
        c->probe[c->n_probe] = id[i];
        c->answer[c->n_probe++] = (uint8_t)answer;
    }
    c->n_answers = answer > c->n_answers ? answer : c->n_answers;
    return 0;
}

int kv_maker_feed(struct kv_maker *m, struct kv_case *c, const char *text, int answer,
                  struct err *e)
{
    struct tok_ids t = { 0 };
    int rc = encode_on(m, text, &t, e);
    if (rc == 0)
        rc = kv_maker_feed_ids(c, t.id, t.n, answer, e);
    tok_ids_free(&t);
    return rc;
}

int kv_maker_ask(struct kv_maker *m, struct kv_case *c, const char *question, const char *lead,
                 struct err *e)
{
    TRY(kv_maker_feed(m, c, question, 0, e));
    if (m->tail.n > 0)
        TRY(kv_maker_feed_ids(c, m->tail.id, m->tail.n, 0, e));
    else
        TRY(kv_maker_feed(m, c, "\n", 0, e));
    return kv_maker_feed(m, c, lead, 0, e);
}

int kv_maker_show(struct kv_case *c, struct err *e)
{
    int n = c->n_probe - 1;
    c->question0 = c->prompt.n;
    TRY(add_ids(&c->prompt, c->probe, n, e));
    c->question1 = c->prompt.n;
    c->probe[0] = c->probe[n];
    c->n_probe = 1;
    return 0;
}
