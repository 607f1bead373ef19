#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/buf.h"

static int read_all(struct buf *b, int fd, const char *path, struct err *e)
{
    for (;;) {
        size_t room = b->max - b->len < 65536 ? b->max - b->len : 65536;
        if (room == 0)
            room = 1; /* one byte more than the ceiling tells a file that is too large */
        char part[65536];
        ssize_t n = read(fd, part, room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(e, ERR_IO, "%s: cannot read", path);
        if (n == 0)
            return 0;
        int rc = buf_add(b, part, (size_t)n);
        if (rc == ERR_LIMIT)
            return err_set(e, rc, "%s: larger than the %zu bytes allowed here", path, b->max);
        if (rc < 0)
            return err_set(e, rc, "%s: no memory to read it", path);
    }
}

static int cannot_open(const char *path, struct err *e)
{
    return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: cannot open", path);
}

int file_check(const char *path, struct err *e)
{
    struct stat st;
    if (stat(path, &st) < 0 || access(path, R_OK) < 0)
        return cannot_open(path, e);
    errno = EISDIR;
    return S_ISDIR(st.st_mode) ? err_errno(e, ERR_IO, "%s: cannot read", path) : 0;
}

int buf_read_file(struct buf *b, const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return cannot_open(path, e);
    int rc = read_all(b, fd, path, e);
    close(fd);
    return rc;
}

int file_write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -1;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

bool file_is_rest(const char *entry, const char *name)
{
    size_t n = strlen(name);
    return strncmp(entry, name, n) == 0 && entry[n] == '.' && strlen(entry + n) == 7;
}

int file_write_atomic(const char *path, const void *p, size_t n, struct err *e)
{
    char tmp[4096];
    int len = snprintf(tmp, sizeof tmp, "%s.XXXXXX", path);
    if (len < 0 || (size_t)len >= sizeof tmp)
        return err_set(e, ERR_INVALID, "%s: the path is too long", path);
    int fd = mkstemp(tmp);
    if (fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot create", tmp);
    bool ok = file_write_all(fd, p, n) == 0 && fchmod(fd, 0644) == 0 && fsync(fd) == 0;
    int why = errno;
    ok = close(fd) == 0 && ok;
    if (ok && rename(tmp, path) == 0)
        return 0;
    if (!ok)
        errno = why;
    int rc = err_errno(e, ERR_IO, "%s: cannot write", path);
    unlink(tmp);
    return rc;
}
