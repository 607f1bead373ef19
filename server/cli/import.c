/* llama2.c's file, version 0: dim, ffn, layers, heads, KV heads, vocabulary (negative: the head is a matrix of its own),
 * context; then f32 tensors, each for all layers before the next: embedding, attention norm, q, k, v, o, ffn norm, gate,
 * down, up, last norm, two rope tables (not needed), head. Rows of q and k lie in rope pairs (2i, 2i + 1); transformers
 * wants (i, i + half), so these rows change places on the way. */
#include "server/cli/import.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/mem.h"
#include "server/cli/cli.h"
#include "server/cli/fetch.h"
#include "server/model/folder.h"

enum { MAX_HEADER = 16 << 20, MAX_TOKENIZER = 64 << 20 };

struct shape {
    int32_t dim, ffn, layers, heads, kv_heads, vocab, ctx;
    bool tied;
};

/* A tensor of the folder: rows of cols floats that begin at `at` in the llama2.c file. */
struct part {
    char name[96];
    uint64_t at, bytes;
    int rows, cols; /* rows 0: a vector */
    int head_rows;  /* rows of a head whose order changes; 0: none */
};

struct import {
    struct shape s;
    const char *path;
    int fd;
    uint64_t size, at; /* of the file; while the parts are listed */
    struct part *part;
    int n_parts;
};

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static int bad_number(const struct import *m, const char *what, int v, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: %s is %d, which no model has", m->path, what, v);
}

static int check_shape(struct import *m, struct err *e)
{
    struct shape *s = &m->s;
    const int32_t most = 1 << 20;
    if (s->dim == 0x616b3432)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: a newer llama2.c file; only version 0 (export.py --version 0) is read",
                       m->path);
    if (s->dim < 2 || s->dim > most)
        return bad_number(m, "dim (bytes 0-3)", s->dim, e);
    if (s->ffn < 1 || s->ffn > most)
        return bad_number(m, "hidden_dim (bytes 4-7)", s->ffn, e);
    if (s->layers < 1 || s->layers > 4096)
        return bad_number(m, "n_layers (bytes 8-11)", s->layers, e);
    if (s->heads < 1 || s->dim % s->heads != 0 || s->dim / s->heads % 2 != 0)
        return bad_number(m, "n_heads (bytes 12-15)", s->heads, e);
    if (s->kv_heads < 1 || s->kv_heads > s->heads || s->heads % s->kv_heads != 0)
        return bad_number(m, "n_kv_heads (bytes 16-19)", s->kv_heads, e);
    s->tied = s->vocab > 0;
    if (s->vocab == 0 || s->vocab > 1 << 22 || s->vocab < -(1 << 22))
        return bad_number(m, "vocab_size (bytes 20-23)", s->vocab, e);
    s->vocab = s->tied ? s->vocab : -s->vocab;
    if (s->ctx < 1 || s->ctx > 1 << 24)
        return bad_number(m, "seq_len (bytes 24-27)", s->ctx, e);
    return 0;
}

