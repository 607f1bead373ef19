/* A Hugging Face folder: config.json, model.safetensors or its shards, tokenizer.json or tokenizer.model, a chat template. */
#include "server/model/hf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/model/folder.h"

enum { MAX_NAMES = 64 << 20, MAX_SHARDS = 1024 };

struct hf {
    char *folder;
    struct arena arena; /* names of tensors, forms */
    json_t *config;     /* config.json */
    const struct hf_method *method;
};

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static int add_shard(struct source *s, struct hf *h, const char *name, struct err *e)
{
    char path[FOLDER_PATH];
    TRY(folder_path(path, h->folder, name, e));
    for (int i = 0; i < s->n_files; i++)
        if (strcmp(s->file[i].path, path) == 0)
            return 0;
    if (s->n_files == MAX_SHARDS)
        return err_set(e, ERR_FORMAT, "%s: more than %d weight files", h->folder, MAX_SHARDS);
    return safetensors_add(s, &h->arena, path, e);
}

static int add_shards(struct source *s, struct hf *h, const json_t *index, struct err *e)
{
    static const char file[] = "model.safetensors.index.json";
    json_t *map = json_object_get(index, "weight_map");
    const char *key;
    json_t *v;
    if (!json_is_object(map) || json_object_size(map) == 0)
        return err_set(e, ERR_FORMAT, "%s/%s: \"weight_map\" is missing", h->folder, file);
    json_object_foreach(map, key, v)
    {
        const char *name = json_string_value(v);
        if (name == NULL || name[0] == '.' || strchr(name, '/') != NULL)
            return err_set(e, ERR_FORMAT, "%s/%s: \"%.80s\": a plain file name is expected",
                           h->folder, file, key);
        TRY(add_shard(s, h, name, e));
    }
    return 0;
}

static int add_weights(struct source *s, struct hf *h, struct err *e)
{
    json_t *index = NULL;
    if (folder_has(h->folder, "model.safetensors"))
        return add_shard(s, h, "model.safetensors", e);
    if (!folder_has(h->folder, "model.safetensors.index.json"))
        return err_set(e, ERR_NOTFOUND,
                       "%s: has neither model.safetensors nor model.safetensors.index.json",
                       h->folder);
    TRY(folder_read_json(&index, h->folder, "model.safetensors.index.json", e));
    int rc = add_shards(s, h, index, e);
    json_decref(index);
    return rc;
}

/* ---- template ---------------------------------------------------------------------------------------------------- */

/* tokenizer_config.json has one template, or a list of named ones: "default", and "tool_use" for requests with tools. */
static const char *template_in(const json_t *v, const char *which)
{
    const json_t *t = json_object_get(v, "chat_template");
    size_t i;
    json_t *x;
    json_array_foreach(t, i, x)
    {
        const char *name = json_string_value(json_object_get(x, "name"));
        if (name != NULL && strcmp(name, which) == 0)
            return json_string_value(json_object_get(x, "template"));
    }
    return strcmp(which, "default") == 0 ? json_string_value(t) : NULL;
}

static int copy_template(char **out, const char *text, struct err *e)
{
    if (text == NULL)
        return 0;
    *out = mem_strdup(text);
    return *out != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory for a chat template");
}

static int read_file(struct source *s, const char *folder, const char *name, struct err *e)
{
    struct buf b;
    TRY(folder_read(&b, folder, name, e));
    int rc = copy_template(&s->chat_template, buf_str(&b), e);
    buf_free(&b);
    return rc;
}

static int read_templates(struct source *s, const char *folder, struct err *e)
{
    static const char file[] = "chat_template.jinja"; /* goes before "default" */
    json_t *v = NULL;
    int rc = 0;
    if (folder_has(folder, file))
        TRY(read_file(s, folder, file, e));
    if (!folder_has(folder, "tokenizer_config.json"))
        return 0;
    TRY(folder_read_json(&v, folder, "tokenizer_config.json", e));
    if (s->chat_template == NULL)
        rc = copy_template(&s->chat_template, template_in(v, "default"), e);
    if (rc == 0)
        rc = copy_template(&s->tool_template, template_in(v, "tool_use"), e);
    json_decref(v);
    return rc;
}

/* ---- the folder -------------------------------------------------------------------------------------------------- */

static int refuse_added(const char *folder, const char *text, json_int_t id, struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: token %lld, \"%.60s\", was added to tokenizer.model, of which only a "
                   "tokenizer.json says enough: load the tokenizer with transformers and save it",
                   folder, (long long)id, text);
}

