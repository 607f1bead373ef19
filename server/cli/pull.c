/* wring pull NAME: each file of a recipe from the first source that gives the right bytes.
 *
 * All of it happens in the hidden folder .NAME.part beside the models; what is right moves to its name at the end. The
 * folder goes when the pull ends, except that a download cut short stays there to be continued. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "server/base/log.h"
#include "server/cli/cli.h"
#include "server/cli/fetch.h"
#include "server/cli/import.h"

enum { PATH_SIZE = 4096 };

struct pull {
    const struct recipe *r;
    char models[PATH_SIZE];
    char dir[PATH_SIZE];  /* the working folder */
    char path[PATH_SIZE]; /* the result */
    int lock;             /* a descriptor of dir that holds a lock, or -1 */
};

static int path_of(char out[PATH_SIZE], const char *dir, const char *name, const char *end,
                   struct err *e)
{
    int n = snprintf(out, PATH_SIZE, "%s/%s%s", dir, name, end);
    if (n < 0 || n >= PATH_SIZE)
        return err_set(e, ERR_LIMIT, "%s/%s%s: the path is too long", dir, name, end);
    return 0;
}

static int make_dirs(char *path, struct err *e)
{
    for (char *p = path + 1;; p++) {
        if (*p != '/' && *p != 0)
            continue;
        char held = *p;
        *p = 0;
        bool ok = mkdir(path, 0755) == 0 || errno == EEXIST;
        if (!ok)
            err_errno(e, ERR_IO, "%s: cannot create the folder", path);
        *p = held;
        if (!ok)
            return ERR_IO;
        if (held == 0)
            return 0;
    }
}

/* Bytes that are still to be written: an earlier try may have left some, and llama2c's files are there twice while they are
 * imported. */
static uint64_t room_needed(const struct pull *p)
{
    char part[PATH_SIZE];
    struct stat st;
    uint64_t all = 0;
    uint64_t left = 0;
    for (int i = 0; i < p->r->n_files; i++) {
        const struct recipe_file *f = &p->r->file[i];
        all += f->size;
        left += f->size;
        if (path_of(part, p->dir, f->file, ".part", NULL) == 0 && stat(part, &st) == 0)
            left -= (uint64_t)st.st_size < f->size ? (uint64_t)st.st_size : f->size;
    }
    return p->r->import != NULL && strcmp(p->r->import, "llama2c") == 0 ? left + all : left;
}

static int check_room(const struct pull *p, struct err *e)
{
    struct statvfs fs;
    uint64_t need = room_needed(p);
    if (statvfs(p->models, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < need)
        return err_set(e, ERR_IO, "%s: %s needs %" PRIu64 " MB and there are %" PRIu64 " MB free",
                       p->models, p->r->name, need >> 20,
                       ((uint64_t)fs.f_bavail * fs.f_frsize) >> 20);
    return 0;
}

/* One pull of a model at a time. */
static int lock_dir(struct pull *p, struct err *e)
{
    char name[512];
    snprintf(name, sizeof name, ".%s", p->r->name);
    TRY(path_of(p->dir, p->models, name, ".part", e));
    TRY(make_dirs(p->models, e));
    TRY(check_room(p, e));
    TRY(make_dirs(p->dir, e));
    p->lock = open(p->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->lock < 0)
        return err_errno(e, ERR_IO, "%s: cannot open", p->dir);
    if (flock(p->lock, LOCK_EX | LOCK_NB) == 0)
        return 0;
    close(p->lock);
    p->lock = -1;
    return err_set(e, ERR_BUSY, "another pull of %s is running", p->r->name);
}

static int fetch_right(const struct pull *p, const struct recipe_file *f,
                       const struct recipe_source *s, const char *part, struct err *e)
{
    TRY(fetch_source(f, s, p->dir, part, e));
    int rc = fetch_verify(f, part, e);
    if (rc < 0)
        unlink(part);
    return rc;
}

/* What an earlier try left may be of another source or version: then all of it is fetched, before the source is blamed. */
static int try_source(const struct pull *p, const struct recipe_file *f,
                      const struct recipe_source *s, const char *part, struct err *e)
{
    bool resumes = access(part, F_OK) == 0;
    int rc = fetch_right(p, f, s, part, e);
    return rc == ERR_HASH && resumes ? fetch_right(p, f, s, part, e) : rc;
}

static int pull_file(const struct pull *p, const struct recipe_file *f, char part[PATH_SIZE],
                     struct err *e)
{
    char name[512];
    int rc = 0;
    TRY(path_of(part, p->dir, f->file, ".part", e));
    for (int i = 0; i < f->n_sources; i++) {
        const struct recipe_source *s = &f->source[i];
        rc = try_source(p, f, s, part, e);
        if (rc == 0 || rc == ERR_CANCELLED)
            return rc;
        if (i + 1 < f->n_sources)
            LOG(W, "source_failed", "source=%s reason=%s",
                LOG_STR(fetch_name(s, name, sizeof name)), LOG_STR(e != NULL ? e->text : ""));
    }
    return err_prefix(e, "%s: every source failed; the last one, %s", f->file,
                      fetch_name(&f->source[f->n_sources - 1], name, sizeof name));
}

static int sync_rename(const char *from, const char *to, struct err *e)
{
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0)
        close(fd);
    if (ok && rename(from, to) == 0)
        return 0;
    if (!ok)
        errno = why;
    return err_errno(e, ERR_IO, "%s: cannot put the file there", to);
}

