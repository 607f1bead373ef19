/* Where recipes and models lie. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/cli/recipe.h"
#include "server/config.h"

enum { PATH_SIZE = 4096, MAX_RECIPE = 1 << 16, LEVELS = 6 };

static bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int join(char *out, size_t n, struct err *e, const char *a, const char *b, const char *c)
{
    int len = snprintf(out, n, "%s%s%s", a, b, c);
    if (len < 0 || (size_t)len >= n)
        return err_set(e, ERR_LIMIT, "%s%s%s: the path is too long", a, b, c);
    return 0;
}

/* From the program's folder upwards: configs/models of a source tree, or share/wring/models of an installation. */
static int recipes_dir(char *out, size_t n, struct err *e)
{
    static const char *const at[] = { "/configs/models", "/share/wring/models" };
    char dir[PATH_SIZE];
    ssize_t len = readlink("/proc/self/exe", dir, sizeof dir - 1);
    if (len <= 0)
        return err_errno(e, ERR_IO, "/proc/self/exe: cannot tell where the program lies");
    dir[len] = 0;
    for (int level = 0; level < LEVELS; level++) {
        char *slash = strrchr(dir, '/');
        if (slash == NULL)
            break;
        *slash = 0;
        for (int i = 0; i < 2; i++) {
            TRY(join(out, n, e, dir, at[i], ""));
            if (is_dir(out))
                return 0;
        }
    }
    return err_set(e, ERR_NOTFOUND,
                   "there is no folder of recipes: configs/models above the program, or "
                   "../share/wring/models beside it");
}

/* "a, b, c" of the recipes in dir. */
static void list_names(const char *dir, char *out, size_t n)
{
    size_t at = 0;
    DIR *d = opendir(dir);
    out[0] = 0;
    for (struct dirent *f; d != NULL && (f = readdir(d)) != NULL;) {
        size_t len = strlen(f->d_name);
        if (len < 6 || strcmp(f->d_name + len - 5, ".yaml") != 0 || at + len + 2 > n)
            continue;
        at += (size_t)snprintf(out + at, n - at, "%s%.*s", at > 0 ? ", " : "", (int)len - 5,
                               f->d_name);
    }
    if (d != NULL)
        closedir(d);
}

static int not_found(const char *dir, const char *name, struct err *e)
{
    char names[320];
    list_names(dir, names, sizeof names);
    return err_set(e, ERR_NOTFOUND, "there is no recipe \"%s\"; there are: %s", name, names);
}

int recipe_find(struct recipe *r, const char *name, struct err *e)
{
    char dir[PATH_SIZE];
    char path[PATH_SIZE];
    char file[256];
    struct buf b;
    memset(r, 0, sizeof *r);
    TRY(recipes_dir(dir, sizeof dir, e));
    int len = snprintf(file, sizeof file, "/%s.yaml", name);
    if (name[0] == '.' || strchr(name, '/') != NULL || len < 0 || (size_t)len >= sizeof file)
        return not_found(dir, name, e);
    TRY(join(path, sizeof path, e, dir, file, ""));
    buf_init(&b, MAX_RECIPE);
    int rc = buf_read_file(&b, path, e);
    if (rc == ERR_NOTFOUND)
        rc = not_found(dir, name, e);
    else if (rc == 0)
        rc = recipe_parse(r, buf_str(&b), b.len, path, e);
    buf_free(&b);
    if (rc == 0 && r->name != NULL && strcmp(r->name, name) != 0) {
        rc = err_set(e, ERR_FORMAT, "%s: its name is \"%s\"; it must be the file's", path, r->name);
        recipe_free(r);
    }
    return rc;
}

int recipe_models_dir(char *out, size_t n, struct err *e)
{
    char data[PATH_SIZE];
    TRY(config_data_home(data, sizeof data, e));
    return join(out, n, e, data, "/wring/models", "");
}

int recipe_model_path(const struct recipe *r, char *out, size_t n, struct err *e)
{
    char dir[PATH_SIZE];
    char name[512];
    ASSERT(r->n_files > 0 && r->file[0].file != NULL);
    const char *dot = strrchr(r->file[0].file, '.');
    TRY(recipe_models_dir(dir, sizeof dir, e));
    TRY(join(name, sizeof name, e, r->name, r->import == NULL && dot != NULL ? dot : "", ""));
    return join(out, n, e, dir, "/", name);
}

int recipe_resolve(const char *model, char *out, size_t n, struct err *e)
{
    struct stat st;
    struct recipe r = { 0 };
    if (stat(model, &st) == 0)
        return join(out, n, e, model, "", "");
    if (errno != ENOENT && errno != ENOTDIR)
        return err_errno(e, ERR_IO, "%s: cannot open", model);
    if (strchr(model, '/') != NULL)
        return err_set(e, ERR_NOTFOUND, "%s: there is no such file or folder", model);
    int rc = recipe_find(&r, model, e);
    if (rc == ERR_NOTFOUND)
        return err_prefix(e, "%s is no file or folder", model);
    TRY(rc);
    rc = recipe_model_path(&r, out, n, e);
    recipe_free(&r);
    TRY(rc);
    if (stat(out, &st) < 0)
        return err_set(e, ERR_NOTFOUND, "%s is not here yet; get it with: wring pull %s", model,
                       model);
    return 0;
}
