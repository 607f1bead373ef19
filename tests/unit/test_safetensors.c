/* Hugging Face folders: good ones, every way a file can be wrong, shards, and the import of llama2.c models. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/buf.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/import.h"
#include "server/model/source.h"
#include "tests/tools/scratch.h"

static void put(const char *name, const void *p, size_t n)
{
    FILE *f = fopen(in_root(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

/* header_len 0: the header's own; bytes of data are 0, 1, 2, ... */
static void put_tensors(const char *name, const char *header, uint64_t header_len, int n_data)
{
    struct buf b;
    uint64_t n = header_len ? header_len : strlen(header);
    buf_init(&b, 1 << 20);
    buf_add(&b, &n, 8);
    buf_adds(&b, header);
    for (int i = 0; i < n_data; i++)
        buf_addc(&b, (char)i);
    assert_int_equal(b.bad, 0);
    put(name, b.data, b.len);
    buf_free(&b);
}

#define CONFIG_NUMBERS                                                                             \
    "\"num_hidden_layers\":2,\"hidden_size\":8,\"num_attention_heads\":2,"                         \
    "\"num_key_value_heads\":1,\"intermediate_size\":16,\"vocab_size\":300,"                       \
    "\"max_position_embeddings\":64"
#define CONFIG(arch, more) "{\"architectures\":[\"" arch "ForCausalLM\"]," CONFIG_NUMBERS more "}"
#define ONE_TENSOR                                                                                 \
    "{\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32]}}"

static int open_root(struct source **s, struct err *e)
{
    return source_open(s, root, e);
}

