#include "tests/tools/toy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- GGUF, version 3 ----------------------------------------------------------------------------------------- */

enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_F32 = 6, GGUF_BOOL = 7, GGUF_STR = 8, GGUF_ARRAY = 9 };

static void put(struct buf *b, const void *p, size_t n)
{
    (void)buf_add(b, p, n);
}

static void put_u32(struct buf *b, uint32_t v)
{
    put(b, &v, sizeof v);
}

static void put_u64(struct buf *b, uint64_t v)
{
    put(b, &v, sizeof v);
}

static void put_str(struct buf *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static void key(struct buf *b, const char *name, uint32_t type)
{
    put_str(b, name);
    put_u32(b, type);
}

static void key_u32(struct buf *b, const char *name, uint32_t v)
{
    key(b, name, GGUF_U32);
    put_u32(b, v);
}

static void key_f32(struct buf *b, const char *name, float v)
{
    key(b, name, GGUF_F32);
    put(b, &v, sizeof v);
}

static void key_bool(struct buf *b, const char *name, bool v)
{
    key(b, name, GGUF_BOOL);
    put(b, &(char){ v }, 1);
}

static void key_str(struct buf *b, const char *name, const char *v)
{
    key(b, name, GGUF_STR);
    put_str(b, v);
}

static void key_array(struct buf *b, const char *name, uint32_t type, uint64_t n)
{
    key(b, name, GGUF_ARRAY);
    put_u32(b, type);
    put_u64(b, n);
}

/* ---- vocabulary ---------------------------------------------------------------------------------------------- */

static const char *const piece[] = { "\xe2\x96\x81",
                                     "a",
                                     "b",
                                     "c",
                                     "d",
                                     "e",
                                     "f",
                                     "g",
                                     "h",
                                     "i",
                                     "j",
                                     "k",
                                     "l",
                                     "m",
                                     "n",
                                     "o",
                                     "p",
                                     "q",
                                     "r",
                                     "s",
                                     "t",
                                     "u",
                                     "v",
                                     "w",
                                     "x",
                                     "y",
                                     "z",
                                     "th",
                                     "he",
                                     "in",
                                     "er",
                                     "an",
                                     "on",
                                     "ou",
                                     "at",
                                     "ed",
                                     "st",
                                     "or",
                                     "is",
                                     "the",
                                     "and" };
enum { FIRST_PIECE = 259 };
_Static_assert(FIRST_PIECE + sizeof piece / sizeof *piece == TOY_VOCAB, "vocabulary size");

static void put_piece(struct buf *b, int i)
{
    char byte[8];
    snprintf(byte, sizeof byte, "<0x%02X>", (unsigned)(i - 3) & 0xff);
    put_str(b, i == 0            ? "<unk>"
               : i == 1          ? "<s>"
               : i == 2          ? "</s>"
               : i < FIRST_PIECE ? byte
                                 : piece[i - FIRST_PIECE]);
}

static void put_vocab(struct buf *b)
{
    key_str(b, "tokenizer.ggml.model", "llama");
    key_array(b, "tokenizer.ggml.tokens", GGUF_STR, TOY_VOCAB);
    for (int i = 0; i < TOY_VOCAB; i++)
        put_piece(b, i);
    key_array(b, "tokenizer.ggml.scores", GGUF_F32, TOY_VOCAB);
    for (int i = 0; i < TOY_VOCAB; i++)
        put(b, &(float){ (float)-i }, sizeof(float));
    key_array(b, "tokenizer.ggml.token_type", GGUF_I32, TOY_VOCAB);
    for (int i = 0; i < TOY_VOCAB; i++)
        put_u32(b, i == 0            ? TOK_UNKNOWN
                   : i < 3           ? TOK_CONTROL
                   : i < FIRST_PIECE ? TOK_BYTE
                                     : TOK_NORMAL);
    key_u32(b, "tokenizer.ggml.unknown_token_id", 0);
    key_u32(b, "tokenizer.ggml.bos_token_id", 1);
    key_u32(b, "tokenizer.ggml.eos_token_id", 2);
    key_bool(b, "tokenizer.ggml.add_bos_token", true);
    key_str(b, "tokenizer.chat_template",
            "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant {% endif %}");
}

enum { N_KEYS = 10 + 9 };

static void put_keys(struct buf *b)
{
    key_str(b, "general.architecture", "llama");
    key_str(b, "general.name", "toy");
    key_u32(b, "llama.block_count", TOY_LAYERS);
    key_u32(b, "llama.context_length", TOY_CTX);
    key_u32(b, "llama.embedding_length", TOY_DIM);
    key_u32(b, "llama.feed_forward_length", TOY_FFN);
    key_u32(b, "llama.attention.head_count", TOY_HEADS);
    key_u32(b, "llama.attention.head_count_kv", TOY_KV_HEADS);
    key_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    key_f32(b, "llama.rope.freq_base", 10000);
    put_vocab(b);
}

/* ---- tensors ------------------------------------------------------------------------------------------------- */

struct toy_tensor {
    char name[40];
    int rows, cols;
    float scale; /* of the normal distribution; 0: all ones */
};

static int list_tensors(struct toy_tensor *t)
{
    enum { KV = TOY_DIM / TOY_HEADS * TOY_KV_HEADS };
    static const struct {
        const char *name;
        int rows, cols;
    } part[] = { { "attn_norm", 0, TOY_DIM },         { "attn_q", TOY_DIM, TOY_DIM },
                 { "attn_k", KV, TOY_DIM },           { "attn_v", KV, TOY_DIM },
                 { "attn_output", TOY_DIM, TOY_DIM }, { "ffn_norm", 0, TOY_DIM },
                 { "ffn_gate", TOY_FFN, TOY_DIM },    { "ffn_up", TOY_FFN, TOY_DIM },
                 { "ffn_down", TOY_DIM, TOY_FFN } };
    int n = 0;
    t[n++] = (struct toy_tensor){ "token_embd.weight", TOY_VOCAB, TOY_DIM, 1 };
    t[n++] = (struct toy_tensor){ "output_norm.weight", 0, TOY_DIM, 0 };
    t[n++] = (struct toy_tensor){ "output.weight", TOY_VOCAB, TOY_DIM, 0.4f };
    for (int l = 0; l < TOY_LAYERS; l++)
        for (size_t i = 0; i < sizeof part / sizeof *part; i++, n++) {
            t[n] = (struct toy_tensor){ "", part[i].rows, part[i].cols,
                                        part[i].rows == 0 ? 0 : 2 / sqrtf((float)part[i].cols) };
            snprintf(t[n].name, sizeof t[n].name, "blk.%d.%s.weight", l, part[i].name);
        }
    return n;
}

enum { MAX_TENSORS = 3 + 9 * TOY_LAYERS };

static size_t tensor_count(const struct toy_tensor *t)
{
    return (size_t)(t->rows > 0 ? t->rows : 1) * (size_t)t->cols;
}

static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*state >> 11) + 0.5) * 0x1p-53;
}

