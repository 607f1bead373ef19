/* The merges of a tokenizer as tokenizer.json lists them: those it has, or those that its scores amount to.
 *
 * A vocabulary with scores merges any two neighbours whose concatenation is a piece, best score first, leftmost first. As
 * ranks: every way to cut a piece into two pieces, by the piece's score. Of equal scores the cut with more characters on
 * its left comes first, as transformers' converter of sentencepiece models has it.
 */
#include <stdlib.h>
#include <string.h>

#include "server/text/token_json.h"

enum { MAX_TEXT = 1 << 20 };

/* One merge to be written; ordered by before(). */
struct pair {
    float score;
    int32_t order; /* the rank it has, or the token it makes */
    int32_t left, right;
    int n_left, n_right; /* characters */
};

struct pairs {
    struct pair *p;
    size_t n, cap;
};

static int push(struct pairs *l, struct pair p)
{
    if (l->n == l->cap) {
        size_t cap = l->cap > 0 ? 2 * l->cap : 4096;
        struct pair *grown = mem_realloc(l->p, cap * sizeof *grown);
        if (grown == NULL)
            return ERR_NOMEM;
        l->p = grown;
        l->cap = cap;
    }
    l->p[l->n++] = p;
    return 0;
}

static int before(const void *a, const void *b)
{
    const struct pair *p = a;
    const struct pair *q = b;
    if (p->score != q->score)
        return p->score > q->score ? -1 : 1;
    if (p->n_left != q->n_left)
        return p->n_left > q->n_left ? -1 : 1;
    if (p->n_right != q->n_right)
        return p->n_right > q->n_right ? -1 : 1;
    return p->order < q->order ? -1 : 1;
}

static bool is_normal(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && t->kind[id] == TOK_NORMAL;
}

/* Only normal tokens are written in one way in the vocabulary, so that the text of the whole is that of its halves. */
static int from_table(const struct tokenizer *t, struct pairs *l)
{
    for (uint32_t i = 0; i <= t->merge_mask; i++) {
        const struct tok_merge *m = &t->merge[i];
        if (m->left >= 0 && is_normal(t, m->left) && is_normal(t, m->right) &&
            is_normal(t, m->merged))
            TRY(push(l, (struct pair){ .order = m->rank, .left = m->left, .right = m->right }));
    }
    return 0;
}

static bool starts_char(char c)
{
    return ((unsigned char)c & 0xC0) != 0x80;
}

static int count_chars(const char *s, size_t n)
{
    int k = 0;
    for (size_t i = 0; i < n; i++)
        k += starts_char(s[i]);
    return k;
}

static int cuts_of(const struct tokenizer *t, int32_t id, struct pairs *l)
{
    int n;
    const char *s = tok_piece(t, id, &n);
    for (int cut = 1; cut < n; cut++) {
        if (!starts_char(s[cut]))
            continue;
        int32_t left = tok_find(t, s, (size_t)cut);
        int32_t right = tok_find(t, s + cut, (size_t)(n - cut));
        if (is_normal(t, left) && is_normal(t, right))
            TRY(push(l, (struct pair){ .score = t->score[id],
                                       .order = id,
                                       .left = left,
                                       .right = right,
                                       .n_left = count_chars(s, (size_t)cut),
                                       .n_right = count_chars(s + cut, (size_t)(n - cut)) }));
    }
    return 0;
}

static int from_scores(const struct tokenizer *t, struct pairs *l)
{
    for (int32_t id = 0; id < t->n; id++) {
        const struct tok_piece *p = &t->piece[id];
        if (is_normal(t, id) && tok_find(t, t->pool + p->at, p->len) == id)
            TRY(cuts_of(t, id, l));
    }
    return 0;
}

/* "left right", the form that every version of `tokenizers` reads. */
static int add_text(const struct tokenizer *t, const struct pair *p, struct buf *text, json_t *out)
{
    buf_clear(text);
    TRY(json_token_text(t, p->left, text));
    TRY(buf_addc(text, ' '));
    TRY(json_token_text(t, p->right, text));
    return json_array_append_new(out, json_stringn(text->data, text->len)) < 0 ? ERR_NOMEM : 0;
}

json_t *json_merges(const struct tokenizer *t)
{
    struct pairs l = { NULL, 0, 0 };
    struct buf text;
    buf_init(&text, MAX_TEXT);
    json_t *out = json_array();
    int rc = t->merge != NULL ? from_table(t, &l) : from_scores(t, &l);
    if (rc == 0 && l.n > 0)
        qsort(l.p, l.n, sizeof *l.p, before);
    for (size_t i = 0; rc == 0 && i < l.n; i++)
        rc = add_text(t, &l.p[i], &text, out);
    buf_free(&text);
    mem_free(l.p);
    if (rc < 0) {
        json_decref(out);
        return NULL;
    }
    return out;
}
