#include "tests/tools/levels.h"

#include "server/base/mem.h"

struct be *level[CPU_ISA_N];

int levels_open(void **state)
{
    (void)state;
    struct err e;
    for (int i = 0; i <= (int)cpu_isa_best(); i++) {
        struct be_config c = { .n_threads = 3, .isa = cpu_isa_name(i) };
        if (be_open(&level[i], &c, &e) < 0)
            return -1;
    }
    return 0;
}

int levels_close(void **state)
{
    (void)state;
    for (int i = 0; i < CPU_ISA_N; i++)
        be_close(level[i]);
    struct mem_stats m;
    mem_stats(&m);
    return m.blocks == 0 ? 0 : -1;
}

static uint32_t state_of_rnd;

void rnd_seed(uint32_t seed)
{
    state_of_rnd = seed;
}

uint32_t rnd_bits(void)
{
    state_of_rnd = state_of_rnd * 1664525 + 1013904223;
    return state_of_rnd >> 8;
}

float rnd_unit(void)
{
    return (float)rnd_bits() / (float)(1 << 23) - 1.0f;
}

/* The sum of twelve even numbers has variance 4. */
float rnd_normal(void)
{
    float s = 0;
    for (int i = 0; i < 12; i++)
        s += rnd_unit();
    return s / 2;
}

void rnd_fill(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rnd_unit() * scale;
}

void rnd_fill_normal(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rnd_normal() * scale;
}
