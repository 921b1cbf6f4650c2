// Codes of GPTQ and AWQ, whose files have a line of words for every few inputs, put where the rows of the weight have them. Tiles pass
// through shared memory, so that lines are read and rows are written in whole sectors.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, TILE = 32 };

// Word (i, o) of a line becomes word i of row o.
__global__ void __launch_bounds__(THREADS) transpose_words(const uint32_t *__restrict__ lines, int64_t rows, int64_t count,
                                                           uint32_t *__restrict__ codes, int64_t row_words, int64_t tiles) {
    CU_SHARED(uint32_t, tile, [TILE][TILE + 1]);
    int64_t row = blockIdx.x % tiles * TILE, line = blockIdx.x / tiles * TILE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = warp; i < TILE; i += WARPS)
        if (line + i < count && row + lane < rows) tile[i][lane] = lines[(line + i) * rows + row + lane];
    __syncthreads();
    for (int o = warp; o < TILE; o += WARPS)
        if (row + o < rows && line + lane < count) codes[(row + o) * row_words + line + lane] = tile[lane][o];
}

// Of eight outputs in a word of AWQ, the one that nibble i belongs to: 0, 2, 4, 6, 1, 3, 5, 7.
__device__ __forceinline__ int awq_output(int i) {
    return i < 4 ? 2 * i : 2 * i - 7;
}

// A thread takes a word of eight lines: an 8 by 8 block of nibbles, which it turns into a word of each of eight rows.
__global__ void __launch_bounds__(THREADS) spread_nibbles(const uint32_t *__restrict__ lines, int64_t words, int64_t count,
                                                          uint32_t *__restrict__ codes, int64_t row_words, int64_t tiles) {
    CU_SHARED(uint32_t, tile, [8 * TILE][WARPS + 1]);
    int64_t column = blockIdx.x % tiles * TILE, first = blockIdx.x / tiles * WARPS;  // first: of the rows' words
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t out[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int64_t line = (first + warp) * 8 + j;
        uint32_t word = line < count && column + lane < words ? lines[line * words + column + lane] : 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] |= (word >> 4 * i & 15) << 4 * j;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        tile[8 * lane + awq_output(i)][warp] = out[i];
    __syncthreads();
    for (int n = threadIdx.x; n < 8 * TILE * WARPS; n += THREADS) {
        int row = n / WARPS, word = n % WARPS;
        if (8 * column + row < 8 * words && (first + word) * 8 < count)
            codes[(8 * column + row) * row_words + first + word] = tile[row][word];
    }
}

extern "C" cudaError_t cuda_group_lines(const uint32_t *lines, int nibbles, int64_t rows, int64_t first, int64_t count,
                                        void *codes, int64_t row_bytes, cudaStream_t stream) {
    int64_t across = nibbles ? 8 : 1, words = rows / across, row_words = row_bytes / 4;
    if (rows < 0 || count < 0 || first < 0 || rows % across != 0 || first % across != 0 || row_bytes % 4 != 0 ||
        first / across + divide_up(count, across) > row_words)
        return cudaErrorInvalidValue;
    int64_t tiles = divide_up(words, TILE), down = divide_up(count, nibbles ? 8 * WARPS : TILE);
    if (tiles == 0 || down == 0) return cudaSuccess;
    if (down > GRID_MAX / tiles) return cudaErrorInvalidValue;
    uint32_t *to = (uint32_t *)codes + first / across;
    unsigned blocks = (unsigned)(tiles * down);
    if (nibbles) {
        CU_LAUNCH(spread_nibbles, blocks, THREADS, 0, stream, lines, words, count, to, row_words, tiles);
    } else {
        CU_LAUNCH(transpose_words, blocks, THREADS, 0, stream, lines, rows, count, to, row_words, tiles);
    }
    return cudaGetLastError();
}
