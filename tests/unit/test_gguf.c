/* GGUF files: a good one of each version, and every way in which one can be wrong, by the message it gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/buf.h"
#include "server/base/mem.h"
#include "server/model/model.h"

enum { U32 = 4, F32 = 6, STRING = 8, ARRAY = 9, U64 = 10 };

static char path[64];

/* ---- a file in the making ---------------------------------------------------------------------------------------- */

struct file {
    struct buf meta, list, data;
    uint64_t n_meta, n_tensors;
    uint32_t magic, version;
};

static void u32(struct buf *b, uint32_t v)
{
    buf_add(b, &v, sizeof v);
}
static void u64(struct buf *b, uint64_t v)
{
    buf_add(b, &v, sizeof v);
}
static void str(struct buf *b, const char *s)
{
    u64(b, strlen(s));
    buf_adds(b, s);
}

static void meta_u32(struct file *f, const char *key, uint32_t v)
{
    str(&f->meta, key);
    u32(&f->meta, U32);
    u32(&f->meta, v);
    f->n_meta++;
}
static void meta_f32(struct file *f, const char *key, float v)
{
    str(&f->meta, key);
    u32(&f->meta, F32);
    buf_add(&f->meta, &v, sizeof v);
    f->n_meta++;
}
static void meta_str(struct file *f, const char *key, const char *v)
{
    str(&f->meta, key);
    u32(&f->meta, STRING);
    str(&f->meta, v);
    f->n_meta++;
}

static void tensor(struct file *f, const char *name, uint32_t type, int n_dims, uint64_t d0,
                   uint64_t d1, size_t bytes)
{
    str(&f->list, name);
    u32(&f->list, (uint32_t)n_dims);
    u64(&f->list, d0);
    if (n_dims > 1)
        u64(&f->list, d1);
    u32(&f->list, type);
    u64(&f->list, f->data.len);
    for (size_t i = 0; i < (bytes + 31) / 32 * 32; i++)
        buf_addc(&f->data, (char)i);
    f->n_tensors++;
}

static void vocabulary(struct file *f)
{
    str(&f->meta, "tokenizer.ggml.tokens");
    u32(&f->meta, ARRAY);
    u32(&f->meta, STRING);
    u64(&f->meta, 260);
    for (int i = 0; i < 260; i++) {
        char text[16];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)(i - 3) & 255);
        str(&f->meta, i == 0 ? "<unk>" : i == 1 ? "<s>" : i == 2 ? "</s>" : i == 259 ? "a" : text);
    }
    str(&f->meta, "tokenizer.ggml.token_type");
    u32(&f->meta, ARRAY);
    u32(&f->meta, U32);
    u64(&f->meta, 260);
    for (int i = 0; i < 260; i++)
        u32(&f->meta, i == 0 ? TOK_UNKNOWN : i < 3 ? TOK_CONTROL : i < 259 ? TOK_BYTE : TOK_NORMAL);
    f->n_meta += 2;
    meta_str(f, "tokenizer.ggml.model", "llama");
    meta_str(f, "tokenizer.chat_template", "{{ messages }}");
}

static void words(struct file *f, const char *key, const char *const *word, int n)
{
    str(&f->meta, key);
    u32(&f->meta, ARRAY);
    u32(&f->meta, STRING);
    u64(&f->meta, (uint64_t)n);
    for (int i = 0; i < n; i++)
        str(&f->meta, word[i]);
    f->n_meta++;
}

/* A byte-level vocabulary; <|im_end|> is of the given kind. */
static void byte_level(struct file *f, const char *pre, uint32_t kind)
{
    static const char *const token[] = { "a", "b", "ab", "<begin>", "<|im_end|>", "<word>" };
    static const uint32_t kinds[] = { TOK_NORMAL,  TOK_NORMAL, TOK_NORMAL,
                                      TOK_CONTROL, 0,          TOK_USER_DEFINED };
    words(f, "tokenizer.ggml.tokens", token, 6);
    words(f, "tokenizer.ggml.merges", (const char *const[]){ "a b" }, 1);
    str(&f->meta, "tokenizer.ggml.token_type");
    u32(&f->meta, ARRAY);
    u32(&f->meta, U32);
    u64(&f->meta, 6);
    for (int i = 0; i < 6; i++)
        u32(&f->meta, kinds[i] != 0 ? kinds[i] : kind);
    f->n_meta++;
    meta_str(f, "tokenizer.ggml.model", "gpt2");
    meta_str(f, "tokenizer.ggml.pre", pre);
    meta_u32(f, "tokenizer.ggml.bos_token_id", 3);
}

