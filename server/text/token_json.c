/* Hugging Face's tokenizer.json: from its text, or a folder, to a tokenizer.
 * Source: the package `tokenizers` (its serialised form is its documentation) and transformers' tokenizer_config.json. */
#include "server/text/token_json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/text/json_file.h"

enum { MAX_FILE = 64 << 20, PATH_SIZE = 4096, N_FILES = 4 };

static const char *const file_name[N_FILES] = { "tokenizer.json", "tokenizer_config.json",
                                                "generation_config.json", "config.json" };

void tok_json_init(struct tok_json *f)
{
    buf_init(&f->tokenizer, MAX_FILE);
    buf_init(&f->tokenizer_config, MAX_FILE);
    buf_init(&f->generation_config, MAX_FILE);
    buf_init(&f->config, MAX_FILE);
}

void tok_json_free(struct tok_json *f)
{
    buf_free(&f->tokenizer);
    buf_free(&f->tokenizer_config);
    buf_free(&f->generation_config);
    buf_free(&f->config);
}

const char *json_text(const json_t *v, const char *key)
{
    return json_string_value(json_object_get(v, key));
}

bool json_flag(const json_t *v, const char *key, bool otherwise)
{
    const json_t *x = json_object_get(v, key);
    return json_is_boolean(x) ? json_is_true(x) : otherwise;
}

void json_vocab_free(struct json_vocab *j)
{
    arena_clear(&j->joined);
    mem_free(j->eog);
    mem_free(j->kind);
    mem_free(j->merge_len);
    mem_free(j->merge);
    mem_free(j->len);
    mem_free(j->text);
}

static int read_vocab(struct json_vocab *j, const struct json_files *f, struct err *e)
{
    TRY(json_check_model(f->tokenizer, e));
    TRY(json_read_steps(&j->v, f->tokenizer, e));
    TRY(json_read_vocab(j, f->tokenizer, e));
    return json_read_ends(j, f, e);
}

static int open_files(struct tokenizer **out, const struct json_files *f, struct err *e)
{
    struct json_vocab j = { .v = { .bos = -1, .eos = -1, .unk = -1, .eot = -1 } };
    arena_init(&j.joined, (size_t)4 * MAX_FILE);
    int rc = read_vocab(&j, f, e);
    if (rc == 0)
        rc = tok_open(out, &j.v, e);
    json_vocab_free(&j);
    return rc;
}

/* A missing file leaves *out NULL. */
static int load(json_t **out, const char *name, const struct buf *b, struct err *e)
{
    *out = NULL;
    return b->len > 0 ? json_file_parse(out, name, b, e) : 0;
}

int tok_parse_json(struct tokenizer **out, const struct tok_json *f, struct err *e)
{
    struct json_files j = { 0 };
    const struct buf *text[N_FILES] = { &f->tokenizer, &f->tokenizer_config, &f->generation_config,
                                        &f->config };
    json_t **json[N_FILES] = { &j.tokenizer, &j.tokenizer_config, &j.generation_config, &j.config };
    int rc = 0;
    for (int i = 0; rc == 0 && i < N_FILES; i++)
        rc = load(json[i], file_name[i], text[i], e);
    if (rc == 0)
        rc = open_files(out, &j, e);
    for (int i = 0; i < N_FILES; i++)
        json_decref(*json[i]);
    return rc;
}

static int read_file(struct buf *b, const char *folder, const char *name, bool needed,
                     struct err *e)
{
    char path[PATH_SIZE];
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(e, ERR_LIMIT, "%s/%s: the path is too long", folder, name);
    if (!needed && access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    return buf_read_file(b, path, e);
}

int tok_open_json(struct tokenizer **out, const char *folder, struct err *e)
{
    struct tok_json f;
    tok_json_init(&f);
    struct buf *text[N_FILES] = { &f.tokenizer, &f.tokenizer_config, &f.generation_config,
                                  &f.config };
    int rc = 0;
    for (int i = 0; rc == 0 && i < N_FILES; i++)
        rc = read_file(text[i], folder, file_name[i], i == 0, e);
    if (rc == 0 && (rc = tok_parse_json(out, &f, e)) < 0)
        err_prefix(e, "%s", folder);
    tok_json_free(&f);
    return rc;
}
