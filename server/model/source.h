/* A model on disk, opened but not loaded: what the two file formats have in common.
 *
 * A GGUF file (v2, v3) or a Hugging Face folder (config.json, *.safetensors, tokenizer) becomes one list of tensors
 * under canonical names, one struct model_config, and one vocabulary. Opening reads headers only, and checks everything
 * in them (counts, types, shapes, offsets against the file size, overlaps) before any large allocation.
 * Thread: one owner until closed; immutable after source_open.
 *
 * Canonical tensor names are GGUF's: "token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight" and,
 * per layer, "blk.N." + "attn_norm.weight", "attn_q|k|v.weight|bias", "attn_output.weight", "attn_q_norm|k_norm.weight",
 * "ffn_norm.weight", "ffn_gate|up|down.weight".
 *
 * A matrix "blk.N.attn_q.weight" may be kept pressed: then it has a form (quant/codec.h) and, instead of the tensor of that
 * name, one for each of the form's parts, "blk.N.attn_q." + the part's name.
 */
#ifndef WRING_SERVER_MODEL_SOURCE_H
#define WRING_SERVER_MODEL_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "quant/dtype.h"
#include "server/base/err.h"
#include "server/text/token.h"

struct tensor {
    const char *name; /* canonical */
    enum dtype type;
    int n_dims;
    int64_t dim[4];  /* outermost first: a matrix is {rows (outputs), cols (inputs)} */
    int file;        /* index into source.file */
    uint64_t offset; /* absolute, in bytes */
    uint64_t bytes;
};

enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

/* The numbers of a decoder-only transformer. */
struct model_config {
    char arch[32]; /* "llama", "qwen2", "qwen3", "mistral": the key of the architecture table */
    char name[96]; /* the file's own name for the model, for people */
    int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn, vocab, ctx_train;
    float norm_eps;
    int window; /* sliding window, 0: none */
    bool tied;  /* the head is the embedding */
    /* rope */
    float rope_theta;
    int rope_dim;         /* dims rotated, <= head_dim */
    bool rope_half_split; /* pairs (i, i + half) instead of (2i, 2i + 1) */
    enum rope_scaling rope_scaling;
    float rope_factor, rope_low_freq, rope_high_freq; /* low/high: LLAMA3 */
    int rope_ctx;                                     /* original context, LLAMA3 */
};

/* A matrix that is kept in parts. */
struct source_form {
    const char *name; /* canonical: "blk.0.attn_q.weight" */
    const char *word; /* as weight_form() gives it */
};

struct source_file {
    char *path;
    int fd; /* open for reading until source_close */
    uint64_t size;
};

struct source_format; /* "gguf" or "safetensors": source_format_name() */

struct source {
    const struct source_format *format;
    struct source_file *file;
    int n_files;
    struct tensor *tensor; /* sorted by name */
    int n_tensors;
    struct source_form *form; /* sorted by name */
    int n_forms;
    struct model_config config;
    const char *folder;  /* of a Hugging Face model; NULL: the model is one file */
    char *chat_template; /* Jinja source, or NULL: the model has none */
    char *tool_template; /* the one for requests with tools, or NULL: the same */
    void *state;         /* the format's own */
};

/* path: a .gguf file or a folder with config.json. ERR_NOTFOUND, ERR_IO, ERR_FORMAT (what and where), ERR_UNSUPPORTED. */
int source_open(struct source **out, const char *path, struct err *e) WARN_UNUSED;
void source_close(struct source *s);
const char *source_format_name(const struct source *s);
const struct tensor *source_find(const struct source *s,
                                 const char *name); /* NULL when there is none */
/* The form of a matrix (canonical name, with ".weight"); NULL: it is a plain tensor, or there is no such matrix. */
const char *source_form(const struct source *s, const char *matrix);
/* The tensor that holds the part of this name of a pressed matrix; NULL when there is none. */
const struct tensor *source_part(const struct source *s, const char *matrix, const char *part);
/* Builds the model's tokenizer. */
int source_tokenizer(const struct source *s, struct tokenizer **out, struct err *e) WARN_UNUSED;

#endif
