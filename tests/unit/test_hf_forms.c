/* What the reader refuses of folders of pressed weights, and their names and rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/hf.h"
#include "tests/tools/scratch.h"
#include "tests/tools/writing.h"

#define ARCH(name) "tests/golden/archs/" name

static struct be *be;

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* The file with the first `from` in it made `to`, which is as long; its old text goes to saved. */
static void change(const char *name, const char *from, const char *to, struct buf *saved)
{
    struct err e;
    read_file(saved, name);
    char *copy = mem_alloc(saved->len);
    assert_non_null(copy);
    memcpy(copy, saved->data, saved->len);
    char *at = memmem(copy, saved->len, from, strlen(from));
    if (at == NULL || strlen(from) != strlen(to))
        fail_msg("%s has no %s", name, from);
    memcpy(at, to, strlen(to));
    assert_int_equal(file_write_atomic(in_root(name), copy, saved->len, &e), 0);
    mem_free(copy);
}

static void restore(const char *name, struct buf *saved)
{
    struct err e;
    assert_int_equal(file_write_atomic(in_root(name), saved->data, saved->len, &e), 0);
    buf_free(saved);
}

#define CONFIG "out/config.json"
#define SHARD  "out/model-00002-of-00003.safetensors"

static const struct {
    const char *file, *from, *to;
    int code;
    const char *message;
} bad[] = {
    { CONFIG, "\"version\": 2", "\"version\": 9", ERR_UNSUPPORTED, "version 9 is not known" },
    { CONFIG, "\"version\": 2", "\"version\":\"\"", ERR_UNSUPPORTED, "version 0 is not known" },
    { CONFIG, "\"wring\"", "\"wrong\"", ERR_UNSUPPORTED, "quant_method \"wrong\"" },
    { CONFIG, "\"forms\"", "\"norms\"", ERR_FORMAT, "\"forms\" is missing" },
    { CONFIG, "\"lm_head\": \"q8\"", "\"lm_head\": \"z8\"", ERR_UNSUPPORTED,
      "tensor output.weight: \"z8\" is no form of weights" },
    { CONFIG, "\"lm_head\": \"q8\"", "\"lm_head\":  123", ERR_FORMAT,
      "the form of \"lm_head\" is no string" },
    { CONFIG, "\"lm_head\": \"q8\"", "\"my_head\": \"q8\"", ERR_FORMAT,
      "tensor output.weight is missing" },
    { CONFIG, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\":  true", ERR_FORMAT,
      "output.weight has the form q8, but the llama model has no such matrix" },
    { CONFIG, "\"intermediate_size\": 96", "\"intermediate_size\": 32", ERR_FORMAT,
      "blk.0.ffn_gate.codes is 6144 of U8; the form q8 has 2048 of U8 there" },
    { CONFIG, "\"hidden_size\": 64", "\"hidden_size\": 66", ERR_UNSUPPORTED,
      "tensor token_embd.weight: the form q8 does not fit 512 x 66" },
    { SHARD, "mlp.up_proj.codes", "mlp.up_proj.nodes", ERR_FORMAT,
      "tensor blk.0.ffn_up.weight: the form q8 needs a tensor blk.0.ffn_up.codes, which is "
      "missing" },
    { SHARD, "\"U8\"", "\"I8\"", ERR_FORMAT, "there" },
    { SHARD, "\"F32\",\"shape\":[64]", "\"I16\",\"shape\":[64]", ERR_FORMAT,
      "its shape takes 128 bytes" },
};

static void refuses_folders(void **state)
{
    (void)state;
    struct model *m;
    struct err e = { 0 };
    struct buf saved;
    struct model_options o = { .weights = "auto" };
    writing_model(be, ARCH("llama3-scaling"), "q8", in_root("out"));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        change(bad[i].file, bad[i].from, bad[i].to, &saved);
        int rc = model_open(&m, in_root("out"), &o, be, &e);
        if (rc != bad[i].code || strstr(e.text, bad[i].message) == NULL)
            fail_msg("case %zu: rc %d, \"%s\"; \"%s\" was expected", i, rc, e.text, bad[i].message);
        restore(bad[i].file, &saved);
    }
    o.weights = "q4";
    assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "cannot be pressed again to q4"));
    o.weights = "auto";
    assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), 0);
    model_close(m);
    fetch_remove(in_root("out"));
}

