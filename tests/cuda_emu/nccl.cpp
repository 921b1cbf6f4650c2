/* A few NCCL collectives between processes of one machine, over POSIX shared memory. Like NCCL's they return at once and are
 * done when all ranks have come; unlike NCCL it notices ranks that disagree on what they call, and gives up instead of hanging. */
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <coroutine>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

extern "C" int cuda_emu_device_range(const void *p, size_t n, int write);
extern "C" cudaError_t cuda_emu_submit_steps(cudaStream_t stream, int (*step)(void *), void *argument);
enum { MAXR = 16, CHUNK = 1 << 20 };
struct Shm {
    std::atomic<int> arrived, generation, joined;
    struct {
        int op, type, red, root;
        size_t count;
    } call[MAXR];
    unsigned char data[MAXR][CHUNK];
};
struct ncclComm {
    Shm *s;
    int rank, n;
    char name[sizeof(ncclUniqueId)];
    ncclResult_t async;
    bool aborted;
};

/* A barrier: arrive gives its number; passed, asked again and again, whether all have. */
static int arrive(ncclComm *c) {
    Shm *s = c->s;
    int g = s->generation.load();
    if (s->arrived.fetch_add(1) + 1 == c->n) {
        s->arrived.store(0);
        s->generation.fetch_add(1);
    }
    return g;
}
static time_t patience() {
    const char *e = getenv("EMU_NCCL_TIMEOUT");
    return time(nullptr) + (e ? atoi(e) : 60);
}
static bool passed(ncclComm *c, int g, time_t end) {
    if (c->s->generation.load() != g) return true;
    if (c->aborted) {
        c->async = ncclInternalError;
    } else if (time(nullptr) > end) {
        fprintf(stderr, "nccl stub: rank %d waited too long for the others\n", c->rank);
        c->async = ncclSystemError;
    }
    return c->async != ncclSuccess;
}
static ncclResult_t barrier(ncclComm *c) {
    time_t end = patience();
    for (int g = arrive(c); !passed(c, g, end);) {
        struct timespec t = {0, 20000};
        nanosleep(&t, nullptr);
    }
    return c->async;
}
/* What a stream asks to go on until it is done. */
struct Task {
    struct promise_type {
        Task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { abort(); }
    };
    std::coroutine_handle<promise_type> handle;
};
/* In a task: the others' turn until all have come. */
#define MEET(c)                                         \
    do {                                                \
        time_t end_ = patience();                       \
        for (int g_ = arrive(c); !passed(c, g_, end_);) \
            co_await std::suspend_always{};             \
        if ((c)->async != ncclSuccess) co_return;       \
    } while (0)
