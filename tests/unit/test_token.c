/* Tokenizers on small vocabularies: round trips, byte fallback, segments, streaming, files, faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "server/base/mem.h"
#include "server/text/token.h"

enum { MAX_VOCAB = 600 };

/* ---- vocabularies ------------------------------------------------------------------------------------------------ */

struct small {
    char name[MAX_VOCAB][8];
    const char *text[MAX_VOCAB];
    size_t len[MAX_VOCAB];
    float score[MAX_VOCAB];
    uint8_t kind[MAX_VOCAB];
    size_t merge_len[16];
    struct tok_vocab v;
};

static int add(struct small *s, const char *text, float score, int kind)
{
    int id = s->v.n++;
    assert_true(id < MAX_VOCAB);
    s->v.text = s->text;
    s->v.len = s->len;
    s->v.score = s->score;
    s->v.kind = s->kind;
    s->text[id] = text;
    s->len[id] = strlen(text);
    s->score[id] = score;
    s->kind[id] = (uint8_t)kind;
    return id;
}

static const char *const merge[] = { "h e", "l l", "he ll", "hell o", "\xC4\xA0 hello" };

/* Ids 0 to 255: the bytes; then hello's merges; <|im_end|>, <|im_start|>. */
static void make_bpe(struct small *s, const char *pre)
{
    memset(s, 0, sizeof *s);
    int next = 256;
    for (int b = 0; b < 256; b++) {
        bool same = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        int c = same ? b : next++;
        if (c < 0x80)
            snprintf(s->name[b], sizeof s->name[b], "%c", c);
        else
            snprintf(s->name[b], sizeof s->name[b], "%c%c", 0xC0 | c >> 6, 0x80 | (c & 63));
        add(s, s->name[b], 0, TOK_NORMAL);
    }
    add(s, "he", 0, TOK_NORMAL);
    add(s, "ll", 0, TOK_NORMAL);
    add(s, "hell", 0, TOK_NORMAL);
    add(s, "hello", 0, TOK_NORMAL);
    add(s, "\xC4\xA0hello", 0, TOK_NORMAL);
    int end = add(s, "<|im_end|>", 0, TOK_CONTROL);
    int start = add(s, "<|im_start|>", 0, TOK_CONTROL);
    for (int i = 0; i < 5; i++)
        s->merge_len[i] = strlen(merge[i]);
    s->v.model = TOK_BPE;
    s->v.n_merges = 5;
    s->v.merge = merge;
    s->v.merge_len = s->merge_len;
    s->v.pre = pre;
    s->v.bos = start;
    s->v.eos = end;
    s->v.unk = s->v.eot = -1;
}

#define SP "\xE2\x96\x81"

/* As llama2.c lays it out: <unk> <s> </s>, the bytes at 3 to 258, then pieces. */
static void make_spm(struct small *s)
{
    static const char *const piece[] = { SP "a", "ab", SP "ab", SP, "a", "b", SP SP, "\xC3\xA9" };
    memset(s, 0, sizeof *s);
    add(s, "<unk>", 0, TOK_UNKNOWN);
    add(s, "<s>", 0, TOK_CONTROL);
    add(s, "</s>", 0, TOK_CONTROL);
    for (int b = 0; b < 256; b++) {
        snprintf(s->name[b], sizeof s->name[b], "<0x%02X>", b);
        add(s, s->name[b], 0, TOK_BYTE);
    }
    for (int i = 0; i < 8; i++)
        add(s, piece[i], (float)-i, TOK_NORMAL);
    s->v.model = TOK_SPM;
    s->v.bos = 1;
    s->v.eos = 2;
    s->v.unk = 0;
    s->v.eot = -1;
    s->v.add_bos = s->v.add_space_prefix = true;
}

static struct tokenizer *open_small(const struct small *s)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    if (tok_open(&t, &s->v, &e) < 0)
        fail_msg("%s", e.text);
    return t;
}

static struct tokenizer *open_bpe(const char *pre)
{
    static struct small s;
    make_bpe(&s, pre);
    return open_small(&s);
}

static struct tokenizer *open_spm(void)
{
    static struct small s;
    make_spm(&s);
    return open_small(&s);
}

static void assert_ids(const struct tok_ids *got, const int32_t *want, int n)
{
    assert_int_equal(got->n, n);
    for (int i = 0; i < n; i++)
        assert_int_equal(got->id[i], want[i]);
}

