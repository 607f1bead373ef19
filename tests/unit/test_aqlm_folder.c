/* Folders of models pressed by AQLM: a tiny model against transformers and aqlm (tests/golden/aqlm/llama), every published form
 * against the same weights kept plain, both generations of config.json, and every way a folder can be wrong. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "quant/codec.h"
#include "server/base/buf.h"
#include "server/base/mem.h"
#include "server/cli/runner.h"
#include "tests/tools/levels.h"
#include "tests/tools/scratch.h"
#include "tests/tools/worst.h"

static struct be *be;

/* ---- the reference ----------------------------------------------------------------------------------------------- */

enum { TOKENS = 100, CHUNK = 33 };

static double logprob_of(const float *row, int vocab, int32_t id)
{
    double sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += exp((double)row[i] - (double)row[id]);
    return -log(sum);
}

/* The largest difference of log-probabilities from expected.txt. */
static double differs(bool int8)
{
    static const char folder[] = "tests/golden/aqlm/llama";
    struct buf b;
    struct model *m;
    struct runner r;
    struct err e;
    const float *logits;
    int32_t id[TOKENS];
    double want[TOKENS];
    buf_init(&b, 1 << 20);
    assert_int_equal(buf_read_file(&b, "tests/golden/aqlm/llama/expected.txt", NULL), 0);
    char *p = b.data;
    for (int i = 0; i < TOKENS; i++) {
        id[i] = (int32_t)strtol(p, &p, 10);
        want[i] = strtod(p, &p);
    }
    buf_free(&b);
    if (model_open(&m, folder, &(struct model_options){ .weights = "auto", .int8 = int8 }, be, &e) <
        0)
        fail_msg("%s", e.text);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, TOKENS, CHUNK, CHUNK, &e), 0);
    double worst = 0;
    for (int at = 0; at < TOKENS; at += CHUNK) {
        int n = TOKENS - at < CHUNK ? TOKENS - at : CHUNK;
        assert_int_equal(runner_append(&r, 0, id + at, n, n, &logits, &e), 0);
        for (int k = 0; k < n && at + k + 1 < TOKENS; k++) {
            const float *row = logits + (size_t)k * (size_t)m->config.vocab;
            double got = logprob_of(row, m->config.vocab, id[at + k + 1]);
            worst = worst_of(worst, fabs(got - want[at + k + 1]));
        }
    }
    runner_close(&r);
    model_close(m);
    return worst;
}