static void start(struct file *f)
{
    memset(f, 0, sizeof *f);
    buf_init(&f->meta, 16 << 20);
    buf_init(&f->list, 1 << 20);
    buf_init(&f->data, 1 << 20);
    f->version = 3;
    memcpy(&f->magic, "GGUF", 4);
}

/* A small model that opens; more can be added before it is written. */
static void start_good(struct file *f)
{
    start(f);
    meta_str(f, "general.architecture", "llama");
    meta_str(f, "general.name", "toy");
    meta_u32(f, "llama.block_count", 2);
    meta_u32(f, "llama.embedding_length", 32);
    meta_u32(f, "llama.attention.head_count", 4);
    meta_u32(f, "llama.feed_forward_length", 64);
    meta_u32(f, "llama.context_length", 128);
    meta_f32(f, "llama.attention.layer_norm_rms_epsilon", 1e-6f);
    tensor(f, "token_embd.weight", 8, 2, 32, 260, 34 * 260);
    tensor(f, "output_norm.weight", 0, 1, 32, 0, 128);
}

/* Writes the file, cut by so many bytes at the end, and lets f go. */
static void finish(struct file *f, size_t cut)
{
    struct buf b;
    buf_init(&b, 32 << 20);
    u32(&b, f->magic);
    u32(&b, f->version);
    u64(&b, f->n_tensors);
    u64(&b, f->n_meta);
    buf_add(&b, buf_str(&f->meta), f->meta.len);
    buf_add(&b, buf_str(&f->list), f->list.len);
    while (b.len % 32 != 0)
        buf_addc(&b, 0);
    buf_add(&b, buf_str(&f->data), f->data.len);
    assert_int_equal(b.bad, 0);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(b.data, 1, b.len - cut, out), b.len - cut);
    assert_int_equal(fclose(out), 0);
    buf_free(&b);
    buf_free(&f->meta);
    buf_free(&f->list);
    buf_free(&f->data);
}

static void expect(int code, const char *message)
{
    struct source *s;
    struct err e = { 0 };
    int rc = source_open(&s, path, &e);
    if (rc != code || strstr(e.text, message) == NULL)
        fail_msg("rc %d, \"%s\"; %s, \"%s\" was expected", rc, e.text, err_name(code), message);
    if (strncmp(e.text, path, strlen(path)) != 0)
        fail_msg("\"%s\" does not begin with the file's name", e.text);
}

/* ---- good files -------------------------------------------------------------------------------------------------- */

