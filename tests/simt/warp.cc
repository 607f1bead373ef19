/* What the lanes of a warp do together. Each leaves a request on its own stack and waits; the last to come answers all.
 *
 * Lanes of different masks do not disturb each other. Stricter than a GPU: all lanes of a mask must exist, be alive and
 * come from the same line, and a shuffle may read only from lanes of the mask.
 */
#include "tests/simt/machine.hh"

#include <string.h>

namespace simt
{

const char *op_name(simt_op op)
{
    static const char *const names[] = {
        "__syncthreads",     "__syncthreads_and",    "__syncthreads_or",  "__syncthreads_count",
        "__syncwarp",        "__shfl_sync",          "__shfl_up_sync",    "__shfl_down_sync",
        "__shfl_xor_sync",   "__ballot_sync",        "__any_sync",        "__all_sync",
        "__match_any_sync",  "__reduce_add_sync",    "__reduce_min_sync", "__reduce_min_sync",
        "__reduce_max_sync", "__reduce_max_sync",    "__reduce_and_sync", "__reduce_or_sync",
        "__reduce_xor_sync", "cu_mma_bf16",          "cu_mma_f16",        "cu_mma_s8",
        "cu_ldmatrix_x4",    "cu_ldmatrix_x4_trans", "cu_wgmma_bf16"
    };
    return names[op];
}

/* The lowest lane of a mask, and the mask without it: for (m = mask; m; m &= m - 1) visits lane_first(m). */
static int lane_first(uint32_t mask)
{
    return __builtin_ctz(mask);
}

/* The lane that `lane` reads from; CUDA C++ programming guide, "Warp Shuffle Functions". */
static uint32_t shuffle_source(const simt_request *r, uint32_t lane)
{
    uint32_t width = (uint32_t)r->width, low = lane & ~(width - 1), high = low + width - 1;
    switch ((int)r->op) {
    case SIMT_SHFL: return low + (r->lane & (width - 1));
    case SIMT_SHFL_UP: return r->lane <= lane - low ? lane - r->lane : lane;
    case SIMT_SHFL_DOWN: return r->lane <= high - lane ? lane + r->lane : lane;
    default: return (lane ^ r->lane) <= high ? lane ^ r->lane : lane;
    }
}

static void shuffle_perform(warp *w, uint32_t mask)
{
    for (uint32_t m = mask; m; m &= m - 1) {
        uint32_t lane = (uint32_t)lane_first(m);
        simt_request *r = w->request[lane];
        uint32_t source = shuffle_source(r, lane);
        if (!(mask >> source & 1))
            simt_fault(cudaErrorLaunchFailure, r->file, r->line,
                       "%s: lane %u reads from lane %u, which is not in the mask 0x%08x",
                       op_name(r->op), lane, source, mask);
        r->result = w->request[source]->value;
    }
}

static uint32_t reduce_step(simt_op op, uint32_t a, uint32_t b)
{
    switch ((int)op) {
    case SIMT_ADD: return a + b;
    case SIMT_MIN_S: return (int32_t)a < (int32_t)b ? a : b;
    case SIMT_MAX_S: return (int32_t)a > (int32_t)b ? a : b;
    case SIMT_MIN_U: return a < b ? a : b;
    case SIMT_MAX_U: return a > b ? a : b;
    case SIMT_AND: return a & b;
    case SIMT_OR: return a | b;
    default: return a ^ b;
    }
}

static uint32_t reduce(const warp *w, simt_op op, uint32_t mask)
{
    uint32_t sum = (uint32_t)w->request[lane_first(mask)]->value;
    for (uint32_t m = mask & (mask - 1); m; m &= m - 1)
        sum = reduce_step(op, sum, (uint32_t)w->request[lane_first(m)]->value);
    return sum;
}

/* The lanes whose value is `value`. */
static uint32_t lanes_with(const warp *w, uint32_t mask, uint64_t value)
{
    uint32_t lanes = 0;
    for (uint32_t m = mask; m; m &= m - 1)
        if (w->request[lane_first(m)]->value == value)
            lanes |= m & -m;
    return lanes;
}

static void warp_perform(warp *w, const simt_request *r)
{
    uint32_t mask = r->mask;
    uint64_t result = 0;
    switch (r->op) {
    case SIMT_BARRIER:
    case SIMT_BARRIER_AND:
    case SIMT_BARRIER_OR:
    case SIMT_BARRIER_COUNT:
    case SIMT_WARP: return;
    case SIMT_SHFL:
    case SIMT_SHFL_UP:
    case SIMT_SHFL_DOWN:
    case SIMT_SHFL_XOR: shuffle_perform(w, mask); return;
    case SIMT_BALLOT: result = lanes_with(w, mask, 1); break;
    case SIMT_ANY: result = lanes_with(w, mask, 1) != 0; break;
    case SIMT_ALL: result = lanes_with(w, mask, 0) == 0; break;
    case SIMT_MATCH_ANY:
        for (uint32_t m = mask; m; m &= m - 1) {
            simt_request *lane = w->request[lane_first(m)];
            lane->result = lanes_with(w, mask, lane->value);
        }
        return;
    case SIMT_ADD:
    case SIMT_MIN_S:
    case SIMT_MIN_U:
    case SIMT_MAX_S:
    case SIMT_MAX_U:
    case SIMT_AND:
    case SIMT_OR:
    case SIMT_XOR: result = reduce(w, r->op, mask); break;
    case SIMT_MMA_BF16:
    case SIMT_MMA_F16:
    case SIMT_MMA_S8:
    case SIMT_LDMATRIX:
    case SIMT_LDMATRIX_TRANS: mma_perform(w, r); return;
    case SIMT_WGMMA_BF16: wgmma_perform(w, r); return;
    }
    for (uint32_t m = mask; m; m &= m - 1)
        w->request[lane_first(m)]->result = result;
}

/* Faults unless all that r waited for ask for the same. */
static void warp_check(const warp *w, const simt_request *r)
{
    for (uint32_t m = r->mask; m; m &= m - 1) {
        const simt_request *o = w->request[lane_first(m)];
        if (o->op != r->op || o->mask != r->mask || o->width != r->width)
            simt_fault(cudaErrorLaunchFailure, r->file, r->line,
                       "%s with mask 0x%08x, while lane %d is at %s with mask 0x%08x, %s:%d",
                       op_name(r->op), r->mask, lane_first(m), op_name(o->op), o->mask, o->file,
                       o->line);
        if (o->line != r->line || (o->file != r->file && strcmp(o->file, r->file) != 0))
            simt_fault(cudaErrorLaunchFailure, r->file, r->line,
                       "%s, while lane %d is at another one, %s:%d", op_name(r->op), lane_first(m),
                       o->file, o->line);
    }
}

} // namespace simt

