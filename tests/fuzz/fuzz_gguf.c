/* Any bytes as a GGUF file: opened, its tokenizer built and used, closed. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "server/base/log.h"
#include "server/model/source.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_tokenizer(const struct source *s)
{
    static const char text[] = "a b\xC3\xA9 <s>\xFF 12";
    struct tokenizer *t;
    struct tok_ids ids = { 0 };
    struct buf out;
    struct err e;
    if (source_tokenizer(s, &t, &e) < 0)
        return;
    buf_init(&out, 1 << 16);
    if (tok_encode(t, text, sizeof text - 1, TOK_ADD_BOS, &ids) == 0 &&
        tok_decode(t, ids.id, ids.n, true, &out) == 0 && out.len == 0)
        err_bug(__FILE__, __LINE__, "text comes back");
    buf_free(&out);
    tok_ids_free(&ids);
    tok_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    struct source *s;
    struct err e;
    int fd = memfd_create("gguf", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        err_bug(__FILE__, __LINE__, "a file in memory");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (source_open(&s, path, &e) == 0) {
        for (int i = 0; i < s->n_tensors; i++)
            if (source_find(s, s->tensor[i].name) != &s->tensor[i])
                err_bug(__FILE__, __LINE__, "every tensor is found");
        use_tokenizer(s);
        source_close(s);
    }
    close(fd);
    return 0;
}
