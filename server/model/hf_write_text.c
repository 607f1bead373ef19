#include <stdio.h>
#include <string.h>

#include "server/model/hf_write_internal.h"
#include "server/text/json_file.h"

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

/* 0, or -1: no memory. */
static int add_template(json_t *list, const char *name, const char *text)
{
    return text != NULL ? json_array_append_new(
                              list, json_pack("{s:s, s:s}", "name", name, "template", text))
                        : 0;
}

/* chat_template.jinja has room for one template: where requests with tools have their own, both stand here by their names. */
static int write_config(const char *folder, const struct buf *text, const struct source *src,
                        struct err *e)
{
    static const char name[] = "tokenizer_config.json";
    json_t *v;
    if (src->tool_template == NULL)
        return write_buf(folder, name, text, e);
    TRY(json_file_parse(&v, name, text, e));
    json_t *list = json_array();
    if (add_template(list, "default", src->chat_template) < 0 ||
        add_template(list, "tool_use", src->tool_template) < 0 ||
        json_object_set(v, "chat_template", list) < 0) {
        json_decref(v);
        v = NULL;
    }
    json_decref(list);
    return folder_write_json(folder, name, v, e);
}

static int write_tokenizer(const char *folder, const struct source *src, const struct tokenizer *t,
                           struct err *e)
{
    struct tok_json f;
    tok_json_init(&f);
    int rc = tok_write_json(t, &f, e);
    if (rc == 0)
        rc = write_buf(folder, "tokenizer.json", &f.tokenizer, e);
    if (rc == 0)
        rc = write_config(folder, &f.tokenizer_config, src, e);
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
        TRY(write_tokenizer(folder, src, t, e));
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