/* pvq had other codes in version 1; the rest is read as ever. */
static void refuses_old_points(void **state)
{
    static const char *const form[] = { "q8", "pvq2", "lowrank16+pvq3" };
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct model *m;
        struct err e = { 0 };
        struct buf saved;
        struct model_options o = { .weights = "auto" };
        writing_model(be, ARCH("llama3-scaling"), form[i], in_root("out"));
        change(CONFIG, "\"version\": 2", "\"version\": 1", &saved);
        int rc = model_open(&m, in_root("out"), &o, be, &e);
        assert_int_equal(rc, i == 0 ? 0 : ERR_UNSUPPORTED);
        if (i == 0)
            model_close(m);
        else
            assert_non_null(
                strstr(e.text, "whose points had other numbers; press the model again"));
        buf_free(&saved);
        fetch_remove(in_root("out"));
    }
}

static void put(const char *name, const char *text)
{
    struct err e;
    assert_int_equal(file_write_atomic(in_root(name), text, strlen(text), &e), 0);
}

/* Tokens beyond those of a tokenizer.model, in either file; those within are known. */
static void refuses_added_tokens(void **state)
{
    static const char *const file[] = { "out/added_tokens.json", "out/tokenizer_config.json" };
    static const char *const within[] = {
        "{\"<s>\": 1}", "{\"added_tokens_decoder\": {\"1\": {\"content\": \"<s>\"}}}"
    };
    static const char *const beyond[] = {
        "{\"<|im_end|>\": 512}",
        "{\"added_tokens_decoder\": {\"512\": {\"content\": \"<|im_end|>\"}}}"
    };
    struct model *m;
    struct err e = { 0 };
    struct model_options o = { .weights = "auto" };
    (void)state;
    writing_model(be, ARCH("llama3-scaling"), "q8", in_root("out"));
    for (int i = 0; i < 2; i++) {
        put(file[i], within[i]);
        assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), 0);
        model_close(m);
        put(file[i], beyond[i]);
        assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), ERR_UNSUPPORTED);
        assert_non_null(strstr(e.text, "token 512, \"<|im_end|>\", was added to tokenizer.model"));
        assert_int_equal(unlink(in_root(file[i])), 0);
    }
    fetch_remove(in_root("out"));
}

/* A template that cannot be read is no reason not to load: only chats need it. */
static void loads_without_template(void **state)
{
    struct model *m;
    struct err e = { 0 };
    struct model_options o = { .weights = "auto" };
    (void)state;
    writing_model(be, ARCH("llama3-scaling"), "q8", in_root("out"));
    put("out/chat_template.jinja", "{% include 'more' %}");
    if (model_open(&m, in_root("out"), &o, be, &e) < 0)
        fail_msg("%s", e.text);
    assert_null(m->tmpl);
    model_close(m);
    put("out/chat_template.jinja", "{{ messages[0].content }}");
    assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), 0);
    assert_non_null(m->tmpl);
    assert_null(m->tool_tmpl);
    model_close(m);
    put("out/tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"a\"},"
        "{\"name\": \"default\", \"template\": \"b\"}]}");
    assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), 0);
    assert_non_null(m->tool_tmpl);
    model_close(m);
    fetch_remove(in_root("out"));
}

/* Codes that no form speaks of must not pass for weights. */
static void refuses_nameless_codes(void **state)
{
    (void)state;
    struct model *m;
    struct err e;
    struct buf saved;
    struct model_options o = { .weights = "auto" };
    writing_model(be, ARCH("llama3-scaling"), "bf16", in_root("out"));
    change(SHARD, "\"BF16\",\"shape\":[96,64]", "\"I16\", \"shape\":[96,64]", &saved);
    assert_int_equal(model_open(&m, in_root("out"), &o, be, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "blk.0.ffn_gate.weight is of I16, which is no type of weights"));
    buf_free(&saved);
    fetch_remove(in_root("out"));
}

