#include "tests/tools/eval_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/cli/import.h"
#include "tests/tools/scratch.h"

static void write_text(void)
{
    static const char *const part[] = { "Once upon a time there was a little cat. ",
                                        "The sun was warm and the dog ran to the park. ",
                                        "\"Can we play?\" asked Lily. ", "They were very happy. " };
    struct buf b;
    struct err e;
    uint32_t x = 1;
    buf_init(&b, 1 << 20);
    while (b.len < 20000) {
        x = x * 1664525u + 1013904223u;
        buf_adds(&b, part[x >> 30]);
    }
    assert_int_equal(file_write_atomic(in_root("text.txt"), b.data, b.len, &e), 0);
    buf_free(&b);
}

int eval_open(void **state)
{
    struct err e;
    if (scratch_open(state) < 0)
        return -1;
    write_text();
    return import_llama2c("tests/golden/models/stories260K.bin", "tests/golden/models/tok512.bin",
                          in_root("model"), &e);
}

void eval_model(struct session *s)
{
    struct err e;
    struct model_options o = { .weights = "auto" };
    assert_int_equal(be_open(&s->be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    assert_int_equal(model_open(&s->model, in_root("model"), &o, s->be, &e), 0);
}
