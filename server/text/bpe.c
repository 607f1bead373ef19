/* Byte-level BPE (arXiv 1508.07909, on bytes as in GPT-2): every word starts as single bytes, and the pair with the best
 * rank is merged until none is left; of equal pairs the leftmost. */
#include <string.h>

#include "server/base/mem.h"
#include "server/text/token_internal.h"

/* ---- candidates -------------------------------------------------------------------------------------------------- */

static bool better(const struct cand *a, const struct cand *b)
{
    return a->key < b->key || (a->key == b->key && a->at < b->at);
}

int cand_push(struct cand_heap *h, struct cand c)
{
    if (h->n == h->cap) {
        int cap = h->cap ? 2 * h->cap : 256;
        struct cand *p = mem_realloc(h->c, (size_t)cap * sizeof *p);
        if (p == NULL)
            return ERR_NOMEM;
        h->c = p;
        h->cap = cap;
    }
    int i = h->n++;
    while (i > 0 && better(&c, &h->c[(i - 1) / 2])) {
        h->c[i] = h->c[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->c[i] = c;
    return 0;
}

bool cand_pop(struct cand_heap *h, struct cand *out)
{
    if (h->n == 0)
        return false;
    *out = h->c[0];
    struct cand last = h->c[--h->n];
    int i = 0;
    for (;;) {
        int kid = 2 * i + 1;
        if (kid >= h->n)
            break;
        if (kid + 1 < h->n && better(&h->c[kid + 1], &h->c[kid]))
            kid++;
        if (!better(&h->c[kid], &last))
            break;
        h->c[i] = h->c[kid];
        i = kid;
    }
    h->c[i] = last;
    return true;
}

/* ---- words ------------------------------------------------------------------------------------------------------- */

enum { SHORT = 48 }; /* up to here a scan beats the heap */

struct bpe {
    const struct tokenizer *t;
    struct tok_ids *out;
    struct cand_heap heap;
    /* symbols of a long word */
    int32_t *id, *prev, *next;
    size_t cap;
};

/* Bytes that the vocabulary has no token for are left out before merging, as Hugging Face's tokenizers do. */
static int start_ids(const struct tokenizer *t, const unsigned char *s, size_t n, int32_t *id)
{
    int k = 0;
    for (size_t i = 0; i < n; i++)
        if (t->byte_id[s[i]] >= 0)
            id[k++] = t->byte_id[s[i]];
    return k;
}

static int short_word(const struct bpe *b, const unsigned char *s, int n)
{
    int32_t id[SHORT];
    int32_t rank[SHORT]; /* of the pair that starts here; INT32_MAX: none */
    int32_t merged[SHORT];
    n = start_ids(b->t, s, (size_t)n, id);
    if (n == 0)
        return 0;
    for (int i = 0; i < n; i++) {
        const struct tok_merge *m = i + 1 < n ? tok_merge_find(b->t, id[i], id[i + 1]) : NULL;
        rank[i] = m != NULL ? m->rank : INT32_MAX;
        merged[i] = m != NULL ? m->merged : -1;
    }
    for (;;) {
        int best = 0;
        for (int i = 1; i < n; i++)
            best = rank[i] < rank[best] ? i : best;
        if (rank[best] == INT32_MAX)
            break;
        id[best] = merged[best];
        n--;
        for (int i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i] = rank[i + 1];
            merged[i] = merged[i + 1];
        }
        for (int i = best > 0 ? best - 1 : 0; i <= best; i++) {
            const struct tok_merge *m = i + 1 < n ? tok_merge_find(b->t, id[i], id[i + 1]) : NULL;
            rank[i] = m != NULL ? m->rank : INT32_MAX;
            merged[i] = m != NULL ? m->merged : -1;
        }
    }
    for (int i = 0; i < n; i++)
        TRY(tok_push(b->out, id[i]));
    return 0;
}

static int reserve(struct bpe *b, size_t n)
{
    if (n <= b->cap)
        return 0;
    mem_free(b->id);
    b->cap = 0;
    b->id = mem_zalloc(n, 3 * sizeof *b->id);
    if (b->id == NULL)
        return ERR_NOMEM;
    b->prev = b->id + n;
    b->next = b->prev + n;
    b->cap = n;
    return 0;
}

static int push_pair(struct bpe *b, int32_t i)
{
    int32_t j = i >= 0 ? b->next[i] : -1;
    if (j < 0)
        return 0;
    const struct tok_merge *m = tok_merge_find(b->t, b->id[i], b->id[j]);
    if (m == NULL)
        return 0;
    return cand_push(&b->heap, (struct cand){ (float)m->rank, i, j, m->merged, 0 });
}

static int long_word(struct bpe *b, const unsigned char *s, size_t n_bytes)
{
    if (n_bytes > INT32_MAX / 2)
        return ERR_LIMIT;
    TRY(reserve(b, n_bytes));
    int n = start_ids(b->t, s, n_bytes, b->id);
    if (n == 0)
        return 0;
    for (int i = 0; i < n; i++) {
        b->prev[i] = i - 1;
        b->next[i] = i + 1 < n ? i + 1 : -1;
    }
    b->heap.n = 0;
    for (int i = 0; i + 1 < n; i++)
        TRY(push_pair(b, i));
    struct cand c;
    while (cand_pop(&b->heap, &c)) {
        const struct tok_merge *m = b->id[c.at] >= 0 && b->next[c.at] == c.other
                                        ? tok_merge_find(b->t, b->id[c.at], b->id[c.other])
                                        : NULL;
        if (m == NULL || m->merged != c.id || (float)m->rank != c.key)
            continue; /* stale */
        b->id[c.at] = c.id;
        b->id[c.other] = -1;
        b->next[c.at] = b->next[c.other];
        if (b->next[c.at] >= 0)
            b->prev[b->next[c.at]] = c.at;
        TRY(push_pair(b, b->prev[c.at]));
        TRY(push_pair(b, c.at));
    }
    for (int32_t i = 0; i >= 0; i = b->next[i])
        TRY(tok_push(b->out, b->id[i]));
    return 0;
}

static int encode_word(void *arg, const char *s, size_t n)
{
    struct bpe *b = arg;
    if (b->t->whole_words) {
        int32_t id = tok_find(b->t, s, n);
        if (id >= 0 && b->t->kind[id] == TOK_NORMAL)
            return tok_push(b->out, id);
    }
    if (n <= SHORT)
        return short_word(b, (const unsigned char *)s, (int)n);
    return long_word(b, (const unsigned char *)s, n);
}

int bpe_encode(const struct tokenizer *t, const char *s, size_t n, struct tok_ids *out)
{
    struct bpe b = { .t = t, .out = out };
    struct buf normal;
    int rc = 0;
    buf_init(&normal, 3 * n + 1); /* UTF-8 in normal form C is at most three times as long */
    if (t->nfc && nfc_may_change(s, n)) {
        rc = nfc_add(s, n, &normal);
        s = buf_str(&normal);
        n = normal.len;
    }
    if (rc == 0)
        rc = pretoken_run(t->pre, s, n, encode_word, &b);
    buf_free(&normal);
    mem_free(b.heap.c);
    mem_free(b.id);
    return rc;
}
