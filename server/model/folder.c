#include "server/model/folder.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/text/json_file.h"

int folder_path(char out[FOLDER_PATH], const char *folder, const char *name, struct err *e)
{
    int n = snprintf(out, FOLDER_PATH, "%s/%s", folder, name);
    if (n < 0 || n >= FOLDER_PATH)
        return err_set(e, ERR_LIMIT, "%s/%s: the path is too long", folder, name);
    return 0;
}

int folder_beside(char out[FOLDER_PATH], const char *folder, const char *suffix, struct err *e)
{
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        n--;
    if (n == 0 || (n == 1 && folder[0] == '/'))
        return err_set(e, ERR_INVALID, "\"%s\" is no name for a folder", folder);
    int len = snprintf(out, FOLDER_PATH, "%.*s%s", (int)n, folder, suffix);
    if (len < 0 || len >= FOLDER_PATH)
        return err_set(e, ERR_LIMIT, "%s: the path is too long", folder);
    return 0;
}

static const char *last_part(const char *path, size_t *n)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t at = end > 0 ? end - 1 : 0;
    while (at > 0 && path[at - 1] != '/')
        at--;
    *n = end - at;
    return path + at;
}

void folder_name(char *out, size_t size, const char *path)
{
    char real[PATH_MAX];
    size_t n;
    const char *part = last_part(path, &n);
    if (n <= 2 && strspn(part, ".") >= n && realpath(path, real) != NULL)
        part = last_part(real, &n);
    snprintf(out, size, "%.*s", (int)n, part);
}

bool folder_has(const char *folder, const char *name)
{
    char path[FOLDER_PATH];
    return folder_path(path, folder, name, NULL) == 0 && access(path, F_OK) == 0;
}

int folder_read(struct buf *b, const char *folder, const char *name, struct err *e)
{
    char path[FOLDER_PATH];
    buf_init(b, FOLDER_MAX_TEXT);
    TRY(folder_path(path, folder, name, e));
    int rc = buf_read_file(b, path, e);
    if (rc < 0)
        buf_free(b);
    return rc;
}

int folder_read_json(json_t **out, const char *folder, const char *name, struct err *e)
{
    struct buf b;
    TRY(folder_read(&b, folder, name, e));
    int rc = json_file_parse(out, name, &b, e);
    buf_free(&b);
    if (rc < 0)
        err_prefix(e, "%s", folder);
    return rc;
}

static int add_text(const char *text, size_t n, void *arg)
{
    return buf_add(arg, text, n) < 0 ? -1 : 0;
}

int folder_write_json(const char *folder, const char *name, json_t *v, struct err *e)
{
    const size_t flags = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9);
    char path[FOLDER_PATH];
    struct buf b;
    buf_init(&b, FOLDER_MAX_TEXT);
    if (v == NULL || json_dump_callback(v, add_text, &b, flags) != 0)
        b.bad = ERR_NOMEM;
    int rc = buf_addc(&b, '\n');
    if (rc < 0)
        err_set(e, rc, "no memory to write %s/%s", folder, name);
    else if ((rc = folder_path(path, folder, name, e)) == 0)
        rc = file_write_atomic(path, b.data, b.len, e);
    json_decref(v);
    buf_free(&b);
    return rc;
}