static void opens(uint32_t version)
{
    struct file f;
    struct source *s;
    struct tokenizer *t;
    struct err e;
    start_good(&f);
    f.version = version;
    vocabulary(&f);
    meta_u32(&f, "llama.attention.head_count_kv", 2);
    meta_u32(&f, "llama.attention.sliding_window", 48);
    meta_u32(&f, "llama.rope.dimension_count", 8);
    meta_f32(&f, "llama.rope.freq_base", 5e5f);
    meta_str(&f, "llama.rope.scaling.type", "linear");
    meta_f32(&f, "llama.rope.scaling.factor", 4);
    finish(&f, 0);
    if (source_open(&s, path, &e) < 0)
        fail_msg("%s", e.text);
    const struct model_config *c = &s->config;
    assert_string_equal(source_format_name(s), "gguf");
    assert_string_equal(c->arch, "llama");
    assert_string_equal(c->name, "toy");
    assert_true(c->n_layers == 2 && c->dim == 32 && c->n_heads == 4 && c->n_kv_heads == 2);
    assert_true(c->ffn == 64 && c->vocab == 260 && c->ctx_train == 128 && c->window == 48);
    assert_true(c->tied && !c->rope_half_split && c->rope_dim == 8 && c->rope_theta == 5e5f);
    assert_true(c->rope_scaling == ROPE_LINEAR && c->rope_factor == 4 && c->norm_eps == 1e-6f);
    assert_string_equal(s->chat_template, "{{ messages }}");
    const struct tensor *x = source_find(s, "token_embd.weight");
    assert_true(x->type == DT_Q8_0 && x->dim[0] == 260 && x->dim[1] == 32 && x->bytes == 34 * 260);
    assert_int_equal(x->offset % 32, 0);
    assert_null(source_find(s, "output.weight"));
    if (source_tokenizer(s, &t, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(tok_n(t), 260);
    assert_int_equal(tok_eos(t), 2);
    tok_close(t);
    source_close(s);
}

static void opens_both_versions(void **state)
{
    (void)state;
    opens(2);
    opens(3);
}

static void knows_the_order_of_rope(void **state)
{
    (void)state;
    struct file f;
    struct source *s;
    struct err e;
    start(&f);
    meta_str(&f, "general.architecture", "qwen2");
    tensor(&f, "token_embd.weight", 0, 2, 32, 4, 512);
    tensor(&f, "output.weight", 0, 2, 32, 4, 512);
    finish(&f, 0);
    assert_int_equal(source_open(&s, path, &e), 0);
    assert_true(s->config.rope_half_split && !s->config.tied);
    struct tokenizer *t;
    assert_int_equal(source_tokenizer(s, &t, &e), ERR_UNSUPPORTED);
    source_close(s);
}

static struct tokenizer *open_byte_level(const char *pre, uint32_t kind)
{
    struct file f;
    struct source *s;
    struct tokenizer *t = NULL;
    struct err e;
    start_good(&f);
    byte_level(&f, pre, kind);
    finish(&f, 0);
    if (source_open(&s, path, &e) < 0 || source_tokenizer(s, &t, &e) < 0)
        fail_msg("%s", e.text);
    source_close(s);
    return t;
}

/* The end of a turn is no text, whatever the file calls it; other words of the user's stay text. */
static void corrects_ends(void **state)
{
    (void)state;
    static const uint32_t kind[] = { TOK_CONTROL, TOK_USER_DEFINED };
    for (int i = 0; i < 2; i++) {
        struct tokenizer *t = open_byte_level("gpt-2", kind[i]);
        assert_true(tok_is_eog(t, 4) && tok_is_special(t, 4));
        assert_false(tok_is_eog(t, 5) || tok_is_special(t, 5));
        tok_close(t);
    }
}

static void adds_bos_by_default(void **state)
{
    (void)state;
    static const struct {
        const char *pre;
        bool adds;
    } known[] = { { "gpt-2", false },
                  { "qwen2", false },
                  { "llama-bpe", true },
                  { "llama3", true },
                  { "llama-v3", true } };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        struct tokenizer *t = open_byte_level(known[i].pre, TOK_CONTROL);
        assert_int_equal(tok_adds_bos(t), known[i].adds);
        tok_close(t);
    }
}

static void check_scaling(const char *type, const char *key, float factor, enum rope_scaling want)
{
    struct file f;
    struct source *s;
    struct err e;
    start_good(&f);
    if (type != NULL)
        meta_str(&f, "llama.rope.scaling.type", type);
    if (key != NULL)
        meta_f32(&f, key, factor);
    finish(&f, 0);
    if (source_open(&s, path, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(s->config.rope_scaling, want);
    assert_true(s->config.rope_factor == (want == ROPE_LINEAR ? factor : 1));
    source_close(s);
}

/* As llama.cpp reads them: linear unless the file says otherwise, under the factor's new name or its old one. */
static void reads_rope_scaling(void **state)
{
    (void)state;
    static const char factor[] = "llama.rope.scaling.factor";
    check_scaling("linear", factor, 4, ROPE_LINEAR);
    check_scaling(NULL, factor, 4, ROPE_LINEAR);
    check_scaling(NULL, "llama.rope.scale_linear", 4, ROPE_LINEAR);
    check_scaling("linear", factor, 0, ROPE_PLAIN);
    check_scaling("none", factor, 4, ROPE_PLAIN);
    check_scaling(NULL, factor, 1, ROPE_PLAIN);
    check_scaling(NULL, NULL, 0, ROPE_PLAIN);
}

/* A header larger than the first read. */
static void reads_long_headers(void **state)
{
    (void)state;
    enum { N = 3 << 20 };
    struct file f;
    struct source *s;
    struct err e;
    start_good(&f);
    str(&f.meta, "long");
    u32(&f.meta, ARRAY);
    u32(&f.meta, U32);
    u64(&f.meta, N);
    assert_int_equal(buf_reserve(&f.meta, N * sizeof(uint32_t)), 0);
    memset(f.meta.data + f.meta.len, 7, N * sizeof(uint32_t));
    f.meta.len += N * sizeof(uint32_t);
    f.n_meta++;
    finish(&f, 0);
    if (source_open(&s, path, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(s->config.n_layers, 2);
    source_close(s);
}

/* ---- bad files --------------------------------------------------------------------------------------------------- */

static void refuses_headers(void **state)
{
    (void)state;
    struct file f;
    start_good(&f);
    f.magic = 0x12345678;
    finish(&f, 0);
    expect(ERR_FORMAT, "not a GGUF file");
    start_good(&f);
    f.version = 1;
    finish(&f, 0);
    expect(ERR_UNSUPPORTED, "GGUF version 1; 2 and 3");
    start_good(&f);
    f.n_meta = UINT64_MAX;
    finish(&f, 0);
    expect(ERR_FORMAT, "18446744073709551615 metadata entries");
    start_good(&f);
    f.n_tensors = (uint64_t)1 << 60;
    finish(&f, 0);
    expect(ERR_FORMAT, "1152921504606846976 tensors");
    start_good(&f);
    f.n_meta += 3;
    finish(&f, 0);
    expect(ERR_FORMAT, "");
    start(&f);
    finish(&f, 10);
    expect(ERR_FORMAT, "too short");
    start(&f);
    finish(&f, 0);
    expect(ERR_FORMAT, "no tensors");
    start_good(&f);
    finish(&f, 1);
    expect(ERR_FORMAT, "cut short or damaged");
    unlink(path);
    expect(ERR_NOTFOUND, "cannot open");
}

static void refuses_metadata(void **state)
{
    (void)state;
    struct file f;
    start_good(&f);
    meta_u32(&f, "llama.block_count", 3);
    finish(&f, 0);
    expect(ERR_FORMAT, "metadata llama.block_count is there twice");
    start_good(&f);
    str(&f.meta, "odd");
    u32(&f.meta, 77);
    f.n_meta++;
    finish(&f, 0);
    expect(ERR_FORMAT, "metadata odd has type 77; 0 to 12");
    start_good(&f);
    str(&f.meta, "deep");
    u32(&f.meta, ARRAY);
    u32(&f.meta, ARRAY);
    u64(&f.meta, 1);
    f.n_meta++;
    finish(&f, 0);
    expect(ERR_UNSUPPORTED, "metadata deep is an array of arrays");
    start_good(&f);
    str(&f.meta, "wide");
    u32(&f.meta, ARRAY);
    u32(&f.meta, U64);
    u64(&f.meta, (uint64_t)1 << 61);
    f.n_meta++;
    finish(&f, 0);
    expect(ERR_FORMAT, "ends inside the metadata");
    start_good(&f);
    u64(&f.meta, UINT64_MAX - 4); /* a key of that length */
    f.n_meta++;
    finish(&f, 0);
    expect(ERR_FORMAT, "ends inside the metadata");
    start(&f);
    tensor(&f, "token_embd.weight", 0, 2, 32, 4, 512);
    finish(&f, 0);
    expect(ERR_FORMAT, "general.architecture is missing");
    start_good(&f);
    meta_u32(&f, "general.alignment", 48);
    finish(&f, 0);
    expect(ERR_FORMAT, "general.alignment is 48; a power of two");
    start(&f); /* all but the first part say no more */
    meta_u32(&f, "split.count", 3);
    tensor(&f, "token_embd.weight", 0, 2, 32, 4, 512);
    finish(&f, 0);
    expect(ERR_UNSUPPORTED, "is one of 3 parts of a model");
    start_good(&f);
    meta_str(&f, "llama.rope.scaling.type", "yarn");
    finish(&f, 0);
    expect(ERR_UNSUPPORTED, "rope scaling \"yarn\"");
    start_good(&f);
    meta_f32(&f, "llama.rope.scaling.factor", -4);
    finish(&f, 0);
    expect(ERR_FORMAT, "rope scaling factor -4 makes no sense");
    start_good(&f);
    meta_f32(&f, "llama.rope.freq_base", -1);
    finish(&f, 0);
    expect(ERR_FORMAT, "rope base -1 make no sense");
    start_good(&f);
    meta_u32(&f, "llama.attention.key_length", 8);
    meta_u32(&f, "llama.attention.value_length", 16);
    finish(&f, 0);
    expect(ERR_UNSUPPORTED, "heads of keys have 8 numbers, of values 16");
}

static void refuses_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint32_t type;
        int n_dims;
        uint64_t d0, d1;
        size_t bytes;
        int code;
        const char *message;
    } bad[] = {
        { "x", 99, 1, 32, 0, 128, ERR_UNSUPPORTED, "tensor x has type 99" },
        { "x", 0, 0, 32, 0, 128, ERR_FORMAT, "tensor x has 0 dimensions; 1 to 4" },
        { "x", 0, 5, 32, 0, 128, ERR_FORMAT, "tensor x has 5 dimensions; 1 to 4" },
        { "", 0, 1, 32, 0, 128, ERR_FORMAT, "name has 0 bytes" },
        { "x", 0, 1, 0, 0, 128, ERR_FORMAT, "tensor x: dimension 0 is 0" },
        { "x", 0, 1, UINT64_MAX, 0, 128, ERR_FORMAT, "tensor x: dimension 0 is -1" },
        { "x", 0, 2, INT32_MAX, INT32_MAX, 128, ERR_FORMAT, "tensor x: its bytes" },
        { "x", 8, 1, 33, 0, 128, ERR_FORMAT, "rows of 33 are no whole blocks of Q8_0 (32)" },
        { "x", 0, 1, 64, 0, 128, ERR_FORMAT, "tensor x: its bytes" },
        { "output_norm.weight", 0, 1, 32, 0, 128, ERR_FORMAT,
          "two tensors called output_norm.weight" },
        { "token_embd.bias", 0, 1, 32, 0, 0, ERR_FORMAT, "tensor token_embd.bias: its bytes" },
    };
    struct file f;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        start_good(&f);
        tensor(&f, bad[i].name, bad[i].type, bad[i].n_dims, bad[i].d0, bad[i].d1, bad[i].bytes);
        finish(&f, 0);
        expect(bad[i].code, bad[i].message);
    }
    start_good(&f);
    f.data.len -= 32; /* the next one begins inside the last */
    tensor(&f, "x", 0, 1, 32, 0, 128);
    finish(&f, 0);
    expect(ERR_FORMAT, "overlap");
    start_good(&f);
    f.data.len += 1;
    tensor(&f, "x", 0, 1, 32, 0, 128);
    finish(&f, 0);
    expect(ERR_FORMAT, "not at a multiple of 32");
    start(&f);
    meta_str(&f, "general.architecture", "llama");
    tensor(&f, "output_norm.weight", 0, 1, 32, 0, 128);
    finish(&f, 0);
    expect(ERR_FORMAT, "token_embd.weight is missing or no matrix");
}

/* Layers for start_good()'s model, whose bytes are no sensible numbers. */
static void layers(struct file *f)
{
    static const struct {
        const char *name;
        int rows, cols;
    } part[] = { { "attn_norm", 0, 32 },    { "attn_q", 32, 32 },  { "attn_k", 32, 32 },
                 { "attn_v", 32, 32 },      { "ffn_norm", 0, 32 }, { "ffn_gate", 64, 32 },
                 { "attn_output", 32, 32 }, { "ffn_up", 64, 32 },  { "ffn_down", 32, 64 } };
    for (int l = 0; l < 2; l++)
        for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
            char name[64];
            int rows = part[i].rows > 0 ? part[i].rows : 1;
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, part[i].name);
            tensor(f, name, 0, part[i].rows > 0 ? 2 : 1, (uint64_t)part[i].cols, (uint64_t)rows,
                   (size_t)(4 * rows * part[i].cols));
        }
}

