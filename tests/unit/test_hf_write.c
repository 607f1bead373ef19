/* Folders of pressed weights: written, killed and continued, read again with the same logits. */
#include <math.h>
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
#include <jansson.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/runner.h"
#include "server/model/arch.h"
#include "tests/tools/scratch.h"
#include "tests/tools/toy.h"
#include "tests/tools/worst.h"
#include "tests/tools/writing.h"

enum { TOKENS = 40 };

#define ARCH(name) "tests/golden/archs/" name

static struct be *be;

/* ---- models ------------------------------------------------------------------------------------------------------ */

static struct model *open_model_on(struct be *on, const char *path, const char *weights)
{
    struct model *m;
    struct err e;
    struct model_options o = { .weights = weights };
    if (model_open(&m, path, &o, on, &e) < 0)
        fail_msg("%s", e.text);
    return m;
}

static struct model *open_model(const char *path, const char *weights)
{
    return open_model_on(be, path, weights);
}

/* A copy of the logits of a fixed text's tokens. */
static float *logits_of(const struct model *m)
{
    struct runner r;
    struct err e;
    const float *logits;
    int32_t id[TOKENS];
    size_t n = (size_t)TOKENS * (size_t)m->config.vocab;
    for (int i = 0; i < TOKENS; i++)
        id[i] = 3 + i * 7 % 250;
    float *copy = mem_alloc(n * sizeof *copy);
    assert_non_null(copy);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, TOKENS, TOKENS, TOKENS, &e), 0);
    assert_int_equal(runner_append(&r, 0, id, TOKENS, TOKENS, &logits, &e), 0);
    memcpy(copy, logits, n * sizeof *copy);
    runner_close(&r);
    return copy;
}

/* Of the model at path, re-encoded while it is loaded, and of the folder. */
static void assert_same_logits_on(struct be *on, const char *path, const char *weights,
                                  const char *folder)
{
    struct model *a = open_model_on(on, path, weights);
    struct model *b = open_model_on(on, folder, "auto");
    float *x = logits_of(a);
    float *y = logits_of(b);
    assert_int_equal(a->config.vocab, b->config.vocab);
    assert_memory_equal(x, y, (size_t)TOKENS * (size_t)a->config.vocab * sizeof *x);
    mem_free(y);
    mem_free(x);
    model_close(b);
    model_close(a);
}

static void assert_same_logits(const char *path, const char *weights, const char *folder)
{
    assert_same_logits_on(be, path, weights, folder);
}

/* ---- there and back ---------------------------------------------------------------------------------------------- */

static void assert_same_config(const struct model_config *a, const struct model_config *b)
{
    assert_string_equal(a->arch, b->arch);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->dim, b->dim);
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->n_kv_heads, b->n_kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->ffn, b->ffn);
    assert_int_equal(a->vocab, b->vocab);
    assert_int_equal(a->ctx_train, b->ctx_train);
    assert_int_equal(a->window, b->window);
    assert_int_equal(a->tied, b->tied);
    assert_int_equal(a->rope_dim, b->rope_dim);
    assert_int_equal(a->rope_scaling, b->rope_scaling);
    assert_int_equal(a->rope_ctx, b->rope_ctx);
    assert_true(b->rope_half_split);
    assert_true(a->norm_eps == b->norm_eps && a->rope_theta == b->rope_theta);
    assert_true(a->rope_factor == b->rope_factor);
    if (a->rope_scaling == ROPE_LLAMA3)
        assert_true(a->rope_low_freq == b->rope_low_freq && a->rope_high_freq == b->rope_high_freq);
}

static void reads_what_it_wrote(void **state)
{
    const char *path = *state;
    struct source *a;
    struct source *b;
    struct err e;
    writing_model(be, path, "q8", in_root("out"));
    assert_int_equal(source_open(&a, path, &e), 0);
    assert_int_equal(source_open(&b, in_root("out"), &e), 0);
    assert_same_config(&a->config, &b->config);
    assert_string_equal(source_form(b, "blk.1.ffn_down.weight"), "q8");
    assert_string_equal(source_form(b, "token_embd.weight"), "q8");
    assert_null(source_form(b, "output_norm.weight"));
    assert_null(source_find(b, "blk.1.ffn_down.weight"));
    assert_non_null(source_part(b, "blk.1.ffn_down.weight", "codes"));
    assert_null(source_part(b, "blk.1.ffn_down.weight", "code"));
    source_close(b);
    source_close(a);
    assert_same_logits(path, "q8", in_root("out"));
    fetch_remove(in_root("out"));
}

