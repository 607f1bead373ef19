/* Streams, events and copies.
 *
 * A stream is a queue that runs when something synchronises with it, in the order of tickets, which are drawn as work is
 * given. The default stream and the blocking ones wait for each other's earlier work, as the programming guide says under
 * "Default Stream"; a non-blocking one waits for nobody.
 */
#include "tests/simt/machine.hh"

#include <string.h>

/* The state of one cudaEventRecord; the work that completes it may outlive the event. */
struct event_record {
    CUstream_st *stream;
    uint64_t ticket;
    bool done;
    std::chrono::steady_clock::time_point at;
};

struct CUevent_st {
    bool timing = true;
    std::shared_ptr<event_record> record; /* the latest, or null */
};

namespace simt
{

/* ---- queues ---------------------------------------------------------------------------------------------------- */

CUstream_st *stream_of(device *d, cudaStream_t s)
{
    if (!s)
        return &d->legacy;
    return d->streams.count(s) ? s : nullptr;
}

void stream_spoil(CUstream_st *s)
{
    s->capture_invalid = true;
}

bool capture_forbids(device *d)
{
    bool forbidden = false;
    for (CUstream_st *s : d->streams)
        if (s->capture && (s->mode == cudaStreamCaptureModeGlobal ||
                           (s->mode == cudaStreamCaptureModeThreadLocal &&
                            s->capturer == std::this_thread::get_id()))) {
            stream_spoil(s);
            forbidden = true;
        }
    if (forbidden)
        device_report(d, "a call that may synchronise, while a stream captures a graph");
    return forbidden;
}

/* Work for the default stream would make captures of blocking streams wait for it. */
static bool capture_mixes(device *d)
{
    bool mixes = false;
    for (CUstream_st *s : d->streams)
        if (s->capture && s->blocking) {
            stream_spoil(s);
            mixes = true;
        }
    return mixes;
}

static bool overlaps(const work *w, const void *p, size_t bytes)
{
    uintptr_t a = (uintptr_t)w->reads, b = (uintptr_t)p;
    return w->reads && a < b + bytes && b < a + w->bytes;
}

static bool queue_reads(const CUstream_st *s, const void *p, size_t bytes)
{
    for (const work &w : s->queue)
        if (overlaps(&w, p, bytes))
            return true;
    return false;
}

/* What a download will bring is not there yet: the place holds poison, unless a queued upload is still to read it. */
static void download_poison(device *d, const work *w)
{
    if (!w->writes || queue_reads(&d->legacy, w->writes, w->bytes))
        return;
    for (const CUstream_st *s : d->streams)
        if (queue_reads(s, w->writes, w->bytes))
            return;
    memory_poison(d, w->writes, w->bytes);
}

bool stream_here(cudaStream_t s)
{
    return !s || s->number == device_current();
}

cudaError_t stream_add(device *d, cudaStream_t handle, work w)
{
    CUstream_st *s = stream_of(d, handle);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->capture) {
        if (s->capture_invalid)
            return cudaErrorStreamCaptureInvalidated;
        s->capture->nodes.push_back(std::move(w));
        return cudaSuccess;
    }
    if (s == &d->legacy && capture_mixes(d))
        return cudaErrorStreamCaptureImplicit;
    w.ticket = ++d->tickets;
    download_poison(d, &w);
    s->queue.push_back(std::move(w));
    return cudaSuccess;
}

/* What s waits for before it runs the work of that ticket. */
static void stream_run_others(device *d, CUstream_st *s, uint64_t ticket)
{
    if (s != &d->legacy) {
        if (s->blocking)
            stream_run(d, &d->legacy, ticket);
        return;
    }
    for (CUstream_st *other : d->streams)
        if (other->blocking)
            stream_run(d, other, ticket);
}

void stream_run(device *d, CUstream_st *s, uint64_t until)
{
    while (!s->queue.empty() && s->queue.front().ticket <= until) {
        work w = std::move(s->queue.front());
        s->queue.pop_front();
        stream_run_others(d, s, w.ticket);
        if (d->failed == cudaSuccess)
            w.run(d);
        if (d->failed != cudaSuccess)
            stream_forget_all(d);
    }
}

/* All that a synchronisation with s waits for. */
static void stream_drain(device *d, CUstream_st *s)
{
    stream_run_others(d, s, UINT64_MAX);
    stream_run(d, s, UINT64_MAX);
}

void stream_run_all(device *d)
{
    stream_run(d, &d->legacy, UINT64_MAX);
    for (CUstream_st *s : d->streams)
        stream_run(d, s, UINT64_MAX);
}

