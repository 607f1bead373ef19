/* Token ids against reference tokenizers, on 10,000 varied lines and llama.cpp's published cases.
 *
 * tests/golden/tokens, all little-endian (tests/tools/golden_tokens.py writes them):
 *   lines.bin   u16 length and bytes, for each line
 *   NAME.ids    two u64 a line: FNV-1a over the int32 ids of the line as text, and with special tokens recognised
 *   NAME.vocab  header {"wvocab1\n", u8 model, u8[3], u32 n, u32 n_merges, i32 bos, eos, unk, eot, char pre[16]}, then for
 *               each token: u8 50 + length, or u8 kind and u16 length; the text; u8 count of merges that make it, for each
 *               the bytes of its left part as u8, or as 255 and u16. Merges are in the order of the tokens they make.
 *   cases.inp   texts, NAME.out their ids, a line each
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the four it needs */
#include <cmocka.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/text/token.h"

#define DIR "tests/golden/tokens/"

static void read_golden(struct buf *b, const char *name, const char *suffix)
{
    char path[128];
    struct err e = { 0 };
    snprintf(path, sizeof path, DIR "%s%s", name, suffix);
    buf_init(b, 16 << 20);
    if (buf_read_file(b, path, &e) < 0)
        fail_msg("%s: %s", path, e.text);
}

/* ---- vocabularies ------------------------------------------------------------------------------------------------ */

struct reader {
    const unsigned char *p, *end;
};

static const unsigned char *take(struct reader *r, size_t n)
{
    assert_true((size_t)(r->end - r->p) >= n);
    r->p += n;
    return r->p - n;
}

static unsigned take_u8(struct reader *r)
{
    return *take(r, 1);
}

static unsigned take_u16(struct reader *r)
{
    const unsigned char *p = take(r, 2);
    return p[0] | (unsigned)p[1] << 8;
}

struct header {
    char magic[8];
    uint8_t model, zero[3];
    uint32_t n, n_merges;
    int32_t bos, eos, unk, eot;
    char pre[16];
};
_Static_assert(sizeof(struct header) == 52, "as in the file");

/* Everything a struct tok_vocab points at. */
struct golden_vocab {
    struct buf file, merges;
    struct header h;
    const char **text, **merge;
    size_t *len, *merge_len;
    uint8_t *kind;
};

static void add_merges(struct golden_vocab *g, struct reader *r, int id, uint32_t *at)
{
    for (unsigned k = take_u8(r); k > 0; k--) {
        size_t left = take_u8(r);
        if (left == 255)
            left = take_u16(r);
        assert_true(left < g->len[id] && *at < g->h.n_merges);
        g->merge[*at] = g->merges.data + g->merges.len;
        g->merge_len[*at] = g->len[id] + 1;
        assert_int_equal(buf_add(&g->merges, g->text[id], left), 0);
        assert_int_equal(buf_addc(&g->merges, ' '), 0);
        assert_int_equal(buf_add(&g->merges, g->text[id] + left, g->len[id] - left), 0);
        (*at)++;
    }
}

static void load(struct golden_vocab *g, const char *name)
{
    read_golden(&g->file, name, ".vocab");
    struct reader r = { (const unsigned char *)g->file.data,
                        (const unsigned char *)g->file.data + g->file.len };
    memcpy(&g->h, take(&r, sizeof g->h), sizeof g->h);
    assert_memory_equal(g->h.magic, "wvocab1\n", 8);
    assert_true(g->h.n < 1 << 20 && g->h.n_merges < 1 << 20);
    g->text = mem_zalloc(g->h.n, sizeof *g->text);
    g->len = mem_zalloc(g->h.n, sizeof *g->len);
    g->kind = mem_zalloc(g->h.n, 1);
    g->merge = mem_zalloc(g->h.n_merges, sizeof *g->merge);
    g->merge_len = mem_zalloc(g->h.n_merges, sizeof *g->merge_len);
    buf_init(&g->merges, 32 << 20);
    assert_int_equal(buf_reserve(&g->merges, 31 << 20), 0); /* so that it does not move */
    uint32_t at = 0;
    for (uint32_t i = 0; i < g->h.n; i++) {
        unsigned first = take_u8(&r);
        g->kind[i] = (uint8_t)(first < 50 ? first : TOK_NORMAL);
        g->len[i] = first < 50 ? take_u16(&r) : first - 50;
        g->text[i] = (const char *)take(&r, g->len[i]);
        add_merges(g, &r, (int)i, &at);
    }
    assert_true(at == g->h.n_merges && r.p == r.end);
}