static void check_model_with(const char *name, int code)
{
    struct file f;
    struct be *be;
    struct model *m = NULL;
    struct err e = { 0 };
    start_good(&f);
    vocabulary(&f);
    layers(&f);
    tensor(&f, name, 0, 1, 32, 0, 128);
    finish(&f, 0);
    assert_int_equal(be_open(&be, &(struct be_config){ .device = "cpu", .n_threads = 1 }, &e), 0);
    int rc = model_open(&m, path, &(struct model_options){ .weights = "auto" }, be, &e);
    if (rc != code || (rc < 0 && strstr(e.text, name) == NULL))
        fail_msg("%s: rc %d, \"%s\"", name, rc, e.text);
    if (rc == 0)
        model_close(m);
    be_close(be);
}

/* A tensor that nothing reads, but the pass depends on, would change what the model says; tables of rope would not. */
static void refuses_stray_tensors(void **state)
{
    (void)state;
    check_model_with("blk.1.attn_output.bias", ERR_UNSUPPORTED);
    check_model_with("blk.0.ffn_down.bias", ERR_UNSUPPORTED);
    check_model_with("output.bias", ERR_UNSUPPORTED);
    check_model_with("rope_factors_long.weight", ERR_UNSUPPORTED);
    check_model_with("blk.0.attn_q.bias", 0);
    check_model_with("blk.0.attn_rot_embd.weight", 0);
    check_model_with("blk.2.attn_output.bias", 0); /* of a layer that the model has not */
    check_model_with("other.thing", 0);
}