static void good_folder(void)
{
    put_text("config.json", CONFIG("Llama", ""));
    put_tensors("model.safetensors", ONE_TENSOR, 0, 32);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static void reads_tensors(void **state)
{
    (void)state;
    struct source *s;
    struct err e;
    good_folder();
    put_tensors("model.safetensors",
                "{\"__metadata__\":{\"format\":\"pt\"},"
                "\"model.layers.1.self_attn.q_proj.weight\":"
                "{\"dtype\":\"BF16\",\"shape\":[2,8],\"data_offsets\":[0,32]},"
                "\"model.layers.0.post_attention_layernorm.weight\":"
                "{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[32,64]},"
                "\"other.thing\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[64,68]}}",
                0, 68);
    if (open_root(&s, &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(source_format_name(s), "safetensors");
    assert_int_equal(s->n_tensors, 3);
    const struct tensor *q = source_find(s, "blk.1.attn_q.weight");
    assert_non_null(q);
    assert_int_equal(q->type, DT_BF16);
    assert_int_equal(q->n_dims, 2);
    assert_int_equal(q->dim[0], 2);
    assert_int_equal(q->dim[1], 8);
    assert_int_equal(q->bytes, 32);
    assert_int_equal(s->file[0].size - q->offset, 68);
    assert_non_null(source_find(s, "blk.0.ffn_norm.weight"));
    assert_non_null(source_find(s, "other.thing"));
    assert_null(source_find(s, "model.norm.weight"));
    source_close(s);
}

static const struct {
    const char *header;
    uint64_t header_len;
    int n_data;
    const char *message;
} bad_tensors[] = {
    { "", 1000, 0, "the file has 8" },
    { "{}", (uint64_t)1 << 60, 0, "the header should have" },
    { "{}", 0, 0, "there are no tensors" },
    { "[1]", 0, 0, "not a JSON object" },
    { "{\"a\":", 0, 0, "not JSON" },
    { "{\"a\":1}", 0, 0, "tensor a: dtype" },
    { "{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 0, 8,
      "dtype \"I64\" is not supported" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 0, 4, "shape must be" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 0, 4,
      "at most 4 sizes" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[\"x\"],\"data_offsets\":[0,4]}}", 0, 4,
      "dimension 0 is not a whole number" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 0, 4,
      "dimension 0 is -1" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2147483647,2147483647,2147483647],"
      "\"data_offsets\":[0,4]}}",
      0, 4, "dimension 2" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 0, 8,
      "its shape takes 8 bytes, its data_offsets 4" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 7, "cut short" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 0, 8, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 0, 8, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775800,"
      "9223372036854775807]}}",
      0, 8, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 0, 8, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
      0, 12, "overlap" },
    { "{\"blk.0.attn_q.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
      "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"F32\",\"shape\":[1],"
      "\"data_offsets\":[4,8]}}",
      0, 8, "two tensors called blk.0.attn_q.weight" },
};

static void refuses_tensors(void **state)
{
    (void)state;
    struct source *s;
    struct err e = { 0 };
    good_folder();
    for (size_t i = 0; i < sizeof bad_tensors / sizeof bad_tensors[0]; i++) {
        put_tensors("model.safetensors", bad_tensors[i].header, bad_tensors[i].header_len,
                    bad_tensors[i].n_data);
        if (open_root(&s, &e) == 0 || strstr(e.text, bad_tensors[i].message) == NULL)
            fail_msg("file %zu: \"%s\"; \"%s\" was expected", i, e.text, bad_tensors[i].message);
    }
    put("model.safetensors", "abc", 3);
    assert_int_equal(open_root(&s, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "too short"));
    unlink(in_root("model.safetensors"));
    assert_int_equal(open_root(&s, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "neither model.safetensors nor"));
}

static void reads_shards(void **state)
{
    (void)state;
    static const char file[] = "model.safetensors.index.json";
    struct source *s;
    struct err e;
    good_folder();
    unlink(in_root("model.safetensors"));
    put_tensors("a.safetensors", ONE_TENSOR, 0, 32);
    put_tensors("b.safetensors",
                "{\"lm_head.weight\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}",
                0, 8);
    put_text(file, "{\"weight_map\":{\"model.norm.weight\":\"a.safetensors\","
                   "\"lm_head.weight\":\"b.safetensors\",\"again\":\"a.safetensors\"}}");
    if (open_root(&s, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(s->n_files, 2);
    assert_int_equal(s->n_tensors, 2);
    assert_string_equal(s->file[source_find(s, "output.weight")->file].path,
                        in_root("b.safetensors"));
    source_close(s);
    put_text(file, "{\"weight_map\":{\"x\":\"../a.safetensors\"}}");
    assert_int_equal(open_root(&s, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "plain file name"));
    put_text(file, "{\"weight_map\":{\"x\":\"gone.safetensors\"}}");
    assert_int_equal(open_root(&s, &e), ERR_NOTFOUND);
    put_text(file, "{}");
    assert_int_equal(open_root(&s, &e), ERR_FORMAT);
    unlink(in_root(file));
}

/* ---- config ------------------------------------------------------------------------------------------------------ */

static void reads_configs(void **state)
{
    (void)state;
    struct source *s;
    struct err e;
    good_folder();
    put_text("config.json",
             CONFIG("Llama", ",\"tie_word_embeddings\":true,\"rope_theta\":5e5,\"head_dim\":6,"
                             "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
                             "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                             "\"original_max_position_embeddings\":32}"));
    if (open_root(&s, &e) < 0)
        fail_msg("%s", e.text);
    const struct model_config *c = &s->config;
    assert_string_equal(c->arch, "llama");
    assert_int_equal(c->n_layers, 2);
    assert_int_equal(c->dim, 8);
    assert_int_equal(c->n_heads, 2);
    assert_int_equal(c->n_kv_heads, 1);
    assert_int_equal(c->head_dim, 6);
    assert_int_equal(c->ffn, 16);
    assert_int_equal(c->vocab, 300);
    assert_int_equal(c->ctx_train, 64);
    assert_true(c->tied && c->rope_half_split && c->rope_theta == 5e5f && c->norm_eps == 1e-6f);
    assert_int_equal(c->rope_scaling, ROPE_LLAMA3);
    assert_true(c->rope_factor == 8 && c->rope_low_freq == 1 && c->rope_high_freq == 4);
    assert_int_equal(c->rope_ctx, 32);
    source_close(s);
    put_text("config.json", CONFIG("Mistral", ",\"sliding_window\":48,\"rope_parameters\":"
                                              "{\"rope_theta\":1e6,\"rope_type\":\"linear\","
                                              "\"factor\":2.0}"));
    assert_int_equal(open_root(&s, &e), 0);
    assert_string_equal(s->config.arch, "mistral");
    assert_int_equal(s->config.window, 48);
    assert_int_equal(s->config.head_dim, 4);
    assert_true(s->config.rope_theta == 1e6f && s->config.rope_factor == 2);
    assert_int_equal(s->config.rope_scaling, ROPE_LINEAR);
    assert_false(s->config.tied);
    source_close(s);
    put_text("config.json", CONFIG("Qwen2", ",\"sliding_window\":48,\"use_sliding_window\":false"));
    assert_int_equal(open_root(&s, &e), 0);
    assert_string_equal(s->config.arch, "qwen2");
    assert_int_equal(s->config.window, 0);
    source_close(s);
}

static void check_window(const char *config, int want)
{
    struct source *s;
    struct err e;
    put_text("config.json", config);
    if (open_root(&s, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(s->config.window, want);
    source_close(s);
}

static void reads_windows(void **state)
{
    (void)state;
    good_folder();
    check_window(CONFIG("Mistral", ",\"sliding_window\":48"), 48);
    check_window(CONFIG("Mistral", ",\"sliding_window\":null"), 0);
    check_window(CONFIG("Mistral", ""), 4096); /* transformers' default */
    check_window(CONFIG("Mistral", ",\"quantization_config\":{\"quant_method\":\"wring\","
                                   "\"version\":1,\"forms\":{}}"),
                 0);
    check_window(CONFIG("Llama", ""), 0);
}

static const struct {
    const char *text;
    int code;
    const char *message;
} bad_configs[] = {
    { "", ERR_FORMAT, "config.json:1: not JSON" },
    { "{\n\"a\": }", ERR_FORMAT, "config.json:2: not JSON" },
    { "[]", ERR_UNSUPPORTED, "architecture \"?\"" },
    { "{\"architectures\":[\"T5Model\"]}", ERR_UNSUPPORTED, "\"T5Model\" is not known" },
    { "{\"architectures\":[\"LlamaForCausalLM\"]}", ERR_FORMAT,
      "\"num_hidden_layers\" is missing" },
    { CONFIG("Llama", ",\"head_dim\":0"), ERR_FORMAT, "\"head_dim\" is something else" },
    { CONFIG("Llama", ",\"head_dim\":1e3"), ERR_FORMAT, "\"head_dim\" is something else" },
    { CONFIG("Llama", ",\"head_dim\":1000000000000000019884624838656"), ERR_FORMAT,
      "config.json:1: not JSON: too big integer" },
    { CONFIG("Llama", ",\"rms_norm_eps\":-1"), ERR_FORMAT,
      "\"rms_norm_eps\" is no number above 0" },
    { CONFIG("Llama", ",\"hidden_act\":\"gelu\""), ERR_UNSUPPORTED, "only silu" },
    { CONFIG("Llama", ",\"attention_bias\":true"), ERR_UNSUPPORTED, "\"attention_bias\" is true" },
    { CONFIG("Qwen2", ",\"use_sliding_window\":true"), ERR_UNSUPPORTED, "\"use_sliding_window\"" },
    { CONFIG("Llama", ",\"quantization_config\":{}"), ERR_UNSUPPORTED, "quantization_config" },
    { CONFIG("Llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0}"), ERR_UNSUPPORTED,
      "\"yarn\" is not supported" },
    { CONFIG("Llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"x\"}"), ERR_FORMAT,
      "\"factor\"" },
    { CONFIG("Llama", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"low_freq_factor\":4,"
                      "\"high_freq_factor\":4}"),
      ERR_FORMAT, "must be above" },
};

static void refuses_configs(void **state)
{
    (void)state;
    struct source *s;
    struct err e = { 0 };
    good_folder();
    for (size_t i = 0; i < sizeof bad_configs / sizeof bad_configs[0]; i++) {
        put_text("config.json", bad_configs[i].text);
        int rc = open_root(&s, &e);
        if (rc != bad_configs[i].code || strstr(e.text, bad_configs[i].message) == NULL)
            fail_msg("config %zu: rc %d, \"%s\"; \"%s\" was expected", i, rc, e.text,
                     bad_configs[i].message);
    }
    unlink(in_root("config.json"));
    assert_int_equal(open_root(&s, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "has no config.json"));
}

static void reads_templates(void **state)
{
    (void)state;
    struct source *s;
    struct err e;
    good_folder();
    assert_int_equal(open_root(&s, &e), 0);
    assert_null(s->chat_template);
    struct tokenizer *t;
    assert_int_equal(source_tokenizer(s, &t, &e), ERR_NOTFOUND);
    put_text("tokenizer.json", "{\"model\":{\"type\":\"Unigram\"}}");
    assert_int_equal(source_tokenizer(s, &t, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "Unigram"));
    unlink(in_root("tokenizer.json"));
    source_close(s);
    put_text("tokenizer_config.json", "{\"chat_template\":\"one\"}");
    assert_int_equal(open_root(&s, &e), 0);
    assert_string_equal(s->chat_template, "one");
    source_close(s);
    put_text("tokenizer_config.json", "{\"chat_template\":[{\"name\":\"tool\",\"template\":\"t\"},"
                                      "{\"name\":\"default\",\"template\":\"d\"}]}");
    assert_int_equal(open_root(&s, &e), 0);
    assert_string_equal(s->chat_template, "d");
    source_close(s);
    put_text("tokenizer_config.json", "{\"model_max_length\":1000000000000000019884624838656,"
                                      "\"chat_template\":\"large\"}");
    if (open_root(&s, &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(s->chat_template, "large");
    source_close(s);
    put_text("chat_template.jinja", "file");
    assert_int_equal(open_root(&s, &e), 0);
    assert_string_equal(s->chat_template, "file");
    source_close(s);
    unlink(in_root("chat_template.jinja"));
    unlink(in_root("tokenizer_config.json"));
}

static void survives_no_memory(void **state)
{
    (void)state;
    struct mem_stats before;
    struct mem_stats after;
    struct source *s;
    struct err e;
    good_folder();
    put_text("tokenizer_config.json", "{\"chat_template\":\"one\"}");
    mem_stats(&before);
    int rc = ERR_NOMEM;
    for (uint64_t n = 1; rc < 0 && n < 200; n++) {
        mem_fail_at(n);
        rc = open_root(&s, &e);
        mem_fail_at(0);
        assert_true(rc == 0 || rc == ERR_NOMEM);
    }
    assert_int_equal(rc, 0);
    source_close(s);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    unlink(in_root("tokenizer_config.json"));
}

/* ---- llama2.c ---------------------------------------------------------------------------------------------------- */

enum { DIM = 8, FFN = 4, LAYERS = 2, HEADS = 2, KV_HEADS = 1, VOCAB = 262, CTX = 16 };
enum { HEAD = DIM / HEADS, KV_DIM = HEAD * KV_HEADS };

/* Every float of the file is its own index, so that its place can be read off. */
static size_t put_llama2c(const char *name, bool tied, int cut)
{
    const int32_t head[7] = { DIM, FFN, LAYERS, HEADS, KV_HEADS, tied ? VOCAB : -VOCAB, CTX };
    int layer = 2 * DIM + 2 * DIM * DIM + 2 * KV_DIM * DIM + 3 * FFN * DIM;
    int n = VOCAB * DIM + LAYERS * layer + DIM + CTX * HEAD + (tied ? 0 : VOCAB * DIM);
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_add(&b, head, sizeof head);
    for (int i = 0; i < n; i++) {
        float f = (float)i;
        buf_add(&b, &f, sizeof f);
    }
    put(name, b.data, b.len - (size_t)cut);
    size_t size = b.len;
    buf_free(&b);
    return size;
}

static void put_vocab(const char *name)
{
    struct buf b;
    int32_t longest = 8;
    buf_init(&b, 1 << 20);
    buf_add(&b, &longest, 4);
    for (int i = 0; i < VOCAB; i++) {
        char text[16];
        float score = (float)-i;
        int32_t len = snprintf(text, sizeof text, "%s",
                               i == 0   ? "<unk>"
                               : i == 1 ? "\n<s>\n"
                               : i == 2 ? "\n</s>\n"
                                        : "a");
        if (i >= 3 && i < 259) { /* the byte itself, zero too */
            text[0] = (char)(i - 3);
            len = 1;
        } else if (i == 260) {
            len = snprintf(text, sizeof text, " b");
        } else if (i == 261) {
            len = snprintf(text, sizeof text, " ");
        }
        buf_add(&b, &score, 4);
        buf_add(&b, &len, 4);
        buf_add(&b, text, (size_t)len);
    }
    put(name, b.data, b.len);
    buf_free(&b);
}

static float element(const struct source *s, const char *name, int row, int col)
{
    float f = -1;
    const struct tensor *t = source_find(s, name);
    assert_non_null(t);
    int64_t cols = t->dim[t->n_dims - 1];
    off_t at = (off_t)t->offset + (off_t)sizeof f * (off_t)(row * cols + col);
    assert_int_equal(pread(s->file[t->file].fd, &f, sizeof f, at), sizeof f);
    return f;
}

static void check_places(const struct source *s)
{
    float at = VOCAB * DIM;
    assert_true(element(s, "token_embd.weight", 3, 2) == 3 * DIM + 2);
    assert_true(element(s, "blk.1.attn_norm.weight", 0, 1) == at + DIM + 1);
    at += LAYERS * DIM;
    /* head 1 of layer 0: rows 0, 1, 2, 3 of the folder are 0, 2, 1, 3 of the file */
    static const int from[] = { 0, 2, 1, 3 };
    for (int r = 0; r < HEAD; r++)
        assert_true(element(s, "blk.0.attn_q.weight", HEAD + r, 5) ==
                    at + (float)((HEAD + from[r]) * DIM + 5));
    at += LAYERS * DIM * DIM;
    assert_true(element(s, "blk.1.attn_k.weight", 2, 0) == at + (KV_DIM + 1) * DIM);
    at += LAYERS * KV_DIM * DIM;
    assert_true(element(s, "blk.1.attn_v.weight", 2, 0) == at + (KV_DIM + 2) * DIM);
    at += LAYERS * KV_DIM * DIM + LAYERS * DIM * DIM;
    assert_true(element(s, "blk.0.ffn_norm.weight", 0, 7) == at + 7);
    at += LAYERS * DIM;
    assert_true(element(s, "blk.0.ffn_gate.weight", 1, 1) == at + DIM + 1);
    at += LAYERS * FFN * DIM;
    assert_true(element(s, "blk.0.ffn_down.weight", 1, 1) == at + FFN + 1);
    at += LAYERS * FFN * DIM;
    assert_true(element(s, "blk.1.ffn_up.weight", 1, 1) == at + FFN * DIM + DIM + 1);
    at += LAYERS * FFN * DIM;
    assert_true(element(s, "output_norm.weight", 0, 0) == at);
    at += DIM + CTX * HEAD;
    if (!s->config.tied)
        assert_true(element(s, "output.weight", 0, 3) == at + 3);
}

static void check_import(bool tied)
{
    struct source *s;
    struct tokenizer *t;
    struct err e;
    const char *out = in_root("imported");
    put_llama2c("model.bin", tied, 0);
    put_vocab("tok.bin");
    if (import_llama2c(in_root("model.bin"), in_root("tok.bin"), out, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(import_llama2c(in_root("model.bin"), in_root("tok.bin"), out, &e),
                     ERR_INVALID);
    if (source_open(&s, out, &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(s->config.arch, "llama");
    assert_int_equal(s->config.n_kv_heads, KV_HEADS);
    assert_int_equal(s->config.ctx_train, CTX);
    assert_true(s->config.norm_eps == 1e-5f && s->config.tied == tied);
    check_places(s);
    if (source_tokenizer(s, &t, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(tok_n(t), VOCAB);
    assert_int_equal(tok_bos(t), 1);
    assert_int_equal(tok_find(t, " b", 2), 260);
    tok_close(t);
    source_close(s);
    fetch_remove(out);
}

static void imports(void **state)
{
    (void)state;
    check_import(true);
    check_import(false);
}

static void refuses_imports(void **state)
{
    (void)state;
    static const struct {
        int at;
        int32_t value;
        const char *message;
    } bad[] = {
        { 0, 0x616b3432, "only version 0" },
        { 0, 0, "dim (bytes 0-3) is 0" },
        { 1, -1, "hidden_dim" },
        { 2, 100000, "n_layers" },
        { 3, 3, "n_heads" },
        { 4, 3, "n_kv_heads" },
        { 5, 0, "vocab_size" },
        { 6, 0, "seq_len" },
        { 6, CTX + 1, "a model of these dimensions has" },
    };
    struct err e;
    put_vocab("tok.bin");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put_llama2c("model.bin", true, 0);
        FILE *f = fopen(in_root("model.bin"), "r+b");
        assert_int_equal(fseek(f, 4 * bad[i].at, SEEK_SET), 0);
        assert_int_equal(fwrite(&bad[i].value, 4, 1, f), 1);
        fclose(f);
        if (import_llama2c(in_root("model.bin"), in_root("tok.bin"), in_root("imported"), &e) ==
                0 ||
            strstr(e.text, bad[i].message) == NULL)
            fail_msg("model %zu: \"%s\"; \"%s\" was expected", i, e.text, bad[i].message);
    }
    put_llama2c("model.bin", true, 1);
    assert_int_equal(
        import_llama2c(in_root("model.bin"), in_root("tok.bin"), in_root("imported"), &e),
        ERR_FORMAT);
    put_llama2c("model.bin", true, 0);
    put("tok.bin", "abc", 3);
    assert_int_equal(
        import_llama2c(in_root("model.bin"), in_root("tok.bin"), in_root("imported"), &e),
        ERR_FORMAT);
    assert_int_equal(access(in_root("imported"), F_OK), -1);
}

/* A model of zeros with as many layers as make its header the first file that meets a limit of 16 KiB. */
static void put_deep_llama2c(const char *name)
{
    enum { DEEP = 40, LAYER = 2 * DIM + 2 * DIM * DIM + 2 * KV_DIM * DIM + 3 * FFN * DIM };
    const int32_t head[7] = { DIM, FFN, DEEP, HEADS, KV_HEADS, VOCAB, CTX };
    put(name, head, sizeof head);
    off_t floats = VOCAB * DIM + DEEP * LAYER + DIM + CTX * HEAD;
    assert_int_equal(truncate(in_root(name), (off_t)sizeof head + 4 * floats), 0);
}

/* A disk that takes the beginning of a write is full, and that is what is said. */
static void imports_to_full_disks(void **state)
{
    (void)state;
    struct err e;
    struct rlimit old;
    put_deep_llama2c("model.bin");
    put_vocab("tok.bin");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 16384, old.rlim_max }), 0);
    int rc = import_llama2c(in_root("model.bin"), in_root("tok.bin"), in_root("imported"), &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(rc, ERR_IO);
    if (strstr(e.text, "model.safetensors: cannot write: File too large") == NULL)
        fail_msg("%s", e.text);
    assert_int_equal(access(in_root("imported"), F_OK), -1);
    if (import_llama2c(in_root("model.bin"), in_root("tok.bin"), in_root("imported"), &e) < 0)
        fail_msg("%s", e.text);
    fetch_remove(in_root("imported"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_tensors),      cmocka_unit_test(refuses_tensors),
        cmocka_unit_test(reads_shards),       cmocka_unit_test(reads_configs),
        cmocka_unit_test(reads_windows),      cmocka_unit_test(refuses_configs),
        cmocka_unit_test(reads_templates),    cmocka_unit_test(imports),
        cmocka_unit_test(refuses_imports),    cmocka_unit_test(imports_to_full_disks),
        cmocka_unit_test(survives_no_memory),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