static void check_encode(const struct tokenizer *t, const char *s, unsigned flags,
                         const int32_t *want, int n)
{
    struct tok_ids ids = { 0 };
    assert_int_equal(tok_encode(t, s, strlen(s), flags, &ids), 0);
    assert_ids(&ids, want, n);
    tok_ids_free(&ids);
}
#define ENCODES(t, s, flags, ...)                                                                  \
    check_encode(t, s, flags, (const int32_t[]){ __VA_ARGS__ },                                    \
                 (int)(sizeof((int32_t[]){ __VA_ARGS__ }) / 4))

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

static void test_bpe(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    ENCODES(t, "hello hello", 0, 259, 260);
    ENCODES(t, "hell", 0, 258);
    ENCODES(t, "helhello", 0, 256, 'l', 259);
    ENCODES(t, "\n", 0, 10);
    assert_int_equal(tok_n(t), 263);
    assert_int_equal(tok_find(t, " hello", 6), 260);
    assert_int_equal(tok_find(t, "hel", 3), -1);
    assert_int_equal(tok_find(t, "<|im_end|>", 10), -1); /* not text */
    assert_string_equal(tok_text(t, 260), " hello");
    assert_null(tok_text(t, 263));
    assert_null(tok_text(t, -1));
    assert_true(tok_is_eog(t, 261) && !tok_is_eog(t, 262) && !tok_is_eog(t, 9999));
    assert_true(tok_is_special(t, 262) && !tok_is_special(t, 260));
    tok_close(t);
}

/* The names only count where asked for, and the longest wins. */
static void test_specials(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    ENCODES(t, "hello<|im_end|>hello", TOK_PARSE_SPECIAL, 259, 261, 259);
    struct tok_ids ids = { 0 };
    assert_int_equal(tok_encode(t, "<|im_end|>", 10, 0, &ids), 0);
    assert_int_equal(ids.n, 10);
    for (int i = 0; i < ids.n; i++)
        assert_false(tok_is_special(t, ids.id[i]));
    tok_ids_free(&ids);
    tok_close(t);
}

static void test_longest_special(void **state)
{
    (void)state;
    static const char *const name[] = { "<ab", "<abcd>", "<a", "<abcde>", "<", "<a" };
    static struct small s;
    make_bpe(&s, "gpt-2");
    for (int i = 0; i < 6; i++)
        add(&s, name[i], 0, i % 2 == 0 ? TOK_CONTROL : TOK_USER_DEFINED);
    struct tokenizer *t = open_small(&s);
    ENCODES(t, "<abcd>", TOK_PARSE_SPECIAL, 264);
    ENCODES(t, "<abcde>", TOK_PARSE_SPECIAL, 266);
    ENCODES(t, "<abcd", TOK_PARSE_SPECIAL, 263, 'c', 'd'); /* only a shorter name is whole */
    ENCODES(t, "<abcdx>", TOK_PARSE_SPECIAL, 263, 'c', 'd', 'x', '>');
    ENCODES(t, "<a", TOK_PARSE_SPECIAL, 265); /* of two such tokens the first one */
    ENCODES(t, "<<b", TOK_PARSE_SPECIAL, 267, 267, 'b');
    ENCODES(t, "=<|im_end|>", TOK_PARSE_SPECIAL, '=', 261);
    tok_close(t);
}

/* Added words of a sentencepiece vocabulary are written like its other pieces. */
static void test_spm_words(void **state)
{
    static struct small s;
    (void)state;
    make_spm(&s);
    int id = add(&s, SP SP SP "x", 0, TOK_USER_DEFINED);
    struct tokenizer *t = open_small(&s);
    assert_string_equal(tok_text(t, id), "   x");
    tok_close(t);
}