/* A GGUF llama has interleaved rope pairs and a tokenizer of its own: rows change places, and dot products of keys add up
 * in another order. */
static void turns_rope_pairs(void **state)
{
    (void)state;
    struct err e;
    struct tok_ids x = { 0 };
    struct tok_ids y = { 0 };
    const char text[] = "The hat and the ring <s> 1234 \xc3\xa9";
    assert_int_equal(toy_write(in_root("toy.gguf"), 5, &e), 0);
    writing_model(be, in_root("toy.gguf"), "f32", in_root("out"));
    struct model *a = open_model(in_root("toy.gguf"), "f32");
    struct model *b = open_model(in_root("out"), "f32");
    assert_false(a->config.rope_half_split);
    assert_same_config(&a->config, &b->config);
    float *p = logits_of(a);
    float *q = logits_of(b);
    double worst = 0;
    for (int i = 0; i < TOKENS * TOY_VOCAB; i++)
        worst = worst_of(worst, fabs((double)p[i] - (double)q[i]));
    print_message("largest difference of logits %.1e\n", worst);
    assert_true(worst < 1e-4);
    assert_int_equal(tok_encode(a->tok, text, sizeof text - 1, TOK_ADD_BOS, &x), 0);
    assert_int_equal(tok_encode(b->tok, text, sizeof text - 1, TOK_ADD_BOS, &y), 0);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.id, y.id, (size_t)x.n * sizeof *x.id);
    assert_non_null(b->tmpl);
    assert_int_equal(access(in_root("out/chat_template.jinja"), F_OK), 0);
    tok_ids_free(&y);
    tok_ids_free(&x);
    mem_free(q);
    mem_free(p);
    model_close(b);
    model_close(a);
    fetch_remove(in_root("out"));
    fetch_remove(in_root("toy.gguf"));
}

