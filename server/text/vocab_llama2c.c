/* llama2.c's tokenizer.bin (karpathy/llama2.c, tokenizer.py): int32 longest piece, then for each token float32 score,
 * int32 length and the bytes. Ids 0, 1, 2 are <unk>, <s>, </s>; 3 to 258 are the bytes, as
 * themselves or as "<0x00>" to "<0xFF>". */
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/text/vocab.h"

enum { MAX_FILE = 256 << 20, FIRST_BYTE = 3 };

static int read_pieces(struct vocab *v, const struct buf *b, const char *path, int n, struct err *e)
{
    size_t at = 4;
    for (int i = 0; i < n; i++) {
        int32_t len;
        if (b->len - at < 8)
            return err_set(e, ERR_FORMAT, "%s: ends at token %d of %d", path, i, n);
        memcpy(&v->score[i], b->data + at, 4);
        memcpy(&len, b->data + at + 4, 4);
        at += 8;
        if (len < 0 || (size_t)len > b->len - at)
            return err_set(e, ERR_FORMAT, "%s: token %d has length %d, %zu bytes are left", path, i,
                           (int)len, b->len - at);
        v->text[i] = b->data + at;
        v->len[i] = (size_t)len;
        at += (size_t)len;
        v->kind[i] = TOK_NORMAL;
    }
    return 0;
}

/* Files hold the three controls and the bytes as they like (a byte as itself or by its name): the ids decide. */
static void name_specials(struct vocab *v)
{
    static const char *const name[] = { "<unk>", "<s>", "</s>" };
    static const uint8_t kind[] = { TOK_UNKNOWN, TOK_CONTROL, TOK_CONTROL };
    for (int i = 0; i < 3; i++) {
        v->text[i] = name[i];
        v->len[i] = strlen(name[i]);
        v->kind[i] = kind[i];
    }
    for (int b = 0; b < 256; b++) {
        int len = snprintf(v->byte_name[b], sizeof v->byte_name[b], "<0x%02X>", (unsigned)b);
        v->text[FIRST_BYTE + b] = v->byte_name[b];
        v->len[FIRST_BYTE + b] = (size_t)len;
        v->kind[FIRST_BYTE + b] = TOK_BYTE;
    }
}

int vocab_read_llama2c(struct vocab *v, const char *path, int n, struct err *e)
{
    *v = (struct vocab){ 0 };
    if (n < FIRST_BYTE + 256)
        return err_set(e, ERR_FORMAT, "%s: %d tokens; at least %d are needed for all bytes", path,
                       n, FIRST_BYTE + 256);
    buf_init(&v->file, MAX_FILE);
    int rc = buf_read_file(&v->file, path, e);
    if (rc == 0 && v->file.len < 4)
        rc = err_set(e, ERR_FORMAT, "%s: empty", path);
    if (rc == 0 && (size_t)n > (v->file.len - 4) / 8)
        rc =
            err_set(e, ERR_FORMAT, "%s: %zu bytes are too few for %d tokens", path, v->file.len, n);
    if (rc == 0)
        rc = vocab_alloc(v, n, e);
    if (rc == 0)
        rc = read_pieces(v, &v->file, path, n, e);
    if (rc == 0)
        name_specials(v);
    else
        vocab_free(v);
    return rc;
}

int tok_open_llama2c(struct tokenizer **out, const char *path, int n, struct err *e)
{
    struct vocab v;
    TRY(vocab_read_llama2c(&v, path, n, e));
    int rc = vocab_open(&v, out, e);
    vocab_free(&v);
    return rc;
}