using namespace simt;

uint64_t simt_collect(simt_request *r)
{
    device *d = &machine;
    block *b = &d->block;
    int number = (int)(b->now - b->threads), lane = number % LANES;
    warp *w = &b->warps[number / LANES];
    if (!(r->mask >> lane & 1))
        simt_fault(cudaErrorLaunchFailure, r->file, r->line,
                   "%s: the mask 0x%08x does not name the calling lane %d", op_name(r->op), r->mask,
                   lane);
    if (r->width < 1 || r->width > LANES || (r->width & (r->width - 1)) != 0)
        simt_fault(cudaErrorLaunchFailure, r->file, r->line,
                   "%s: the width %d is not a power of two up to 32", op_name(r->op), r->width);
    w->request[lane] = r;
    w->waiting |= 1u << lane;
    if ((w->waiting & r->mask) == r->mask) {
        warp_check(w, r);
        warp_perform(w, r);
        w->waiting &= ~r->mask;
        block_ready(b, number / LANES, r->mask);
    }
    block_wait(d, r);
    return r->result;
}

unsigned __activemask()
{
    device *d = &machine;
    const block *b = &d->block;
    int number = (int)(b->now - b->threads);
    uint32_t alive = 0;
    for (int i = 0; i < LANES; i++)
        if (b->warps[number / LANES].present >> i & 1 &&
            !b->threads[number / LANES * LANES + i].ended)
            alive |= 1u << i;
    return d->seed == 0 ? alive : (alive & device_random(d)) | 1u << number % LANES;
}
