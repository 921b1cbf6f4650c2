/* The transport of GPU ranks: NCCL, in the device's plugin, so that it shares the device with the kernels. The library itself is
 * loaded when ranks are joined; a plugin for one GPU starts without it.
 *
 * A stream of its own: what is started waits for the kernels launched before (an event), runs beside those launched after, and is
 * done when its own event is. Host buffers pass through pinned memory and scratch on the device, because a copy from or to other
 * memory may hold the host until all ranks have come. The order of a sum is NCCL's: the same bits on all ranks, and the same
 * on every run of as many ranks in the same places.
 */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/comm_plugin.h"
#include "kernels/cuda/context.h"

/* The emulator brings its own; elsewhere they are looked up in libnccl.so.2. */
#pragma weak ncclGetVersion
#pragma weak ncclGetErrorString
#pragma weak ncclGetUniqueId
#pragma weak ncclCommInitRank
#pragma weak ncclCommDestroy
#pragma weak ncclCommAbort
#pragma weak ncclCommGetAsyncError
#pragma weak ncclAllReduce
#pragma weak ncclAllGather
#pragma weak ncclBroadcast

typedef struct Calls {
    __typeof__(&ncclGetVersion) version;
    __typeof__(&ncclGetErrorString) error_string;
    __typeof__(&ncclGetUniqueId) unique_id;
    __typeof__(&ncclCommInitRank) init;
    __typeof__(&ncclCommDestroy) destroy;
    __typeof__(&ncclCommAbort) abort;
    __typeof__(&ncclCommGetAsyncError) async_error;
    __typeof__(&ncclAllReduce) all_reduce;
    __typeof__(&ncclAllGather) all_gather;
    __typeof__(&ncclBroadcast) broadcast;
} Calls;

#define KEPT_BYTES ((size_t)1 << 20) /* of scratch: what steps take; more is given back */

typedef struct Request {
    int used;
    cudaEvent_t done;
    uint8_t *scratch, *pinned; /* on the device and here, as long; grown */
    size_t capacity;
    void *to; /* what goes there from `pinned` in the end, or NULL */
    size_t to_bytes;
} Request;

typedef struct Nccl {
    Calls calls;
    ncclComm_t comm;
    int rank, size;
    cudaStream_t stream;
    cudaEvent_t ready; /* what was computed before a start */
    const CudaContext *device;
    Request request[COMM_PLUGIN_REQUESTS];
} Nccl;

static int say(char *error, const char *what, const char *why) {
    (void)snprintf(error, COMM_PLUGIN_ERROR, "%s: %.300s", what, why);
    return -1;
}