static size_t width(ncclDataType_t t) {
    return t == ncclFloat32 || t == ncclInt32 || t == ncclUint32 ? 4
           : t == ncclBfloat16                                   ? 2
           : t == ncclInt8 || t == ncclUint8                     ? 1
           : t == ncclInt64 || t == ncclFloat64                  ? 8
                                                                 : 0;
}
static double get(const unsigned char *p, size_t i, ncclDataType_t t) {
    if (t == ncclFloat64) return ((const double *)p)[i];
    if (t == ncclFloat32) return ((const float *)p)[i];
    uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static void put(unsigned char *p, size_t i, ncclDataType_t t, double value) {
    uint32_t u;
    float f = (float)value;
    if (t == ncclFloat64) {
        ((double *)p)[i] = value;
        return;
    }
    memcpy(&u, &f, 4);
    if (t == ncclFloat32)
        ((float *)p)[i] = f;
    else
        ((uint16_t *)p)[i] = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
enum { ALLREDUCE, REDUCESCATTER, ALLGATHER, BROADCAST };
struct Job {
    ncclComm *c;
    int op, root;
    const unsigned char *in;
    unsigned char *out;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t red;
};
static Task exchange(Job job) {
    const Job *j = &job;
    ncclComm *c = j->c;
    Shm *s = c->s;
    size_t w = width(j->type), total = j->op == REDUCESCATTER ? j->count * (size_t)c->n : j->count, per = CHUNK / w;
    s->call[c->rank] = {j->op, (int)j->type, (int)j->red, j->root, j->count};
    MEET(c);
    for (int i = 0; i < c->n; i++)
        if (memcmp(&s->call[i], &s->call[c->rank], sizeof s->call[0])) {
            fprintf(stderr, "nccl stub: ranks %d and %d disagree: collective %d/%d, count %zu/%zu\n", c->rank, i,
                    s->call[c->rank].op, s->call[i].op, s->call[c->rank].count, s->call[i].count);
            MEET(c);
            c->async = ncclInvalidUsage;
            co_return;
        }
    for (size_t o = 0; o < total; o += per) {
        size_t n = total - o < per ? total - o : per;
        if (j->op != BROADCAST || j->root == c->rank) memcpy(s->data[c->rank], j->in + o * w, n * w);
        MEET(c);
        if (j->op == ALLGATHER) {
            for (int i = 0; i < c->n; i++)
                memcpy(j->out + ((size_t)i * j->count + o) * w, s->data[i], n * w);
        } else if (j->op == BROADCAST) {
            memcpy(j->out + o * w, s->data[j->root], n * w);
        } else {
            for (size_t i = 0; i < n; i++) {
                size_t e = o + i, d = e;
                if (j->op == REDUCESCATTER) {
                    if (e / j->count != (size_t)c->rank) continue;
                    d = e % j->count;
                }
                double v = get(s->data[0], i, j->type); /* every rank sums in the same order: same bits everywhere */
                for (int r = 1; r < c->n; r++) {
                    double x = get(s->data[r], i, j->type);
                    v = j->red == ncclMax ? (x > v ? x : v) : j->red == ncclMin ? (x < v ? x : v) : v + x;
                }
                put(j->out, d, j->type, j->red == ncclAvg ? v / c->n : v);
            }
        }
        MEET(c);
    }
    cuda_emu_device_range(j->out, j->count * w * (j->op == ALLGATHER ? (size_t)c->n : 1), 1);
}
static int go_on(void *address) {
    std::coroutine_handle<> task = std::coroutine_handle<>::from_address(address);
    task.resume();
    if (!task.done()) return 0;
    task.destroy();
    return 1;
}
static ncclResult_t start(int op, const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t red, int root, ncclComm *c,
                          cudaStream_t s) {
    size_t w = width(t), nr = (size_t)c->n;
    if (!w || ((op == ALLREDUCE || op == REDUCESCATTER) && t != ncclFloat32 && t != ncclFloat64 && t != ncclBfloat16))
        return ncclInvalidArgument;
    if (c->async) return c->async;
    if (n && (!cuda_emu_device_range(in, n * w * (op == REDUCESCATTER ? nr : 1), 0) ||
              !cuda_emu_device_range(out, n * w * (op == ALLGATHER ? nr : 1), 0)))
        return ncclInvalidArgument;
    std::coroutine_handle<> task = exchange({c, op, root, (const unsigned char *)in, (unsigned char *)out, n, t, red}).handle;
    cudaError_t code = cuda_emu_submit_steps(s, go_on, task.address());
    return code == cudaSuccess ? c->async : ncclUnhandledCudaError;
}
extern "C" {
ncclResult_t ncclGetVersion(int *v) {
    *v = NCCL_VERSION_CODE;
    return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t r) {
    return r ? "emulated NCCL error" : "no error";
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int k;
    const char *address = getenv("NCCL_COMM_ID"); /* host:port, the same on all ranks */
    memset(id, 0, sizeof *id);
    if (address != nullptr) {
        snprintf(id->internal, sizeof id->internal, "/cuda_emu-%.100s", address);
        return ncclSuccess;
    }
    snprintf(id->internal, sizeof id->internal, "/cuda_emu-%d-%d", (int)getpid(), k++);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId id, int rank) {
    if (n < 1 || n > MAXR || rank < 0 || rank >= n) return ncclInvalidArgument;
    int fd = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Shm))) return ncclSystemError;
    ncclComm *c =
        new ncclComm{(Shm *)mmap(0, sizeof(Shm), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), rank, n, {}, ncclSuccess, false};
    close(fd);
    snprintf(c->name, sizeof c->name, "%s", id.internal);
    *out = c;
    c->s->joined.fetch_add(1);
    ncclResult_t r = barrier(c);
    if (rank == 0) shm_unlink(c->name);
    return r;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) {
    munmap(c->s, sizeof(Shm));
    delete c;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c) { /* what is under way ends, and still looks at it */
    c->aborted = true;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *r) {
    *r = c->async;
    return ncclSuccess;
}
ncclResult_t ncclGroupStart(void) {
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
    return ncclSuccess;
}
ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t s) {
    return start(ALLREDUCE, in, out, n, t, op, 0, c, s);
}
ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                               cudaStream_t s) {
    return start(REDUCESCATTER, in, out, n, t, op, 0, c, s);
}
ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t s) {
    return start(ALLGATHER, in, out, n, t, ncclSum, 0, c, s);
}
ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t s) {
    return start(BROADCAST, in, out, n, t, ncclSum, root, c, s);
}
}
