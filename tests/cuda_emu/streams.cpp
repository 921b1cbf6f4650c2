/* Streams, events and launches. EMU_STREAMS=lazy queues work until something waits for it; ahead: only that of the first stream. */
#include "tests/cuda_emu/runtime.h"

#include <cstdio>
#include <ctime>
#include <set>

extern cudaError_t emu_last_error;
using namespace emu;

static CUstream_st default_stream;
static std::set<CUstream_st *> streams;
static void drain(CUstream_st *s, uint64_t upto, bool wait = true) {
    while (s->done < upto && !s->queue.empty()) {
        if (s->queue.front()()) {
            s->queue.pop_front();
            s->done++;
            continue;
        }
        if (!wait) return;
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
}
static CUstream_st *first; /* that was created */
static CUstream_st *real(cudaStream_t s) {
    return s ? s : &default_stream;
}

namespace emu {
void submit(cudaStream_t cs, Work work) {
    CUstream_st *s = real(cs);
    if (s == &default_stream && captures_blocking()) {
        fprintf(stderr, "cuda_emu: work on the legacy default stream, which waits for a stream that is captured\n");
        err(cudaErrorStreamCaptureImplicit);
        return;
    }
    if (capture_take(s, work)) return;
    if ((!lazy || (ahead && s != first)) && s->queue.empty()) {
        work();
        return;
    }
    s->queue.push_back([work = std::move(work)] {
        work();
        return true;
    });
    s->put++;
}
void drain_all() {
    drain(&default_stream, default_stream.put);
    for (auto *s : streams)
        drain(s, s->put);
}
cudaError_t wait_stream(cudaStream_t s) {
    if (cudaError_t e = forbid_capture("cudaStreamSynchronize")) return e;
    drain(real(s), real(s)->put);
    return emu_last_error;
}
} /* namespace emu */

namespace emu {
void launch_impl(const char *name, dim3 g, dim3 b, size_t smem, cudaStream_t s, const void *func, std::function<void()> fn) {
    std::lock_guard<std::recursive_mutex> l(mu);
    start();
    size_t threads = (size_t)b.x * b.y * b.z;
    size_t limit = (size_t)dynamic_limit(func);
    if (!threads || threads > 1024 || b.z > 64 || !g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 ||
        smem > limit) {
        fprintf(stderr, "cuda_emu: launch of %s refused: grid (%u,%u,%u) block (%u,%u,%u) smem %zu (limit %zu)\n", name, g.x,
                g.y, g.z, b.x, b.y, b.z, smem, limit);
        err(cudaErrorInvalidConfiguration);
        return;
    }
    const char *fails = getenv("EMU_FAIL");
    if (fails && strstr(name, fails)) {
        err(cudaErrorLaunchOutOfResources);
        return;
    }
    submit(s, [=] {
        Open o;
        count(name, 0);
        shared_limit = (size_t)(limit > 48 * 1024 ? shared_most() : 48 * 1024);
        err(run_grid(name, g, b, smem, fn));
    });
}
} /* namespace emu */

/* Work of our own libraries that other processes take part in: the host goes on at once, the stream when `step` says so. */
API cuda_emu_submit_steps(cudaStream_t cs, int (*step)(void *), void *argument) {
    LOCK;
    if (is_captured(cs)) return forbid_capture("a collective call");
    CUstream_st *s = real(cs);
    s->queue.push_back([=] {
        Open o; /* device memory is accessible */
        return step(argument) != 0;
    });
    s->put++;
    if (!lazy) drain(s, s->put, false);
    return cudaSuccess;
}
API cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    LOCK;
    *s = new CUstream_st;
    (*s)->blocking = !(flags & cudaStreamNonBlocking);
    streams.insert(*s);
    if (!first) first = *s;
    return cudaSuccess;
}
API cudaStreamCreate(cudaStream_t *s) {
    return cudaStreamCreateWithFlags(s, 0);
}
API cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}
API cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
API cudaStreamSynchronize(cudaStream_t s) {
    LOCK;
    return wait_stream(s);
}
API cudaStreamDestroy(cudaStream_t s) {
    LOCK;
    drain(s, s->put);
    streams.erase(s);
    if (first == s) first = nullptr;
    delete s;
    return cudaSuccess;
}
API cudaDeviceSynchronize(void) {
    LOCK;
    if (cudaError_t e = forbid_capture("cudaDeviceSynchronize")) return e;
    drain_all();
    return emu_last_error;
}
API cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = new CUevent_st;
    return cudaSuccess;
}
API cudaEventCreate(cudaEvent_t *e) {
    return cudaEventCreateWithFlags(e, 0);
}
API cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
API cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    LOCK;
    e->stream = real(s), e->at = e->stream->put;
    capture_record(e->stream, e);
    clock_gettime(CLOCK_MONOTONIC, &e->time);
    return cudaSuccess;
}
API cudaEventSynchronize(cudaEvent_t e) {
    LOCK;
    if (e->capture) return err(cudaErrorCapturedEvent);
    if (cudaError_t code = forbid_capture("cudaEventSynchronize")) return code;
    if (e->stream) drain(e->stream, e->at);
    return emu_last_error;
}
API cudaEventQuery(cudaEvent_t e) {
    LOCK;
    if (e->capture) return err(cudaErrorCapturedEvent);
    if (cudaError_t code = forbid_capture("cudaEventQuery")) return code;
    if (!e->stream || e->stream->done >= e->at) return cudaSuccess;
    drain(e->stream, e->at, false); /* whoever asks again finds it further */
    return err(cudaErrorNotReady);  /* and it is the last error from here on */
}
API cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    LOCK;
    if (capture_wait(real(s), e)) return emu_last_error;
    CUstream_st *o = e->stream;
    uint64_t at = e->at;
    if (o) submit(s, [=] { drain(o, at); });
    return cudaSuccess;
}
API cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    *ms = (float)((double)(b->time.tv_sec - a->time.tv_sec) * 1e3 + (double)(b->time.tv_nsec - a->time.tv_nsec) * 1e-6);
    return cudaSuccess;
}
API cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg) {
    LOCK;
    submit(s, [=] {
        Open o;
        fn(arg);
    }); /* our own library stubs also run here, so device memory is open */
    return cudaSuccess;
}
