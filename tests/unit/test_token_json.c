/* tokenizer.json: against the package that writes it, written and read again, its ends, broken files, faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/text/token.h"

#define DIR "tests/golden/token_json/"
#define SP  "\xE2\x96\x81"

/* ---- small files ------------------------------------------------------------------------------------------------- */

#define NORMALIZER                                                                                 \
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" SP              \
    "\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SP "\"}]}"

static const char spm_json[] =
    "{\"version\":\"1.0\",\"added_tokens\":["
    "{\"id\":1,\"content\":\"<s>\",\"special\":true},{\"id\":2,\"content\":\"</"
    "s>\",\"special\":true}],"
    "\"normalizer\":" NORMALIZER ","
    "\"pre_tokenizer\":null,"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
    "{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]"
    ","
    "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\",\"byte_fallback\":true,"
    "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2,\"" SP "\":3,\"a\":4,\"b\":5,\"ab\":6,\"" SP
    "ab\":7,\"ba\":8},\"merges\":[\"b a\",\"a b\",\"" SP " ab\"]}}";

static const char bpe_json[] =
    "{\"added_tokens\":[{\"id\":5,\"content\":\"<|end|>\",\"special\":true}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
    "{\"type\":\"Digits\",\"individual_digits\":true},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}]},\"post_processor\":"
    "null,"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\xC4\xA0\":2,\"ab\":3,\"\xC4\xA0"
    "ab\":4,\"1\":6,\"11\":7},\"merges\":[[\"a\",\"b\"],[\"\xC4\xA0\",\"ab\"],[\"1\",\"1\"]]}}";

/* text with its first from as to; for mem_free. */
static char *edit(const char *text, const char *from, const char *to)
{
    struct buf b;
    const char *at = strstr(text, from);
    buf_init(&b, 1 << 20);
    if (at == NULL)
        fail_msg("\"%s\" is not in the text", from);
    assert_int_equal(buf_add(&b, text, (size_t)(at - text)), 0);
    assert_int_equal(buf_adds(&b, to), 0);
    assert_int_equal(buf_adds(&b, at + strlen(from)), 0);
    return buf_detach(&b);
}

static int parse(struct tokenizer **t, const char *tokenizer, const char *tokenizer_config,
                 const char *generation_config, const char *config, struct err *e)
{
    struct tok_json f;
    tok_json_init(&f);
    assert_int_equal(buf_adds(&f.tokenizer, tokenizer), 0);
    assert_int_equal(buf_adds(&f.tokenizer_config, tokenizer_config), 0);
    assert_int_equal(buf_adds(&f.generation_config, generation_config), 0);
    assert_int_equal(buf_adds(&f.config, config), 0);
    int rc = tok_parse_json(t, &f, e);
    tok_json_free(&f);
    return rc;
}

static struct tokenizer *open_text(const char *text)
{
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    if (parse(&t, text, "", "", "", &e) < 0)
        fail_msg("%s", e.text);
    return t;
}

static struct tokenizer *open_edited(const char *text, const char *from, const char *to)
{
    char *edited = edit(text, from, to);
    struct tokenizer *t = open_text(edited);
    mem_free(edited);
    return t;
}

static void check_encode(const struct tokenizer *t, const char *s, unsigned flags,
                         const int32_t *want, int n)
{
    struct tok_ids ids = { 0 };
    assert_int_equal(tok_encode(t, s, strlen(s), flags, &ids), 0);
    assert_int_equal(ids.n, n);
    for (int i = 0; i < n; i++)
        assert_int_equal(ids.id[i], want[i]);
    tok_ids_free(&ids);
}
#define ENCODES(t, s, flags, ...)                                                                  \
    check_encode(t, s, flags, (const int32_t[]){ __VA_ARGS__ },                                    \
                 (int)(sizeof((int32_t[]){ __VA_ARGS__ }) / 4))

/* t written and read again. */
static struct tokenizer *rewrite(const struct tokenizer *t)
{
    struct tokenizer *again = NULL;
    struct tok_json f;
    struct err e = { 0 };
    tok_json_init(&f);
    if (tok_write_json(t, &f, &e) < 0 || tok_parse_json(&again, &f, &e) < 0)
        fail_msg("%s", e.text);
    tok_json_free(&f);
    return again;
}

