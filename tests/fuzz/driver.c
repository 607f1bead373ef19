/* Replays files through a fuzz target without libFuzzer: every argument is a file or a folder of files. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "server/base/buf.h"
#include "server/base/err.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int n_files;

static int replay(const char *path)
{
    struct err e;
    struct buf b;
    buf_init(&b, (size_t)64 << 20);
    int rc = buf_read_file(&b, path, &e);
    if (rc == 0) {
        /* A block of exactly this size, so that a sanitizer sees a read past its end. */
        uint8_t *copy = malloc(b.len > 0 ? b.len : 1);
        ASSERT(copy != NULL);
        memcpy(copy, buf_str(&b), b.len);
        LLVMFuzzerTestOneInput(copy, b.len);
        free(copy);
        n_files++;
    } else {
        fprintf(stderr, "%s\n", e.text);
    }
    buf_free(&b);
    return rc;
}

static int replay_folder(const char *dir)
{
    char path[4096];
    int rc = 0;
    DIR *d = opendir(dir);
    if (d == NULL)
        return replay(dir);
    for (struct dirent *f; (f = readdir(d)) != NULL;) {
        int n = snprintf(path, sizeof path, "%s/%s", dir, f->d_name);
        if (f->d_name[0] != '.' && n > 0 && (size_t)n < sizeof path)
            rc = replay(path) < 0 ? -1 : rc;
    }
    closedir(d);
    return rc;
}

int main(int argc, char **argv)
{
    int rc = 0;
    for (int i = 1; i < argc; i++)
        rc = replay_folder(argv[i]) < 0 ? -1 : rc;
    printf("%d inputs replayed\n", n_files);
    return rc < 0 ? 1 : 0;
}
