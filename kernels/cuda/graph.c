/* Parts of a micro-batch as CUDA graphs: the first time they run as they come (modules are loaded, libraries warm up), the second
 * time they are captured, and from then on one launch replays them. NIBBLE_CUDA_GRAPHS=0 leaves every launch to the host.
 *
 * What a graph bakes in are addresses (the key) and shapes by capacity; what varies is read from the DeviceBatch. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/context.h"

static CudaGraph *find_graph(CudaContext *context, const void *const key[PART_KEYS], int part) {
    CudaGraph *unused = NULL;
    for (int i = 0; i < GRAPHS_MAX; i++) {
        CudaGraph *graph = &context->graphs[i];
        if (graph->seen > 0 && graph->part == part && memcmp(graph->key, key, sizeof graph->key) == 0) return graph;
        if (graph->seen == 0 && unused == NULL) unused = graph;
    }
    if (unused == NULL) return NULL;
    memcpy(unused->key, key, sizeof unused->key);
    unused->part = part;
    return unused;
}

static Status part_begin(const Exec *exec, const void *const key[PART_KEYS], int part, int *done, Error *err) {
    CudaContext *context = context_of(exec);
    *done = 0;
    context->capturing = NULL;
    CudaGraph *graph = find_graph(context, key, part);
    if (graph == NULL) return OK;
    TRY(cuda_stage_wait(context, NULL, err)); /* what was staged outside is waited for outside */
    if (graph->exec != NULL) {
        TRY(cuda_check_rows(context->host_batch, graph->id_limit, graph->position_limit, err));
        CUDA_TRY(context, cudaGraphLaunch(graph->exec, context->stream));
        *done = 1;
        return OK;
    }
    if (graph->seen++ == 0) return OK;
    CUDA_TRY(context, cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeThreadLocal));
    context->capturing = graph;
    return OK;
}

/* A stream that came along is captured until it is waited for. */
static void join(CudaContext *context, cudaStream_t stream) {
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &status) != cudaSuccess || status != cudaStreamCaptureStatusActive) return;
    if (cudaEventRecord(context->begun, stream) == cudaSuccess) (void)cudaStreamWaitEvent(context->stream, context->begun, 0);
}

/* Half of a part is not to be run, and not to be kept. */
static void drop_recording(CudaContext *context) {
    cudaGraph_t recorded = NULL;
    join(context, context->side);
    join(context, context->copies);
    (void)cudaStreamEndCapture(context->stream, &recorded);
    if (recorded != NULL) (void)cudaGraphDestroy(recorded);
    (void)cudaGetLastError();
}

static Status part_end(const Exec *exec, Error *err) {
    CudaContext *context = context_of(exec);
    CudaGraph *graph = context->capturing;
    context->capturing = NULL;
    if (graph == NULL) return OK;
    cudaGraph_t recorded = NULL;
    graph->id_limit = context->id_limit;
    graph->position_limit = context->position_limit;
    if (err == NULL) {
        drop_recording(context);
        return OK;
    }
    cudaError_t code = cudaStreamEndCapture(context->stream, &recorded);
    if (code != cudaSuccess) return cuda_failure(context, "cudaStreamEndCapture", code, err);
    code = cudaGraphInstantiate(&graph->exec, recorded, 0);
    (void)cudaGraphDestroy(recorded);
    if (code != cudaSuccess) {
        graph->exec = NULL;
        return cuda_failure(context, "cudaGraphInstantiate", code, err);
    }
    CUDA_TRY(context, cudaGraphLaunch(graph->exec, context->stream));
    return OK;
}

void cuda_graphs_free(CudaContext *context) {
    for (int i = 0; i < GRAPHS_MAX; i++)
        if (context->graphs[i].exec != NULL) (void)cudaGraphExecDestroy(context->graphs[i].exec);
    memset(context->graphs, 0, sizeof context->graphs);
}

void cuda_install_graphs(Backend *backend) {
    const char *setting = getenv("NIBBLE_CUDA_GRAPHS");
    if (setting != NULL && strcmp(setting, "0") == 0) return;
    backend->part_begin = part_begin;
    backend->part_end = part_end;
}
