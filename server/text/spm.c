/* sentencepiece's BPE: text starts as code points, and the neighbouring pair whose concatenation is the piece with the
 * highest score (in a vocabulary with merges: the pair with the best rank) is merged until none is left; of equals the
 * leftmost. What is no piece then falls back to bytes.
 * Pieces are kept with real spaces (token.c), so a space is an ordinary character here, and a U+2581 in the text itself is
 * not mistaken for one: it falls back to bytes and comes back as it was.
 * Source: sentencepiece's bpe_model and the behaviour of its Llama vocabularies. */
#include <string.h>

#include "server/base/mem.h"
#include "server/text/token_internal.h"

struct spm {
    const struct tokenizer *t;
    struct cand_heap heap;
    const char *text;                /* the run of text that is being merged */
    int32_t *at, *len, *prev, *next; /* its symbols; len 0: merged away */
    int32_t *id;                     /* the piece a symbol is; -1: none */
    int n_sym;
    size_t cap; /* symbols there is room for */
};

/* Bytes of the code point at s, 1 for anything that is not one. */
static int char_len(const unsigned char *s, size_t n)
{
    int len = s[0] < 0x80                   ? 1
              : s[0] >= 0xF0 && s[0] < 0xF5 ? 4
              : s[0] >= 0xE0                ? 3
              : s[0] >= 0xC2                ? 2
                                            : 1;
    if (s[0] >= 0xF5 || (size_t)len > n)
        return 1;
    for (int i = 1; i < len; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 1;
    return len;
}

static int reserve(struct spm *m, size_t n)
{
    if (n <= m->cap)
        return 0;
    if (n > INT32_MAX / 2)
        return ERR_LIMIT;
    n = n < 256 ? 256 : n;
    mem_free(m->at);
    m->cap = 0;
    m->at = mem_zalloc(n, 5 * sizeof *m->at);
    if (m->at == NULL)
        return ERR_NOMEM;
    m->len = m->at + n;
    m->prev = m->len + n;
    m->next = m->prev + n;
    m->id = m->next + n;
    m->cap = n;
    return 0;
}

static int cut(struct spm *m, const char *s, size_t n)
{
    TRY(reserve(m, n));
    m->text = s;
    m->n_sym = 0;
    m->heap.n = 0;
    for (size_t i = 0; i < n;) {
        int k = m->n_sym++;
        m->at[k] = (int32_t)i;
        m->len[k] = char_len((const unsigned char *)s + i, n - i);
        m->id[k] = tok_find(m->t, s + i, (size_t)m->len[k]);
        m->prev[k] = k - 1;
        m->next[k] = k + 1;
        i += (size_t)m->len[k];
    }
    if (m->n_sym > 0)
        m->next[m->n_sym - 1] = -1;
    return 0;
}

/* What two neighbours become, -1: nothing; key: by which the best pair is found. */
static int32_t merged(const struct spm *m, int32_t i, int32_t j, float *key)
{
    const struct tokenizer *t = m->t;
    if (t->merge == NULL) {
        int32_t id = tok_find(t, m->text + m->at[i], (size_t)(m->len[i] + m->len[j]));
        *key = id >= 0 ? -t->score[id] : 0;
        return id;
    }
    const struct tok_merge *found =
        m->id[i] >= 0 && m->id[j] >= 0 ? tok_merge_find(t, m->id[i], m->id[j]) : NULL;
    *key = found != NULL ? (float)found->rank : 0;
    return found != NULL ? found->merged : -1;
}

static int push_pair(struct spm *m, int32_t i, int32_t j)
{
    float key;
    int32_t id = i >= 0 && j >= 0 ? merged(m, i, j, &key) : -1;
    if (id < 0)
        return 0;
    return cand_push(&m->heap, (struct cand){ key, i, j, id, (uint32_t)(m->len[i] + m->len[j]) });
}

static int merge_all(struct spm *m)
{
    for (int i = 0; i + 1 < m->n_sym; i++)
        TRY(push_pair(m, i, i + 1));
    struct cand c;
    while (cand_pop(&m->heap, &c)) {
        if (m->len[c.at] == 0 || m->len[c.other] == 0 || m->next[c.at] != c.other ||
            (uint32_t)(m->len[c.at] + m->len[c.other]) != c.len)
            continue; /* stale */
        m->len[c.at] += m->len[c.other];
        m->len[c.other] = 0;
        m->id[c.at] = c.id;
        m->next[c.at] = m->next[c.other];
        if (m->next[c.at] >= 0)
            m->prev[m->next[c.at]] = c.at;
        TRY(push_pair(m, m->prev[c.at], c.at));
        TRY(push_pair(m, c.at, m->next[c.at]));
    }
    return 0;
}

static int emit(const struct spm *m, struct tok_ids *out)
{
    for (int32_t i = m->n_sym > 0 ? 0 : -1; i >= 0; i = m->next[i]) {
        const unsigned char *s = (const unsigned char *)m->text + m->at[i];
        if (m->id[i] >= 0) {
            TRY(tok_push(out, m->id[i]));
            continue;
        }
        for (int k = 0; k < m->len[i]; k++)
            TRY(tok_push(out, m->t->byte_id[s[k]] >= 0 ? m->t->byte_id[s[k]] : m->t->unk));
    }
    return 0;
}

/* Bytes up to the next place that no piece reaches across: before a space that follows something else. */
static size_t run_length(const struct tokenizer *t, const char *s, size_t n)
{
    size_t i = 1;
    while (i < n && !(t->spaces_lead && s[i] == ' ' && s[i - 1] != ' '))
        i++;
    return i;
}

static int encode_runs(struct spm *m, const char *s, size_t n, struct tok_ids *out)
{
    while (n > 0) {
        size_t len = run_length(m->t, s, n);
        TRY(cut(m, s, len));
        TRY(merge_all(m));
        TRY(emit(m, out));
        s += len;
        n -= len;
    }
    return 0;
}

int spm_encode(const struct tokenizer *t, const char *s, size_t n, bool first, struct tok_ids *out)
{
    if (n == 0)
        return 0;
    struct spm m = { .t = t };
    char *prefixed = NULL;
    if (first && t->add_space_prefix && !(t->prefix_if_none && s[0] == ' ')) {
        prefixed = mem_alloc(n + 1);
        if (prefixed == NULL)
            return ERR_NOMEM;
        prefixed[0] = ' ';
        memcpy(prefixed + 1, s, n++);
        s = prefixed;
    }
    int rc = encode_runs(&m, s, n, out);
    mem_free(m.heap.c);
    mem_free(m.at);
    mem_free(prefixed);
    return rc;
}