static void test_spm(void **state)
{
    (void)state;
    struct tokenizer *t = open_spm();
    ENCODES(t, "ab", 0, 261);
    ENCODES(t, "ab", TOK_ADD_BOS, 1, 261);
    ENCODES(t, "abab", 0, 261, 260);
    ENCODES(t, " ab", 0, 262, 261);      /* two spaces in front: one merges with ab */
    ENCODES(t, "\xC3\xA9", 0, 262, 266); /* a piece */
    ENCODES(t, "\xC3\xA8", 0, 262, 0xC3 + 3, 0xA8 + 3); /* none: bytes */
    ENCODES(t, "a</s>ab", TOK_PARSE_SPECIAL, 259, 2, 261);
    ENCODES(t, SP "b", 0, 262, 0xE2 + 3, 0x96 + 3, 0x81 + 3,
            264); /* written by the user, not a space */
    ENCODES(t, "\xFF\xC3", 0, 262, 0xFF + 3, 0xC3 + 3);
    struct tok_ids none = { 0 };
    assert_int_equal(tok_encode(t, "", 0, 0, &none), 0);
    assert_int_equal(none.n, 0);
    tok_close(t);
}

static uint32_t next_random(uint32_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 17;
    *x ^= *x << 5;
    return *x;
}

static void round_trip(const struct tokenizer *t, const char *s, size_t n)
{
    struct tok_ids ids = { 0 };
    struct buf back;
    buf_init(&back, 1 << 20);
    assert_int_equal(tok_encode(t, s, n, 0, &ids), 0);
    assert_int_equal(tok_decode(t, ids.id, ids.n, false, &back), 0);
    assert_in_range(tok_at_least(t, s, n), n > 0, ids.n);
    assert_int_equal(back.len, n);
    if (n > 0)
        assert_memory_equal(back.data, s, n);
    buf_free(&back);
    tok_ids_free(&ids);
}

static void test_random_bytes(void **state)
{
    (void)state;
    static const char *const pre[] = { "gpt-2", "smollm", "llama-bpe" };
    static const char mix[] = "hello  \n\t\xC3\xA9\xE2\x96\x81\xF0\x9F\x98\x80 1'sab";
    uint32_t x = 1;
    for (int k = 0; k < 4; k++) {
        struct tokenizer *t = k < 3 ? open_bpe(pre[k]) : open_spm();
        for (int i = 0; i < 400; i++) {
            char s[300];
            size_t n = next_random(&x) % sizeof s;
            bool wild = i % 2 == 0;
            for (size_t j = 0; j < n; j++)
                s[j] = wild ? (char)next_random(&x) : mix[next_random(&x) % (sizeof mix - 1)];
            round_trip(t, s, n);
        }
        tok_close(t);
    }
}

static void check_at_least(const char *pre, const char *unit, int times, int64_t want)
{
    struct tokenizer *t = pre != NULL ? open_bpe(pre) : open_spm();
    struct tok_ids ids = { 0 };
    struct buf b;
    buf_init(&b, 1 << 20);
    for (int i = 0; i < times; i++)
        assert_int_equal(buf_adds(&b, unit), 0);
    assert_int_equal(tok_at_least(t, buf_str(&b), b.len), want);
    assert_int_equal(tok_encode(t, buf_str(&b), b.len, TOK_PARSE_SPECIAL, &ids), 0);
    assert_true(ids.n >= want);
    tok_ids_free(&ids);
    buf_free(&b);
    tok_close(t);
}

/* By the longest piece: a special token of 12 bytes, or 5 of <unk>. Normal form C makes three bytes one. */
static void test_at_least(void **state)
{
    (void)state;
    check_at_least("gpt-2", "a", 0, 0);
    check_at_least("gpt-2", "a", 1, 1);
    check_at_least("gpt-2", "a", 12, 1);
    check_at_least("gpt-2", "a", 13, 2);
    check_at_least("gpt-2", "hello", 120, 50);
    check_at_least("gpt-2", "<|im_start|>", 50, 50);
    check_at_least("qwen2", "a", 120, 10);
    check_at_least("qwen2", "\xE2\x84\xAA", 120, 10);
    check_at_least(NULL, "<unk>", 50, 50);
    check_at_least(NULL, "ab", 50, 20);
}

/* A word far beyond the length that a scan handles must come out like many short ones. */
static void test_long_word(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    struct buf b;
    struct tok_ids ids = { 0 };
    buf_init(&b, 1 << 20);
    for (int i = 0; i < 20000; i++)
        assert_int_equal(buf_adds(&b, "hello"), 0);
    assert_int_equal(tok_encode(t, b.data, b.len, 0, &ids), 0);
    assert_int_equal(ids.n, 20000);
    for (int i = 0; i < ids.n; i++)
        assert_int_equal(ids.id[i], 259);
    round_trip(t, b.data, b.len);
    tok_ids_free(&ids);
    buf_free(&b);
    tok_close(t);
}

