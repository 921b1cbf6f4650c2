/* ggml's element types as GGUF files name them, and the byte layouts of its quantized blocks: once, for C and CUDA.
 *
 * A row is cut into blocks of 32 or super-blocks of 256 elements that never cross rows. Scales are IEEE halves.
 *
 *   32 elements    Q4_0 Q5_0 Q8_0     x = d * (q - 8, 16, 0)
 *                  Q4_1 Q5_1          x = d * q + m
 *                  low nibble of qs[j] = element j, high nibble = element j + 16; fifth bit of element e = bit e of qh
 *   256 elements   Q2_K               16 sub-blocks of 16: x = d * (scales & 15) * q - dmin * (scales >> 4)
 *                  Q3_K               16 sub-blocks of 16: x = d * (scale - 32) * (q - 4); scale: 6 bits
 *                  Q4_K Q5_K          8 sub-blocks of 32: x = d * scale * q - dmin * min; scale and min: 6 bits each
 *                  Q6_K               16 sub-blocks of 16: x = d * scale * (q - 32); scale: int8
 *   Bit planes of a super-block:
 *     Q2_K, Q3_K   byte 32h + l of qs holds elements 128h + l + {0, 32, 64, 96}, two bits each, lowest first
 *     Q3_K         third bit of element e: bit e / 32 of hmask[e % 32]
 *     Q4_K, Q5_K   byte 32c + l of qs: low nibble = element 64c + l, high nibble = element 64c + 32 + l
 *     Q5_K         fifth bit of element e: bit e / 32 of qh[e % 32]
 *     Q6_K         byte 64h + l of ql: low nibble = element 128h + l, high nibble = element 128h + 64 + l (l < 64);
 *                  byte 32h + l of qh holds the two upper bits of elements 128h + l + {0, 32, 64, 96}, lowest first
 *   6-bit scales of Q4_K and Q5_K: for j < 4 the low 6 bits of byte j (scale) and j + 4 (min); for j >= 4 the low 4 bits are
 *     byte j + 4's halves (scale low, min high) and the upper 2 are bits 6 and 7 of bytes j - 4 (scale) and j (min).
 *   6-bit scales of Q3_K: low 4 bits in byte j % 8 (low half for j < 8), upper 2 in byte 8 + j % 4 at bit 2 * (j / 4).
 *
 * Source: ggml 0.25.3 (in llama-cpp-python 0.3.36), src/ggml-common.h and src/ggml-quants.c.
 */
#ifndef NIBBLE_KERNELS_GGML_FORMATS_H
#define NIBBLE_KERNELS_GGML_FORMATS_H

#include <stdint.h>

/* The numbers that GGUF files store; types without a name here are known to ggml_type_info only by size. */
typedef enum GgmlType {
    GGML_F32 = 0,
    GGML_F16 = 1,
    GGML_Q4_0 = 2,
    GGML_Q4_1 = 3,
    GGML_Q5_0 = 6,
    GGML_Q5_1 = 7,
    GGML_Q8_0 = 8,
    GGML_Q2_K = 10,
    GGML_Q3_K = 11,
    GGML_Q4_K = 12,
    GGML_Q5_K = 13,
    GGML_Q6_K = 14,
    GGML_I32 = 26,
    GGML_BF16 = 30
} GgmlType;

#define GGML_BLOCK 32
#define GGML_SUPER 256

typedef struct GgmlBlockQ4_0 {
    uint16_t d;
    uint8_t qs[16];
} GgmlBlockQ4_0;

typedef struct GgmlBlockQ4_1 {
    uint16_t d, m;
    uint8_t qs[16];
} GgmlBlockQ4_1;

typedef struct GgmlBlockQ5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
} GgmlBlockQ5_0;

typedef struct GgmlBlockQ5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
} GgmlBlockQ5_1;

typedef struct GgmlBlockQ8_0 {
    uint16_t d;
    int8_t qs[32];
} GgmlBlockQ8_0;

typedef struct GgmlBlockQ2_K {
    uint8_t scales[16]; /* low half: scale, high half: min */
    uint8_t qs[64];
    uint16_t d, dmin;
} GgmlBlockQ2_K;

typedef struct GgmlBlockQ3_K {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
} GgmlBlockQ3_K;

typedef struct GgmlBlockQ4_K {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
} GgmlBlockQ4_K;

typedef struct GgmlBlockQ5_K {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
} GgmlBlockQ5_K;

typedef struct GgmlBlockQ6_K {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d; /* last, unlike in the others */
} GgmlBlockQ6_K;

#ifndef __cplusplus
_Static_assert(sizeof(GgmlBlockQ4_0) == 18 && sizeof(GgmlBlockQ4_1) == 20 && sizeof(GgmlBlockQ5_0) == 22, "block layouts");
_Static_assert(sizeof(GgmlBlockQ5_1) == 24 && sizeof(GgmlBlockQ8_0) == 34 && sizeof(GgmlBlockQ2_K) == 84, "block layouts");
_Static_assert(sizeof(GgmlBlockQ3_K) == 110 && sizeof(GgmlBlockQ4_K) == 144 && sizeof(GgmlBlockQ5_K) == 176, "block layouts");
_Static_assert(sizeof(GgmlBlockQ6_K) == 210, "block layouts");
#endif

#ifdef __CUDACC__
#define GGML_BOTH_SIDES __host__ __device__
#else
#define GGML_BOTH_SIDES
#endif

/* The j-th (0..7) 6-bit scale and min of Q4_K and Q5_K. */
GGML_BOTH_SIDES static inline void ggml_scale_min(const uint8_t scales[12], int j, int *scale, int *min) {
    if (j < 4) {
        *scale = scales[j] & 63;
        *min = scales[j + 4] & 63;
    } else {
        *scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
        *min = scales[j + 4] >> 4 | (scales[j] >> 6) << 4;
    }
}

/* The j-th (0..15) 6-bit scale of Q3_K, 32 subtracted. */
GGML_BOTH_SIDES static inline int ggml_scale_q3(const uint8_t scales[12], int j) {
    int low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
    return (low | ((scales[8 + j % 4] >> 2 * (j / 4)) & 3) << 4) - 32;
}

#endif
