/* Capture and replay as CUDA has them: what is recorded runs at each launch and not before; a side stream joins by events; what a
 * capture must not meet makes it invalid. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <cublas_v2.h>

#include "core/dtype.h"
#include "tests/cuda_emu/bugs.h"

enum { N = 1000, BYTES = N * (int)sizeof(float) };

typedef struct Rig {
    float *pinned, *back, *a, *b;
    cudaStream_t main, side;
    cudaEvent_t fork, join;
} Rig;

static void open_rig(Rig *r) {
    assert_int_equal(cudaMallocHost((void **)&r->pinned, BYTES), cudaSuccess);
    assert_int_equal(cudaMallocHost((void **)&r->back, BYTES), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&r->a, BYTES), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&r->b, BYTES), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&r->main, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&r->side, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&r->fork, cudaEventDisableTiming), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&r->join, cudaEventDisableTiming), cudaSuccess);
}

static void close_rig(Rig *r) {
    assert_int_equal(cudaStreamDestroy(r->main), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(r->side), cudaSuccess);
    assert_int_equal(cudaEventDestroy(r->fork), cudaSuccess);
    assert_int_equal(cudaEventDestroy(r->join), cudaSuccess);
    assert_int_equal(cudaFree(r->a), cudaSuccess);
    assert_int_equal(cudaFree(r->b), cudaSuccess);
    assert_int_equal(cudaFreeHost(r->pinned), cudaSuccess);
    assert_int_equal(cudaFreeHost(r->back), cudaSuccess);
}

static void set(float *values, float value) {
    for (int i = 0; i < N; i++)
        values[i] = value;
}

/* pinned -> a, b = 2 a (on the side stream when asked), b -> back */
static void record(Rig *r, int side) {
    assert_int_equal(cudaMemcpyAsync(r->a, r->pinned, BYTES, cudaMemcpyHostToDevice, r->main), cudaSuccess);
    if (side) {
        assert_int_equal(cudaEventRecord(r->fork, r->main), cudaSuccess);
        assert_int_equal(cudaStreamWaitEvent(r->side, r->fork, 0), cudaSuccess);
    }
    assert_int_equal(doubled(r->a, r->b, N, side ? r->side : r->main), cudaSuccess);
    if (side) {
        assert_int_equal(cudaEventRecord(r->join, r->side), cudaSuccess);
        assert_int_equal(cudaStreamWaitEvent(r->main, r->join, 0), cudaSuccess);
    }
    assert_int_equal(cudaMemcpyAsync(r->back, r->b, BYTES, cudaMemcpyDeviceToHost, r->main), cudaSuccess);
}

static void replayed(int side) {
    Rig r;
    open_rig(&r);
    set(r.pinned, 1);
    set(r.back, -1);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_int_equal(cudaStreamBeginCapture(r.main, cudaStreamCaptureModeGlobal), cudaSuccess);
    record(&r, side);
    assert_int_equal(cudaStreamEndCapture(r.main, &graph), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(r.main), cudaSuccess);
    assert_true(r.back[N - 1] == -1); /* only recorded */
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    for (int run = 3; run < 6; run++) { /* each replay reads what is there at the time */
        set(r.pinned, (float)run);
        assert_int_equal(cudaGraphLaunch(exec, r.main), cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(r.main), cudaSuccess);
        for (int i = 0; i < N; i++)
            assert_true(r.back[i] == 2 * (float)run);
    }
    assert_int_equal(cudaGraphExecDestroy(exec), cudaSuccess);
    close_rig(&r);
}
static void one_stream(void **state) {
    (void)state;
    replayed(0);
}
static void a_side_stream_joins(void **state) {
    (void)state;
    replayed(1);
}

