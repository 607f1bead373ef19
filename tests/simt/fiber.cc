/* Fibers: a stack each, and a switch that saves what a call may not change (System V ABI, x86-64): rbx, rbp, r12 to r15,
 * and the modes of both floating point units.
 *
 * ucontext would do the same, but asks the kernel for the signal mask at every switch, and a barrier of 256 threads
 * switches 256 times.
 */
#include "tests/simt/machine.hh"

#include <stdlib.h>
#include <sys/mman.h>

#if SIMT_ASAN
#    include <sanitizer/asan_interface.h>
#    include <sanitizer/common_interface_defs.h>
#endif
#if SIMT_TSAN
#    include <sanitizer/tsan_interface.h>
#endif

#ifndef __x86_64__
#    error "tests/simt switches stacks on x86-64 only"
#endif

/* simt_switch(&from, to): pushes the registers, leaves the stack pointer in `from`, takes it from `to`, pops. It returns
 * with ret, so that the processor's stack of return addresses stays right: who waits was mostly called from one place. */
asm(".text\n"
    ".p2align 4\n"
    ".hidden simt_switch\n"
    ".globl simt_switch\n"
    ".type simt_switch, @function\n"
    "simt_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    subq $8, %rsp\n"
    "    stmxcsr (%rsp)\n"
    "    fnstcw 4(%rsp)\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    ldmxcsr (%rsp)\n"
    "    fldcw 4(%rsp)\n"
    "    addq $8, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size simt_switch, . - simt_switch\n");
extern "C" void simt_switch(void **from, void *to);

namespace simt
{

enum : size_t {
    PAGE = 4096,
#if SIMT_ASAN || SIMT_TSAN
    STACK = 512 << 10,
#else
    STACK = 128 << 10,
#endif
    STRIDE = PAGE + STACK, /* a guard page below each */
    COLOURS = 64,          /* see fiber_frame */
    LINE = 64
};

/* The registers that the first switch to a fiber pops. Stacks begin at the same offset in a page, so the tops of all of
 * them would compete for the same few cache lines; each begins a different number of lines further down. */
static void *fiber_frame(const fiber_pool *p, const fiber *f, void (*entry)())
{
    size_t colour = (size_t)(f - p->fibers) % COLOURS * 3 % COLOURS;
    uintptr_t top = (uintptr_t)f->bottom + f->size - colour * LINE;
    uint64_t *w = (uint64_t *)top;
    *--w = 0; /* where entry() would return to; aligns its stack as a call does */
    *--w = (uint64_t)(uintptr_t)entry;
    for (int i = 0; i < 6; i++)
        *--w = 0; /* rbp, rbx, r12 ... r15 */
    uint32_t mxcsr;
    uint16_t cw;
    asm("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(cw));
    *--w = (uint64_t)cw << 32 | mxcsr;
    return w;
}

/* Memory for stacks costs nothing until it is touched. */
static void fiber_make(fiber_pool *p)
{
    if (!p->room) {
        void *m = mmap(nullptr, STRIDE * MAX_THREADS, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED)
            abort();
        p->room = (char *)m;
    }
    fiber *f = &p->fibers[p->made];
    char *low = p->room + (size_t)p->made * STRIDE;
    if (mprotect(low, PAGE, PROT_NONE) != 0)
        abort();
    *f = fiber{ nullptr, low + PAGE, STACK, nullptr };
    p->made++;
    p->spare[p->spares++] = f;
}

fiber *fiber_take(fiber_pool *p, void (*entry)())
{
    if (p->spares == 0)
        fiber_make(p);
    fiber *f = p->spare[--p->spares];
    f->sp = fiber_frame(p, f, entry);
#if SIMT_TSAN
    if (!f->sanitizer)
        f->sanitizer = __tsan_create_fiber(0);
#endif
    return f;
}

void fiber_give(fiber_pool *p, fiber *f)
{
    p->spare[p->spares++] = f;
}

void fiber_drop_all(fiber_pool *p)
{
    p->spares = 0;
    for (int i = p->made - 1; i >= 0; i--) {
        fiber *f = &p->fibers[i];
#if SIMT_ASAN
        /* Frames that were left behind have poisoned what lies between their variables. */
        __asan_unpoison_memory_region(f->bottom, f->size);
        f->sanitizer = nullptr;
#endif
#if SIMT_TSAN
        if (f->sanitizer)
            __tsan_destroy_fiber(f->sanitizer);
        f->sanitizer = nullptr;
#endif
        p->spare[p->spares++] = f;
    }
}

#if SIMT_ASAN
/* ASan has to know which stack is the current one. It tells where the stack is that was left, which is how that of the
 * caller of a block becomes known. */
static void asan_arrive(void *fake)
{
    fiber *left = machine.block.fibers.left;
    __sanitizer_finish_switch_fiber(fake, &left->bottom, &left->size);
}
#endif

void fiber_switch(fiber *from, fiber *to, bool ends)
{
    (void)ends;
    machine.block.fibers.left = from;
#if SIMT_ASAN
    __sanitizer_start_switch_fiber(ends ? nullptr : &from->sanitizer, to->bottom, to->size);
#endif
#if SIMT_TSAN
    if (!from->sanitizer)
        from->sanitizer = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to->sanitizer, 0);
#endif
    simt_switch(&from->sp, to->sp);
#if SIMT_ASAN
    asan_arrive(from->sanitizer);
#endif
}

void fiber_enter()
{
#if SIMT_ASAN
    asan_arrive(nullptr);
#endif
}

} // namespace simt