/* The template for requests with tools comes along, in the list that transformers reads. */
static void keeps_tool_templates(void **state)
{
    (void)state;
    struct writing x;
    struct source *s;
    struct err e;
    assert_int_equal(toy_write(in_root("toy.gguf"), 5, &e), 0);
    writing_open(&x, be, in_root("toy.gguf"), "q8");
    x.src->tool_template = mem_strdup("{{ tools }} \xc3\xa9\n");
    assert_non_null(x.src->tool_template);
    if (writing_begin(&x, in_root("out"), &e) < 0 || writing_rest(&x, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(source_open(&s, in_root("out"), &e), 0);
    assert_string_equal(s->chat_template, x.src->chat_template);
    assert_non_null(s->tool_template);
    assert_string_equal(s->tool_template, x.src->tool_template);
    source_close(s);
    assert_int_equal(unlink(in_root("out/chat_template.jinja")), 0);
    struct model *m =
        open_model(in_root("out"), "auto"); /* the list has both, the rest is as it was */
    assert_true(m->tmpl != NULL && m->tool_tmpl != NULL && tok_adds_bos(m->tok));
    model_close(m);
    writing_close(&x);
    fetch_remove(in_root("out"));
    fetch_remove(in_root("toy.gguf"));
}

/* To transformers a Mistral without the key has a window of 4096. */
static void says_that_there_is_no_window(void **state)
{
    (void)state;
    struct writing x;
    struct source *s;
    struct err e;
    writing_open(&x, be, ARCH("mistral-window"), "q8");
    x.m->config.window = 0;
    if (writing_begin(&x, in_root("out"), &e) < 0 || writing_rest(&x, &e) < 0)
        fail_msg("%s", e.text);
    writing_close(&x);
    json_t *v = json_load_file(in_root("out/config.json"), 0, NULL);
    assert_true(json_is_null(json_object_get(v, "sliding_window")));
    json_decref(v);
    assert_int_equal(source_open(&s, in_root("out"), &e), 0);
    assert_string_equal(s->config.arch, "mistral");
    assert_int_equal(s->config.window, 0);
    source_close(s);
    fetch_remove(in_root("out"));
}

/* A form that everybody can read needs no word in config.json. */
static void keeps_plain_tensors(void **state)
{
    (void)state;
    static const char *const form[] = { "f32", "bf16" };
    struct source *s;
    struct err e;
    for (int i = 0; i < 2; i++) {
        writing_model(be, ARCH("qwen2-biases"), form[i], in_root("out"));
        assert_int_equal(source_open(&s, in_root("out"), &e), 0);
        assert_int_equal(s->n_forms, 0);
        const struct tensor *t = source_find(s, "blk.0.ffn_up.weight");
        assert_non_null(t);
        assert_int_equal(t->type, i == 0 ? DT_F32 : DT_BF16);
        assert_int_equal(t->n_dims, 2);
        assert_int_equal(t->dim[0], s->config.ffn);
        assert_int_equal(t->dim[1], s->config.dim);
        source_close(s);
        assert_same_logits(ARCH("qwen2-biases"), form[i], in_root("out"));
        fetch_remove(in_root("out"));
    }
}

/* Where the host gathers a matrix before it brings it over; needs a GPU, or its simulation. */
static void loads_on_devices(void **state)
{
    (void)state;
    struct be *device;
    struct err e;
    if (be_open(&device, &(struct be_config){ .device = "cuda", .n_threads = 1 }, &e) < 0)
        skip();
    writing_model(be, ARCH("qwen2-biases"), "q8", in_root("out"));
    assert_same_logits_on(device, ARCH("qwen2-biases"), "q8", in_root("out"));
    be_close(device);
    fetch_remove(in_root("out"));
}

/* ---- killed and continued ---------------------------------------------------------------------------------------- */

static const char *const files[] = {
    "config.json",
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
    "model.safetensors.index.json",
    "tokenizer.model",
};
enum { N_FILES = sizeof files / sizeof files[0] };

static void assert_same_file(const char *a, const char *b, const char *name)
{
    char path[2][100];
    struct buf x;
    struct buf y;
    snprintf(path[0], sizeof path[0], "%s/%s", a, name);
    snprintf(path[1], sizeof path[1], "%s/%s", b, name);
    read_file(&x, path[0]);
    read_file(&y, path[1]);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
    buf_free(&y);
    buf_free(&x);
}

static void put_text(const char *name, const char *text)
{
    struct err e;
    assert_int_equal(file_write_atomic(in_root(name), text, strlen(text), &e), 0);
}

static void goes_on(void **state)
{
    (void)state;
    struct writing x;
    struct err e;
    struct stat st;
    writing_model(be, ARCH("llama3-scaling"), "q8", in_root("whole"));
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("out/"), &e), 0);
    assert_false(hf_write_has_shard(x.w, 1));
    assert_int_equal(writing_shard(&x, 1, &e), 0);
    assert_int_equal(writing_shard(&x, 2, &e), 0);
    assert_int_equal(hf_write_finish(x.w, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "model-00001-of-00003.safetensors"));
    hf_write_shard_begin(x.w, 0); /* begun, not ended */
    writing_close(&x);
    assert_int_equal(access(in_root("out"), F_OK), -1);

    /* what a kill may leave, and a shard that lost its end */
    put_text("out.part/model-00001-of-00003.safetensors.tmp", "half");
    put_text("out.part/config.json.a1B2c3", "half");
    put_text("out.part/mine.json", "{}");
    assert_int_equal(stat(in_root("out.part/model-00003-of-00003.safetensors"), &st), 0);
    assert_int_equal(truncate(in_root("out.part/model-00003-of-00003.safetensors"), st.st_size - 1),
                     0);

    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    assert_true(hf_write_has_shard(x.w, 1));
    assert_false(hf_write_has_shard(x.w, 2));
    if (writing_rest(&x, &e) < 0)
        fail_msg("%s", e.text);
    writing_close(&x);
    for (int i = 0; i < N_FILES; i++)
        assert_same_file("whole", "out", files[i]);
    assert_int_equal(access(in_root("out/mine.json"), F_OK), 0);
    assert_int_equal(access(in_root("out/model-00001-of-00003.safetensors.tmp"), F_OK), -1);
    assert_int_equal(access(in_root("out/config.json.a1B2c3"), F_OK), -1);
    assert_int_equal(access(in_root("out.part"), F_OK), -1);
    fetch_remove(in_root("out"));
    fetch_remove(in_root("whole"));
}

static void write_two(struct writing *x, const struct model *m, int first)
{
    struct err e;
    const float bias[] = { 1, 2, 3 };
    hf_write_shard_begin(x->w, 1);
    for (int i = 0; i < 2; i++) {
        bool q = (i ^ first) != 0;
        const struct weight *w = q ? &m->layer[0].q : &m->layer[0].v;
        assert_int_equal(
            hf_write_weight(x->w, q ? "blk.0.attn_q.weight" : "blk.0.attn_v.weight", w, &e), 0);
        assert_int_equal(
            hf_write_vector(x->w, q ? "blk.0.attn_q.bias" : "blk.0.attn_v.bias", bias, 3, &e), 0);
    }
    if (hf_write_shard_end(x->w, &e) < 0)
        fail_msg("%s", e.text);
}

