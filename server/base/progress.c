#include "server/base/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/log.h"

static const uint64_t BAR_NS = 100000000u, LINE_NS = 10000000000u;

/* 12.3M, 456K, 78 */
static const char *human(char *out, size_t size, double v)
{
    static const char unit[] = " KMGT";
    int i = 0;
    while (v >= 1000 && i < 4) {
        v /= 1000;
        i++;
    }
    if (i == 0)
        snprintf(out, size, "%.0f", v);
    else
        snprintf(out, size, "%.1f%c", v, unit[i]);
    return out;
}

static void draw_bar(const struct progress *p, double done, double seconds)
{
    char bar[31];
    char a[16];
    char b[16];
    char r[16];
    char eta[32] = "";
    double part = p->total > 0 ? done / (double)p->total : 0;
    part = part > 1 ? 1 : part; /* a total may have been a guess */
    int full = (int)(part * 30);
    memset(bar, '#', (size_t)full);
    memset(bar + full, '.', (size_t)(30 - full));
    bar[30] = 0;
    double rate = seconds > 0 ? done / seconds : 0;
    if (rate > 0 && part > 0 && part < 1)
        snprintf(eta, sizeof eta, " ETA %.0fs", ((double)p->total - done) / rate);
    log_text("\r\033[K%s [%s] %s/%s%s %s%s/s%s", p->stage, bar, human(a, sizeof a, done),
             human(b, sizeof b, (double)p->total), p->unit, human(r, sizeof r, rate), p->unit, eta);
}

void progress_start(struct progress *p, const char *stage, const char *unit, uint64_t total)
{
    p->stage = stage;
    p->unit = unit;
    p->total = total;
    p->start_ns = clock_ns();
    __atomic_store_n(&p->done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&p->drawn_ns, p->start_ns, __ATOMIC_RELAXED);
    p->tty = isatty(STDERR_FILENO) == 1;
}

void progress_add(struct progress *p, uint64_t n)
{
    uint64_t done = __atomic_add_fetch(&p->done, n, __ATOMIC_RELAXED);
    uint64_t now = clock_ns();
    uint64_t drawn = __atomic_load_n(&p->drawn_ns, __ATOMIC_RELAXED);
    if (now < drawn || now - drawn < (p->tty ? BAR_NS : LINE_NS) ||
        !__atomic_compare_exchange_n(&p->drawn_ns, &drawn, now, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        return;
    double seconds = (double)(now - p->start_ns) / 1e9;
    if (p->tty)
        draw_bar(p, (double)done, seconds);
    else
        LOG(I, "progress", "stage=%s done=%llu total=%llu unit=%s rate=%.1f", LOG_STR(p->stage),
            (unsigned long long)done, (unsigned long long)p->total, p->unit,
            (double)done / seconds);
}

void progress_end(struct progress *p, bool all)
{
    uint64_t done = __atomic_load_n(&p->done, __ATOMIC_RELAXED);
    double seconds = (double)(clock_ns() - p->start_ns) / 1e9;
    if (p->tty)
        log_text("\r\033[K");
    LOG(I, all ? "finished" : "stopped", "stage=%s done=%llu unit=%s seconds=%.3f rate=%.1f",
        LOG_STR(p->stage), (unsigned long long)done, p->unit, seconds,
        seconds > 0 ? (double)done / seconds : 0.0);
}