/* ---- against the package ----------------------------------------------------------------------------------------- */

static void read_golden(struct buf *b, const char *path)
{
    struct err e = { 0 };
    buf_init(b, 16 << 20);
    if (buf_read_file(b, path, &e) < 0)
        fail_msg("%s", e.text);
}

static uint64_t hash_ids(const struct tok_ids *ids)
{
    uint64_t h = 0xCBF29CE484222325u;
    for (int i = 0; i < ids->n; i++)
        for (int k = 0; k < 4; k++)
            h = (h ^ ((uint32_t)ids->id[i] >> (8 * k) & 255)) * 0x100000001B3u;
    return h;
}

static void check_lines(const struct tokenizer *t, const char *name)
{
    struct buf lines;
    struct buf want;
    char path[128];
    snprintf(path, sizeof path, DIR "%s.ids", name);
    read_golden(&lines, "tests/golden/tokens/lines.bin");
    read_golden(&want, path);
    size_t at = 0;
    size_t n_lines = 0;
    for (; at + 2 <= lines.len; n_lines++) {
        size_t n = (unsigned char)lines.data[at] | (size_t)(unsigned char)lines.data[at + 1] << 8;
        uint64_t hash;
        struct tok_ids ids = { 0 };
        assert_true((n_lines + 1) * sizeof hash <= want.len && at + 2 + n <= lines.len);
        memcpy(&hash, want.data + n_lines * sizeof hash, sizeof hash);
        assert_int_equal(
            tok_encode(t, lines.data + at + 2, n, TOK_ADD_BOS | TOK_PARSE_SPECIAL, &ids), 0);
        if (hash != 0 && hash_ids(&ids) != hash)
            fail_msg("%s: the ids of line %zu differ", name, n_lines);
        tok_ids_free(&ids);
        at += 2 + n;
    }
    assert_int_equal(n_lines, 10000);
    buf_free(&want);
    buf_free(&lines);
}

static void matches_the_package(void **state)
{
    const char *name = *state;
    char folder[128];
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    snprintf(folder, sizeof folder, DIR "%s", name);
    if (tok_open_json(&t, folder, &e) < 0)
        fail_msg("%s", e.text);
    assert_true(tok_adds_bos(t));
    check_lines(t, name);
    struct tokenizer *again = rewrite(t);
    assert_int_equal(tok_n(again), tok_n(t));
    check_lines(again, name);
    tok_close(again);
    tok_close(t);
}

/* ---- what is read ------------------------------------------------------------------------------------------------ */

static void reads_merges_by_rank(void **state)
{
    (void)state;
    struct tokenizer *t = open_text(spm_json);
    ENCODES(t, "ab", TOK_ADD_BOS, 1, 7);
    ENCODES(t, "aba", 0, 3, 4, 8); /* b a comes before a b */
    ENCODES(t, "abb</s>ab", TOK_PARSE_SPECIAL, 7, 5, 2, 7);
    ENCODES(t, "c", 0, 3, 0); /* no byte tokens: unknown */
    assert_true(tok_is_special(t, 0) && tok_is_special(t, 1) && !tok_is_special(t, 3));
    tok_close(t);
    /* A piece that no merge makes stays apart, though two pieces make it. */
    t = open_edited(spm_json, "\"b a\",", "");
    ENCODES(t, "ba", 0, 3, 5, 4);
    tok_close(t);
}

static void reads_byte_level(void **state)
{
    (void)state;
    struct tokenizer *t = open_text(bpe_json);
    ENCODES(t, "ab ab", TOK_ADD_BOS, 3, 4);
    ENCODES(t, "11", 0, 6, 6); /* digits stay apart */
    ENCODES(t, "ab<|end|>", TOK_PARSE_SPECIAL, 3, 5);
    assert_false(tok_adds_bos(t));
    assert_true(tok_is_eog(t, 5));
    tok_close(t);
    t = open_edited(bpe_json, "{\"type\":\"Digits\",\"individual_digits\":true},", "");
    ENCODES(t, "11", 0, 7);
    tok_close(t);
    t = open_edited(bpe_json, "\"special\":true", "\"special\":false"); /* text of its own */
    ENCODES(t, "ab<|end|>", TOK_PARSE_SPECIAL, 3, 5);
    assert_true(!tok_is_special(t, 5) && !tok_is_eog(t, 5));
    tok_close(t);
    /* Of a word that is a token, whatever its merges would give. */
    t = open_edited(bpe_json, "\"type\":\"BPE\"", "\"type\":\"BPE\",\"ignore_merges\":true");
    struct tokenizer *u = open_edited(bpe_json, ",[\"\xC4\xA0\",\"ab\"]", "");
    ENCODES(t, " ab", 0, 4);
    ENCODES(u, " ab", 0, 2, 3);
    tok_close(u);
    tok_close(t);
}