void stream_forget_all(device *d)
{
    d->legacy.queue.clear();
    for (CUstream_st *s : d->streams)
        s->queue.clear();
}

/* ---- copies ---------------------------------------------------------------------------------------------------- */

enum side { HOST, DEVICE, EITHER };

/* Whether the bytes at p are of that side and lie in one allocation, as far as that is known. */
static bool side_check(device *d, const char *what, const void *p, size_t bytes, side want)
{
    bool on_device = memory_find(&d->memory, p, 1) != nullptr;
    bool pinned = memory_find(&d->pinned, p, 1) != nullptr;
    if ((want == DEVICE && !on_device) || (want == HOST && on_device)) {
        device_report(d, "%s %p: is %s memory, which is not what it should be", what, p,
                      on_device ? "device" : "no device");
        return false;
    }
    if ((on_device && !memory_find(&d->memory, p, bytes)) ||
        (pinned && !memory_find(&d->pinned, p, bytes))) {
        device_report(d, "%s %p: %zu bytes leave their %s allocation", what, p, bytes,
                      on_device ? "device" : "pinned");
        return false;
    }
    return true;
}

static bool is_pageable(device *d, const void *p)
{
    return !memory_find(&d->memory, p, 1) && !memory_find(&d->pinned, p, 1);
}

static bool copy_check(device *d, void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    static const side sides[][2] = {
        { HOST, HOST }, { DEVICE, HOST }, { HOST, DEVICE }, { DEVICE, DEVICE }, { EITHER, EITHER }
    };
    return side_check(d, "copy to", to, bytes, sides[kind][0]) &&
           side_check(d, "copy from", from, bytes, sides[kind][1]);
}

/* A call on s that a capture cannot record. */
static bool capture_breaks(device *d, CUstream_st *s, const char *what)
{
    if (!s->capture)
        return false;
    stream_spoil(s);
    device_report(d, "%s on a stream that captures a graph", what);
    return true;
}

/* `waits`: the host goes on when the copy is done, as it does anyhow for memory that is not pinned. */
static cudaError_t copy_add(device *d, void *to, const void *from, size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t handle, bool waits)
{
    CUstream_st *s = stream_of(d, handle);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if ((unsigned)kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    if (bytes == 0)
        return cudaSuccess;
    if (!copy_check(d, to, from, bytes, kind))
        return cudaErrorInvalidValue;
    bool to_device = memory_find(&d->memory, to, 1), from_device = memory_find(&d->memory, from, 1);
    waits = (waits && !(to_device && from_device)) || is_pageable(d, to) || is_pageable(d, from);
    if (waits && capture_breaks(d, s, "a copy that the host waits for"))
        return cudaErrorStreamCaptureUnsupported;
    work w = {};
    w.run = [=](device *on) {
        if (copy_check(on, to, from, bytes, kind))
            memmove(to, from, bytes);
        else
            device_fail(on, cudaErrorIllegalAddress, "a copy's memory is no longer there: %p, %p",
                        to, from);
    };
    w.reads = from_device || waits ? nullptr : from;
    w.writes = to_device || waits ? nullptr : to;
    w.bytes = bytes;
    cudaError_t e = stream_add(d, handle, std::move(w));
    if (e == cudaSuccess && waits)
        stream_run(d, s, d->tickets);
    return e;
}

static cudaError_t fill_add(device *d, void *p, int byte, size_t bytes, cudaStream_t s)
{
    if (bytes == 0)
        return cudaSuccess;
    if (!side_check(d, "fill", p, bytes, DEVICE))
        return cudaErrorInvalidValue;
    if (!stream_here(s))
        return cudaErrorInvalidResourceHandle;
    work w = {};
    w.run = [=](device *on) {
        if (side_check(on, "fill", p, bytes, DEVICE))
            memset(p, byte, bytes);
        else
            device_fail(on, cudaErrorIllegalAddress, "a fill's memory is no longer there: %p", p);
    };
    return stream_add(d, s, std::move(w));
}

} // namespace simt

using namespace simt;

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    return device_call([=](device *d) {
        if (capture_forbids(d))
            return cudaErrorStreamCaptureUnsupported;
        return copy_add(d, to, from, bytes, kind, nullptr, true);
    });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s)
{
    return device_call([=](device *d) { return copy_add(d, to, from, bytes, kind, s, false); });
}

