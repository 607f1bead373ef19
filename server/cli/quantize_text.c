#include <string.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/quantize.h"
#include "server/cli/texts.h"

static const char separator[] = "<|endoftext|>";

static int fetch_recipe(const char *name, struct err *e)
{
    struct recipe r;
    TRY(recipe_find(&r, name, e));
    int rc = pull_recipe(&r, e);
    recipe_free(&r);
    return rc;
}

/* A recipe that is not here yet is pulled. */
static int open_texts(struct texts *t, const char *list, struct err *e)
{
    int rc = texts_open(t, list, e);
    if (rc != ERR_NOTFOUND || strpbrk(list, "/,") != NULL)
        return rc;
    struct err why;
    rc = fetch_recipe(list, &why);
    if (rc == 0)
        return texts_open(t, list, e);
    return err_set(e, rc, "no text to calibrate with: %s; give one with --calibrate FILE",
                   why.text);
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

/* Sequence i of n begins where its share of the chunks does. */
static void spread(struct sequences *s, const struct tok_ids *ids, int32_t bos)
{
    int64_t chunks = ids->n / s->len;
    for (int i = 0; i < s->n; i++) {
        int32_t *token = s->token + (size_t)i * (size_t)s->len;
        memcpy(token, ids->id + i * chunks / s->n * s->len, (size_t)s->len * sizeof *token);
        if (bos >= 0)
            token[0] = bos;
    }
}

int sequences_open(struct sequences *s, const struct tokenizer *tok, const char *list,
                   int64_t n_tokens, int len, struct err *e)
{
    struct tok_ids ids = { 0 };
    *s = (struct sequences){ .n = (int)(n_tokens / len > 0 ? n_tokens / len : 1), .len = len };
    int rc = encode_all(tok, list, &ids, e);
    if (rc == 0 && ids.n / len < s->n)
        rc = err_set(e, ERR_INVALID,
                     "%s has %d tokens; %d sequences of %d are asked for: give more text or fewer "
                     "--tokens",
                     list, ids.n, s->n, len);
    if (rc == 0)
        s->token = mem_zalloc((size_t)s->n * (size_t)len, sizeof *s->token);
    if (rc == 0 && s->token == NULL)
        rc = err_set(e, ERR_NOMEM, "no memory for %d sequences of %d tokens", s->n, len);
    if (rc == 0)
        spread(s, &ids, tok_adds_bos(tok) ? tok_bos(tok) : -1);
    tok_ids_free(&ids);
    return rc;
}

void sequences_close(struct sequences *s)
{
    mem_free(s->token);
    *s = (struct sequences){ 0 };
}
