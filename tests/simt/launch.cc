/* Launches: what a GPU would refuse, the order of blocks, and what is checked behind a kernel. */
#include "tests/simt/machine.hh"

namespace simt
{

/* ---- running --------------------------------------------------------------------------------------------------- */

static uint64_t greatest_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Block number (first + i step) % n is the i-th to run: every one once, as step and n have no divisor in common. */
struct block_order {
    uint64_t n, first, step;
};

static block_order order_make(device *d, const dim3 &grid)
{
    block_order o = { (uint64_t)grid.x * grid.y * grid.z, 0, 1 };
    if (d->seed == 0 || o.n > UINT32_MAX)
        return o;
    o.first = device_random(d) % o.n;
    do
        o.step = device_random(d) % o.n + 1;
    while (greatest_divisor(o.step, o.n) != 1);
    return o;
}

void launch_run(device *d, const launch *l)
{
    d->kernel = l->name;
    if (d->lose_after > 0 && --d->lose_after == 0) {
        device_fail(d, cudaErrorECCUncorrectable, "kernel %s: the device was lost, as planned",
                    l->name);
        return;
    }
    d->stats.launches++;
    d->block.body = &l->body;
    d->block.dynamic_bytes = l->dynamic_bytes;
    d->block.shared_limit = l->shared_limit;
    simt_at.grid_size = l->grid;
    simt_at.block_size = l->block;
    block_shape(d, l->block);
    block_order o = order_make(d, l->grid);
    for (uint64_t i = 0; i < o.n; i++) {
        uint64_t number = (o.first + i * o.step) % o.n, row = number / l->grid.x;
        simt_at.block = uint3{ (unsigned)(number % l->grid.x), (unsigned)(row % l->grid.y),
                               (unsigned)(row / l->grid.y) };
        d->stats.blocks++;
        if (!block_run(d))
            return;
    }
    memory_check(d, l->name);
}

/* ---- what is refused ------------------------------------------------------------------------------------------- */

static bool within(const dim3 &v, unsigned x, unsigned y, unsigned z)
{
    return v.x >= 1 && v.x <= x && v.y >= 1 && v.y <= y && v.z >= 1 && v.z <= z;
}

/* The dynamic shared memory that a kernel may ask for. */
static size_t dynamic_limit(const device *d, const void *kernel)
{
    size_t limit = SHARED_PLAIN;
    for (const auto &i : d->dynamic_limits)
        if ((!kernel || i.first == kernel) && i.second > limit)
            limit = i.second;
    return limit;
}

static cudaError_t launch_check(device *d, const launch *l, size_t limit)
{
    const dim3 &g = l->grid, &b = l->block;
    if (!within(g, 0x7fffffff, 65535, 65535) || !within(b, 1024, 1024, 64) ||
        b.x * b.y * b.z > MAX_THREADS) {
        device_report(d, "kernel %s: no launch of (%u, %u, %u) blocks of (%u, %u, %u) threads",
                      l->name, g.x, g.y, g.z, b.x, b.y, b.z);
        return cudaErrorInvalidConfiguration;
    }
    if (l->dynamic_bytes > limit) {
        device_report(d,
                      "kernel %s: %zu bytes of dynamic shared memory, cudaFuncSetAttribute has "
                      "allowed %zu",
                      l->name, l->dynamic_bytes, limit);
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

} // namespace simt

using namespace simt;

cudaError_t simt_set_attribute(const void *kernel, cudaFuncAttribute which, int value)
{
    return device_call([=](device *d) {
        if (which != cudaFuncAttributeMaxDynamicSharedMemorySize)
            return cudaSuccess;
        if (value < 0 || (size_t)value > SHARED_MOST) {
            device_report(d, "%d bytes of dynamic shared memory, a block has %zu", value,
                          SHARED_MOST);
            return cudaErrorInvalidValue;
        }
        d->dynamic_limits[kernel] = (size_t)value;
        return cudaSuccess;
    });
}

void simt_launch(const char *name, cudaStream_t s, dim3 grid, dim3 block, size_t shared_bytes,
                 std::function<void()> body, const void *kernel)
{
    device_call([&](device *d) {
        size_t limit = dynamic_limit(d, kernel);
        bool asked = limit > SHARED_PLAIN || d->dynamic_limits.count(kernel) != 0;
        launch l = { name,           grid, block, shared_bytes, asked ? SHARED_MOST : SHARED_PLAIN,
                     std::move(body) };
        cudaError_t e = launch_check(d, &l, limit);
        if (e != cudaSuccess)
            return e;
        if (!stream_here(s))
            return cudaErrorInvalidResourceHandle;
        work w = {};
        w.run = [l](device *on) { launch_run(on, &l); };
        return stream_add(d, s, std::move(w));
    });
}