static void reads_normal_form(void **state)
{
    (void)state;
    static const char decomposed[] = "e\xCC\x81"; /* e, U+0301 */
    char *text = edit(bpe_json, "\"1\":6,", "\"1\":6,\"e\":8,\"\xC3\x83\":9,\"\xC2\xA9\":10,");
    struct tokenizer *t =
        open_edited(text, "\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}");
    struct tokenizer *u = open_text(text);
    struct tokenizer *again = rewrite(t);
    ENCODES(t, decomposed, 0, 9, 10);
    ENCODES(again, decomposed, 0, 9, 10);
    ENCODES(u, decomposed, 0, 8); /* the accent's bytes have no tokens */
    tok_close(again);
    tok_close(u);
    tok_close(t);
    mem_free(text);
}

static struct tokenizer *open_metaspace(const char *scheme)
{
    char step[256];
    snprintf(step, sizeof step,
             "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"" SP
             "\",\"prepend_scheme\":\"%s\",\"split\":false}",
             scheme);
    char *text = edit(spm_json, NORMALIZER, "null");
    struct tokenizer *t = open_edited(text, "\"pre_tokenizer\":null", step);
    struct tokenizer *again = rewrite(t);
    tok_close(t);
    mem_free(text);
    return again;
}

static void check_back(const struct tokenizer *t, const int32_t *id, int n, const char *want)
{
    struct buf b;
    buf_init(&b, 100);
    assert_int_equal(tok_decode(t, id, n, false, &b), 0);
    assert_string_equal(buf_str(&b), want);
    buf_free(&b);
}

/* In front of every run of text, of the first one, of none; and Metaspace adds no second space. */
static void reads_spaces(void **state)
{
    (void)state;
    static const int32_t two[] = { 1, 7, 2, 7 }; /* <s> " ab" </s> " ab" */
    struct tokenizer *t = open_text(spm_json);
    ENCODES(t, " ab</s>ab", TOK_PARSE_SPECIAL, 3, 7, 2, 7);
    check_back(t, two, 4, "abab");
    tok_close(t);
    t = open_metaspace("always");
    ENCODES(t, " ab</s>ab", TOK_PARSE_SPECIAL, 7, 2, 7);
    tok_close(t);
    t = open_metaspace("first");
    ENCODES(t, "ab</s>ab", TOK_PARSE_SPECIAL, 7, 2, 6);
    ENCODES(t, "</s>ab", TOK_PARSE_SPECIAL | TOK_ADD_BOS, 1, 2, 6);
    check_back(t, two, 4, "ab ab");
    tok_close(t);
    t = open_metaspace("never");
    ENCODES(t, "ab ab", 0, 6, 7);
    check_back(t, two, 4, " ab ab");
    tok_close(t);
}

static void reads_ends(void **state)
{
    (void)state;
    struct tokenizer *t = NULL;
    struct err e;
    assert_int_equal(parse(&t, spm_json, "{\"eos_token\":{\"content\":\"</s>\"}}",
                           "{\"eos_token_id\":[6,7]}", "{\"eos_token_id\":8}", &e),
                     0);
    assert_true(tok_bos(t) == 1 && tok_eos(t) == 2 && tok_adds_bos(t));
    assert_true(tok_is_eog(t, 2) && tok_is_eog(t, 6) && tok_is_eog(t, 7) && !tok_is_eog(t, 8));
    struct tokenizer *again = rewrite(t);
    assert_true(tok_bos(again) == 1 && tok_eos(again) == 2 && tok_adds_bos(again));
    assert_true(tok_is_eog(again, 6) && tok_is_eog(again, 7) && !tok_is_eog(again, 8));
    tok_close(again);
    tok_close(t);
    assert_int_equal(parse(&t, spm_json, "{\"add_bos_token\":false,\"add_eos_token\":true}", "",
                           "{\"eos_token_id\":8}", &e),
                     0);
    assert_true(tok_eos(t) == 8 && tok_is_eog(t, 8) && !tok_adds_bos(t));
    ENCODES(t, "ab", TOK_ADD_BOS, 7, 8);
    tok_close(t);
    assert_int_equal(parse(&t, bpe_json, "{\"bos_token\":null}", "", "{\"bos_token_id\":5}", &e),
                     0);
    assert_int_equal(tok_bos(t), -1);
    tok_close(t);
}

