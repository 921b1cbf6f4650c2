/* Kernels that test the emulator itself. */
#ifndef NIBBLE_TESTS_CUDA_EMU_BUGS_H
#define NIBBLE_TESTS_CUDA_EMU_BUGS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Which build shows a mistake under every schedule: by a report, or by a result that differs from the fixed twin's. Each
 * build shows what the one before it shows. */
typedef enum BugSeen { SEEN_PLAIN, SEEN_SANITIZED, SEEN_CHECKED } BugSeen;
typedef struct Bug {
    const char *name;
    BugSeen seen;
} Bug;
extern const Bug bugs[];
extern const int bug_count;

/* in, out: 128 floats on the device. */
cudaError_t bug(int which, int fixed, const float *in, float *out, cudaStream_t stream);
/* a [32][4], b [32][2], c [32][4] registers of mma.m16n8k16, c overwritten; tiles [4][8][8] as ldmatrix.x4 reads them into
 * plain [32][4] and, with .trans, trans [32][4]. */
cudaError_t fragments(const uint32_t *a, const uint32_t *b, float *c, const uint16_t *tiles, uint32_t *plain, uint32_t *trans,
                      cudaStream_t stream);
cudaError_t doubled(const float *x, float *y, int64_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
