/* The threads of a block take turns: one runs until it waits for others or ends, and then names who goes on.
 *
 * Whose turn it is, is chosen among all that can run, lane by lane of the warp that has the turn and now and then of
 * another one, by the seed. Between two points where threads wait for each other they so run in any order, which is all
 * that a GPU promises; what depends on that order changes with the seed.
 */
#include "tests/simt/machine.hh"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

simt_position simt_at;

namespace simt
{

/* ---- turns ----------------------------------------------------------------------------------------------------- */

/* One of the bits that are set. */
static int bit_pick(device *d, uint32_t bits)
{
    if (d->seed == 0)
        return __builtin_ctz(bits);
    uint32_t turn = device_random(d) & 31;
    uint32_t turned = bits >> turn | bits << (-turn & 31);
    return (int)(((uint32_t)__builtin_ctz(turned) + turn) & 31);
}

void block_ready(block *b, int w, uint32_t lanes)
{
    b->warps[w].ready |= lanes;
    b->ready_warps |= 1u << w;
}

/* Who runs next, or null when nobody can. */
static thread *turn_next(device *d)
{
    block *b = &d->block;
    if (!b->ready_warps)
        return nullptr;
    bool stay = b->ready_warps >> b->warp_now & 1;
    if (!stay || (d->seed != 0 && device_random(d) % 16 == 0))
        b->warp_now = bit_pick(d, b->ready_warps);
    warp *w = &b->warps[b->warp_now];
    int lane = bit_pick(d, w->ready);
    w->ready &= ~(1u << lane);
    if (!w->ready)
        b->ready_warps &= ~(1u << b->warp_now);
    return &b->threads[b->warp_now * LANES + lane];
}

static void turn_give(block *b, thread *t)
{
    b->now = t;
    simt_at.thread = t->index;
}

/* ---- faults ---------------------------------------------------------------------------------------------------- */

struct place {
    char text[400];
};

static place place_of(const device *d, const thread *t, const char *file, int line)
{
    place p;
    const uint3 &b = simt_at.block, &i = t->index;
    snprintf(p.text, sizeof p.text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u), %s:%d",
             d->kernel, b.x, b.y, b.z, i.x, i.y, i.z, file, line);
    return p;
}

/* Leaves the block; its fibers are dropped where they are. */
[[noreturn]] static void block_leave(device *d, fiber *from)
{
    fiber_switch(from, &d->block.home, true);
    __builtin_unreachable();
}

/* What a thread that another waits for does instead. */
static void missing_describe(const block *b, const warp *w, int lane, char *text, size_t size)
{
    if (!(w->present >> lane & 1)) {
        snprintf(text, size, "lane %d, which is no thread of the block", lane);
        return;
    }
    const thread *t = &b->threads[(w - b->warps) * LANES + lane];
    const uint3 &i = t->index;
    int n = snprintf(text, size, "thread (%u, %u, %u), which ", i.x, i.y, i.z);
    text += n;
    size -= (size_t)n;
    const simt_request *r = t->waits;
    if (t->ended)
        snprintf(text, size, "has ended");
    else if (r && r->op >= SIMT_WARP)
        snprintf(text, size, "waits at %s with mask 0x%08x, %s:%d", op_name(r->op), r->mask,
                 r->file, r->line);
    else if (r)
        snprintf(text, size, "waits at %s, %s:%d", op_name(r->op), r->file, r->line);
}

/* Whether r could have been completed by what t does. */
static bool missing_is(const thread *t, const simt_request *r)
{
    if (t->ended || !t->waits)
        return true;
    bool of_block = r->op < SIMT_WARP;
    return of_block ? t->waits->op >= SIMT_WARP
                    : t->waits->op < SIMT_WARP || t->waits->mask != r->mask;
}

/* Nobody can run: the first that waits, and the first that it waits for in vain. */
[[noreturn]] static void block_stuck(device *d, fiber *from)
{
    block *b = &d->block;
    int first = 0;
    while (!b->threads[first].waits)
        first++;
    const thread *t = &b->threads[first];
    const simt_request *r = t->waits;
    bool of_block = r->op < SIMT_WARP;
    char missing[300] = "nobody";
    int low = of_block ? 0 : first / LANES * LANES;
    int high = of_block ? (b->size + LANES - 1) / LANES * LANES : low + LANES;
    for (int i = low; i < high; i++) {
        bool asked = of_block ? i < b->size : r->mask >> i % LANES & 1;
        const warp *w = &b->warps[i / LANES];
        if (asked && (!(w->present >> i % LANES & 1) || missing_is(&b->threads[i], r))) {
            missing_describe(b, w, i % LANES, missing, sizeof missing);
            break;
        }
    }
    device_fail(d, cudaErrorLaunchFailure, "%s: %s waits forever for %s",
                place_of(d, t, r->file, r->line).text, op_name(r->op), missing);
    block_leave(d, from);
}

/* ---- running --------------------------------------------------------------------------------------------------- */

/* The body of every fiber. A thread that ends leaves its stack warm to the next one that has none yet, so that a kernel
 * whose threads never wait runs on one stack without a switch. */