static void agrees_with_transformers(void **state)
{
    (void)state;
    double exact = differs(false);
    double int8 = differs(true);
    print_message("largest difference of log-probabilities: %.1e, with int8 products %.3f\n", exact,
                  int8);
    assert_true(exact < 1e-4);
    assert_true(int8 < 0.3);
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

enum { DIM = 32, FFN = 64, KV = 16, VOCAB = 512, N = 20 };

static const struct {
    const char *name;
    int rows, cols;
} module[] = {
    { "self_attn.q_proj", DIM, DIM }, { "self_attn.k_proj", KV, DIM },
    { "self_attn.v_proj", KV, DIM },  { "self_attn.o_proj", DIM, DIM },
    { "mlp.gate_proj", FFN, DIM },    { "mlp.up_proj", FFN, DIM },
    { "mlp.down_proj", DIM, FFN },
};
enum { MODULES = sizeof module / sizeof module[0] };

/* A safetensors file in the making. */
struct file {
    struct buf head, data;
};

static void file_open(struct file *f)
{
    buf_init(&f->head, 1 << 20);
    buf_init(&f->data, 64 << 20);
}

static void add(struct file *f, const char *name, const char *dtype, const char *shape,
                const void *p, size_t n)
{
    size_t at = f->data.len;
    buf_addf(&f->head, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
             f->head.len > 0 ? "," : "{", name, dtype, shape, at, at + n);
    buf_add(&f->data, p, n);
}

static void file_write(struct file *f, const char *folder, const char *config, size_t cut)
{
    char name[64];
    struct buf b;
    struct err e;
    (void)mkdir(in_root(folder), 0700);
    snprintf(name, sizeof name, "%s/config.json", folder);
    if (file_write_atomic(in_root(name), config, strlen(config), &e) < 0)
        fail_msg("%s", e.text);
    buf_addc(&f->head, '}');
    uint64_t n = f->head.len;
    buf_init(&b, 80 << 20);
    buf_add(&b, &n, 8);
    buf_add(&b, f->head.data, f->head.len);
    buf_add(&b, f->data.data, f->data.len);
    assert_int_equal(b.bad + f->head.bad + f->data.bad, 0);
    snprintf(name, sizeof name, "%s/model.safetensors", folder);
    if (file_write_atomic(in_root(name), b.data, b.len - cut, &e) < 0)
        fail_msg("%s", e.text);
    buf_free(&b);
    buf_free(&f->head);
    buf_free(&f->data);
}

static void copy_tokenizer(const char *folder)
{
    char name[64];
    struct buf b;
    struct err e;
    buf_init(&b, 1 << 20);
    snprintf(name, sizeof name, "%s/tokenizer.model", folder);
    if (buf_read_file(&b, "tests/golden/aqlm/llama/tokenizer.model", &e) < 0 ||
        file_write_atomic(in_root(name), b.data, b.len, &e) < 0)
        fail_msg("%s", e.text);
    buf_free(&b);
}

/* n halves near `middle` under this name in both files. */
static void add_halves(struct file *a, struct file *b, const char *name, const char *shape, int n,
                       float middle, float width)
{
    uint16_t v[VOCAB * DIM];
    for (int i = 0; i < n; i++)
        v[i] = f32_to_f16(middle + rnd_unit() * width);
    add(a, name, "F16", shape, v, (size_t)n * 2);
    add(b, name, "F16", shape, v, (size_t)n * 2);
}

/* What is wrong with a folder. */
struct fault {
    const char *missing; /* the end of the name of tensors that are left out */
    const char *shape;   /* of the tensors `named` */
    const char *named;
    size_t cut; /* bytes off the end of the file */
};

static bool ends(const char *name, const char *with)
{
    size_t n = strlen(name);
    return with != NULL && n >= strlen(with) && strcmp(name + n - strlen(with), with) == 0;
}

/* A part with random bytes; what weight_put() took. */
static void add_part(struct file *f, struct weight *w, const char *name, int i,
                     const struct codec_part *p, const struct fault *fault)
{
    char shape[64];
    char full[128];
    size_t n = codec_part_bytes(p);
    uint8_t *bytes = mem_alloc(n);
    int len = 0;
    for (int d = 0; d < p->n_dims; d++)
        len +=
            snprintf(shape + len, sizeof shape - (size_t)len, "%s%d", d ? "," : "", (int)p->dim[d]);
    for (size_t k = 0; i == 0 && k < n; k++)
        bytes[k] = (uint8_t)rnd_bits();
    for (size_t k = 0; i != 0 && k < n / 2; k++) {
        uint16_t v = f32_to_f16(i == 1 ? rnd_unit() * 0.2f : 1 + rnd_unit() * 0.5f);
        memcpy(bytes + 2 * k, &v, 2);
    }
    weight_put(w, i, 0, n, bytes);
    snprintf(full, sizeof full, "model.layers.0.%s.%s", name, p->name);
    if (!ends(full, fault->missing))
        add(f, full, dtype_name(p->type), ends(full, fault->named) ? fault->shape : shape, bytes,
            n);
    mem_free(bytes);
}

/* A pressed matrix to one file, its weights to the other. */
static void add_module(struct file *pressed, struct file *plain, const char *form, int i,
                       const struct fault *fault)
{
    char name[128];
    char shape[64];
    struct err e;
    struct weight w;
    struct codec_part p[CODEC_PARTS];
    float row[FFN];
    uint16_t half[FFN * FFN];
    int rows = module[i].rows;
    int cols = module[i].cols;
    if (weight_open_form(&w, be, form, false, rows, cols, &e) < 0)
        fail_msg("%s", e.text);
    int n = weight_parts(&w, p);
    for (int k = 0; k < n; k++)
        add_part(pressed, &w, module[i].name, k, &p[k], fault);
    for (int r = 0; r < rows; r++) {
        w.codec->decode(&w, r, row);
        for (int k = 0; k < cols; k++)
            half[r * cols + k] = f32_to_f16(row[k]);
    }
    weight_close(&w, be);
    snprintf(name, sizeof name, "model.layers.0.%s.weight", module[i].name);
    snprintf(shape, sizeof shape, "%d,%d", rows, cols);
    add(plain, name, "F16", shape, half, (size_t)(rows * cols) * 2);
}

#define NUMBERS                                                                                    \
    "\"num_hidden_layers\":1,\"hidden_size\":32,\"num_attention_heads\":2,"                        \
    "\"num_key_value_heads\":1,\"intermediate_size\":64,\"vocab_size\":512,"                       \
    "\"max_position_embeddings\":64,\"tie_word_embeddings\":true"
#define CONFIG(arch, more) "{\"architectures\":[\"" arch "ForCausalLM\"]," NUMBERS more "}"
#define SHAPE(m, b, g)                                                                             \
    "\"num_codebooks\":" #m ",\"nbits_per_codebook\":" #b ",\"in_group_size\":" #g                 \
    ",\"out_group_size\":1"
#define METHOD(more) ",\"quantization_config\":{\"quant_method\":\"aqlm\"," more "}"

/* Two folders of one model: "pressed" and "plain". Everything is the same for the same arguments. */
static void write_both(const char *form, const char *config, const char *plain_config, bool biases,
                       const struct fault *fault)
{
    struct file a;
    struct file b;
    file_open(&a);
    file_open(&b);
    rnd_seed(7);
    add_halves(&a, &b, "model.embed_tokens.weight", "512,32", VOCAB * DIM, 0, 0.5f);
    add_halves(&a, &b, "model.norm.weight", "32", DIM, 1, 0.2f);
    add_halves(&a, &b, "model.layers.0.input_layernorm.weight", "32", DIM, 1, 0.2f);
    add_halves(&a, &b, "model.layers.0.post_attention_layernorm.weight", "32", DIM, 1, 0.2f);
    if (biases) {
        add_halves(&a, &b, "model.layers.0.self_attn.q_proj.bias", "32", DIM, 0, 0.3f);
        add_halves(&a, &b, "model.layers.0.self_attn.k_proj.bias", "16", KV, 0, 0.3f);
        add_halves(&a, &b, "model.layers.0.self_attn.v_proj.bias", "16", KV, 0, 0.3f);
    }
    for (int i = 0; i < MODULES; i++)
        add_module(&a, &b, form, i, fault);
    file_write(&a, "pressed", config, fault->cut);
    file_write(&b, "plain", plain_config, 0);
    copy_tokenizer("pressed");
    copy_tokenizer("plain");
}

static void run(const char *folder, float *out)
{
    static const int32_t id[N] = { 1, 7,  3, 39, 0, 12, 25, 25, 8,  31,
                                   4, 18, 2, 36, 9, 9,  5,  1,  20, 11 };
    struct model *m;
    struct runner r;
    struct err e;
    const float *logits;
    if (model_open(&m, in_root(folder), &(struct model_options){ .weights = "auto" }, be, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, N, N, N, &e), 0);
    assert_int_equal(runner_append(&r, 0, id, N, N, &logits, &e), 0);
    memcpy(out, logits, sizeof(float) * N * VOCAB);
    runner_close(&r);
    model_close(m);
}

static const struct {
    const char *form, *config, *plain;
    bool biases;
} good[] = {
    { "aqlm1x16g8",
      CONFIG("Llama", METHOD(SHAPE(1, 16, 8) ",\"linear_weights_not_to_quantize\":["
                                             "\"model.embed_tokens.weight\",\"lm_head.weight\","
                                             "\"model.layers.0.self_attn.q_proj.bias\"]")),
      CONFIG("Llama", ""), false },
    { "aqlm1x16g16",
      CONFIG("Mistral",
             METHOD(SHAPE(1, 16, 16) ",\"modules_to_not_convert\":[\"lm_head\",\"model.norm\"]")),
      CONFIG("Mistral", ""), false },
    { "aqlm2x8g8", CONFIG("Llama", ",\"model_type\":\"llama_aqlm\",\"aqlm\":{" SHAPE(2, 8, 8) "}"),
      CONFIG("Llama", ""), false },
    { "aqlm2x8g8", CONFIG("Qwen2", METHOD(SHAPE(2, 8, 8) ",\"modules_to_not_convert\":null")),
      CONFIG("Qwen2", ""), true },
    { "aqlm1x8g8", CONFIG("Llama", METHOD(SHAPE(1, 8, 8))), CONFIG("Llama", ""), false },
    { "aqlm8x8g32", CONFIG("Llama", METHOD(SHAPE(8, 8, 32))), CONFIG("Llama", ""), false },
    { "aqlm1x15g8", CONFIG("Llama", METHOD(SHAPE(1, 15, 8))), CONFIG("Llama", ""), false },
};

/* The exact numbers, in the dense codec's order of sums: the same logits to the bit. */
static void equals_plain_weights(void **state)
{
    (void)state;
    static float pressed[N * VOCAB];
    static float plain[N * VOCAB];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        write_both(good[i].form, good[i].config, good[i].plain, good[i].biases,
                   &(struct fault){ 0 });
        run("pressed", pressed);
        run("plain", plain);
        if (memcmp(pressed, plain, sizeof plain) != 0)
            fail_msg("%s (%zu): logits differ from those of plain weights", good[i].form, i);
        assert_true(isfinite(plain[0]) && plain[0] != plain[1]);
    }
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

#define GOOD CONFIG("Llama", METHOD(SHAPE(2, 8, 8)))

static const struct {
    const char *config;
    struct fault fault;
    int code;
    const char *message;
} bad[] = {
    { GOOD,
      { .missing = "o_proj.codebooks" },
      ERR_FORMAT,
      "tensor blk.0.attn_output.weight: the form aqlm2x8g8 needs a tensor "
      "blk.0.attn_output.codebooks, which is missing" },
    { GOOD,
      { .missing = "up_proj.codes" },
      ERR_FORMAT,
      "needs a tensor blk.0.ffn_up.codes, which is missing" },
    { GOOD, { .missing = ".scales" }, ERR_FORMAT, "blk.0.attn_q.scales, which is missing" },
    { GOOD,
      { .named = "q_proj.codes", .shape = "32,2,4" },
      ERR_FORMAT,
      "tensor blk.0.attn_q.codes is 32 x 2 x 4 of I8; the form aqlm2x8g8 has 32 x 4 x 2 of I8" },
    { GOOD,
      { .named = "v_proj.codebooks", .shape = "2,256,8" },
      ERR_FORMAT,
      "tensor blk.0.attn_v.codebooks is 2 x 256 x 8 of F16; the form aqlm2x8g8 has "
      "2 x 256 x 1 x 8 of F16" },
    { GOOD,
      { .named = "down_proj.scales", .shape = "32" },
      ERR_FORMAT,
      "tensor blk.0.ffn_down.scales is 32 of F16" },
    { GOOD, { .cut = 1 }, ERR_FORMAT, "cut short" },
    { CONFIG("Llama", METHOD(SHAPE(1, 8, 8))),
      { 0 },
      ERR_FORMAT,
      "tensor blk.0.attn_q.codes is 32 x 4 x 2 of I8; the form aqlm1x8g8 has 32 x 4 x 1 of I8" },
    { CONFIG("Llama", METHOD(SHAPE(2, 9, 8))),
      { 0 },
      ERR_FORMAT,
      "the form aqlm2x9g8 has 32 x 4 x 2 of I16" },
    { CONFIG("Llama", METHOD(SHAPE(2, 17, 8))),
      { 0 },
      ERR_UNSUPPORTED,
      "\"nbits_per_codebook\" is 17; 1 to 16 is supported" },
    { CONFIG("Llama", METHOD(SHAPE(2, 0, 8))),
      { 0 },
      ERR_UNSUPPORTED,
      "\"nbits_per_codebook\" is 0" },
    { CONFIG("Llama", METHOD(SHAPE(9, 8, 8))), { 0 }, ERR_UNSUPPORTED, "\"num_codebooks\" is 9" },
    { CONFIG("Llama", METHOD(SHAPE(2, 8, 24))),
      { 0 },
      ERR_UNSUPPORTED,
      "\"in_group_size\" is 24; 8, 16 and 32 are supported" },
    { CONFIG("Llama", METHOD("\"num_codebooks\":2,\"nbits_per_codebook\":8,\"in_group_size\":8,"
                             "\"out_group_size\":2")),
      { 0 },
      ERR_UNSUPPORTED,
      "\"out_group_size\" is 2; 1 to 1 is supported" },
    { CONFIG("Llama", METHOD("\"num_codebooks\":2,\"in_group_size\":8,\"out_group_size\":1")),
      { 0 },
      ERR_FORMAT,
      "\"nbits_per_codebook\" is missing" },
    { CONFIG("Llama", METHOD(SHAPE("2", 8, 8))),
      { 0 },
      ERR_FORMAT,
      "\"num_codebooks\" is something else" },
    { CONFIG("Llama", ",\"aqlm\":{}"), { 0 }, ERR_FORMAT, "\"in_group_size\" is missing" },
    { CONFIG("Llama", METHOD(SHAPE(2, 8, 8) ",\"linear_weights_not_to_quantize\":["
                                            "\"model.layers.0.mlp.up_proj.weight\"]")),
      { 0 },
      ERR_FORMAT,
      "\"model.layers.0.mlp.up_proj.weight\" is listed as not pressed, but has codes" },
    { CONFIG("Llama", METHOD(SHAPE(2, 8, 8) ",\"modules_to_not_convert\":["
                                            "\"model.layers.0.mlp.up_proj\"]")),
      { 0 },
      ERR_FORMAT,
      "\"model.layers.0.mlp.up_proj\" is listed as not pressed" },
    { CONFIG("Llama", METHOD(SHAPE(2, 8, 8) ",\"modules_to_not_convert\":[3]")),
      { 0 },
      ERR_FORMAT,
      "no string at 0" },
    { CONFIG("Llama", ",\"quantization_config\":{\"quant_method\":\"gptq\"}"),
      { 0 },
      ERR_UNSUPPORTED,
      "quant_method \"gptq\" is not supported; wring and aqlm are" },
    { CONFIG("Llama", ""), { 0 }, ERR_FORMAT, "blk.0.attn_q.weight is missing" },
};

static void refuses_faults(void **state)
{
    (void)state;
    struct model *m;
    struct err e = { 0 };
    struct model_options o = { .weights = "auto" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_both("aqlm2x8g8", bad[i].config, "{}", false, &bad[i].fault);
        int rc = model_open(&m, in_root("pressed"), &o, be, &e);
        if (rc != bad[i].code || strstr(e.text, bad[i].message) == NULL)
            fail_msg("fault %zu: rc %d, \"%s\"; \"%s\" was expected", i, rc, e.text,
                     bad[i].message);
    }
    /* weights without a pressed module under a config that promises them; other forms by the user's word */
    write_both("aqlm2x8g8", GOOD, GOOD, false, &(struct fault){ 0 });
    assert_int_equal(model_open(&m, in_root("plain"), &o, be, &e), ERR_FORMAT);
    assert_non_null(strstr(e.text, "no module has codes"));
    o.weights = "q8";
    assert_int_equal(model_open(&m, in_root("pressed"), &o, be, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "pressed"));
    o.weights = "aqlm2x8g8";
    write_both("aqlm2x8g8", GOOD, CONFIG("Llama", ""), false, &(struct fault){ 0 });
    assert_int_equal(model_open(&m, in_root("plain"), &o, be, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "nothing is encoded to it"));
}

static void survives_no_memory(void **state)
{
    (void)state;
    struct mem_stats before;
    struct mem_stats after;
    struct source *s;
    struct err e;
    write_both("aqlm2x8g8", GOOD, "{}", false, &(struct fault){ 0 });
    mem_stats(&before);
    int rc = ERR_NOMEM;
    for (uint64_t n = 1; rc < 0 && n < 500; n++) {
        mem_fail_at(n);
        rc = source_open(&s, in_root("pressed"), &e);
        mem_fail_at(0);
        assert_true(rc == 0 || rc == ERR_NOMEM);
    }
    assert_int_equal(rc, 0);
    assert_string_equal(source_form(s, "blk.0.attn_q.weight"), "aqlm2x8g8");
    assert_null(source_form(s, "token_embd.weight"));
    source_close(s);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

static int open_all(void **state)
{
    struct err e;
    return be_open(&be, &(struct be_config){ .device = "cpu" }, &e) < 0 ? -1 : scratch_open(state);
}

static int close_all(void **state)
{
    be_close(be);
    return scratch_close(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_transformers),
        cmocka_unit_test(equals_plain_weights),
        cmocka_unit_test(refuses_faults),
        cmocka_unit_test(survives_no_memory),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
