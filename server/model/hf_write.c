#include "server/model/hf_write.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/model/hf.h"
#include "server/model/hf_write_internal.h"
#include "server/model/safetensors_write.h"

enum { MAX_SHARDS = 99999, SHARD_NAME = 64, MAX_SHARD_TEXT = 1 << 30 };

struct hf_writer {
    char out[FOLDER_PATH];
    char folder[FOLDER_PATH]; /* OUT.part; OUT at the end */
    int fd;                   /* of the folder, locked */
    const struct source *src;
    const struct model_config *config;
    int n_shards;
    /* the shard that is being made */
    int shard;
    struct safetensors_out *tensor;
    int n_tensors, cap;
    struct arena arena; /* names and vectors */
    json_t *metadata;   /* {module: form} */
};

static void shard_name(char out[SHARD_NAME], int i, int n)
{
    snprintf(out, SHARD_NAME, "model-%05d-of-%05d.safetensors", i + 1, n);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int set_paths(struct hf_writer *w, const char *out, struct err *e)
{
    TRY(folder_beside(w->folder, out, ".part", e));
    return folder_beside(w->out, out, "", e);
}

/* An empty folder is as good as none and goes at once: one that cannot, as it is a link or has a file system mounted, could not be
 * replaced by rename() at the end either. */
static int check_free(const char *out, struct err *e)
{
    const struct dirent *d;
    bool empty = true;
    DIR *dir = opendir(out);
    if (dir == NULL && errno == ENOENT)
        return 0;
    if (dir == NULL)
        return err_errno(e, errno == ENOTDIR ? ERR_INVALID : ERR_IO, "%s: is no folder to write",
                         out);
    while ((d = readdir(dir)) != NULL)
        empty &= strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0;
    closedir(dir);
    if (!empty)
        return err_set(e, ERR_INVALID, "%s: is there already; name a folder that is not", out);
    if (rmdir(out) != 0)
        return err_errno(e, ERR_INVALID,
                         "%s: is empty but cannot be replaced; name a new folder in it", out);
    return 0;
}

static int open_folder(struct hf_writer *w, struct err *e)
{
    if (mkdir(w->folder, 0755) != 0 && errno != EEXIST)
        return err_errno(e, ERR_IO, "%s: cannot create the folder", w->folder);
    w->fd = open(w->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open the folder", w->folder);
    if (flock(w->fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return err_set(e, ERR_BUSY, "%s: another run is writing it", w->folder);
    return err_errno(e, ERR_IO, "%s: cannot lock the folder", w->folder);
}

int hf_write_probe(const char *out, struct err *e)
{
    struct hf_writer w = { .fd = -1 };
    TRY(set_paths(&w, out, e));
    TRY(check_free(w.out, e));
    int rc = open_folder(&w, e);
    if (rc == 0)
        (void)rmdir(w.folder); /* unless another run left something in it */
    if (w.fd >= 0)
        close(w.fd);
    return rc;
}

static int remove_rest(const struct hf_writer *w, const char *entry, struct err *e)
{
    if (unlinkat(w->fd, entry, 0) == 0)
        return 0;
    return err_errno(e, ERR_IO, "%s/%s: cannot remove", w->folder, entry);
}

/* What an entry of OUT.part means for this run: halves of files are removed, shards of another number refused. */
static int check_entry(const struct hf_writer *w, const char *entry, struct err *e)
{
    char name[SHARD_NAME];
    int i = 0;
    int n = 0;
    if (hf_write_is_rest(entry))
        return remove_rest(w, entry, e);
    if (sscanf(entry, "model-%5d-of-%5d.safetensors", &i, &n) != 2)
        return 0;
    shard_name(name, i - 1, n);
    if (strncmp(entry, name, strlen(name)) == 0 && strcmp(entry + strlen(name), ".tmp") == 0)
        return remove_rest(w, entry, e);
    if (strcmp(entry, name) != 0 || (n == w->n_shards && i >= 1 && i <= n))
        return 0;
    return err_set(
        e, ERR_INVALID,
        "%s: has %s of another run; this one makes %d shards. Remove the folder to start "
        "over",
        w->folder, entry, w->n_shards);
}

static int check_entries(const struct hf_writer *w, struct err *e)
{
    const struct dirent *d;
    int rc = 0;
    DIR *dir = opendir(w->folder);
    if (dir == NULL)
        return err_errno(e, ERR_IO, "%s: cannot read the folder", w->folder);
    while (rc == 0 && (d = readdir(dir)) != NULL)
        rc = check_entry(w, d->d_name, e);
    closedir(dir);
    return rc;
}

int hf_write_open(struct hf_writer **out, const char *path, const struct source *src,
                  const struct model_config *c, int n_shards, struct err *e)
{
    ASSERT(n_shards >= 1 && n_shards <= MAX_SHARDS);
    TRY(hf_write_check(c, e));
    struct hf_writer *w = mem_zalloc(1, sizeof *w);
    if (w == NULL)
        return err_set(e, ERR_NOMEM, "no memory to write %s", path);
    w->fd = -1;
    w->shard = -1;
    w->src = src;
    w->config = c;
    w->n_shards = n_shards;
    arena_init(&w->arena, MAX_SHARD_TEXT);
    int rc = set_paths(w, path, e);
    if (rc == 0)
        rc = check_free(w->out, e);
    if (rc == 0)
        rc = open_folder(w, e);
    if (rc == 0)
        rc = check_entries(w, e);
    if (rc < 0) {
        hf_write_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

void hf_write_shard_drop(struct hf_writer *w)
{
    json_decref(w->metadata);
    w->metadata = NULL;
    w->shard = -1;
    w->n_tensors = 0;
    arena_clear(&w->arena);
}

void hf_write_close(struct hf_writer *w)
{
    if (w == NULL)
        return;
    hf_write_shard_drop(w);
    if (w->fd >= 0)
        close(w->fd);
    mem_free(w->tensor);
    mem_free(w);
}

const char *hf_write_folder(const struct hf_writer *w)
{
    return w->folder;
}

/* ---- shards ------------------------------------------------------------------------------------------------------ */

void hf_write_shard_begin(struct hf_writer *w, int i)
{
    ASSERT(i >= 0 && i < w->n_shards && w->shard < 0);
    w->shard = i;
    w->metadata = json_pack("{s:s}", "format", "pt");
}

void hf_write_shard_mark(struct hf_writer *w, const char *mark)
{
    ASSERT(w->shard >= 0 && strlen(mark) < HF_MARK);
    if (json_object_set_new(w->metadata, "mark", json_string(mark)) != 0) {
        json_decref(w->metadata); /* hf_write_shard_end() says so */
        w->metadata = NULL;
    }
}

/* Adds t under the file's name for the canonical "module" + what is in it. */
static int add_tensor(struct hf_writer *w, int module, const char *canonical, const char *what,
                      struct safetensors_out t, struct err *e)
{
    char ours[HF_NAME];
    char name[HF_NAME];
    ASSERT(w->shard >= 0);
    int n = snprintf(ours, sizeof ours, "%.*s%s", module, canonical, what);
    if (n < 0 || n >= HF_NAME)
        return err_set(e, ERR_LIMIT, "%s: the name is too long", canonical);
    TRY(hf_name(name, ours, e));
    t.name = arena_strndup(&w->arena, name, strlen(name));
    if (t.name == NULL)
        return err_set(e, ERR_NOMEM, "no memory to write %s", canonical);
    if (w->n_tensors == w->cap) {
        int cap = w->cap > 0 ? 2 * w->cap : 32;
        struct safetensors_out *all = mem_realloc(w->tensor, (size_t)cap * sizeof *all);
        if (all == NULL)
            return err_set(e, ERR_NOMEM, "no memory for %d tensors", cap);
        w->tensor = all;
        w->cap = cap;
    }
    w->tensor[w->n_tensors++] = t;
    return 0;
}

/* One part that is the tensor "weight" as everybody keeps it. */
static bool is_plain(const struct codec_part *part, int n)
{
    return n == 1 && strcmp(part->name, "weight") == 0 && part->n_dims == 2;
}

int hf_write_weight(struct hf_writer *w, const char *name, const struct weight *m, struct err *e)
{
    struct codec_part part[CODEC_PARTS];
    char module[HF_NAME];
    TRY(hf_name(module, name, e));
    char *dot = strrchr(module, '.');
    ASSERT(dot != NULL && strcmp(dot, ".weight") == 0);
    *dot = 0;
    int n = weight_parts(m, part);
    for (int i = 0; i < n; i++) {
        struct safetensors_out t = { .part = part[i], .w = m, .i_part = i };
        TRY(add_tensor(w, (int)(strlen(name) - strlen("weight")), name, part[i].name, t, e));
    }
    if (is_plain(part, n) ||
        json_object_set_new(w->metadata, module, json_string(weight_form(m))) == 0)
        return 0;
    return err_set(e, ERR_NOMEM, "no memory to write %s", name);
}

size_t hf_write_bytes(const struct weight *m)
{
    struct codec_part part[CODEC_PARTS];
    size_t sum = 0;
    int n = weight_parts(m, part);
    for (int i = 0; i < n; i++)
        sum += codec_part_bytes(&part[i]);
    return sum;
}

int hf_write_vector(struct hf_writer *w, const char *name, const float *v, int n, struct err *e)
{
    float *copy = arena_alloc(&w->arena, (size_t)n * sizeof *v);
    if (copy == NULL)
        return err_set(e, ERR_NOMEM, "no memory to write %s", name);
    memcpy(copy, v, (size_t)n * sizeof *v);
    struct safetensors_out t = { .part = { .type = DT_F32, .n_dims = 1, .dim = { n } }, .v = copy };
    return add_tensor(w, 0, name, name, t, e);
}

/* Brings the names of a folder's files to the disk; their bytes are there. */
static int sync_names(int fd, const char *folder, struct err *e)
{
    return fsync(fd) == 0 ? 0 : err_errno(e, ERR_IO, "%s: cannot write the folder", folder);
}

int hf_write_shard_end(struct hf_writer *w, struct err *e)
{
    char name[SHARD_NAME];
    char path[FOLDER_PATH];
    ASSERT(w->shard >= 0);
    shard_name(name, w->shard, w->n_shards);
    int rc = w->metadata == NULL ? err_set(e, ERR_NOMEM, "no memory to write %s", name)
                                 : folder_path(path, w->folder, name, e);
    if (rc == 0)
        rc = safetensors_write(path, w->tensor, w->n_tensors, w->metadata, e);
    if (rc == 0)
        rc = sync_names(w->fd, w->folder, e);
    hf_write_shard_drop(w);
    return rc;
}

/* ---- what is there ----------------------------------------------------------------------------------------------- */

/* What the headers of all shards say. */
struct contents {
    json_t *map;   /* {tensor: file} */
    json_t *forms; /* {module: form} */
    uint64_t bytes;
    char mark[HF_MARK]; /* of the last one */
};

static bool is_form(const char *key)
{
    return strcmp(key, "format") != 0 && strcmp(key, "mark") != 0;
}

static int add_contents(struct contents *all, const char *file, const json_t *head, struct err *e)
{
    const char *key;
    json_t *v;
    int rc = 0;
    json_object_foreach((json_t *)head, key, v)
    {
        if (strcmp(key, "__metadata__") != 0) {
            if (json_object_get(all->map, key) != NULL)
                return err_set(e, ERR_FORMAT, "tensor %s is in two shards", key);
            rc |= json_object_set_new(all->map, key, json_string(file));
        }
    }
    const json_t *metadata = json_object_get(head, "__metadata__");
    json_object_foreach((json_t *)metadata, key, v)
    {
        if (is_form(key))
            rc |= json_object_set(all->forms, key, v);
    }
    const char *mark = json_string_value(json_object_get(metadata, "mark"));
    snprintf(all->mark, sizeof all->mark, "%s", mark != NULL ? mark : "");
    return rc == 0 ? 0 : err_set(e, ERR_NOMEM, "no memory for the index");
}

/* Checks the only file of s, which ends where its tensors do, and adds it to all (not NULL). */
static int check_shard(struct source *s, const char *file, struct contents *all, struct err *e)
{
    json_t *head;
    uint64_t at;
    uint64_t bytes = 0;
    TRY(safetensors_header(&s->file[0], &head, &at, e));
    for (int i = 0; i < s->n_tensors; i++)
        bytes += s->tensor[i].bytes;
    int rc = at + bytes == s->file[0].size
                 ? 0
                 : err_set(e, ERR_FORMAT, "has %" PRIu64 " bytes; its tensors end at %" PRIu64,
                           s->file[0].size, at + bytes);
    if (rc == 0 && all != NULL) {
        rc = add_contents(all, file, head, e);
        all->bytes += bytes;
    }
    json_decref(head);
    return rc;
}

/* ERR_NOTFOUND; ERR_FORMAT: not whole. */
static int read_shard(const struct hf_writer *w, int i, struct contents *all, struct err *e)
{
    char name[SHARD_NAME];
    char path[FOLDER_PATH];
    struct arena names;
    shard_name(name, i, w->n_shards);
    TRY(folder_path(path, w->folder, name, e));
    struct source *s = mem_zalloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NOMEM, "no memory to read %s", path);
    arena_init(&names, MAX_SHARD_TEXT);
    int rc = safetensors_add(s, &names, path, e);
    if (rc == 0 && check_shard(s, name, all, e) < 0)
        rc = err_prefix(e, "%s", path);
    source_close(s);
    arena_clear(&names);
    return rc;
}

bool hf_write_has_shard(const struct hf_writer *w, int i)
{
    struct err e;
    return read_shard(w, i, NULL, &e) == 0;
}

static int open_contents(struct contents *all, struct err *e)
{
    *all = (struct contents){ .map = json_object(), .forms = json_object() };
    if (all->map != NULL && all->forms != NULL)
        return 0;
    return err_set(e, ERR_NOMEM, "no memory for the index");
}

static void close_contents(struct contents *all)
{
    json_decref(all->map);
    json_decref(all->forms);
}

bool hf_write_has_mark(const struct hf_writer *w, int i, const char *mark)
{
    struct contents all;
    struct err e;
    bool same = open_contents(&all, &e) == 0 && read_shard(w, i, &all, &e) == 0 &&
                strcmp(all.mark, mark) == 0;
    close_contents(&all);
    return same;
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static int write_index(const struct hf_writer *w, const struct contents *all, struct err *e)
{
    json_t *v = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)all->bytes,
                          "weight_map", all->map);
    return folder_write_json(w->folder, "model.safetensors.index.json", v, e);
}

static int write_texts(const struct hf_writer *w, const struct contents *all, struct err *e)
{
    struct tokenizer *t;
    TRY(source_tokenizer(w->src, &t, e));
    int rc = hf_write_text(w->folder, w->src, t, e);
    if (rc == 0)
        rc = hf_write_config(w->folder, w->config, w->src, t, all->forms, all->map, e);
    tok_close(t);
    return rc;
}

static int write_all(const struct hf_writer *w, struct contents *all, struct err *e)
{
    for (int i = 0; i < w->n_shards; i++)
        TRY(read_shard(w, i, all, e));
    TRY(write_index(w, all, e));
    TRY(write_texts(w, all, e));
    return sync_names(w->fd, w->folder, e);
}

/* Nobody gets a folder that cannot be opened. */
static int check_folder(const struct hf_writer *w, struct err *e)
{
    struct source *s;
    struct tokenizer *t;
    TRY(source_open(&s, w->folder, e));
    int rc = source_tokenizer(s, &t, e);
    if (rc == 0)
        tok_close(t);
    source_close(s);
    return rc;
}

static int put_in_place(struct hf_writer *w, struct err *e)
{
    char parent[FOLDER_PATH];
    snprintf(parent, sizeof parent, "%s", w->out);
    char *slash = strrchr(parent, '/');
    if (slash != NULL)
        slash[slash == parent] = 0;
    if (rename(w->folder, w->out) != 0)
        return err_errno(e, ERR_IO, "%s: cannot put the folder there", w->out);
    snprintf(w->folder, sizeof w->folder, "%s", w->out);
    int fd = open(slash != NULL ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open the folder around it", w->out);
    int rc = sync_names(fd, w->out, e);
    close(fd);
    return rc;
}

int hf_write_rest(struct hf_writer *w, struct err *e)
{
    struct contents all;
    ASSERT(w->shard < 0);
    int rc = open_contents(&all, e);
    if (rc == 0)
        rc = write_all(w, &all, e);
    close_contents(&all);
    return rc;
}

int hf_write_finish(struct hf_writer *w, struct err *e)
{
    TRY(hf_write_rest(w, e));
    TRY(check_folder(w, e));
    return put_in_place(w, e);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

/* Whether the tensor has a row for each number of the heads of q or k. */
static bool is_rotated(const char *name)
{
    static const char *const part[] = { ".attn_q.", ".attn_k.", ".attn_q_norm.", ".attn_k_norm." };
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++)
        if (strstr(name, part[i]) != NULL)
            return true;
    return false;
}

int hf_row_of(const struct model_config *c, const char *name, int row)
{
    int half = c->rope_dim / 2;
    int i = row % c->head_dim;
    if (c->rope_half_split || i >= 2 * half || !is_rotated(name))
        return row;
    return row - i + i % half * 2 + i / half;
}