static void thread_main()
{
    fiber_enter();
    device *d = &machine;
    block *b = &d->block;
    for (;;) {
        (*b->body)();
        thread *me = b->now;
        fiber *mine = me->fiber;
        me->ended = true;
        me->fiber = nullptr;
        if (--b->alive == 0) {
            fiber_give(&b->fibers, mine);
            block_leave(d, mine);
        }
        thread *next = turn_next(d);
        if (!next)
            block_stuck(d, mine);
        turn_give(b, next);
        if (!next->fiber) {
            next->fiber = mine;
            continue;
        }
        fiber_give(&b->fibers, mine);
        d->stats.switches++;
        fiber_switch(mine, next->fiber, true);
    }
}

/* Gives way to the next thread, and returns when it is the caller's turn again. */
static void turn_pass(device *d)
{
    block *b = &d->block;
    thread *me = b->now, *next = turn_next(d);
    if (!next)
        block_stuck(d, me->fiber);
    if (next == me)
        return;
    turn_give(b, next);
    if (!next->fiber)
        next->fiber = fiber_take(&b->fibers, thread_main);
    d->stats.switches++;
    fiber_switch(me->fiber, next->fiber, false);
}

void block_wait(device *d, simt_request *r)
{
    thread *me = d->block.now;
    me->waits = r;
    turn_pass(d);
    me->waits = nullptr;
}

void block_shape(device *d, dim3 size)
{
    block *b = &d->block;
    b->size = (int)(size.x * size.y * size.z);
    for (int i = 0; i < b->size; i++) {
        unsigned n = (unsigned)i;
        b->threads[i].index = uint3{ n % size.x, n / size.x % size.y, n / size.x / size.y };
    }
    for (int w = 0; w < MAX_WARPS; w++) {
        int lanes = b->size - w * LANES;
        b->warps[w].present = lanes >= LANES ? ~0u : lanes > 0 ? (1u << lanes) - 1 : 0;
    }
}

bool block_run(device *d)
{
    block *b = &d->block;
    b->alive = b->size;
    b->arrived = b->votes = 0;
    b->barrier = nullptr;
    b->ready_warps = 0;
    b->warp_now = 0;
    for (int w = 0; w * LANES < b->size; w++) {
        b->warps[w].waiting = b->warps[w].ready = 0;
        block_ready(b, w, b->warps[w].present);
    }
    for (int i = 0; i < b->size; i++) {
        thread *t = &b->threads[i];
        t->fiber = nullptr;
        t->waits = nullptr;
        t->ended = false;
        t->prior_done = false;
        t->groups = 0;
        t->copies.clear();
        t->product_groups = 0;
        t->products.clear();
        t->tiles.clear();
    }
    shared_begin(b);
    b->home = fiber{};
    thread *first = turn_next(d);
    turn_give(b, first);
    first->fiber = fiber_take(&b->fibers, thread_main);
    fiber_switch(&b->home, first->fiber, false);
    b->now = nullptr;
    if (d->failed != cudaSuccess)
        fiber_drop_all(&b->fibers);
    bool guards = shared_end(d);
    return guards && d->failed == cudaSuccess;
}

} // namespace simt

using namespace simt;

void simt_fault(cudaError_t code, const char *file, int line, const char *format, ...)
{
    device *d = &machine;
    thread *me = d->block.now;
    char what[300];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    if (!me) {
        fprintf(stderr, "%s:%d: %s, outside of a kernel\n", file, line, what);
        __builtin_trap();
    }
    device_fail(d, code, "%s: %s", place_of(d, me, file, line).text, what);
    block_leave(d, me->fiber);
}

void cu_wait_prior()
{
    machine.block.now->prior_done = true;
}

void simt_chain_end(const char *file, int line)
{
    if (!machine.block.now->prior_done)
        simt_fault(cudaErrorLaunchFailure, file, line,
                   "a chained kernel ends without cu_wait_prior");
}

int simt_barrier(simt_op op, int predicate, const char *file, int line)
{
    device *d = &machine;
    block *b = &d->block;
    simt_request r = { op, file, line, 0, 0, 0, 0, 0 };
    if (b->arrived++ == 0) {
        b->barrier = &r;
        b->votes = 0;
    }
    const simt_request *first = b->barrier;
    if (first->op != op || first->line != line || strcmp(first->file, file) != 0)
        simt_fault(cudaErrorLaunchFailure, file, line, "%s, while others wait at %s, %s:%d",
                   op_name(op), op_name(first->op), first->file, first->line);
    b->votes += predicate != 0;
    if (b->arrived == b->size) {
        b->verdict = op == SIMT_BARRIER_AND  ? b->votes == b->size
                     : op == SIMT_BARRIER_OR ? b->votes != 0
                                             : b->votes;
        b->arrived = 0;
        for (int w = 0; w * LANES < b->size; w++)
            block_ready(b, w, b->warps[w].present);
        b->warp_now = bit_pick(d, b->ready_warps); /* who came last is not to go on first */
    }
    block_wait(d, &r);
    return b->verdict;
}