static int fill_folder(const struct pull *p, char part[RECIPE_FILES][PATH_SIZE], char *folder,
                       struct err *e)
{
    char path[PATH_SIZE];
    TRY(make_dirs(folder, e));
    for (int i = 0; i < p->r->n_files; i++) {
        TRY(path_of(path, folder, p->r->file[i].file, "", e));
        TRY(sync_rename(part[i], path, e));
    }
    return 0;
}

static int pull_all(struct pull *p, struct err *e)
{
    char part[RECIPE_FILES][PATH_SIZE];
    for (int i = 0; i < p->r->n_files; i++)
        TRY(pull_file(p, &p->r->file[i], part[i], e));
    if (p->r->import == NULL)
        return sync_rename(part[0], p->path, e);
    char folder[PATH_SIZE];
    TRY(path_of(folder, p->dir, "folder", "", e));
    fetch_remove(folder);
    TRY(strcmp(p->r->import, "folder") == 0 ? fill_folder(p, part, folder, e)
                                            : import_llama2c(part[0], part[1], folder, e));
    return sync_rename(folder, p->path, e);
}

/* What is left of a try: nothing after success; a download that can be continued otherwise. */
static void clean(const struct pull *p, bool done)
{
    char path[PATH_SIZE];
    if (done) {
        fetch_remove(p->dir);
        return;
    }
    static const char *const own[] = { "work", "folder" };
    for (int i = 0; i < 2; i++)
        if (path_of(path, p->dir, own[i], "", NULL) == 0)
            fetch_remove(path);
    for (int i = 0; i < p->r->n_files; i++) {
        struct stat st;
        if (path_of(path, p->dir, p->r->file[i].file, ".part", NULL) == 0 && stat(path, &st) == 0 &&
            (st.st_size == 0 || (uint64_t)st.st_size >= p->r->file[i].size))
            unlink(path);
    }
    rmdir(p->dir);
}

static int pull(struct pull *p, struct err *e)
{
    TRY(recipe_models_dir(p->models, sizeof p->models, e));
    if (access(p->path, F_OK) == 0)
        return 0;
    TRY(lock_dir(p, e));
    LOG(I, "pull", "model=%s licence=%s", p->r->name, LOG_STR(p->r->licence));
    int rc = pull_all(p, e);
    clean(p, rc == 0);
    close(p->lock);
    return rc;
}

int pull_recipe(const struct recipe *r, struct err *e)
{
    struct pull *p = mem_zalloc(1, sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_NOMEM, "no memory to pull %s", r->name);
    p->r = r;
    p->lock = -1;
    int rc = recipe_model_path(r, p->path, sizeof p->path, e);
    if (rc == 0)
        rc = pull(p, e);
    mem_free(p);
    return rc;
}

static const char help[] =
    "Usage: wring pull NAME\n\n"
    "Fetches the model of the recipe NAME, checks its SHA-256, and prints where it lies\n"
    "($XDG_DATA_HOME/wring/models). Commands take NAME instead of a path afterwards.\n\n"
    "  --help  this text\n";

int cmd_pull(int argc, char **argv)
{
    if (cli_asks_help(argc, argv))
        return fputs(help, stdout) < 0;
    if (argc != 1 || argv[0][0] == '-')
        return cli_usage("usage: wring pull NAME; --help tells more");
    struct err e;
    struct recipe r;
    char path[PATH_SIZE];
    if (recipe_find(&r, argv[0], &e) < 0)
        return cli_fail(&e);
    fetch_catch_signals();
    int rc = pull_recipe(&r, &e);
    if (rc == 0)
        rc = recipe_model_path(&r, path, sizeof path, &e);
    recipe_free(&r);
    if (rc < 0)
        return cli_fail(&e);
    printf("%s\n", path);
    return 0;
}
