#include "server/cli/chunks.h"

#include <string.h>

#include "server/cli/texts.h"

enum { CTX = 512, CTX_MIN = 4 }; /* llama-perplexity's */

static int read_text(struct chunks *c, const char *separator, const struct tokenizer *tok,
                     const char *path, struct err *e)
{
    struct buf b;
    buf_init(&b, (size_t)1 << 30);
    int rc = buf_read_file(&b, path, e);
    if (rc == 0 && texts_encode(tok, &b, separator, &c->text) < 0)
        rc = err_set(e, ERR_NOMEM, "no memory for the tokens of %s", path);
    buf_free(&b);
    return rc;
}

int chunks_open(struct chunks *c, const struct config *config, const struct tokenizer *tok,
                int ctx_train, const char *path, struct err *e)
{
    int ctx = ctx_train < CTX ? ctx_train : CTX;
    *c = (struct chunks){ .ctx = config->ctx > 0 ? (int)config->ctx : ctx };
    if (c->ctx < CTX_MIN)
        return err_set(e, ERR_INVALID, "ctx: a chunk has at least %d tokens, not %d", CTX_MIN,
                       c->ctx);
    int rc = read_text(c, config->separator, tok, path, e);
    c->n = c->text.n / c->ctx;
    if (config->chunks > 0 && config->chunks < c->n)
        c->n = (int)config->chunks;
    if (rc == 0 && c->n < 1)
        rc = err_set(e, ERR_INVALID, "%s has %d tokens; one chunk of --ctx %d is needed", path,
                     c->text.n, c->ctx);
    if (rc < 0) {
        chunks_close(c);
        return rc;
    }
    for (int i = 0; tok_adds_bos(tok) && i < c->n; i++)
        c->text.id[(ptrdiff_t)i * c->ctx] = tok_bos(tok);
    return 0;
}

void chunks_close(struct chunks *c)
{
    tok_ids_free(&c->text);
    *c = (struct chunks){ 0 };
}

const int32_t *chunks_at(const struct chunks *c, int i)
{
    return c->text.id + (ptrdiff_t)i * c->ctx;
}