static void knows_no_order(void **state)
{
    (void)state;
    struct writing x;
    struct err e;
    struct buf a;
    struct buf b;
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    struct model *m = open_model(ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    write_two(&x, m, 0);
    read_file(&a, "out.part/model-00002-of-00003.safetensors");
    write_two(&x, m, 1);
    read_file(&b, "out.part/model-00002-of-00003.safetensors");
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    buf_free(&b);
    buf_free(&a);
    model_close(m);
    writing_close(&x);
    fetch_remove(in_root("out.part"));
}

/* A folder with all but its name can be opened; a shard replaced then bears its mark, which is no form. */
static void replaces_shards(void **state)
{
    (void)state;
    struct writing x;
    struct err e;
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    assert_int_equal(hf_write_rest(x.w, &e), ERR_NOTFOUND);
    for (int i = 0; i < 3; i++)
        assert_int_equal(writing_shard(&x, i, &e), 0);
    assert_int_equal(hf_write_rest(x.w, &e), 0);
    struct model *m = open_model(in_root("out.part"), "auto");
    assert_false(hf_write_has_mark(x.w, 1, "a"));
    hf_write_shard_begin(x.w, 1);
    hf_write_shard_mark(x.w, "a");
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        if (strncmp(s->name, "blk.0.", 6) != 0)
            continue;
        if (s->w != NULL && s->w->codec != NULL)
            assert_int_equal(hf_write_weight(x.w, s->name, s->w, &e), 0);
        else if (s->v != NULL && *s->v != NULL)
            assert_int_equal(hf_write_vector(x.w, s->name, *s->v, s->rows, &e), 0);
    }
    assert_int_equal(hf_write_shard_end(x.w, &e), 0);
    model_close(m);
    assert_true(hf_write_has_mark(x.w, 1, "a"));
    assert_false(hf_write_has_mark(x.w, 1, "b") || hf_write_has_mark(x.w, 2, "a"));
    assert_int_equal(hf_write_finish(x.w, &e), 0);
    model_close(open_model(in_root("out"), "auto"));
    writing_close(&x);
    fetch_remove(in_root("out"));
}

/* More bytes than the header says are as bad as fewer. */
static void knows_whole_shards(void **state)
{
    (void)state;
    struct writing x;
    struct err e;
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    assert_int_equal(writing_shard(&x, 0, &e), 0);
    assert_true(hf_write_has_shard(x.w, 0));
    FILE *f = fopen(in_root("out.part/model-00001-of-00003.safetensors"), "ab");
    assert_int_equal(fputc(0, f), 0);
    assert_int_equal(fclose(f), 0);
    assert_false(hf_write_has_shard(x.w, 0));
    writing_close(&x);
    fetch_remove(in_root("out.part"));
}

/* ---- where it cannot be written ---------------------------------------------------------------------------------- */

static void refuses_places(void **state)
{
    (void)state;
    struct writing x;
    struct writing y;
    struct err e;
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    writing_open(&y, be, ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("no/out"), &e), ERR_IO);
    assert_non_null(strstr(e.text, "no/out.part: cannot create the folder"));
    put_text("taken", "");
    assert_int_equal(writing_begin(&x, in_root("taken"), &e), ERR_INVALID);
    assert_int_equal(mkdir(in_root("out"), 0755), 0);
    put_text("out/file", "");
    assert_int_equal(writing_begin(&x, in_root("out"), &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "is there already"));
    assert_int_equal(unlink(in_root("out/file")), 0);
    assert_int_equal(symlink("out", in_root("link")), 0);
    assert_int_equal(writing_begin(&x, in_root("link"), &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "link: is empty but cannot be replaced"));
    assert_int_equal(unlink(in_root("link")), 0);
    assert_int_equal(hf_write_open(&x.w, "/", x.src, &x.m->config, 3, &e), ERR_INVALID);
    assert_int_equal(hf_write_open(&x.w, "", x.src, &x.m->config, 3, &e), ERR_INVALID);
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    assert_int_equal(writing_begin(&y, in_root("out"), &e), ERR_BUSY);
    assert_int_equal(writing_shard(&x, 0, &e), 0);
    hf_write_close(x.w);
    assert_int_equal(hf_write_open(&x.w, in_root("out"), x.src, &x.m->config, 4, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "model-00001-of-00003.safetensors of another run"));
    x.w = NULL;
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    assert_int_equal(writing_rest(&x, &e), 0); /* an empty OUT is replaced */
    x.m->config.window = 7;
    snprintf(x.m->config.arch, sizeof x.m->config.arch, "qwen2");
    assert_int_equal(writing_begin(&y, in_root("other"), &e), 0);
    hf_write_close(y.w);
    assert_int_equal(hf_write_open(&y.w, in_root("other"), x.src, &x.m->config, 3, &e),
                     ERR_UNSUPPORTED);
    y.w = NULL;
    writing_close(&y);
    writing_close(&x);
    fetch_remove(in_root("out"));
    fetch_remove(in_root("other.part"));
    fetch_remove(in_root("taken"));
}