static void unload(struct golden_vocab *g)
{
    mem_free(g->text);
    mem_free(g->len);
    mem_free(g->kind);
    mem_free(g->merge);
    mem_free(g->merge_len);
    buf_free(&g->merges);
    buf_free(&g->file);
}

static struct tokenizer *open_golden(const char *name)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    if (strcmp(name, "llama2") == 0) {
        if (tok_open_spm(&t, DIR "llama2.model", &e) < 0)
            fail_msg("%s", e.text);
        return t;
    }
    struct golden_vocab g;
    load(&g, name);
    struct tok_vocab v = { .model = TOK_BPE,
                           .n = (int)g.h.n,
                           .text = g.text,
                           .len = g.len,
                           .kind = g.kind,
                           .n_merges = (int)g.h.n_merges,
                           .merge = g.merge,
                           .merge_len = g.merge_len,
                           .pre = g.h.pre,
                           .bos = g.h.bos,
                           .eos = g.h.eos,
                           .unk = g.h.unk,
                           .eot = g.h.eot };
    double start = clock_s();
    if (tok_open(&t, &v, &e) < 0)
        fail_msg("%s: %s", name, e.text);
    print_message("%s: %d tokens and %d merges opened in %.1f ms\n", name, v.n, v.n_merges,
                  (clock_s() - start) * 1e3);
    unload(&g);
    return t;
}

/* ---- 10,000 lines ------------------------------------------------------------------------------------------------ */

static uint64_t hash_ids(const struct tok_ids *ids)
{
    uint64_t h = 0xCBF29CE484222325u;
    for (int i = 0; i < ids->n; i++)
        for (int k = 0; k < 4; k++)
            h = (h ^ ((uint32_t)ids->id[i] >> (8 * k) & 255)) * 0x100000001B3u;
    return h;
}

/* Not so where a byte has no token (SmolLM2) or text is normalised (Qwen2). */
static bool must_come_back(const struct tokenizer *t, const char *name, const char *s, size_t n)
{
    if (strcmp(name, "llama2") == 0)
        return true;
    for (size_t i = 0; strcmp(name, "qwen2") == 0 && i < n; i++)
        if ((unsigned char)s[i] >= 0xCC)
            return false;
    for (size_t i = 0; i < n; i++)
        if (tok_find(t, s + i, 1) < 0)
            return false;
    return true;
}

static void show(const char *what, int line, const char *s, size_t n, const struct tok_ids *ids)
{
    print_message("line %d, %s:", line, what);
    for (size_t i = 0; i < n && i < 160; i++)
        print_message(s[i] >= 0x20 && s[i] < 0x7F ? "%c" : "\\x%02x", (unsigned char)s[i]);
    print_message("\n   ");
    for (int i = 0; i < ids->n && i < 60; i++)
        print_message(" %d", (int)ids->id[i]);
    print_message("\n");
}

