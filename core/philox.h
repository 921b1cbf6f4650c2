/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 *
 * A number is a pure function of (seed, purpose, index): the same on any number
 * of threads and ranks, after any resume, for any accumulation. The index is
 * made of what the number belongs to (sample id, position, feature), never of a
 * batch slot.
 */
#ifndef NIBBLE_CORE_PHILOX_H
#define NIBBLE_CORE_PHILOX_H

#include <stdint.h>

/* CUDA kernels draw the same numbers: nvcc compiles these for the device too. */
#ifdef __CUDACC__
#define PHILOX_INLINE static inline __host__ __device__
#else
#define PHILOX_INLINE static inline
#endif

/* What a stream is for; part of the key. Values are on disk by consequence (resume): append only. */
typedef enum RandomPurpose {
    RANDOM_ADAPTER_INIT = 1, /* index: adapter number, element */
    RANDOM_DROPOUT = 2,      /* index: stream, sample, position, feature */
    RANDOM_ORDER = 3,        /* index: epoch, sample */
    RANDOM_SAMPLING = 4,     /* index: sequence, position */
    RANDOM_WEIGHTS = 5,      /* index: tensor, element (nibble synth, method full from scratch) */
    RANDOM_SPLIT = 6,        /* index: sample (evaluation split) */
    RANDOM_TEST = 7
} RandomPurpose;

/* Ten rounds over the 128-bit counter with the 64-bit key. */
PHILOX_INLINE void philox4x32(const uint32_t counter[4], uint32_t key0, uint32_t key1, uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Four 32-bit numbers for (seed, purpose, a, b); a and b are 64-bit indices. The seed and the purpose make the key. */
PHILOX_INLINE void random_block(uint64_t seed, RandomPurpose purpose, uint64_t a, uint64_t b, uint32_t out[4]) {
    uint32_t counter[4] = {(uint32_t)b, (uint32_t)(b >> 32), (uint32_t)a, (uint32_t)(a >> 32)};
    philox4x32(counter, (uint32_t)seed ^ ((uint32_t)purpose * 0x85EBCA6Bu), (uint32_t)(seed >> 32), out);
}

/* Uniform in [0, 1) with 24 bits. */
PHILOX_INLINE float random_unit(uint32_t bits) {
    return (float)(bits >> 8) * 0x1p-24f;
}

/* Element `index` of the stream (seed, purpose, a), uniform in [0, 1): one of four lanes of block index/4. */
PHILOX_INLINE float random_uniform(uint64_t seed, RandomPurpose purpose, uint64_t a, uint64_t index) {
    uint32_t block[4];
    random_block(seed, purpose, a, index >> 2, block);
    return random_unit(block[index & 3u]);
}

/* Whether feature `feature` of the token at `position` of sample `sample` is kept by the dropout of adapter `stream`,
 * dropping with probability p. Two adapters, or two samples, never share a mask. p is compared in 32 bits: a feature is
 * dropped when its number is below floor(p * 2^32). Both passes call this; nothing is stored. */
PHILOX_INLINE uint32_t dropout_threshold(float p) {
    double scaled = (double)p * 4294967296.0;
    return scaled >= 4294967295.0 ? 0xFFFFFFFFu : (uint32_t)scaled;
}
PHILOX_INLINE void dropout_block(uint64_t seed, uint32_t stream, uint64_t sample, uint32_t position, uint32_t feature_group,
                                 uint32_t out[4]) {
    uint64_t a = sample;
    uint64_t b = ((uint64_t)position << 32) | feature_group;
    random_block(seed ^ ((uint64_t)stream * 0x9E3779B97F4A7C15u), RANDOM_DROPOUT, a, b, out);
}
PHILOX_INLINE int dropout_keep(uint64_t seed, uint32_t stream, uint64_t sample, uint32_t position, uint32_t feature,
                               uint32_t threshold) {
    uint32_t block[4];
    dropout_block(seed, stream, sample, position, feature >> 2, block);
    return block[feature & 3u] >= threshold;
}

#endif
