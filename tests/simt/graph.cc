/* Graphs: a stream that captures keeps what it is given; an instance gives a copy of that to a stream. */
#include "tests/simt/machine.hh"

using namespace simt;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode)
{
    return device_call([=](device *d) {
        if (!handle) {
            device_report(d, "the default stream cannot capture a graph");
            return cudaErrorStreamCaptureUnsupported;
        }
        CUstream_st *s = stream_of(d, handle);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        if (s->capture)
            return cudaErrorIllegalState;
        s->capture.reset(new CUgraph_st);
        s->capture_invalid = false;
        s->mode = mode;
        s->capturer = std::this_thread::get_id();
        return cudaSuccess;
    });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *g)
{
    if (g)
        *g = nullptr;
    return device_call([=](device *d) {
        CUstream_st *s = stream_of(d, handle);
        if (!s || !g)
            return s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle;
        if (!s->capture)
            return cudaErrorIllegalState;
        if (s->mode != cudaStreamCaptureModeRelaxed && s->capturer != std::this_thread::get_id())
            return cudaErrorStreamCaptureWrongThread;
        std::unique_ptr<CUgraph_st> made = std::move(s->capture);
        if (s->capture_invalid)
            return cudaErrorStreamCaptureInvalidated;
        *g = made.release();
        d->graphs.insert(*g);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status)
{
    return device_call([=](device *d) {
        CUstream_st *s = stream_of(d, handle);
        if (!s)
            return cudaErrorInvalidResourceHandle;
        *status = !s->capture          ? cudaStreamCaptureStatusNone
                  : s->capture_invalid ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long)
{
    return device_call([=](device *d) {
        if (!x || !d->graphs.count(g))
            return cudaErrorInvalidValue;
        if (memory_fails(d))
            return cudaErrorMemoryAllocation;
        *x = new CUgraphExec_st{ g->nodes };
        d->execs.insert(*x);
        return cudaSuccess;
    });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    return device_call([=](device *d) {
        if (!d->execs.count(x))
            return cudaErrorInvalidValue;
        cudaError_t e = stream_of(d, s) ? cudaSuccess : cudaErrorInvalidResourceHandle;
        for (size_t i = 0; i < x->nodes.size() && e == cudaSuccess; i++)
            e = stream_add(d, s, x->nodes[i]);
        return e;
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    return device_release([=](device *d) {
        if (!d->execs.erase(x))
            return cudaErrorInvalidValue;
        delete x;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    return device_release([=](device *d) {
        if (!d->graphs.erase(g))
            return cudaErrorInvalidValue;
        delete g;
        return cudaSuccess;
    });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    return device_call([=](device *d) {
        if (!d->graphs.count(g) || !n)
            return cudaErrorInvalidValue;
        if (nodes)
            return cudaErrorNotSupported;
        *n = g->nodes.size();
        return cudaSuccess;
    });
}