static void compare_lines(const struct tokenizer *t, const char *name)
{
    bool spm = strcmp(name, "llama2") == 0;
    struct buf lines;
    struct buf want;
    struct buf back;
    read_golden(&lines, "lines", ".bin");
    read_golden(&want, name, ".ids");
    buf_init(&back, 1 << 20);
    struct reader r = { (const unsigned char *)lines.data,
                        (const unsigned char *)lines.data + lines.len };
    int bad = 0;
    int i = 0;
    double busy = 0;
    for (; r.p < r.end; i++) {
        size_t n = take_u16(&r);
        const char *s = (const char *)take(&r, n);
        uint64_t hash[2];
        assert_true((size_t)(i + 1) * sizeof hash <= want.len);
        memcpy(hash, want.data + (size_t)i * sizeof hash, sizeof hash);
        for (unsigned special = 0; special < (spm ? 1u : 2u); special++) {
            struct tok_ids ids = { 0 };
            double start = clock_s();
            assert_int_equal(tok_encode(t, s, n, special ? TOK_PARSE_SPECIAL : 0, &ids), 0);
            busy += clock_s() - start;
            if (hash_ids(&ids) != hash[special] && bad++ < 20)
                show(special ? "special" : "plain", i, s, n, &ids);
            assert_true(tok_at_least(t, s, n) <= ids.n);
            buf_clear(&back);
            assert_int_equal(tok_decode(t, ids.id, ids.n, true, &back), 0);
            if (must_come_back(t, name, s, n))
                assert_true(back.len == n && (n == 0 || memcmp(back.data, s, n) == 0));
            tok_ids_free(&ids);
        }
    }
    print_message("%s: %d lines, %d differ; %.1f MB/s\n", name, i, bad,
                  (double)lines.len * (spm ? 1 : 2) / 1e6 / busy);
    assert_int_equal(i, 10000);
    assert_int_equal(bad, 0);
    buf_free(&back);
    buf_free(&want);
    buf_free(&lines);
}

static void check_lines(void **state)
{
    struct tokenizer *t = open_golden(*state);
    compare_lines(t, *state);
    tok_close(t);
}

/* The same after a journey through tokenizer.json: llama2's scores become ranks. */
static void check_json(void **state)
{
    struct tokenizer *first = open_golden(*state);
    struct tokenizer *t = NULL;
    struct tok_json f;
    struct err e = { 0 };
    tok_json_init(&f);
    double start = clock_s();
    if (tok_write_json(first, &f, &e) < 0)
        fail_msg("%s", e.text);
    double written = clock_s();
    if (tok_parse_json(&t, &f, &e) < 0)
        fail_msg("%s", e.text);
    print_message("tokenizer.json: %zu bytes written in %.0f ms, read in %.0f ms\n",
                  f.tokenizer.len, (written - start) * 1e3, (clock_s() - written) * 1e3);
    compare_lines(t, *state);
    tok_json_free(&f);
    tok_close(t);
    tok_close(first);
}

/* ---- llama.cpp's cases ------------------------------------------------------------------------------------------- */

static void check_case(const struct tokenizer *t, const char *s, size_t n, const char *want)
{
    struct tok_ids ids = { 0 };
    char got[4096] = "";
    size_t at = 0;
    assert_int_equal(tok_encode(t, s, n, 0, &ids), 0);
    for (int i = 0; i < ids.n; i++)
        at += (size_t)snprintf(got + at, sizeof got - at, " %d", (int)ids.id[i]);
    assert_string_equal(got, want);
    tok_ids_free(&ids);
}

static void check_cases(void **state)
{
    static const char border[] = "\n__ggml_vocab_test__\n";
    const char *name = *state;
    struct tokenizer *t = open_golden(name);
    struct buf in;
    struct buf out;
    read_golden(&in, "cases", ".inp");
    read_golden(&out, name, ".out");
    const char *s = in.data;
    char *want = out.data;
    int n = 0;
    for (; *want != 0; n++) {
        const char *end = strstr(s, border);
        char *eol = strchr(want, '\n');
        assert_true(end != NULL && eol != NULL);
        *eol = 0;
        check_case(t, s, (size_t)(end - s), want);
        want = eol + 1;
        s = end + sizeof border - 1;
    }
    assert_true(n > 40);
    buf_free(&out);
    buf_free(&in);
    tok_close(t);
}

#define GOLDEN(test, name_)                                                                        \
    {                                                                                              \
        .name = #test " " name_, .test_func = check_##test,                                        \
        .initial_state = (void *)(uintptr_t)name_                                                  \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        GOLDEN(lines, "gpt-2"), GOLDEN(lines, "smollm"), GOLDEN(lines, "llama-bpe"),
        GOLDEN(lines, "qwen2"), GOLDEN(lines, "llama2"), GOLDEN(json, "smollm"),
        GOLDEN(json, "llama2"), GOLDEN(cases, "gpt-2"),  GOLDEN(cases, "llama-bpe"),
        GOLDEN(cases, "qwen2"), GOLDEN(cases, "llama2"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
