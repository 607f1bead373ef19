/* Rotated inputs against the definition, bit for bit: powers of two below, at and beyond what a kernel keeps at once, alone
 * and times odd numbers that are mixed or not; on a device also the way back. */
#include <string.h>

#include "quant/codec.h"
#include "quant/rotate.h"
#include "tests/ops/check.h"
#include "tests/tools/levels.h"

static void check_width(struct check *c, int n, int cols)
{
    check_case(c, "%d rows of %d rotated", n, cols);
    size_t bytes = (size_t)n * (size_t)cols * sizeof(float);
    float *x = check_host(c, bytes), *want = check_host(c, bytes), *got = check_host(c, bytes);
    float *dx;
    struct input in, rotated = { 0 };
    rnd_fill_normal(x, (size_t)n * (size_t)cols, 1);
    dx = check_put(c, c->be, x, bytes);
    rotate_rows(CPU_REF, x, want, n, cols);
    input_set(&in, dx, n, cols, check_room(c, c->be, input_ws_bytes(c->be, n, cols)));
    rotate_input(c->be, &in, &rotated);
    check_get(c, c->be, got, rotated.x, bytes);
    check_same(c, CHECK_ROTATE, "a rotated input", got, want, bytes);
    if (!c->be->host) {
        rotate_back(CPU_REF, x, want, n, cols);
        rotate_device_back(c->be, dx, n, cols);
        check_get(c, c->be, got, dx, bytes);
        check_same(c, CHECK_ROTATE, "rows turned back", got, want, bytes);
    }
    check_close(c, CHECK_ROTATE);
}

void check_rotate(struct check *c)
{
    static const int cols[] = {
        32,   64,   96,   128,   576,   960,   1536,  2016,      2048,
        2144, 4096, 5632, 11008, 16384, 24576, 67584, 3 * 16384, 134 * 128
    };
    for (int i = 0; i < COUNT(cols); i++)
        check_width(c, i % 3 + 1, cols[i]);
}
