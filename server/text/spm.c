/* sentencepiece's BPE: text starts as code points, and the neighbouring pair whose concatenation is the piece with the
 * highest score is merged until none is left; of equal scores the leftmost. What is no piece then falls back to bytes.
 * Pieces are kept with real spaces (token.c), so a space is an ordinary character here, and a U+2581 in the text itself is
 * not mistaken for one: it falls back to bytes and comes back as it was.
 * Source: sentencepiece's bpe_model and the behaviour of its Llama vocabularies. */
#include <string.h>

#include "server/base/mem.h"
#include "server/text/token_internal.h"

struct spm {
    const struct tokenizer *t;
    struct cand_heap heap;
    char *text; /* with the space in front */
    size_t n;
    int32_t *at, *len, *prev, *next; /* symbols; len 0: merged away */
    int n_sym;
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

static int set_text(struct spm *m, const char *s, size_t n, bool prefix)
{
    if (n > INT32_MAX / 2)
        return ERR_LIMIT;
    m->n = n + prefix;
    m->text = mem_alloc(m->n);
    m->at = mem_zalloc(m->n, 4 * sizeof *m->at);
    if (m->text == NULL || m->at == NULL)
        return ERR_NOMEM;
    m->len = m->at + m->n;
    m->prev = m->len + m->n;
    m->next = m->prev + m->n;
    m->text[0] = ' ';
    memcpy(m->text + prefix, s, n);
    return 0;
}

static void cut(struct spm *m)
{
    size_t i = 0;
    while (i < m->n) {
        int k = m->n_sym++;
        m->at[k] = (int32_t)i;
        m->len[k] = char_len((const unsigned char *)m->text + i, m->n - i);
        m->prev[k] = k - 1;
        m->next[k] = k + 1;
        i += (size_t)m->len[k];
    }
    if (m->n_sym > 0)
        m->next[m->n_sym - 1] = -1;
}

static int push_pair(struct spm *m, int32_t i, int32_t j)
{
    if (i < 0 || j < 0)
        return 0;
    size_t len = (size_t)(m->len[i] + m->len[j]);
    int32_t id = tok_find(m->t, m->text + m->at[i], len);
    if (id < 0)
        return 0;
    return cand_push(&m->heap, (struct cand){ -m->t->score[id], i, j, id, (uint32_t)len });
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
        int32_t id = tok_find(m->t, (const char *)s, (size_t)m->len[i]);
        if (id >= 0) {
            TRY(tok_push(out, id));
            continue;
        }
        for (int k = 0; k < m->len[i]; k++)
            TRY(tok_push(out, m->t->byte_id[s[k]] >= 0 ? m->t->byte_id[s[k]] : m->t->unk));
    }
    return 0;
}

int spm_encode(const struct tokenizer *t, const char *s, size_t n, bool first, struct tok_ids *out)
{
    if (n == 0)
        return 0;
    struct spm m = { .t = t };
    int rc = set_text(&m, s, n, first && t->add_space_prefix);
    if (rc == 0) {
        cut(&m);
        rc = merge_all(&m);
    }
    if (rc == 0)
        rc = emit(&m, out);
    mem_free(m.heap.c);
    mem_free(m.at);
    mem_free(m.text);
    return rc;
}