/* ---- segments ---------------------------------------------------------------------------------------------------- */

static void check_segments(const struct tokenizer *t, const char *const *part, const bool *user,
                           int n, const int32_t *want, int n_want)
{
    struct text_segment seg[8];
    struct tok_ids ids = { 0 };
    struct buf b;
    buf_init(&b, 1000);
    for (int i = 0; i < n; i++) {
        seg[i] = (struct text_segment){ b.len, strlen(part[i]), user[i] };
        assert_int_equal(buf_adds(&b, part[i]), 0);
    }
    assert_int_equal(tok_encode_segments(t, buf_str(&b), seg, n, &ids), 0);
    assert_ids(&ids, want, n_want);
    tok_ids_free(&ids);
    buf_free(&b);
}

static void test_segments(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    const bool user[] = { false, true, false };
    /* One run of text across the borders. */
    check_segments(t, (const char *const[]){ "<|im_start|>he", "l", "lo<|im_end|>" }, user, 3,
                   (const int32_t[]){ 262, 259, 261 }, 3);
    /* The user's names are text, whole or completed by the template. */
    check_segments(t, (const char *const[]){ "<|im_start|>", "<|im_end|>", "<|im_end|>" }, user, 3,
                   (const int32_t[]){ 262, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>', 261 },
                   12);
    check_segments(t, (const char *const[]){ "<|im_", "end", "|>" }, user, 3,
                   (const int32_t[]){ '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>' }, 10);
    check_segments(t, NULL, NULL, 0, NULL, 0);
    tok_close(t);
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

static void test_decode(void **state)
{
    (void)state;
    struct tokenizer *t = open_spm();
    struct buf b;
    buf_init(&b, 100);
    const int32_t id[] = { 1, 261, 261, 2, 261, 9999 };
    assert_int_equal(tok_decode(t, id, 6, false, &b), 0);
    assert_string_equal(buf_str(&b), "ab abab");
    buf_clear(&b);
    assert_int_equal(tok_decode(t, id, 6, true, &b), 0);
    assert_string_equal(buf_str(&b), "<s>ab ab</s>ab");
    buf_free(&b);
    struct buf tiny;
    buf_init(&tiny, 3);
    assert_int_equal(tok_decode(t, id, 6, false, &tiny), ERR_LIMIT);
    buf_free(&tiny);
    tok_close(t);
}

static bool is_utf8(const unsigned char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned c = s[i];
        size_t len = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : 4;
        if ((c >= 0x80 && c < 0xC2) || c > 0xF4 || len > n - i)
            return false;
        for (size_t k = 1; k < len; k++)
            if ((s[i + k] & 0xC0) != 0x80)
                return false;
        i += len;
    }
    return true;
}

/* After every token, what came out is whole code points; valid text comes out as it was. */
static void stream(const struct tokenizer *t, const char *s, size_t n, bool same)
{
    struct tok_ids ids = { 0 };
    struct detok d;
    struct buf out;
    buf_init(&out, 10000);
    detok_init(&d);
    assert_int_equal(tok_encode(t, s, n, 0, &ids), 0);
    for (int i = 0; i < ids.n; i++) {
        assert_int_equal(detok_push(&d, t, ids.id[i], &out), 0);
        assert_true(is_utf8((const unsigned char *)out.data, out.len));
    }
    assert_int_equal(detok_flush(&d, &out), 0);
    assert_true(is_utf8((const unsigned char *)out.data, out.len));
    if (same) {
        assert_int_equal(out.len, n);
        assert_memory_equal(out.data, s, n);
    }
    buf_free(&out);
    tok_ids_free(&ids);
}

static void check_stream(const char *s, const char *want)
{
    struct tokenizer *t = open_bpe("gpt-2");
    struct tok_ids ids = { 0 };
    struct detok d;
    struct buf out;
    buf_init(&out, 1000);
    detok_init(&d);
    assert_int_equal(tok_encode(t, s, strlen(s), 0, &ids), 0);
    for (int i = 0; i < ids.n; i++)
        assert_int_equal(detok_push(&d, t, ids.id[i], &out), 0);
    assert_int_equal(detok_push(&d, t, 261, &out), 0); /* a special token prints nothing */
    assert_int_equal(detok_flush(&d, &out), 0);
    assert_int_equal(detok_flush(&d, &out), 0);
    assert_string_equal(buf_str(&out), want);
    buf_free(&out);
    tok_ids_free(&ids);
    tok_close(t);
}

#define BAD "\xEF\xBF\xBD"

static void test_stream(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    static const char text[] = "h\xC3\xA9llo \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80!";
    stream(t, text, sizeof text - 1, true);
    uint32_t x = 7;
    for (int i = 0; i < 300; i++) {
        char s[64];
        for (size_t k = 0; k < sizeof s; k++)
            s[k] = (char)(next_random(&x) | (i % 3 ? 0x80u : 0));
        stream(t, s, sizeof s, false);
    }
    tok_close(t);
    /* as Python's bytes.decode(errors="replace") */
    check_stream("\xF0\x9F\x98", BAD);
    check_stream("a\xE2\x82z", "a" BAD "z");
    check_stream("\xED\xA0\x80", BAD BAD BAD);
    check_stream("\xC0\xAF\xF5", BAD BAD BAD);
    check_stream("\xF4\x90\x80\x80", BAD BAD BAD BAD);
    check_stream("\xE2\x82\xF0\x9F\x98\x80", BAD "\xF0\x9F\x98\x80");
}

/* ---- bad vocabularies -------------------------------------------------------------------------------------------- */

static void refuse(const struct small *s, int code, const char *says)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    assert_int_equal(tok_open(&t, &s->v, &e), code);
    assert_null(t);
    if (strstr(e.text, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void test_refuses(void **state)
{
    (void)state;
    static struct small s;
    make_bpe(&s, "no-such-thing");
    refuse(&s, ERR_UNSUPPORTED, "smollm");
    make_bpe(&s, "gpt-2");
    s.v.eos = s.v.n;
    refuse(&s, ERR_FORMAT, "eos");
    make_bpe(&s, "gpt-2");
    s.v.n = 0;
    refuse(&s, ERR_FORMAT, "0 tokens");
    make_bpe(&s, "gpt-2");
    s.merge_len[1] = 1;
    refuse(&s, ERR_FORMAT, "merge 1");
    make_spm(&s);
    s.text[10] = "<0xZZ>";
    refuse(&s, ERR_FORMAT, "token 10");
    make_spm(&s);
    s.score[41] = NAN;
    refuse(&s, ERR_FORMAT, "score of token 41");
    make_spm(&s);
    s.kind[40] = TOK_NORMAL;
    s.v.unk = -1;
    refuse(&s, ERR_FORMAT, "0x25");
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static void temp_path(char path[256], const char *name)
{
    const char *dir = getenv("TMPDIR");
    snprintf(path, 256, "%s/wring-%d-%s", dir != NULL ? dir : "/tmp", (int)getpid(), name);
}

/* make_spm's vocabulary as llama2.c writes it: real spaces, no kinds. */
static void write_llama2c(const char *path, const struct small *s)
{
    struct buf b;
    struct err e = { 0 };
    int32_t longest = 10;
    buf_init(&b, 1 << 16);
    assert_int_equal(buf_add(&b, &longest, 4), 0);
    for (int i = 0; i < s->v.n; i++) {
        char text[32];
        size_t n = 0;
        for (const char *p = s->text[i]; *p != 0; p++)
            if (strncmp(p, SP, 3) == 0) {
                text[n++] = ' ';
                p += 2;
            } else {
                text[n++] = *p;
            }
        int32_t len = (int32_t)n;
        assert_int_equal(buf_add(&b, &s->score[i], 4), 0);
        assert_int_equal(buf_add(&b, &len, 4), 0);
        assert_int_equal(buf_add(&b, text, n), 0);
    }
    assert_int_equal(file_write_atomic(path, b.data, b.len, &e), 0);
    buf_free(&b);
}

static void test_files(void **state)
{
    (void)state;
    static struct small s;
    char bin[256];
    char model[256];
    struct err e = { 0 };
    struct buf out;
    make_spm(&s);
    temp_path(bin, "tokenizer.bin");
    temp_path(model, "tokenizer.model");
    write_llama2c(bin, &s);
    buf_init(&out, 1 << 20);
    assert_int_equal(tok_spm_from_llama2c(bin, s.v.n, &out, &e), 0);
    assert_int_equal(file_write_atomic(model, out.data, out.len, &e), 0);
    for (int k = 0; k < 2; k++) {
        struct tokenizer *t = NULL;
        if ((k == 0 ? tok_open_llama2c(&t, bin, s.v.n, &e) : tok_open_spm(&t, model, &e)) < 0)
            fail_msg("%s", e.text);
        assert_int_equal(tok_n(t), s.v.n);
        assert_true(tok_bos(t) == 1 && tok_eos(t) == 2 && tok_adds_bos(t) && tok_is_eog(t, 2));
        ENCODES(t, "abab \xC3\xA9\xC3\xA8", TOK_ADD_BOS, 1, 261, 260, 262, 266, 0xC6, 0xAB);
        round_trip(t, "ab\n", 3);
        tok_close(t);
    }
    /* Cut anywhere, both are refused or (at a border between fields) opened, never worse. */
    for (size_t n = 0; n < out.len; n += 7) {
        struct tokenizer *t = NULL;
        assert_int_equal(file_write_atomic(model, out.data, n, &e), 0);
        if (tok_open_spm(&t, model, &e) == 0)
            tok_close(t);
    }
    struct tokenizer *t = NULL;
    assert_int_equal(tok_open_llama2c(&t, bin, s.v.n + 1, &e), ERR_FORMAT);
    assert_int_equal(tok_open_llama2c(&t, bin, 1 << 30, &e), ERR_FORMAT);
    assert_int_equal(tok_open_llama2c(&t, bin, 3, &e), ERR_FORMAT);
    assert_int_equal(tok_open_spm(&t, bin, &e), ERR_FORMAT);
    unlink(bin);
    unlink(model);
    assert_int_equal(tok_open_spm(&t, model, &e), ERR_NOTFOUND);
    assert_int_equal(tok_open_llama2c(&t, bin, s.v.n, &e), ERR_NOTFOUND);
    buf_free(&out);
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

static int all_of_it(const struct small *s, const char *bin, const char *model)
{
    struct tokenizer *t = NULL;
    struct tok_ids ids = { 0 };
    struct buf out;
    static char text[300];
    buf_init(&out, 1 << 20);
    memset(text, 'h', sizeof text - 1);
    int rc = tok_open(&t, &s->v, NULL);
    if (rc == 0)
        rc = tok_encode(t, text, sizeof text - 1, TOK_ADD_BOS, &ids);
    if (rc == 0)
        rc = tok_encode(t, "ab <|im_end|> e\xCC\x81", 17, TOK_PARSE_SPECIAL, &ids);
    if (rc == 0)
        rc = tok_decode(t, ids.id, ids.n, true, &out);
    tok_close(t);
    t = NULL;
    buf_clear(&out);
    if (rc == 0)
        rc = tok_spm_from_llama2c(bin, 267, &out, NULL);
    if (rc == 0)
        rc = tok_open_spm(&t, model, NULL);
    tok_close(t);
    tok_ids_free(&ids);
    buf_free(&out);
    return rc;
}

static void test_faults(void **state)
{
    (void)state;
    static struct small s;
    struct mem_stats before;
    struct mem_stats after;
    char bin[256];
    char model[256];
    struct buf out;
    temp_path(bin, "f.bin");
    temp_path(model, "f.model");
    make_spm(&s);
    write_llama2c(bin, &s);
    buf_init(&out, 1 << 20);
    assert_int_equal(tok_spm_from_llama2c(bin, s.v.n, &out, NULL), 0);
    assert_int_equal(file_write_atomic(model, out.data, out.len, NULL), 0);
    buf_free(&out);
    mem_stats(&before);
    for (int k = 0; k < 2; k++) {
        int rc = -1;
        if (k == 0)
            make_bpe(&s, "qwen2");
        else
            make_spm(&s);
        for (uint64_t n = 1; rc < 0; n++) {
            assert_true(n < 5000);
            mem_fail_at(n);
            rc = all_of_it(&s, bin, model);
            mem_fail_at(0);
            mem_stats(&after);
            assert_int_equal(after.blocks, before.blocks);
        }
    }
    unlink(bin);
    unlink(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe),          cmocka_unit_test(test_specials),
        cmocka_unit_test(test_spm),          cmocka_unit_test(test_spm_words),
        cmocka_unit_test(test_random_bytes), cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_segments),     cmocka_unit_test(test_decode),
        cmocka_unit_test(test_stream),       cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_files),        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_at_least),     cmocka_unit_test(test_longest_special),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