/* A tokenizer.model knows nothing of tokens that were added later, whose files have them as {text: id} or {id: {content}}. */
static int check_added(const char *folder, const struct tokenizer *tok, struct err *e)
{
    static const char *const file[] = { "added_tokens.json", "tokenizer_config.json" };
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        json_t *all = NULL;
        json_t *v;
        const char *key;
        if (!folder_has(folder, file[i]))
            continue;
        TRY(folder_read_json(&all, folder, file[i], e));
        json_object_foreach(i == 0 ? all : json_object_get(all, "added_tokens_decoder"), key, v)
        {
            const char *text = json_string_value(json_object_get(v, "content"));
            json_int_t id = i == 0 ? json_integer_value(v) : strtoll(key, NULL, 10);
            if (rc == 0 && id >= tok_n(tok))
                rc = refuse_added(folder, text != NULL ? text : key, id, e);
        }
        json_decref(all);
    }
    return rc;
}

static int open_spm(struct tokenizer **out, const char *folder, const char *path, struct err *e)
{
    TRY(tok_open_spm(out, path, e));
    int rc = check_added(folder, *out, e);
    if (rc < 0) {
        tok_close(*out);
        *out = NULL;
    }
    return rc;
}

static int hf_tokenizer(const struct source *s, struct tokenizer **out, struct err *e)
{
    const struct hf *h = s->state;
    char path[FOLDER_PATH];
    /* First, for it has the added tokens too; and beside it a tokenizer.model may be of another kind (Llama 3's). */
    if (folder_has(h->folder, "tokenizer.json"))
        return tok_open_json(out, h->folder, e);
    TRY(folder_path(path, h->folder, "tokenizer.model", e));
    if (access(path, F_OK) == 0)
        return open_spm(out, h->folder, path, e);
    return err_set(e, ERR_NOTFOUND, "%s: has neither tokenizer.json nor tokenizer.model",
                   h->folder);
}

static void hf_close(struct source *s)
{
    struct hf *h = s->state;
    if (h == NULL)
        return;
    json_decref(h->config);
    arena_clear(&h->arena);
    mem_free(h->folder);
    mem_free(h);
}

const struct source_format source_hf = {
    .name = "safetensors",
    .tokenizer = hf_tokenizer,
    .close = hf_close,
};

static int read_config(struct source *s, struct hf *h, struct err *e)
{
    if (!folder_has(h->folder, "config.json"))
        return err_set(e, ERR_NOTFOUND,
                       "%s: has no config.json; a model is a .gguf file or a Hugging Face folder",
                       h->folder);
    TRY(folder_read_json(&h->config, h->folder, "config.json", e));
    int rc = hf_config(&s->config, h->config, e);
    if (rc == 0)
        rc = hf_method(&h->method, h->config, e);
    return rc < 0 ? err_prefix(e, "%s/config.json", h->folder) : 0;
}

/* Which matrices are pressed; once the tensors are known. */
static int read_forms(struct source *s, struct hf *h, struct err *e)
{
    if (h->method == NULL)
        return 0;
    const json_t *q = json_object_get(h->config, "quantization_config");
    if (q == NULL) /* early folders of a method have an object of its name */
        q = json_object_get(h->config, h->method->name);
    int rc = h->method->forms(s, &h->arena, q, e);
    return rc < 0 ? err_prefix(e, "%s/config.json", h->folder) : 0;
}

int hf_open(struct source *s, const char *folder, struct err *e)
{
    struct hf *h = mem_zalloc(1, sizeof *h);
    if (h == NULL)
        return err_set(e, ERR_NOMEM, "no memory to open %s", folder);
    arena_init(&h->arena, MAX_NAMES);
    s->format = &source_hf;
    s->state = h;
    h->folder = mem_strdup(folder);
    if (h->folder == NULL)
        return err_set(e, ERR_NOMEM, "no memory to open %s", folder);
    for (size_t n = strlen(folder); n > 1 && folder[n - 1] == '/';)
        h->folder[--n] = 0;
    s->folder = h->folder;
    TRY(read_config(s, h, e));
    folder_name(s->config.name, sizeof s->config.name, h->folder);
    TRY(add_weights(s, h, e));
    TRY(read_forms(s, h, e));
    TRY(read_templates(s, h->folder, e));
    return source_finish(s, e);
}
