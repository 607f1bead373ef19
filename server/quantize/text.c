#include <string.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/quantize/align.h"
#include "server/quantize/quantize.h"

static const char separator[] = "<|endoftext|>";

static int fetch_recipe(const char *name, struct err *e)
{
    struct recipe r;
    TRY(recipe_find(&r, name, e));
    int rc = pull_recipe(&r, e);
    recipe_free(&r);
    return rc;
}

int quantize_fetch_texts(const char *list, struct err *e)
{
    int rc = texts_check(list, e);
    if (rc != ERR_NOTFOUND || strpbrk(list, "/,") != NULL || access(list, F_OK) == 0)
        return rc;
    struct err why;
    rc = fetch_recipe(list, &why);
    return rc < 0 ? err_set(e, rc, "no text of this name: %s; a file will do", why.text) : 0;
}

static int open_texts(struct texts *t, const char *list, struct err *e)
{
    TRY(quantize_fetch_texts(list, e));
    return texts_open(t, list, e);
}

static int encode_all(const struct tokenizer *tok, const char *list, struct tok_ids *out,
                      struct err *e)
{
    struct texts t;
    int rc = 0;
    TRY(open_texts(&t, list, e));
    for (int i = 0; i < t.n && rc == 0; i++)
        rc = texts_encode(tok, &t.text[i], separator, out);
    texts_close(&t);
    return rc < 0 ? err_set(e, rc, "no memory for the tokens of %s", list) : 0;
}

/* Room for n sequences of list's tokens. */
static int make_room(struct sequences *s, const char *list, const struct tok_ids *ids,
                     struct err *e)
{
    if (ids->n / s->len < s->n)
        return err_set(e, ERR_INVALID,
                       "%s has %d tokens; %d sequences of %d are asked for: give more text, fewer "
                       "--tokens or a shorter --context",
                       list, ids->n, s->n, s->len);
    s->token = mem_zalloc((size_t)s->n * (size_t)s->len, sizeof *s->token);
    s->chunk = mem_zalloc((size_t)s->n, sizeof *s->chunk);
    if (s->token != NULL && s->chunk != NULL)
        return 0;
    return err_set(e, ERR_NOMEM, "no memory for %d sequences of %d tokens", s->n, s->len);
}

/* The tokens of the chunks that s names. */
static void take(struct sequences *s, const struct tok_ids *ids, const struct tokenizer *tok)
{
    for (int i = 0; i < s->n; i++) {
        int32_t *token = s->token + (size_t)i * (size_t)s->len;
        memcpy(token, ids->id + (size_t)s->chunk[i] * (size_t)s->len,
               (size_t)s->len * sizeof *token);
        if (tok_adds_bos(tok))
            token[0] = tok_bos(tok);
    }
}

int sequences_open(struct sequences *s, const struct tokenizer *tok, const char *list,
                   int64_t n_tokens, int len, struct err *e)
{
    return sequences_aligned(s, tok, list, "", n_tokens, len, NULL, e);
}

/* Sequence i of n begins where its share of the chunks does. */
static void spread(struct sequences *s, int64_t chunks)
{
    for (int i = 0; i < s->n; i++)
        s->chunk[i] = (int)(i * chunks / s->n);
}

int sequences_aligned(struct sequences *s, const struct tokenizer *tok, const char *list,
                      const char *target, int64_t n_tokens, int len, struct par *par, struct err *e)
{
    struct tok_ids ids = { 0 };
    struct texts t = { 0 };
    *s = (struct sequences){ .n = (int)(n_tokens / len > 0 ? n_tokens / len : 1), .len = len };
    int rc = encode_all(tok, list, &ids, e);
    if (rc == 0)
        rc = make_room(s, list, &ids, e);
    if (rc == 0 && target[0] != 0) {
        rc = open_texts(&t, target, e);
        if (rc == 0)
            rc = align_choose(&ids, tok, &t, len, s->chunk, s->n, par, e);
        texts_close(&t);
    } else if (rc == 0)
        spread(s, ids.n / len);
    if (rc == 0)
        take(s, &ids, tok);
    else
        sequences_close(s);
    tok_ids_free(&ids);
    return rc;
}

/* Whether chunk is one of s, whose chunks rise; *at: the first that is not below it. */
static bool has_chunk(const struct sequences *s, int chunk, int *at)
{
    while (*at < s->n && s->chunk[*at] < chunk)
        ++*at;
    return *at < s->n && s->chunk[*at] == chunk;
}

/* Every so many of the chunks that `of` left: s->n of `left`. */
static void spread_rest(struct sequences *s, const struct sequences *of, int chunks, int64_t left)
{
    int at = 0, n = 0;
    int64_t seen = 0;
    for (int c = 0; c < chunks && n < s->n; c++)
        if (!has_chunk(of, c, &at) && seen++ == n * left / s->n)
            s->chunk[n++] = c;
}

int sequences_rest(struct sequences *s, const struct sequences *of, const struct tokenizer *tok,
                   const char *list, int n, struct err *e)
{
    struct tok_ids ids = { 0 };
    *s = (struct sequences){ .len = of->len };
    int rc = encode_all(tok, list, &ids, e);
    int chunks = ids.n / of->len, left = chunks - of->n;
    if (rc == 0 && left <= 0)
        rc = err_set(e, ERR_INVALID,
                     "%s has %d tokens, and all are taken: give more text or fewer --tokens", list,
                     ids.n);
    s->n = left < n ? left : n;
    if (rc == 0)
        rc = make_room(s, list, &ids, e);
    if (rc == 0) {
        spread_rest(s, of, chunks, left);
        take(s, &ids, tok);
    } else
        sequences_close(s);
    tok_ids_free(&ids);
    return rc;
}

void sequences_close(struct sequences *s)
{
    mem_free(s->chunk);
    mem_free(s->token);
    *s = (struct sequences){ 0 };
}