cudaError_t cudaMemset(void *p, int byte, size_t bytes)
{
    return cudaMemsetAsync(p, byte, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t s)
{
    return device_call([=](device *d) { return fill_add(d, p, byte, bytes, s); });
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    return device_call([=](device *d) {
        if (!s || flags > cudaStreamNonBlocking)
            return cudaErrorInvalidValue;
        *s = new CUstream_st;
        (*s)->blocking = flags == cudaStreamDefault;
        (*s)->number = device_current();
        d->streams.insert(*s);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    return device_release([=](device *d) {
        if (!s || !stream_of(d, s))
            return cudaErrorInvalidResourceHandle;
        stream_drain(d, s);
        d->streams.erase(s);
        delete s;
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    return device_call([=](device *d) {
        CUstream_st *s = stream_of(d, handle);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        if (capture_breaks(d, s, "cudaStreamSynchronize"))
            return cudaErrorStreamCaptureUnsupported;
        if (s == &d->legacy && capture_mixes(d))
            return cudaErrorStreamCaptureImplicit;
        stream_drain(d, s);
        return cudaSuccess;
    });
}

/* Lets one piece of work run. */
static void stream_step(device *d, CUstream_st *s)
{
    if (!s->queue.empty())
        stream_run(d, s, s->queue.front().ticket);
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    return device_call([=](device *d) {
        CUstream_st *s = stream_of(d, handle);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        if (capture_breaks(d, s, "cudaStreamQuery"))
            return cudaErrorStreamCaptureUnsupported;
        stream_step(d, s);
        return s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
    });
}

cudaError_t cudaDeviceSynchronize()
{
    return device_call([](device *d) {
        for (CUstream_st *s : d->streams)
            if (capture_breaks(d, s, "cudaDeviceSynchronize"))
                return cudaErrorStreamCaptureUnsupported;
        stream_run_all(d);
        return cudaSuccess;
    });
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

static bool event_valid(const device *d, cudaEvent_t e)
{
    return d->events.count(e) != 0;
}

static void event_wait(device *d, event_record *r)
{
    if (!r->done)
        stream_run(d, r->stream, r->ticket);
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    return device_call([=](device *d) {
        if (!e)
            return cudaErrorInvalidValue;
        *e = new CUevent_st;
        (*e)->timing = !(flags & cudaEventDisableTiming);
        d->events.insert(*e);
        return cudaSuccess;
    });
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    return device_release([=](device *d) {
        if (!event_valid(d, e))
            return cudaErrorInvalidResourceHandle;
        d->events.erase(e);
        delete e;
        return cudaSuccess;
    });
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t handle)
{
    return device_call([=](device *d) {
        CUstream_st *s = stream_of(d, handle);
        if (!s || !event_valid(d, e))
            return cudaErrorInvalidResourceHandle;
        if (capture_breaks(d, s, "cudaEventRecord, which tests/simt cannot capture,"))
            return cudaErrorStreamCaptureUnsupported;
        auto r = std::make_shared<event_record>();
        work w = {};
        w.run = [r](device *) {
            r->done = true;
            r->at = std::chrono::steady_clock::now();
        };
        cudaError_t error = stream_add(d, handle, std::move(w));
        if (error != cudaSuccess)
            return error;
        r->stream = s;
        r->ticket = d->tickets;
        e->record = r;
        return cudaSuccess;
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    return device_call([=](device *d) {
        if (!event_valid(d, e))
            return cudaErrorInvalidResourceHandle;
        if (e->record)
            event_wait(d, e->record.get());
        return cudaSuccess;
    });
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    return device_call([=](device *d) {
        if (!event_valid(d, e))
            return cudaErrorInvalidResourceHandle;
        if (!e->record || e->record->done)
            return cudaSuccess;
        stream_step(d, e->record->stream);
        return e->record->done ? cudaSuccess : cudaErrorNotReady;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    return device_call([=](device *d) {
        if (!event_valid(d, e))
            return cudaErrorInvalidResourceHandle;
        std::shared_ptr<event_record> r = e->record;
        if (!r || r->done)
            return stream_of(d, s) ? cudaSuccess : cudaErrorInvalidResourceHandle;
        work w = {};
        w.run = [r](device *on) { event_wait(on, r.get()); };
        return stream_add(d, s, std::move(w));
    });
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    return device_call([=](device *d) {
        if (!event_valid(d, from) || !event_valid(d, to) || !from->timing || !to->timing ||
            !from->record || !to->record)
            return cudaErrorInvalidResourceHandle;
        if (!from->record->done || !to->record->done)
            return cudaErrorNotReady;
        std::chrono::duration<float, std::milli> t = to->record->at - from->record->at;
        *milliseconds = t.count();
        return cudaSuccess;
    });
}
