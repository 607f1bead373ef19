#include <stdio.h>
#include <string.h>

#include "server/model/hf_write_internal.h"

/* What a folder may say of its tokenizer. */
static const char *const tokenizer_file[] = {
    "tokenizer.json",         "tokenizer.model",         "tokenizer_config.json",
    "generation_config.json", "special_tokens_map.json", "added_tokens.json",
};
enum { N_FILES = sizeof tokenizer_file / sizeof tokenizer_file[0] };

static int write_buf(const char *folder, const char *name, const struct buf *b, struct err *e)
{
    char path[FOLDER_PATH];
    TRY(folder_path(path, folder, name, e));
    return file_write_atomic(path, buf_str(b), b->len, e);
}

static int copy_file(const char *folder, const char *from, const char *name, struct err *e)
{
    struct buf b;
    TRY(folder_read(&b, from, name, e));
    int rc = write_buf(folder, name, &b, e);
    buf_free(&b);
    return rc;
}

static int write_tokenizer(const char *folder, const struct tokenizer *t, struct err *e)
{
    struct tok_json f;
    tok_json_init(&f);
    int rc = tok_write_json(t, &f, e);
    if (rc == 0)
        rc = write_buf(folder, "tokenizer.json", &f.tokenizer, e);
    if (rc == 0)
        rc = write_buf(folder, "tokenizer_config.json", &f.tokenizer_config, e);
    if (rc == 0)
        rc = write_buf(folder, "generation_config.json", &f.generation_config, e);
    tok_json_free(&f);
    return rc;
}

int hf_write_text(const char *folder, const struct source *src, const struct tokenizer *t,
                  struct err *e)
{
    for (int i = 0; i < N_FILES && src->folder != NULL; i++)
        if (folder_has(src->folder, tokenizer_file[i]))
            TRY(copy_file(folder, src->folder, tokenizer_file[i], e));
    if (src->folder == NULL)
        TRY(write_tokenizer(folder, t, e));
    if (src->chat_template == NULL)
        return 0;
    char path[FOLDER_PATH];
    TRY(folder_path(path, folder, "chat_template.jinja", e));
    return file_write_atomic(path, src->chat_template, strlen(src->chat_template), e);
}

/* file_write_atomic() puts a dot and six characters behind a name until a file is whole. */
bool hf_write_is_rest(const char *entry)
{
    static const char *const own[] = { "config.json", "model.safetensors.index.json",
                                       "chat_template.jinja" };
    bool is = false;
    for (int i = 0; i < N_FILES; i++)
        is |= file_is_rest(entry, tokenizer_file[i]);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        is |= file_is_rest(entry, own[i]);
    return is;
}