/* Numbers of tokenizer_config.json that no 64 bits hold; of the other files they are refused. */
static void reads_large_numbers(void **state)
{
    (void)state;
    static const char large[] = "{\"bos_token\":\"a\",\"n\":1000000000000000019884624838656}";
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    if (parse(&t, spm_json,
              "{\"bos_token\":\"</s>\",\"add_bos_token\":false,"
              "\"model_max_length\":1000000000000000019884624838656}",
              "", "", &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(tok_bos(t), 2);
    tok_close(t);
    assert_int_equal(parse(&t, spm_json, "", large, "", &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "generation_config.json:1: not JSON: too big integer"));
    assert_int_equal(parse(&t, spm_json, "", "", large, &e), ERR_FORMAT);
}

/* ---- what is refused --------------------------------------------------------------------------------------------- */

struct broken {
    const char *text, *from, *to;
    int code;
    const char *says;
};

static const struct broken broken[] = {
    { spm_json, "{\"version\"", "\"version\"", ERR_FORMAT, "not JSON" },
    { spm_json, "\"model\"", "\"modal\"", ERR_FORMAT, "\"model\" is missing" },
    { spm_json, "\"BPE\"", "\"WordPiece\"", ERR_UNSUPPORTED, "WordPiece" },
    { spm_json, "\"BPE\"", "\"Unigram\"", ERR_UNSUPPORTED, "Unigram" },
    { spm_json, "\"dropout\":null", "\"dropout\":0.1", ERR_UNSUPPORTED, "dropout" },
    { spm_json, "\"dropout\":null", "\"end_of_word_suffix\":\"w\"", ERR_UNSUPPORTED, "suffix" },
    { spm_json, "\"byte_fallback\":true", "\"byte_fallback\":false", ERR_UNSUPPORTED,
      "byte_fallback" },
    { spm_json, "\"vocab\":", "\"vocabulary\":", ERR_FORMAT, "model.vocab" },
    { spm_json, "\"a\":4", "\"a\":-4", ERR_FORMAT, "\"a\" has no id" },
    { spm_json, "\"a\":4", "\"a\":\"4\"", ERR_FORMAT, "\"a\" has no id" },
    { spm_json, "\"a\":4", "\"a\":4194304", ERR_FORMAT, "\"a\" has no id" },
    { spm_json, "\"a\":4", "\"a\":4194303", ERR_FORMAT, "ids up to 4194303" },
    { spm_json, "\"a\":4", "\"a\":5", ERR_FORMAT, "token 5 is both" },
    { spm_json, "\"a\":4", "\"b\":4", ERR_FORMAT, "not JSON: duplicate" },
    { spm_json, "\"merges\":", "\"rules\":", ERR_FORMAT, "model.merges" },
    { spm_json, "\"a b\"", "\"ab\"", ERR_FORMAT, "merge 1" },
    { spm_json, "\"a b\"", "[\"a\"]", ERR_FORMAT, "merge 1" },
    { spm_json, "\"a b\"", "[\"a\",7]", ERR_FORMAT, "merge 1" },
    { spm_json, "\"unk_token\":\"<unk>\"", "\"unk_token\":\"<x>\"", ERR_FORMAT, "unk_token" },
    { spm_json, "\"unk_token\":\"<unk>\"", "\"unk_token\":null", ERR_FORMAT, "byte 0x00" },
    { spm_json, "\"content\":\"<s>\"", "\"content\":\"\"", ERR_FORMAT, "no content" },
    { spm_json, "\"id\":1,", "\"id\":2,", ERR_FORMAT, "\"<s>\" is token 1" },
    { spm_json, "\"id\":1,", "\"id\":1.5,", ERR_FORMAT, "\"<s>\" has no id" },
    { spm_json, "\"special\":true", "\"lstrip\":true", ERR_UNSUPPORTED, "lstrip" },
    { spm_json, "\"Prepend\"", "\"Lowercase\"", ERR_UNSUPPORTED, "normalizer \"Lowercase\"" },
    { spm_json, "\"String\":\" \"", "\"String\":\"x\"", ERR_UNSUPPORTED, "normalizer \"Replace\"" },
    { spm_json, "\"type\":\"Sequence\",\"norm", "\"type\":\"NFC\",\"norm", ERR_UNSUPPORTED, "NFC" },
    { spm_json, "\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"Whitespace\"}",
      ERR_UNSUPPORTED, "pre_tokenizer \"Whitespace\"" },
    { spm_json, "\"ids\":[1]", "\"ids\":[]", ERR_FORMAT, "\"<s>\" has no id" },
    { spm_json, "\"ids\":[1]", "\"ids\":[9]", ERR_FORMAT, "bos token is 9" },
    { spm_json, "\"TemplateProcessing\"", "\"BertProcessing\"", ERR_UNSUPPORTED, "BertProcessing" },
    { bpe_json, "\"add_prefix_space\":false", "\"add_prefix_space\":true", ERR_UNSUPPORTED,
      "adds a space" },
    { bpe_json, "\"type\":\"Digits\",\"individual_digits\":true",
      "\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z]+\"},\"behavior\":\"Isolated\"",
      ERR_UNSUPPORTED, "[a-z]+" },
    { bpe_json, "\"individual_digits\":true", "\"individual_digits\":false", ERR_UNSUPPORTED,
      "Digits" },
    { bpe_json, "\"use_regex\":true", "\"use_regex\":false", ERR_UNSUPPORTED, "llama-bpe" },
};

static void refuses(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        const struct broken *b = &broken[i];
        struct tokenizer *t = NULL;
        struct err e = { 0 };
        char *text = edit(b->text, b->from, b->to);
        int rc = parse(&t, text, "", "", "", &e);
        if (rc != b->code || strstr(e.text, b->says) == NULL)
            fail_msg("%s -> %s: %s: \"%s\"", b->from, b->to, err_name(rc), e.text);
        assert_null(t);
        mem_free(text);
    }
}

static void refuses_ends(void **state)
{
    (void)state;
    struct tokenizer *t = NULL;
    struct err e;
    assert_int_equal(parse(&t, spm_json, "{\"eos_token\":\"<x>\"}", "", "", &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "eos_token"));
    assert_int_equal(parse(&t, spm_json, "{\"bos_token\":\"</s>\"}", "", "", &e), ERR_UNSUPPORTED);
    assert_int_equal(parse(&t, spm_json, "{\"bos_token\":7}", "", "", &e), ERR_FORMAT);
    assert_int_equal(parse(&t, spm_json, "", "{\"eos_token_id\":[2,9]}", "", &e), ERR_FORMAT);
    assert_int_equal(parse(&t, spm_json, "", "{\"eos_token_id\":", "", &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "generation_config.json"));
    assert_int_equal(tok_open_json(&t, "tests/golden", &e), ERR_NOTFOUND);
    assert_null(t);
}

/* Nesting without end is refused by the JSON reader, on a stack of ordinary size. */
static void refuses_nesting(void **state)
{
    (void)state;
    struct tokenizer *t = NULL;
    struct err e;
    struct buf b;
    buf_init(&b, 1 << 20);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(buf_adds(&b, "{\"a\":"), 0);
    assert_int_equal(parse(&t, b.data, "", "", "", &e), ERR_FORMAT);
    buf_free(&b);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* Scores become ranks; of the ways to cut a piece, the one with more on its left comes first. */
static void writes_scores(void **state)
{
    (void)state;
    static const char *const text[] = { "<unk>", "<s>", "</s>", SP,      "a",
                                        "b",     "ab",  SP "a", SP "ab", "ab" };
    static const uint8_t kind[] = { TOK_UNKNOWN, TOK_CONTROL, TOK_CONTROL, TOK_NORMAL, TOK_NORMAL,
                                    TOK_NORMAL,  TOK_NORMAL,  TOK_NORMAL,  TOK_NORMAL, TOK_NORMAL };
    static const float score[] = { 0, 0, 0, -1, -2, -3, -5, -4, -6, -7 };
    size_t len[10];
    for (int i = 0; i < 10; i++)
        len[i] = strlen(text[i]);
    struct tok_vocab v = { .model = TOK_SPM,
                           .n = 10,
                           .text = text,
                           .len = len,
                           .score = score,
                           .kind = kind,
                           .bos = 1,
                           .eos = 2,
                           .unk = 0,
                           .eot = -1,
                           .add_bos = true,
                           .add_space_prefix = true };
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    struct tok_json f;
    if (tok_open(&t, &v, &e) < 0)
        fail_msg("%s", e.text);
    tok_json_init(&f);
    assert_int_equal(tok_write_json(t, &f, &e), 0);
    assert_non_null(strstr(f.tokenizer.data,
                           "\"merges\": [\n      \"" SP " a\",\n      \"a b\",\n      \"" SP
                           "a b\",\n      \"" SP " ab\"\n    ]"));
    struct tokenizer *again = rewrite(t);
    assert_int_equal(tok_n(again), 9); /* the second "ab" is a gap at the end */
    ENCODES(t, "abab", TOK_ADD_BOS, 1, 8, 6);
    ENCODES(again, "abab", TOK_ADD_BOS, 1, 8, 6);
    tok_json_free(&f);
    tok_close(again);
    tok_close(t);
}

static void refuses_to_write(void **state)
{
    (void)state;
    static const char *const text[] = { "<unk>", "a", "\xFF" };
    static const size_t len[] = { 5, 1, 1 };
    static const uint8_t kind[] = { TOK_UNKNOWN, TOK_NORMAL, TOK_NORMAL };
    struct tok_vocab v = { .model = TOK_SPM,
                           .n = 3,
                           .text = text,
                           .len = len,
                           .kind = kind,
                           .bos = -1,
                           .eos = -1,
                           .unk = 0,
                           .eot = -1 };
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    struct tok_json f;
    assert_int_equal(tok_open(&t, &v, &e), 0);
    tok_json_init(&f);
    assert_int_equal(tok_write_json(t, &f, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "token 2"));
    tok_json_free(&f);
    tok_close(t);
    t = open_text(spm_json);
    buf_init(&f.tokenizer, 100);
    assert_int_equal(tok_write_json(t, &f, &e), ERR_LIMIT);
    tok_json_free(&f);
    tok_close(t);
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

/* Every allocation of ours fails once; those of the JSON library are not ours to fail. */
static void survives_faults(void **state)
{
    (void)state;
    static const char *const text[] = { spm_json, bpe_json };
    struct mem_stats before;
    struct mem_stats after;
    mem_stats(&before);
    for (int k = 0; k < 2; k++)
        for (uint64_t n = 1; n < 1000; n++) {
            struct tokenizer *t = NULL;
            struct tok_json f;
            tok_json_init(&f);
            assert_int_equal(buf_adds(&f.tokenizer, text[k]), 0);
            mem_fail_at(n);
            int rc = tok_parse_json(&t, &f, NULL);
            if (rc == 0)
                rc = tok_write_json(t, &f, NULL);
            mem_fail_at(0);
            tok_close(t);
            tok_json_free(&f);
            mem_stats(&after);
            assert_int_equal(after.blocks, before.blocks);
            if (rc == 0)
                break;
            assert_int_equal(rc, ERR_NOMEM);
            assert_true(n < 999);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        { "matches_the_package bytes", matches_the_package, NULL, NULL,
          (void *)(uintptr_t) "bytes" },
        { "matches_the_package spm", matches_the_package, NULL, NULL, (void *)(uintptr_t) "spm" },
        cmocka_unit_test(reads_merges_by_rank),
        cmocka_unit_test(reads_byte_level),
        cmocka_unit_test(reads_normal_form),
        cmocka_unit_test(reads_spaces),
        cmocka_unit_test(reads_ends),
        cmocka_unit_test(reads_large_numbers),
        cmocka_unit_test(refuses),
        cmocka_unit_test(refuses_ends),
        cmocka_unit_test(refuses_nesting),
        cmocka_unit_test(writes_scores),
        cmocka_unit_test(refuses_to_write),
        cmocka_unit_test(survives_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
