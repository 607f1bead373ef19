#include "server/text/vocab.h"

#include "server/base/mem.h"

int vocab_alloc(struct vocab *v, int n, struct err *e)
{
    v->n = n;
    v->text = mem_zalloc((size_t)n, sizeof *v->text);
    v->len = mem_zalloc((size_t)n, sizeof *v->len);
    v->score = mem_zalloc((size_t)n, sizeof *v->score);
    v->kind = mem_zalloc((size_t)n, 1);
    if (v->text == NULL || v->len == NULL || v->score == NULL || v->kind == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a vocabulary of %d tokens", n);
    return 0;
}

void vocab_free(struct vocab *v)
{
    mem_free(v->kind);
    mem_free(v->score);
    mem_free(v->len);
    mem_free(v->text);
    buf_free(&v->file);
    *v = (struct vocab){ 0 };
}

int vocab_open(const struct vocab *v, struct tokenizer **out, struct err *e)
{
    struct tok_vocab t = { .model = TOK_SPM,
                           .n = v->n,
                           .text = v->text,
                           .len = v->len,
                           .score = v->score,
                           .kind = v->kind,
                           .bos = 1,
                           .eos = 2,
                           .unk = 0,
                           .eot = -1,
                           .add_bos = true,
                           .add_space_prefix = true };
    if (v->n < 3)
        return err_set(e, ERR_FORMAT,
                       "a vocabulary of %d tokens; at least <unk>, <s> and </s> are needed", v->n);
    return tok_open(out, &t, e);
}