/* Every file cut at every byte of its header is refused, and nothing is read beyond its end (sanitizers watch). */
static void refuses_every_cut(void **state)
{
    (void)state;
    struct file f;
    struct buf whole;
    struct err e;
    struct source *s;
    start_good(&f);
    finish(&f, 0);
    buf_init(&whole, 1 << 20);
    assert_int_equal(buf_read_file(&whole, path, &e), 0);
    for (size_t n = 0; n < 700; n++) {
        FILE *out = fopen(path, "wb");
        assert_int_equal(fwrite(whole.data, 1, n, out), n);
        fclose(out);
        assert_int_equal(source_open(&s, path, &e), ERR_FORMAT);
    }
    buf_free(&whole);
}

static void survives_no_memory(void **state)
{
    (void)state;
    struct file f;
    struct mem_stats before;
    struct mem_stats after;
    struct source *s;
    struct tokenizer *t;
    struct err e;
    start_good(&f);
    vocabulary(&f);
    finish(&f, 0);
    mem_stats(&before);
    int rc = ERR_NOMEM;
    for (uint64_t n = 1; rc < 0 && n < 500; n++) {
        mem_fail_at(n);
        rc = source_open(&s, path, &e);
        if (rc == 0) {
            rc = source_tokenizer(s, &t, &e);
            source_close(s);
        }
        mem_fail_at(0);
        assert_true(rc == 0 || rc == ERR_NOMEM);
    }
    assert_int_equal(rc, 0);
    tok_close(t);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/wring-test-gguf.XXXXXX");
    int fd = mkstemp(path);
    return fd >= 0 ? close(fd) : -1;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_both_versions), cmocka_unit_test(knows_the_order_of_rope),
        cmocka_unit_test(corrects_ends),       cmocka_unit_test(adds_bos_by_default),
        cmocka_unit_test(reads_rope_scaling),  cmocka_unit_test(reads_long_headers),
        cmocka_unit_test(refuses_headers),     cmocka_unit_test(refuses_metadata),
        cmocka_unit_test(refuses_tensors),     cmocka_unit_test(refuses_stray_tensors),
        cmocka_unit_test(refuses_every_cut),   cmocka_unit_test(survives_no_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