/* 0 or for want of memory; the parser of sentencepiece models does not tell that from other trouble. */
static void assert_no_memory(int rc, const struct err *e)
{
    if (rc < 0 && rc != ERR_NOMEM && strstr(e->text, "tokenizer.model: not a sentenc") == NULL)
        fail_msg("%s", e->text);
}

static int load_once(struct err *e)
{
    struct model *m;
    struct model_options o = { .weights = "auto" };
    int rc = model_open(&m, in_root("out"), &o, be, e);
    if (rc == 0)
        model_close(m);
    return rc;
}

static void loads_or_fails(void **state)
{
    (void)state;
    struct err e;
    struct mem_stats before;
    struct mem_stats after;
    writing_model(be, ARCH("qwen3-head-norms"), "q8", in_root("out"));
    mem_stats(&before);
    int rc = ERR_NOMEM;
    for (uint64_t n = 1; rc < 0 && n < 5000; n += 3) {
        mem_fail_at(n);
        rc = load_once(&e);
        mem_fail_at(0);
        assert_no_memory(rc, &e);
    }
    assert_int_equal(rc, 0);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    fetch_remove(in_root("out"));
}

/* ---- names and rows ---------------------------------------------------------------------------------------------- */

static void maps_names(void **state)
{
    (void)state;
    static const char *const pair[][2] = {
        { "model.embed_tokens.codes", "token_embd.codes" },
        { "lm_head.weight", "output.weight" },
        { "model.norm.weight", "output_norm.weight" },
        { "model.layers.0.self_attn.q_proj.bias", "blk.0.attn_q.bias" },
        { "model.layers.17.self_attn.o_proj.scales", "blk.17.attn_output.scales" },
        { "model.layers.3.self_attn.k_norm.weight", "blk.3.attn_k_norm.weight" },
        { "model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight" },
        { "rope_freqs.weight", "rope_freqs.weight" },
        { "model.layers.x.self_attn.q_proj.bias", "model.layers.x.self_attn.q_proj.bias" },
        { "model.layers.0", "model.layers.0" },
        { "model.layers.0xmodel.norm.weight", "model.layers.0xmodel.norm.weight" },
        { "model.layers.12345.mlp.up_proj.bias", "model.layers.12345.mlp.up_proj.bias" },
    };
    struct arena a;
    arena_init(&a, 1 << 20);
    for (size_t i = 0; i < sizeof pair / sizeof pair[0]; i++) {
        char name[HF_NAME];
        assert_string_equal(hf_canonical(&a, pair[i][0]), pair[i][1]);
        assert_int_equal(hf_name(name, pair[i][1], NULL), 0);
        assert_string_equal(name, pair[i][0]);
    }
    arena_clear(&a);
}

static void maps_rows(void **state)
{
    (void)state;
    struct model_config c = { .head_dim = 6, .rope_dim = 4 };
    static const int want[] = { 0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11 };
    for (int i = 0; i < 12; i++) {
        assert_int_equal(hf_row_of(&c, "blk.3.attn_q.weight", i), want[i]);
        assert_int_equal(hf_row_of(&c, "blk.3.attn_k.bias", i), want[i]);
        assert_int_equal(hf_row_of(&c, "blk.3.attn_v.weight", i), i);
        assert_int_equal(hf_row_of(&c, "blk.3.attn_output.weight", i), i);
        assert_int_equal(hf_row_of(&c, "blk.3.attn_norm.weight", i), i);
    }
    c.rope_half_split = true;
    for (int i = 0; i < 12; i++)
        assert_int_equal(hf_row_of(&c, "blk.3.attn_q.weight", i), i);
}

/* ---- the group --------------------------------------------------------------------------------------------------- */

static int set_up(void **state)
{
    struct err e;
    if (scratch_open(state) < 0)
        return -1;
    return be_open(&be, &(struct be_config){ .device = "cpu", .n_threads = 2 }, &e);
}

static int tear_down(void **state)
{
    be_close(be);
    return scratch_close(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_folders),
        cmocka_unit_test(refuses_old_points),
        cmocka_unit_test(refuses_added_tokens),
        cmocka_unit_test(loads_without_template),
        cmocka_unit_test(refuses_nameless_codes),
        cmocka_unit_test(loads_or_fails),
        cmocka_unit_test(maps_names),
        cmocka_unit_test(maps_rows),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