static void a_stream_left_behind(void **state) {
    (void)state;
    Rig r;
    cudaGraph_t graph;
    open_rig(&r);
    assert_int_equal(cudaStreamBeginCapture(r.main, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(cudaEventRecord(r.fork, r.main), cudaSuccess);
    assert_int_equal(cudaStreamWaitEvent(r.side, r.fork, 0), cudaSuccess);
    assert_int_equal(doubled(r.a, r.b, N, r.side), cudaSuccess);
    assert_int_equal(cudaStreamEndCapture(r.main, &graph), cudaErrorStreamCaptureUnjoined);
    assert_null(graph);
    (void)cudaGetLastError();
    close_rig(&r);
}

static cudaError_t waits(Rig *r) {
    return cudaStreamSynchronize(r->main);
}
static cudaError_t allocates(Rig *r) {
    void *memory;
    (void)r;
    return cudaMalloc(&memory, 16);
}
static cudaError_t copies_pageable_memory(Rig *r) {
    float value = 1;
    return cudaMemcpyAsync(r->a, &value, sizeof value, cudaMemcpyHostToDevice, r->main);
}
static cudaError_t copies_at_once(Rig *r) {
    return cudaMemcpy(r->a, r->b, BYTES, cudaMemcpyDeviceToDevice);
}
static cudaError_t pins(Rig *r) {
    void *memory;
    (void)r;
    return cudaMallocHost(&memory, 16);
}
static cudaError_t asks_an_event(Rig *r) {
    return cudaEventQuery(r->join);
}
static cudaError_t waits_for_another_stream(Rig *r) {
    return cudaStreamSynchronize(r->side);
}

static void what_a_capture_must_not_meet(void **state) {
    (void)state;
    cudaError_t (*const calls[])(Rig *) = {waits, allocates,     copies_pageable_memory,  copies_at_once,
                                           pins,  asks_an_event, waits_for_another_stream};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        Rig r;
        cudaGraph_t graph;
        open_rig(&r);
        assert_int_equal(cudaStreamBeginCapture(r.main, cudaStreamCaptureModeGlobal), cudaSuccess);
        assert_int_equal(calls[i](&r), cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaStreamEndCapture(r.main, &graph), cudaErrorStreamCaptureInvalidated);
        (void)cudaGetLastError();
        close_rig(&r);
    }
}

static void *allocate_elsewhere(void *result) {
    void *memory = NULL;
    *(cudaError_t *)result = cudaMalloc(&memory, 16);
    (void)cudaFree(memory);
    return NULL;
}
/* A loader's thread may allocate beside a capture that is its thread's own, and spoils a global one. */
static void another_thread(void **state) {
    (void)state;
    const struct {
        enum cudaStreamCaptureMode mode;
        cudaError_t allocating, ending;
    } cases[] = {{cudaStreamCaptureModeThreadLocal, cudaSuccess, cudaSuccess},
                 {cudaStreamCaptureModeGlobal, cudaErrorStreamCaptureUnsupported, cudaErrorStreamCaptureInvalidated}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Rig r;
        pthread_t thread;
        cudaGraph_t graph;
        cudaError_t result = cudaErrorUnknown;
        open_rig(&r);
        assert_int_equal(cudaStreamBeginCapture(r.main, cases[i].mode), cudaSuccess);
        record(&r, 0);
        assert_int_equal(pthread_create(&thread, NULL, allocate_elsewhere, &result), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(result, cases[i].allocating);
        assert_int_equal(cudaStreamEndCapture(r.main, &graph), cases[i].ending);
        if (graph != NULL) assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
        (void)cudaGetLastError();
        close_rig(&r);
    }
}

static void the_legacy_stream(void **state) {
    (void)state;
    for (int blocking = 0; blocking < 2; blocking++) {
        Rig r;
        cudaGraph_t graph;
        open_rig(&r);
        cudaStream_t stream = r.main;
        assert_int_equal(cudaMemset(r.a, 0, BYTES), cudaSuccess);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        if (blocking) assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
        assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
        (void)cudaGetLastError();
        assert_int_equal(doubled(r.a, r.b, N, NULL), blocking ? cudaErrorStreamCaptureImplicit : cudaSuccess);
        assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
        if (blocking) assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
        close_rig(&r);
    }
}

static void an_event_of_a_capture_outlives_it(void **state) {
    (void)state;
    Rig r;
    cudaGraph_t graph;
    open_rig(&r);
    assert_int_equal(cudaStreamBeginCapture(r.main, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    record(&r, 1);
    assert_int_equal(cudaStreamEndCapture(r.main, &graph), cudaSuccess);
    assert_int_not_equal(cudaStreamWaitEvent(r.main, r.join, 0), cudaSuccess);
    assert_int_equal(cudaEventQuery(r.join), cudaErrorCapturedEvent);
    (void)cudaGetLastError();
    assert_int_equal(cudaEventRecord(r.join, r.side), cudaSuccess); /* an event as before */
    assert_int_equal(cudaStreamWaitEvent(r.main, r.join, 0), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    close_rig(&r);
}

static void a_product_is_captured(void **state) {
    (void)state;
    enum { SIDE = 8 };
    const float one = 1, zero = 0;
    bf16 values[SIDE * SIDE];
    float result[SIDE * SIDE];
    void *a, *c, *workspace;
    cudaStream_t stream;
    cublasHandle_t handle;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    for (int i = 0; i < SIDE * SIDE; i++)
        values[i] = bf16_from_float(2);
    assert_int_equal(cudaMalloc(&a, sizeof values), cudaSuccess);
    assert_int_equal(cudaMalloc(&c, sizeof result), cudaSuccess);
    assert_int_equal(cudaMemcpy(a, values, sizeof values, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cublasSetStream(handle, stream), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaMalloc(&workspace, 4096), cudaSuccess);
    assert_int_equal(cublasSetWorkspace(handle, workspace, 4096), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, SIDE, SIDE, SIDE, &one, a, CUDA_R_16BF, SIDE, a,
                                  CUDA_R_16BF, SIDE, &zero, c, CUDA_R_32F, SIDE, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                     CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (int run = 0; run < 2; run++) {
        assert_int_equal(cudaMemsetAsync(c, 0, sizeof result, stream), cudaSuccess);
        assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        assert_int_equal(cudaMemcpy(result, c, sizeof result, cudaMemcpyDeviceToHost), cudaSuccess);
        assert_true(result[0] == 4 * SIDE && result[SIDE * SIDE - 1] == 4 * SIDE);
    }
    assert_int_equal(cudaGraphExecDestroy(exec), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    /* a stream that is set takes the workspace away */
    assert_int_equal(cublasSetStream(handle, stream), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, SIDE, SIDE, SIDE, &one, a, CUDA_R_16BF, SIDE, a,
                                  CUDA_R_16BF, SIDE, &zero, c, CUDA_R_32F, SIDE, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                     CUBLAS_STATUS_ALLOC_FAILED);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    assert_int_equal(cublasDestroy(handle), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    (void)cudaFree(a), (void)cudaFree(c), (void)cudaFree(workspace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_stream),
        cmocka_unit_test(a_side_stream_joins),
        cmocka_unit_test(a_stream_left_behind),
        cmocka_unit_test(what_a_capture_must_not_meet),
        cmocka_unit_test(another_thread),
        cmocka_unit_test(the_legacy_stream),
        cmocka_unit_test(an_event_of_a_capture_outlives_it),
        cmocka_unit_test(a_product_is_captured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