static int open_model(struct import *m, struct err *e)
{
    struct stat st;
    m->fd = open(m->path, O_RDONLY | O_CLOEXEC);
    if (m->fd < 0)
        return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: cannot open", m->path);
    if (fstat(m->fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_IO, "%s: is not a file", m->path);
    m->size = (uint64_t)st.st_size;
    _Static_assert(offsetof(struct shape, tied) == 28, "seven ints");
    if (pread(m->fd, &m->s, 28, 0) != 28)
        return err_set(e, ERR_FORMAT, "%s: too short for a llama2.c file", m->path);
    return check_shape(m, e);
}

/* One tensor of every layer (or of the model: layers 1, name without %d). */
static void list_tensor(struct import *m, int layers, const char *format, int rows, int cols,
                        int head_rows)
{
    for (int i = 0; i < layers; i++) {
        struct part *p = &m->part[m->n_parts++];
        const char *layer = strchr(format, '#');
        if (layer != NULL)
            snprintf(p->name, sizeof p->name, "%.*s%d%s", (int)(layer - format), format, i,
                     layer + 1);
        else
            snprintf(p->name, sizeof p->name, "%s", format);
        p->at = m->at;
        p->rows = rows;
        p->cols = cols;
        p->head_rows = head_rows;
        p->bytes = (uint64_t)(rows > 0 ? rows : 1) * (uint64_t)cols * sizeof(float);
        m->at += p->bytes;
    }
}

static int list_parts(struct import *m, struct err *e)
{
    const struct shape *s = &m->s;
    ASSERT(s->heads > 0);
    int head = s->dim / s->heads;
    int kv = head * s->kv_heads;
    int n = s->layers;
    m->part = mem_zalloc((size_t)n * 9 + 3, sizeof *m->part);
    if (m->part == NULL)
        return err_set(e, ERR_NOMEM, "no memory to import %s", m->path);
    m->at = 28;
    list_tensor(m, 1, "model.embed_tokens.weight", s->vocab, s->dim, 0);
    list_tensor(m, n, "model.layers.#.input_layernorm.weight", 0, s->dim, 0);
    list_tensor(m, n, "model.layers.#.self_attn.q_proj.weight", s->dim, s->dim, head);
    list_tensor(m, n, "model.layers.#.self_attn.k_proj.weight", kv, s->dim, head);
    list_tensor(m, n, "model.layers.#.self_attn.v_proj.weight", kv, s->dim, 0);
    list_tensor(m, n, "model.layers.#.self_attn.o_proj.weight", s->dim, s->dim, 0);
    list_tensor(m, n, "model.layers.#.post_attention_layernorm.weight", 0, s->dim, 0);
    list_tensor(m, n, "model.layers.#.mlp.gate_proj.weight", s->ffn, s->dim, 0);
    list_tensor(m, n, "model.layers.#.mlp.down_proj.weight", s->dim, s->ffn, 0);
    list_tensor(m, n, "model.layers.#.mlp.up_proj.weight", s->ffn, s->dim, 0);
    list_tensor(m, 1, "model.norm.weight", 0, s->dim, 0);
    m->at += (uint64_t)s->ctx * (uint64_t)head * sizeof(float);
    if (!s->tied)
        list_tensor(m, 1, "lm_head.weight", s->vocab, s->dim, 0);
    if (m->at != m->size)
        return err_set(e, ERR_FORMAT,
                       "%s: has %" PRIu64 " bytes; a model of these dimensions has %" PRIu64,
                       m->path, m->size, m->at);
    return 0;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int write_config(const struct import *m, const char *dir, struct err *e)
{
    const struct shape *s = &m->s;
    json_t *v = json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:b, s:b, s:b, s:i, "
        "s:i, s:s}",
        "architectures", "LlamaForCausalLM", "model_type", "llama", "hidden_size", (int)s->dim,
        "intermediate_size", (int)s->ffn, "num_hidden_layers", (int)s->layers,
        "num_attention_heads", (int)s->heads, "num_key_value_heads", (int)s->kv_heads, "head_dim",
        (int)(s->dim / s->heads), "vocab_size", (int)s->vocab, "max_position_embeddings",
        (int)s->ctx, "rms_norm_eps", 1e-5, "rope_theta", 10000.0, "hidden_act", "silu",
        "tie_word_embeddings", s->tied, "attention_bias", 0, "mlp_bias", 0, "bos_token_id", 1,
        "eos_token_id", 2, "torch_dtype", "float32");
    TRY(folder_write_json(dir, "config.json", v, e));
    v = json_pack("{s:s, s:b, s:b, s:s, s:s, s:s}", "tokenizer_class", "LlamaTokenizer",
                  "add_bos_token", 1, "add_eos_token", 0, "unk_token", "<unk>", "bos_token", "<s>",
                  "eos_token", "</s>");
    return folder_write_json(dir, "tokenizer_config.json", v, e);
}

static int header(const struct import *m, struct buf *b)
{
    uint64_t at = 0;
    buf_adds(b, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < m->n_parts; i++) {
        const struct part *p = &m->part[i];
        buf_addf(b, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[", p->name);
        if (p->rows > 0)
            buf_addf(b, "%d,", p->rows);
        buf_addf(b, "%d],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", p->cols, at, at + p->bytes);
        at += p->bytes;
    }
    buf_addc(b, '}');
    while (b->bad == 0 && (b->len + 8) % 64 != 0)
        buf_addc(b, ' ');
    return b->bad;
}

static int copy(int out, int in, uint64_t at, uint64_t n)
{
    off_t from = (off_t)at;
    while (n > 0) {
        ssize_t k = sendfile(out, in, &from, n < 1 << 30 ? (size_t)n : 1 << 30);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return ERR_IO;
        n -= (uint64_t)k;
    }
    return 0;
}

static int copy_part(const struct import *m, const struct part *p, int out)
{
    uint64_t row = (uint64_t)p->cols * sizeof(float);
    int half = p->head_rows / 2;
    if (half == 0)
        return copy(out, m->fd, p->at, p->bytes);
    for (int r = 0; r < p->rows; r++) {
        int in_head = r % p->head_rows;
        int from = r - in_head + in_head % half * 2 + in_head / half;
        TRY(copy(out, m->fd, p->at + (uint64_t)from * row, row));
    }
    return 0;
}

static int write_weights(const struct import *m, const char *dir, struct err *e)
{
    char path[FOLDER_PATH];
    struct buf b;
    buf_init(&b, MAX_HEADER);
    TRY(folder_path(path, dir, "model.safetensors", e));
    int rc = header(m, &b);
    if (rc < 0) {
        buf_free(&b);
        return err_set(e, rc, "no memory for the header of %s", path);
    }
    uint64_t len = b.len;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    bool ok = fd >= 0 && file_write_all(fd, (const char *)&len, sizeof len) == 0 &&
              file_write_all(fd, b.data, b.len) == 0;
    for (int i = 0; ok && i < m->n_parts; i++)
        ok = copy_part(m, &m->part[i], fd) == 0;
    ok = ok && fsync(fd) == 0;
    if (!ok)
        rc = err_errno(e, ERR_IO, "%s: cannot write", path);
    if (fd >= 0 && close(fd) < 0 && ok)
        rc = err_errno(e, ERR_IO, "%s: cannot write", path);
    buf_free(&b);
    return rc;
}

static int write_tokenizer(const struct import *m, const char *tokenizer, const char *dir,
                           struct err *e)
{
    char path[FOLDER_PATH];
    struct buf b;
    buf_init(&b, MAX_TOKENIZER);
    int rc = tok_spm_from_llama2c(tokenizer, m->s.vocab, &b, e);
    if (rc == 0)
        rc = folder_path(path, dir, "tokenizer.model", e);
    if (rc == 0)
        rc = file_write_atomic(path, b.data, b.len, e);
    buf_free(&b);
    return rc;
}

static int write_folder(const struct import *m, const char *tokenizer, const char *out,
                        struct err *e)
{
    char dir[FOLDER_PATH];
    int n = snprintf(dir, sizeof dir, "%s.XXXXXX", out);
    if (n < 0 || (size_t)n >= sizeof dir)
        return err_set(e, ERR_LIMIT, "%s: the path is too long", out);
    if (mkdtemp(dir) == NULL)
        return err_errno(e, ERR_IO, "%s: cannot create the folder", dir);
    int rc = write_tokenizer(m, tokenizer, dir, e);
    if (rc == 0)
        rc = write_config(m, dir, e);
    if (rc == 0)
        rc = write_weights(m, dir, e);
    if (rc == 0 && (chmod(dir, 0755) < 0 || rename(dir, out) < 0))
        rc = err_errno(e, ERR_IO, "%s: cannot put the folder there", out);
    if (rc < 0)
        fetch_remove(dir);
    return rc;
}

int import_llama2c(const char *model, const char *tokenizer, const char *out, struct err *e)
{
    struct import m = { .path = model, .fd = -1 };
    char name[FOLDER_PATH];
    int n = snprintf(name, sizeof name, "%s", out);
    while (n > 1 && n < FOLDER_PATH && name[n - 1] == '/')
        name[--n] = 0;
    if (access(name, F_OK) == 0)
        return err_set(e, ERR_INVALID, "%s: is there already; name a folder that is not", name);
    int rc = open_model(&m, e);
    if (rc == 0)
        rc = list_parts(&m, e);
    if (rc == 0)
        rc = write_folder(&m, tokenizer, name, e);
    if (m.fd >= 0)
        close(m.fd);
    mem_free(m.part);
    return rc;
}

static const char help[] =
    "Usage: wring import llama2c MODEL.bin TOKENIZER.bin FOLDER\n\n"
    "Writes llama2.c's model and tokenizer as a Hugging Face-style folder: config.json,\n"
    "model.safetensors, tokenizer.model. FOLDER must not exist.\n\n"
    "  --help  this text\n";

int cmd_import(int argc, char **argv)
{
    struct err e;
    if (cli_asks_help(argc, argv))
        return fputs(help, stdout) < 0;
    if (argc < 1 || strcmp(argv[0], "llama2c") != 0)
        return cli_usage("the only format to import is llama2c; --help tells more");
    if (argc != 4)
        return cli_usage("usage: wring import llama2c MODEL.bin TOKENIZER.bin FOLDER");
    if (import_llama2c(argv[1], argv[2], argv[3], &e) < 0)
        return cli_fail(&e);
    printf("%s\n", argv[3]);
    return 0;
}
