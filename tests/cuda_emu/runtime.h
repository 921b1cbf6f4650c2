/* What the two halves of the runtime share: memory (runtime.cpp), streams and graphs (streams.cpp, graph.cpp). */
#ifndef NIBBLE_TESTS_CUDA_EMU_RUNTIME_H
#define NIBBLE_TESTS_CUDA_EMU_RUNTIME_H

#include "tests/cuda_emu/emulator.h"

#include <deque>
#include <memory>
#include <mutex>

#define API extern "C" cudaError_t
#define LOCK                                              \
    std::lock_guard<std::recursive_mutex> lock_(emu::mu); \
    emu::start()

namespace emu {
extern std::recursive_mutex mu;
extern bool protect, lazy, ahead;
void start();                    /* reads the settings, reserves the arena */
cudaError_t err(cudaError_t e);  /* remembers it for cudaGetLastError */
int dynamic_limit(const void *); /* dynamic shared memory that a kernel has opted in to */
int shared_most();               /* of a block, with that */
struct Open {                    /* device memory is accessible while one of these lives */
    Open();
    ~Open();
    static int depth;
};

struct Capture; /* graph.cpp */
typedef std::function<void()> Work;
typedef std::function<bool()> Step; /* whether it is done; else it is asked again */
/* Runs it now, puts it into the stream's queue, or into the graph that is captured from the stream. */
void submit(cudaStream_t stream, Work work);
/* Waits for the stream; an error while it is captured, and the capture is then invalid. */
cudaError_t wait_stream(cudaStream_t stream);
void drain_all();
/* Refuses, and invalidates the capture, when this thread captures a stream, or any thread does in global mode: for calls that a
 * capture must not meet. */
cudaError_t forbid_capture(const char *call);
bool is_captured(cudaStream_t stream);
bool captures_blocking();                           /* some capture has a stream that waits for the legacy default stream */
void count(const char *what, uint64_t amount);      /* for EMU_COUNT (count.cpp) */
bool capture_take(CUstream_st *stream, Work &work); /* whether the stream is captured: then the work is in its graph */
void capture_record(CUstream_st *stream, CUevent_st *event);
bool capture_wait(CUstream_st *stream, CUevent_st *event); /* whether this was part of a capture */
} /* namespace emu */

struct CUstream_st {
    std::deque<emu::Step> queue;
    bool blocking = true; /* the legacy default stream waits for it, and it for that */
    uint64_t done = 0, put = 0;
    std::shared_ptr<emu::Capture> capture; /* null: not captured */
    uint64_t captured = 0, joined = 0;     /* work captured from here, and how much of it the origin waits for */
};
struct CUevent_st {
    CUstream_st *stream = nullptr;
    uint64_t at = 0;
    std::shared_ptr<emu::Capture> capture; /* it was recorded in */
    struct timespec time = {};
};

#endif