static void put_tensor(struct buf *b, const struct toy_tensor *t, uint64_t *state)
{
    for (size_t i = 0; i < tensor_count(t); i++) {
        double z = sqrt(-2 * log(uniform(state))) * cos(6.283185307179586 * uniform(state));
        put(b, &(float){ t->scale == 0 ? 1 : t->scale * (float)z }, sizeof(float));
    }
}

static void put_pad(struct buf *b)
{
    while (b->len % 32 != 0)
        (void)buf_addc(b, 0);
}

int toy_write(const char *path, uint64_t seed, struct err *e)
{
    struct toy_tensor t[MAX_TENSORS];
    struct buf b;
    int n = list_tensors(t);
    uint64_t offset = 0, state = seed * 2 + 1;
    buf_init(&b, 8 << 20);
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, (uint64_t)n);
    put_u64(&b, N_KEYS);
    put_keys(&b);
    for (int i = 0; i < n; i++) {
        put_str(&b, t[i].name);
        put_u32(&b, t[i].rows > 0 ? 2 : 1);
        put_u64(&b, (uint64_t)t[i].cols);
        if (t[i].rows > 0)
            put_u64(&b, (uint64_t)t[i].rows);
        put_u32(&b, 0); /* F32 */
        put_u64(&b, offset);
        offset += (tensor_count(&t[i]) * sizeof(float) + 31) / 32 * 32;
    }
    put_pad(&b);
    for (int i = 0; i < n; i++) {
        put_tensor(&b, &t[i], &state);
        put_pad(&b);
    }
    int rc = b.bad != 0 ? err_set(e, b.bad, "the toy model does not fit its buffer")
                        : file_write_atomic(path, b.data, b.len, e);
    buf_free(&b);
    return rc;
}

/* ---- opening ------------------------------------------------------------------------------------------------- */

void toy_spoil(const char *path, const char *tensor)
{
    struct source *src;
    struct err e;
    FILE *f = fopen(path, "r+b");
    ASSERT(f != NULL && source_open(&src, path, &e) == 0);
    const struct tensor *t = source_find(src, tensor);
    ASSERT(t != NULL && fseek(f, (long)t->offset, SEEK_SET) == 0);
    ASSERT(fwrite(&(float){ NAN }, sizeof(float), 1, f) == 1);
    ASSERT(fclose(f) == 0);
    source_close(src);
}

int toy_open(struct toy *t, uint64_t seed, const char *isa, int n_threads,
             const struct model_options *o, struct err *e)
{
    static const struct model_options plain = { .weights = "auto" };
    static int serial;
    const char *dir = getenv("TMPDIR");
    memset(t, 0, sizeof *t);
    snprintf(t->path, sizeof t->path, "%s/wring-toy-%d-%d.gguf", dir != NULL ? dir : "/tmp",
             (int)getpid(), serial++);
    int rc = toy_write(t->path, seed, e);
    if (rc == 0)
        rc = be_open(&t->be, &(struct be_config){ .n_threads = n_threads, .isa = isa }, e);
    if (rc == 0)
        rc = model_open(&t->model, t->path, o != NULL ? o : &plain, t->be, e);
    if (rc < 0)
        toy_close(t);
    return rc;
}

void toy_close(struct toy *t)
{
    model_close(t->model);
    be_close(t->be);
    if (t->path[0] != 0)
        (void)unlink(t->path);
    memset(t, 0, sizeof *t);
}
