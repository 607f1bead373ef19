/* Any bytes as tokenizer.json and, after a line of "----", as tokenizer_config.json and generation_config.json: read or
 * refused with a sentence; what is read can be used, written, and read again to the same ids. */
#include <stdint.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/text/token.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] = "a b\xC3\xA9 ab  <s>\xFF 12'll";

static void encode(const struct tokenizer *t, struct tok_ids *ids)
{
    struct buf back;
    buf_init(&back, 1 << 20);
    ASSERT(tok_encode(t, text, sizeof text - 1, TOK_ADD_BOS | TOK_PARSE_SPECIAL, ids) == 0);
    ASSERT(tok_decode(t, ids->id, ids->n, true, &back) == 0);
    buf_free(&back);
}

static void use(const struct tokenizer *t)
{
    struct tok_json f;
    struct tokenizer *again;
    struct tok_ids ids = { 0 };
    struct tok_ids second = { 0 };
    struct err e = { 0 };
    encode(t, &ids);
    tok_json_init(&f);
    if (tok_write_json(t, &f, &e) < 0) {
        ASSERT(e.code == ERR_UNSUPPORTED);
    } else if (tok_parse_json(&again, &f, &e) == 0) {
        encode(again, &second);
        ASSERT(second.n == ids.n && memcmp(second.id, ids.id, (size_t)ids.n * sizeof *ids.id) == 0);
        tok_close(again);
    } else {
        /* Merges of added tokens are not written; without any there is nothing to read. */
        ASSERT(e.code == ERR_FORMAT && strstr(e.text, "model.merges") != NULL);
    }
    tok_ids_free(&second);
    tok_ids_free(&ids);
    tok_json_free(&f);
}

/* The bytes up to the border, which they and the border are taken from; all, where there is none. */
static void take(const uint8_t **data, size_t *size, struct buf *out)
{
    static const char border[] = "\n----\n";
    const uint8_t *end = memmem(*data, *size, border, sizeof border - 1);
    size_t n = end != NULL ? (size_t)(end - *data) : *size;
    size_t taken = end != NULL ? n + sizeof border - 1 : n;
    ASSERT(buf_add(out, *data, n) == 0);
    *data += taken;
    *size -= taken;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct mem_stats before;
    struct mem_stats after;
    struct tok_json f;
    struct tokenizer *t;
    struct err e = { 0 };
    mem_stats(&before);
    tok_json_init(&f);
    take(&data, &size, &f.tokenizer);
    take(&data, &size, &f.tokenizer_config);
    take(&data, &size, &f.generation_config);
    if (tok_parse_json(&t, &f, &e) == 0) {
        use(t);
        tok_close(t);
    } else {
        ASSERT(e.text[0] != 0);
    }
    tok_json_free(&f);
    mem_stats(&after);
    ASSERT(after.blocks == before.blocks);
    return 0;
}
