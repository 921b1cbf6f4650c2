/* Opening a device, and the table of the plugin. */
#include "kernels/cuda/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/context.h"

#define OLDEST_MAJOR 8                    /* sm_80: the first with BF16 products */
#define BLAS_WORKSPACE ((size_t)32 << 20) /* what cuBLAS recommends for Hopper; given once, so that it never allocates */

/* What a kernel does to the whole context, and is only seen by a later call. */
static int is_of_a_kernel(cudaError_t code) {
    return code == cudaErrorIllegalAddress || code == cudaErrorMisalignedAddress || code == cudaErrorLaunchFailure ||
           code == cudaErrorIllegalInstruction || code == cudaErrorInvalidAddressSpace || code == cudaErrorInvalidPc ||
           code == cudaErrorHardwareStackError || code == cudaErrorLaunchTimeout || code == cudaErrorAssert;
}

Status cuda_failure(const CudaContext *context, const char *call, cudaError_t code, Error *err) {
    FAIL("device %d (%s): %.200s failed: %s (%s)%s", context->index, context->name, call, cudaGetErrorString(code),
         cudaGetErrorName(code),
         is_of_a_kernel(code) ? "; a kernel before it did that: CUDA_LAUNCH_BLOCKING=1 with NIBBLE_CUDA_GRAPHS=0 tells which"
                              : "");
}

Status cuda_failed(CudaContext *context, Error *err) {
    cudaError_t code = context->failed;
    context->failed = cudaSuccess;
    return code == cudaSuccess ? OK : cuda_failure(context, context->failed_call, code, err);
}

Status cublas_failure(const CudaContext *context, const char *call, cublasStatus_t code, Error *err) {
    FAIL("device %d (%s): %.200s failed: %s", context->index, context->name, call, cublasGetStatusName(code));
}

/* Why there are no devices: CUDA's own words for a missing driver are those for an old one. */
static Status no_devices(cudaError_t code, Error *err) {
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaGetLastError();
    if (driver == 0) FAIL("no CUDA device can be used: no NVIDIA driver is installed (%s)", cudaGetErrorName(code));
    if (code == cudaErrorInsufficientDriver)
        FAIL(
            "no CUDA device can be used: the driver is for CUDA %d.%d and this build for %d.%d; update the driver, or build "
            "with a toolkit as old",
            driver / 1000, driver / 10 % 100, CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100);
    FAIL("no CUDA device can be used: %s (%s)", cudaGetErrorString(code), cudaGetErrorName(code));
}

static Status check_device(CudaContext *context, Error *err) {
    int count = 0, major = 0, minor = 0;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess) return no_devices(code, err);
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
    context->capability = 10 * major + minor;
    return OK;
}

/* The first kernel: whether there is code for this device. */
static Status check_kernels(CudaContext *context, Error *err) {
    cudaError_t code = cuda_sum_squares(0, NULL, NULL, (double *)(void *)context->scalars, context->stream);
    if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorUnsupportedPtxVersion)
        FAIL(
            "device %d (%s): this build has no code for compute capability %d.%d (%s); make clean, then make cuda "
            "CUDA_ARCHITECTURES=%d",
            context->index, context->name, context->capability / 10, context->capability % 10, cudaGetErrorName(code),
            context->capability);
    return code == cudaSuccess ? OK : cuda_failure(context, "the first kernel", code, err);
}

/* Splits of a product's sums are added in FP32, not in the BF16 that the result is rounded to; FP32 products are no TF32. */
static cublasStatus_t set_up_blas(CudaContext *context) {
    const cublasMath_t math = (cublasMath_t)((int)CUBLAS_DEFAULT_MATH | (int)CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    cublasStatus_t code = cublasSetStream(context->blas, context->stream); /* takes away the workspace: comes first */
    if (code == CUBLAS_STATUS_SUCCESS) code = cublasSetWorkspace(context->blas, context->blas_workspace, BLAS_WORKSPACE);
    return code == CUBLAS_STATUS_SUCCESS ? cublasSetMathMode(context->blas, math) : code;
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
    TRY(check_kernels(context, err));
    cublasStatus_t code = cublasCreate(&context->blas);
    if (code != CUBLAS_STATUS_SUCCESS) return cublas_failure(context, "cublasCreate", code, err);
    CUDA_TRY(context, cudaMalloc(&context->blas_workspace, BLAS_WORKSPACE));
    code = set_up_blas(context);
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
    cuda_give_pinned(context->pinned);
    cuda_give_pinned(context->staging);
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