#define CUDA_CALL(call)                                                                          \
    do {                                                                                         \
        cudaError_t cuda_code_ = (call);                                                         \
        if (cuda_code_ != cudaSuccess) return say(error, #call, cudaGetErrorString(cuda_code_)); \
    } while (0)
#define NCCL_CALL(nccl, call)                                                                            \
    do {                                                                                                 \
        ncclResult_t nccl_code_ = (nccl)->calls.call;                                                    \
        if (nccl_code_ != ncclSuccess) return say(error, #call, (nccl)->calls.error_string(nccl_code_)); \
    } while (0)

/* ---- the library ---------------------------------------------------------------------------------------------------------- */

static void *find(void *library, const char *name) {
    return library == NULL ? NULL : dlsym(library, name);
}

#define TAKE(field, name) calls->field = name != NULL ? name : (__typeof__(calls->field))find(library, #name)

static int load_calls(Calls *calls, char *error) {
    void *library = ncclGetVersion != NULL ? NULL : dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (ncclGetVersion == NULL && library == NULL) {
        const char *why = dlerror();
        return say(error, "GPU ranks talk through NCCL, which is not there", why != NULL ? why : "libnccl.so.2");
    }
    TAKE(version, ncclGetVersion);
    TAKE(error_string, ncclGetErrorString);
    TAKE(unique_id, ncclGetUniqueId);
    TAKE(init, ncclCommInitRank);
    TAKE(destroy, ncclCommDestroy);
    TAKE(abort, ncclCommAbort);
    TAKE(async_error, ncclCommGetAsyncError);
    TAKE(all_reduce, ncclAllReduce);
    TAKE(all_gather, ncclAllGather);
    TAKE(broadcast, ncclBroadcast);
    if (calls->version == NULL || calls->error_string == NULL || calls->unique_id == NULL || calls->init == NULL ||
        calls->destroy == NULL || calls->abort == NULL || calls->async_error == NULL || calls->all_reduce == NULL ||
        calls->all_gather == NULL || calls->broadcast == NULL)
        return say(error, "libnccl.so.2", "a function is missing in it; want NCCL 2.7 or newer");
    return 0;
}

static int nccl_make_id(char id[128], char *error) {
    Nccl none;
    ncclUniqueId unique;
    _Static_assert(sizeof unique == 128, "the plugin's interface has room for it");
    if (load_calls(&none.calls, error) != 0) return -1;
    NCCL_CALL(&none, unique_id(&unique));
    memcpy(id, &unique, sizeof unique);
    return 0;
}

/* ---- beginning and end ---------------------------------------------------------------------------------------------------- */

static int nccl_open(void **self, CommPlace *place, char *error) {
    Nccl *nccl = calloc(1, sizeof *nccl);
    ncclUniqueId id;
    int version = 0;
    if (nccl == NULL) return say(error, "NCCL", "out of memory");
    *self = nccl;
    nccl->rank = place->rank;
    nccl->size = place->size;
    if (load_calls(&nccl->calls, error) != 0) return -1;
    NCCL_CALL(nccl, version(&version));
    (void)snprintf(place->transport, sizeof place->transport, "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
                   version % 100);
    if (place->has_id)
        memcpy(&id, place->id, sizeof id);
    else
        NCCL_CALL(nccl, unique_id(&id)); /* NCCL_COMM_ID: the same on all ranks */
    CUDA_CALL(cudaSetDevice(0));         /* a rank sees one device */
    NCCL_CALL(nccl, init(&nccl->comm, place->size, id, place->rank));
    CUDA_CALL(cudaStreamCreateWithFlags(&nccl->stream, cudaStreamNonBlocking));
    CUDA_CALL(cudaEventCreateWithFlags(&nccl->ready, cudaEventDisableTiming));
    for (int i = 0; i < COMM_PLUGIN_REQUESTS; i++)
        CUDA_CALL(cudaEventCreateWithFlags(&nccl->request[i].done, cudaEventDisableTiming));
    return 0;
}

static int nccl_attach(void *self, void *device, char *error) {
    (void)error;
    ((Nccl *)self)->device = device;
    return 0;
}

static void drop_scratch(Request *request) {
    (void)cudaFree(request->scratch);
    cuda_give_pinned(request->pinned);
    request->scratch = request->pinned = NULL;
    request->capacity = 0;
}

static void nccl_close(void *self, int failed) {
    Nccl *nccl = self;
    if (nccl->comm != NULL) (void)(failed ? nccl->calls.abort : nccl->calls.destroy)(nccl->comm);
    for (int i = 0; i < COMM_PLUGIN_REQUESTS; i++) {
        if (nccl->request[i].done != NULL) (void)cudaEventDestroy(nccl->request[i].done);
        drop_scratch(&nccl->request[i]);
    }
    if (nccl->ready != NULL) (void)cudaEventDestroy(nccl->ready);
    if (nccl->stream != NULL) (void)cudaStreamDestroy(nccl->stream);
    free(nccl);
}

/* ---- calls ------------------------------------------------------------------------------------------------------------------- */

/* A free request, after whose start the stream waits for the kernels; with scratch for `bytes` of a host buffer. */
static int begin(Nccl *nccl, size_t bytes, Request **out, int *number, char *error) {
    int i = 0;
    while (i < COMM_PLUGIN_REQUESTS && nccl->request[i].used)
        i++;
    if (i == COMM_PLUGIN_REQUESTS) return say(error, "internal error", "too many requests under way");
    Request *request = &nccl->request[i];
    if (bytes > request->capacity) {
        size_t capacity = bytes < KEPT_BYTES ? KEPT_BYTES : bytes;
        drop_scratch(request);
        CUDA_CALL(cudaMalloc((void **)&request->scratch, capacity));
        CUDA_CALL(cudaMallocHost((void **)&request->pinned, capacity));
        request->capacity = capacity;
    }
    request->to = NULL;
    if (nccl->device != NULL) {
        CUDA_CALL(cudaEventRecord(nccl->ready, nccl->device->stream));
        CUDA_CALL(cudaStreamWaitEvent(nccl->stream, nccl->ready, 0));
    }
    *out = request;
    *number = i;
    return 0;
}

static int end(Nccl *nccl, Request *request, char *error) {
    CUDA_CALL(cudaEventRecord(request->done, nccl->stream));
    request->used = 1;
    return 0;
}

/* Bytes of the host to `at` in the scratch. */
static int to_device(Nccl *nccl, Request *request, size_t at, const void *from, size_t bytes, char *error) {
    memcpy(request->pinned + at, from, bytes);
    CUDA_CALL(cudaMemcpyAsync(request->scratch + at, request->pinned + at, bytes, cudaMemcpyHostToDevice, nccl->stream));
    return 0;
}

/* Bytes of the device to `at` in the pinned memory. */
static int to_host(Nccl *nccl, Request *request, size_t at, const void *from, size_t bytes, char *error) {
    CUDA_CALL(cudaMemcpyAsync(request->pinned + at, from, bytes, cudaMemcpyDeviceToHost, nccl->stream));
    return 0;
}

/* What lies first in the pinned memory goes on when the request is done. */
static void hand_over(Request *request, void *to, size_t bytes) {
    request->to = to;
    request->to_bytes = bytes;
}

/* Only at the start of a run: every rank's shares pass by all of them, and each keeps its own. */
static int nccl_exchange(void *self, int lane, int host, const void *send, void *receive, size_t total, size_t share,
                         int *number, char *error) {
    (void)lane;
    Nccl *nccl = self;
    Request *request;
    if (!host || total != share * (size_t)nccl->size) return say(error, "internal error", "NCCL exchanges whole host buffers");
    if (begin(nccl, 2 * total, &request, number, error) != 0) return -1;
    uint8_t *own = request->scratch, *passing = own + total;
    if (to_device(nccl, request, 0, send, total, error) != 0) return -1;
    for (int r = 0; r < nccl->size; r++) {
        NCCL_CALL(nccl, broadcast(own, passing, total, ncclUint8, r, nccl->comm, nccl->stream));
        if (to_host(nccl, request, (size_t)r * share, passing + (size_t)nccl->rank * share, share, error) != 0) return -1;
    }
    hand_over(request, receive, total);
    return end(nccl, request, error);
}

static int nccl_gather(void *self, int lane, int host, const void *own, void *buffer, size_t total, size_t share, int *number,
                       char *error) {
    (void)lane;
    Nccl *nccl = self;
    Request *request;
    if (total != share * (size_t)nccl->size) return say(error, "internal error", "NCCL gathers equal shares");
    if (begin(nccl, host ? total : 0, &request, number, error) != 0) return -1;
    uint8_t *all = host ? request->scratch : buffer;
    size_t at = (size_t)nccl->rank * share;
    if (host && to_device(nccl, request, at, own != NULL ? own : (uint8_t *)buffer + at, share, error) != 0) return -1;
    const void *from = host || own == NULL ? all + at : own;
    NCCL_CALL(nccl, all_gather(from, all, share, ncclUint8, nccl->comm, nccl->stream));
    if (host && to_host(nccl, request, 0, all, total, error) != 0) return -1;
    if (host) hand_over(request, buffer, total);
    return end(nccl, request, error);
}

static int nccl_broadcast(void *self, int lane, int host, void *bytes, size_t count, int root, int *number, char *error) {
    (void)lane;
    Nccl *nccl = self;
    Request *request;
    int receives = host && nccl->rank != root;
    if (begin(nccl, host ? count : 0, &request, number, error) != 0) return -1;
    void *there = host ? request->scratch : bytes;
    if (host && nccl->rank == root && to_device(nccl, request, 0, bytes, count, error) != 0) return -1;
    NCCL_CALL(nccl, broadcast(there, there, count, ncclUint8, root, nccl->comm, nccl->stream));
    if (receives && to_host(nccl, request, 0, there, count, error) != 0) return -1;
    if (receives) hand_over(request, bytes, count);
    return end(nccl, request, error);
}

static int nccl_sum(void *self, int lane, int host, void *values, int64_t count, int is_double, int *number, char *error) {
    (void)lane;
    Nccl *nccl = self;
    Request *request;
    size_t bytes = (size_t)count * (is_double ? sizeof(double) : sizeof(float));
    if (begin(nccl, host ? bytes : 0, &request, number, error) != 0) return -1;
    void *there = host ? request->scratch : values;
    if (host && to_device(nccl, request, 0, values, bytes, error) != 0) return -1;
    NCCL_CALL(nccl, all_reduce(there, there, (size_t)count, is_double ? ncclFloat64 : ncclFloat32, ncclSum, nccl->comm,
                               nccl->stream));
    if (host && to_host(nccl, request, 0, there, bytes, error) != 0) return -1;
    if (host) hand_over(request, values, bytes);
    return end(nccl, request, error);
}

static int nccl_test(void *self, int number, int *done, char *error) {
    Nccl *nccl = self;
    ncclResult_t failed = ncclSuccess;
    NCCL_CALL(nccl, async_error(nccl->comm, &failed));
    if (failed != ncclSuccess && failed != ncclInProgress)
        return say(error, "a collective call", nccl->calls.error_string(failed));
    cudaError_t code = cudaEventQuery(nccl->request[number].done);
    /* Not being ready is kept as the last error, which the next launch of a kernel would take for its own. */
    if (code == cudaErrorNotReady) (void)cudaGetLastError();
    if (code != cudaSuccess && code != cudaErrorNotReady) return say(error, "a collective call", cudaGetErrorString(code));
    *done = code == cudaSuccess;
    if (!*done) return 0;
    Request *request = &nccl->request[number];
    if (request->to != NULL) memcpy(request->to, request->pinned, request->to_bytes);
    if (request->capacity > KEPT_BYTES) drop_scratch(request);
    request->used = 0;
    return 0;
}

__attribute__((visibility("default"))) extern const CommPlugin nibble_comm_plugin;
const CommPlugin nibble_comm_plugin = {.version = COMM_PLUGIN_VERSION,
                                       .build_id = NIBBLE_BUILD_ID,
                                       .make_id = nccl_make_id,
                                       .open = nccl_open,
                                       .close = nccl_close,
                                       .attach = nccl_attach,
                                       .exchange = nccl_exchange,
                                       .gather = nccl_gather,
                                       .broadcast = nccl_broadcast,
                                       .sum = nccl_sum,
                                       .test = nccl_test};