/* A file system that takes no more than 20,000 bytes a file stands for a full one. */
static void survives_full_disks(void **state)
{
    (void)state;
    struct writing x;
    struct err e;
    struct rlimit old;
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    assert_int_equal(writing_begin(&x, in_root("out"), &e), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit small = { 20000, old.rlim_max };
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = writing_shard(&x, 0, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(rc, ERR_IO);
    assert_non_null(strstr(e.text, "model-00001-of-00003.safetensors.tmp: cannot write: "));
    assert_int_equal(access(in_root("out.part/model-00001-of-00003.safetensors.tmp"), F_OK), -1);
    assert_false(hf_write_has_shard(x.w, 0));
    if (writing_rest(&x, &e) < 0)
        fail_msg("%s", e.text);
    writing_close(&x);
    assert_same_logits(ARCH("llama3-scaling"), "q8", in_root("out"));
    fetch_remove(in_root("out"));
}

/* 0 or for want of memory; the parser of sentencepiece models does not tell that from other trouble. */
static void assert_no_memory(int rc, const struct err *e)
{
    if (rc < 0 && rc != ERR_NOMEM && strstr(e->text, "tokenizer.model: not a sentenc") == NULL)
        fail_msg("%s", e->text);
}

static int write_shards(struct writing *x, struct err *e)
{
    int rc = writing_begin(x, in_root("out"), e);
    for (int i = 0; rc == 0 && i < writing_shards(x); i++)
        if (!hf_write_has_shard(x->w, i))
            rc = writing_shard(x, i, e);
    writing_stop(x);
    return rc;
}

/* Calls f until memory holds out for it, with an allocation failing before that: the first, and one `step` further on each
 * time. */
static void run_short_of_memory(int (*f)(struct writing *x, struct err *e), struct writing *x,
                                uint64_t step)
{
    struct err e;
    struct mem_stats before;
    struct mem_stats after;
    mem_stats(&before);
    int rc = ERR_NOMEM;
    for (uint64_t n = 1; rc < 0 && n < 100000; n += step) {
        mem_fail_at(n);
        rc = f(x, &e);
        mem_fail_at(0);
        assert_no_memory(rc, &e);
    }
    assert_int_equal(rc, 0);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

static int finish(struct writing *x, struct err *e)
{
    int rc = writing_begin(x, in_root("out"), e);
    if (rc == 0)
        rc = hf_write_finish(x->w, e);
    writing_stop(x);
    return rc;
}

/* Wherever memory ends, the next run goes on to the same model. */
static void survives_no_memory(void **state)
{
    (void)state;
    struct writing x;
    writing_model(be, ARCH("llama3-scaling"), "q8", in_root("whole"));
    writing_open(&x, be, ARCH("llama3-scaling"), "q8");
    run_short_of_memory(write_shards, &x, 1);
    run_short_of_memory(finish, &x, 41); /* it waits for the disk */
    writing_close(&x);
    for (int i = 0; i < N_FILES; i++)
        assert_same_file("whole", "out", files[i]);
    fetch_remove(in_root("out"));
    fetch_remove(in_root("whole"));
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

#define CASE(name)                                                                                 \
    {                                                                                              \
        name, reads_what_it_wrote, NULL, NULL, (void *)ARCH(name)                                  \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE("llama3-scaling"),
        CASE("linear-scaling"),
        CASE("mistral-window"),
        CASE("qwen2-biases"),
        CASE("qwen3-head-norms"),
        cmocka_unit_test(turns_rope_pairs),
        cmocka_unit_test(keeps_tool_templates),
        cmocka_unit_test(says_that_there_is_no_window),
        cmocka_unit_test(keeps_plain_tensors),
        cmocka_unit_test(loads_on_devices),
        cmocka_unit_test(goes_on),
        cmocka_unit_test(knows_no_order),
        cmocka_unit_test(replaces_shards),
        cmocka_unit_test(knows_whole_shards),
        cmocka_unit_test(refuses_places),
        cmocka_unit_test(survives_full_disks),
        cmocka_unit_test(survives_no_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
