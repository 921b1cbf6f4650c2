/* Opening a device, and the table of the plugin. */
#include "kernels/cuda/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/context.h"

#define OLDEST_MAJOR 8                    /* sm_80: the first with BF16 products */
#define BLAS_WORKSPACE ((size_t)32 << 20) /* what cuBLAS recommends for Hopper; given once, so that it never allocates */

Status cuda_failure(const CudaContext *context, const char *call, cudaError_t code, Error *err) {
    FAIL("device %d (%s): %.200s failed: %s (%s)", context->index, context->name, call, cudaGetErrorString(code),
         cudaGetErrorName(code));
}

Status cublas_failure(const CudaContext *context, const char *call, cublasStatus_t code, Error *err) {
    FAIL("device %d (%s): %.200s failed: %s", context->index, context->name, call, cublasGetStatusName(code));
}

static Status check_device(CudaContext *context, Error *err) {
    int count = 0, major = 0, minor = 0;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        FAIL("no CUDA device can be used: %s (%s)", cudaGetErrorString(code), cudaGetErrorName(code));
    }
    if (count <= context->index) FAIL("there is no CUDA device %d: this machine has %d", context->index, count);
    CUDA_TRY(context, cudaSetDevice(context->index));
    CUDA_TRY(context, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, context->index));
    CUDA_TRY(context, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, context->index));
    struct cudaDeviceProp *properties = malloc(sizeof *properties); /* large, and its size is the toolkit's */
    if (properties == NULL) FAIL("no memory for the device's properties");
    code = cudaGetDeviceProperties(properties, context->index);
    if (code == cudaSuccess) (void)snprintf(context->name, sizeof context->name, "%.80s", properties->name);
    free(properties);
    if (code != cudaSuccess) return cuda_failure(context, "cudaGetDeviceProperties", code, err);
    if (major < OLDEST_MAJOR)
        FAIL("device %d (%s) is of compute capability %d.%d; BF16 products need 8.0 (Ampere) or newer, so use --device cpu",
             context->index, context->name, major, minor);
    return OK;
}

static Status open_resources(CudaContext *context, Error *err) {
    CUDA_TRY(context, cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking));
    TRY(cuda_stage_open(context, err));
    TRY(cuda_stash_open(context, err));
    void *memory;
    CUDA_TRY(context, cudaMalloc(&memory, SCALARS * sizeof(uint64_t)));
    context->scalars = memory;
    CUDA_TRY(context, cudaMemsetAsync(memory, 0xFF, SCALARS * sizeof(uint64_t), context->stream));
    CUDA_TRY(context, cudaMallocHost(&memory, SCALARS * sizeof(uint64_t)));
    context->pinned = memory;
    cublasStatus_t code = cublasCreate(&context->blas);
    if (code != CUBLAS_STATUS_SUCCESS) return cublas_failure(context, "cublasCreate", code, err);
    CUDA_TRY(context, cudaMalloc(&context->blas_workspace, BLAS_WORKSPACE));
    code = cublasSetStream(context->blas, context->stream);
    if (code == CUBLAS_STATUS_SUCCESS) code = cublasSetWorkspace(context->blas, context->blas_workspace, BLAS_WORKSPACE);
    return code == CUBLAS_STATUS_SUCCESS ? OK : cublas_failure(context, "cublasSetWorkspace", code, err);
}

static void device_close(void *self) {
    CudaContext *context = self;
    cuda_graphs_free(context);
    cuda_idle_free(context);
    cuda_stage_close(context);
    cuda_stash_close(context);
    if (context->blas != NULL) (void)cublasDestroy(context->blas);
    if (context->stream != NULL) (void)cudaStreamDestroy(context->stream);
    (void)cudaFree(context->blas_workspace);
    (void)cudaFree(context->scalars);
    (void)cudaFree(context->partials);
    (void)cudaFreeHost(context->pinned);
    (void)cudaFreeHost(context->staging);
    free(context);
}

static Status device_open(int index, void **out, char *name, size_t capacity, Error *err) {
    *out = NULL;
    CudaContext *context = calloc(1, sizeof *context);
    if (context == NULL) FAIL("no memory for a device");
    context->index = index;
    (void)snprintf(context->name, sizeof context->name, "not known yet");
    Status status = check_device(context, err);
    if (status == OK) status = open_resources(context, err);
    if (status != OK) {
        device_close(context);
        return status;
    }
    (void)snprintf(name, capacity, "%s", context->name);
    *out = context;
    return OK;
}

static void install(Backend *backend) {
    backend->name = "cuda";
    backend->on_device = 1;
    backend->joined_groups = 1;
    cuda_install_memory(backend);
    cuda_install_batch(backend);
    cuda_install_linear(backend);
    cuda_install_stage(backend);
    cuda_install_stash(backend);
    cuda_install_load(backend);
    cuda_install_head(backend);
    cuda_install_fake_weight(backend);
    cuda_install_layers(backend);
    cuda_install_flat(backend);
    cuda_install_graphs(backend);
    cuda_install_idle(backend);
}

__attribute__((visibility("default"))) extern const DevicePlugin nibble_device_plugin;
const DevicePlugin nibble_device_plugin = {.version = DEVICE_PLUGIN_VERSION,
                                           .build_id = NIBBLE_DEVICE_ID,
                                           .open = device_open,
                                           .close = device_close,
                                           .install = install};
