/* Capturing a stream into a graph, and replaying it.
 *
 * A capture is a list of work in the order of the calls, which is one of the orders that the streams allow. Other streams join it
 * by waiting for an event recorded in it, and must be waited for before its end. What a capture must not meet (waiting,
 * allocating, pageable memory, work on the default stream) is an error that makes it invalid, as CUDA has it. */
#include "tests/cuda_emu/runtime.h"

#include <cstdio>
#include <set>
#include <thread>
#include <vector>

namespace emu {
struct Capture {
    CUstream_st *origin;
    std::vector<Work> work;
    std::set<CUstream_st *> streams;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread = std::this_thread::get_id();
    bool invalid = false, closed = false;
};
static std::set<Capture *> open_captures;

static cudaError_t invalidate(Capture *capture, cudaError_t code, const char *call) {
    fprintf(stderr, "cuda_emu: %s is not allowed while a stream is captured\n", call);
    if (capture) capture->invalid = true;
    return err(code);
}

cudaError_t forbid_capture(const char *call) {
    bool met = false;
    for (Capture *c : open_captures) {
        bool here = c->thread == std::this_thread::get_id() && c->mode != cudaStreamCaptureModeRelaxed;
        if (!here && c->mode != cudaStreamCaptureModeGlobal) continue;
        met = c->invalid = true;
    }
    return met ? invalidate(nullptr, cudaErrorStreamCaptureUnsupported, call) : cudaSuccess;
}

bool captures_blocking() {
    for (const Capture *c : open_captures)
        for (const CUstream_st *stream : c->streams)
            if (stream->blocking) return true;
    return false;
}

bool is_captured(cudaStream_t stream) {
    return stream && stream->capture;
}

bool capture_take(CUstream_st *stream, Work &work) {
    if (!stream->capture) return false;
    stream->capture->work.push_back(std::move(work));
    stream->captured++;
    return true;
}

void capture_record(CUstream_st *stream, CUevent_st *event) {
    event->capture = stream->capture;
    if (stream->capture) event->at = stream->captured;
}

bool capture_wait(CUstream_st *stream, CUevent_st *event) {
    if (!event->capture) {
        if (stream->capture)
            invalidate(stream->capture.get(), cudaErrorStreamCaptureIsolation, "waiting for work outside of it");
        return stream->capture != nullptr;
    }
    if (event->capture->closed) { /* it stands for a node of a graph, not for work */
        invalidate(stream->capture.get(), cudaErrorStreamCaptureIsolation,
                   "waiting for an event that was recorded in another one");
        return true;
    }
    if (stream->capture && stream->capture != event->capture) {
        invalidate(stream->capture.get(), cudaErrorStreamCaptureMerge, "joining two captures");
        return true;
    }
    stream->capture = event->capture;
    stream->capture->streams.insert(stream);
    if (event->at > event->stream->joined) event->stream->joined = event->at;
    stream->captured++; /* what it waits for is now its own to be waited for */
    return true;
}
} /* namespace emu */
using namespace emu;

struct CUgraph_st {
    std::vector<Work> work;
};
struct CUgraphExec_st {
    std::vector<Work> work;
};

API cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
    LOCK;
    if (!s) return err(cudaErrorStreamCaptureUnsupported); /* the legacy default stream */
    if (s->capture) return err(cudaErrorIllegalState);
    s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->mode = mode;
    s->capture->streams.insert(s);
    s->captured = s->joined = 0;
    open_captures.insert(s->capture.get());
    return cudaSuccess;
}
API cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    LOCK;
    *graph = nullptr;
    if (!s || !s->capture) return err(cudaErrorIllegalState);
    std::shared_ptr<Capture> capture = s->capture;
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return invalidate(capture.get(), cudaErrorStreamCaptureWrongThread, "ending it in another thread");
    if (capture->origin != s) return invalidate(capture.get(), cudaErrorStreamCaptureUnmatched, "ending it on another stream");
    cudaError_t code = capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    for (CUstream_st *other : capture->streams) {
        if (other != s && other->joined < other->captured && code == cudaSuccess) code = cudaErrorStreamCaptureUnjoined;
        other->capture.reset();
        other->captured = other->joined = 0;
    }
    open_captures.erase(capture.get());
    capture->closed = true;
    if (code != cudaSuccess) return err(code);
    *graph = new CUgraph_st{std::move(capture->work)};
    return cudaSuccess;
}
API cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
    LOCK;
    *status = !is_captured(s)       ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
API cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    LOCK;
    *exec = nullptr;
    if (!graph) return err(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
API cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    LOCK;
    if (!exec) return err(cudaErrorInvalidValue);
    if (is_captured(s)) return invalidate(s->capture.get(), cudaErrorStreamCaptureUnsupported, "cudaGraphLaunch");
    count("graph launch, nodes", exec->work.size());
    for (const Work &work : exec->work)
        submit(s, work);
    return cudaSuccess;
}
API cudaGraphExecDestroy(cudaGraphExec_t exec) {
    LOCK;
    drain_all();
    delete exec;
    return cudaSuccess;
}
API cudaGraphDestroy(cudaGraph_t graph) {
    LOCK;
    delete graph;
    return cudaSuccess;
}
