/* mma.m16n8k16 and ldmatrix against their layouts written as strides over (lane % 4, lane / 4, value bits), a statement
 * independent of the rows and columns in kernels/cuda/cu_mma.h (PTX ISA 9.7.14.5; the strides are those that CUTLASS
 * publishes as MMA_Traits). The same test runs on a GPU, where it holds the inline PTX to them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/dtype.h"
#include "tests/cuda_emu/bugs.h"

static uint64_t seed = 1;
static float noise(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(seed >> 40) / 8388608.0f - 1.0f;
}

static void *on_device(const void *host, size_t bytes) {
    void *device = NULL;
    assert_int_equal(cudaMalloc(&device, bytes), cudaSuccess);
    if (host != NULL) assert_int_equal(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return device;
}

typedef struct Registers {
    uint32_t a[128], b[64], plain[128], trans[128];
    float c[128];
    uint16_t tiles[256];
} Registers;

static void run(Registers *r) {
    void *a = on_device(r->a, sizeof r->a), *b = on_device(r->b, sizeof r->b), *c = on_device(r->c, sizeof r->c);
    void *tiles = on_device(r->tiles, sizeof r->tiles);
    void *plain = on_device(NULL, sizeof r->plain), *trans = on_device(NULL, sizeof r->trans);
    assert_int_equal(fragments(a, b, c, tiles, plain, trans, 0), cudaSuccess);
    assert_int_equal(cudaMemcpy(r->c, c, sizeof r->c, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(cudaMemcpy(r->plain, plain, sizeof r->plain, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(cudaMemcpy(r->trans, trans, sizeof r->trans, cudaMemcpyDeviceToHost), cudaSuccess);
    void *all[] = {a, b, c, tiles, plain, trans};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_int_equal(cudaFree(all[i]), cudaSuccess);
}

/* A index = m + 16k, B index = n + 8k, C index = m + 16n */
static void layouts(void **state) {
    (void)state;
    static Registers r;
    uint16_t A[256], B[128];
    float C[128], want[128];
    for (int i = 0; i < 256; i++)
        A[i] = bf16_from_float(noise()), r.tiles[i] = (uint16_t)(i * 257 + 1);
    for (int i = 0; i < 128; i++)
        B[i] = bf16_from_float(noise()), C[i] = noise();
    for (int l = 0; l < 32; l++) {
        int t0 = l & 3, t1 = l >> 2;
        for (int e = 0; e < 4; e++) {
            int i = t0 * 32 + t1 + (e & 1) * 8 + (e >> 1) * 128;
            r.a[l * 4 + e] = A[i] | (uint32_t)A[i + 16] << 16;
            r.c[l * 4 + e] = C[t0 * 32 + t1 + (e & 1) * 16 + (e >> 1) * 8];
        }
        for (int e = 0; e < 2; e++) {
            int i = t0 * 16 + t1 + e * 64;
            r.b[l * 2 + e] = B[i] | (uint32_t)B[i + 8] << 16;
        }
    }
    for (int i = 0; i < 128; i++) {
        double sum = C[i];
        for (int k = 0; k < 16; k++)
            sum += (double)bf16_to_float(A[i % 16 + 16 * k]) * bf16_to_float(B[i / 16 + 8 * k]);
        want[i] = (float)sum;
    }
    run(&r);
    for (int l = 0; l < 32; l++)
        for (int e = 0; e < 4; e++) {
            float got = r.c[l * 4 + e], expected = want[(l & 3) * 32 + (l >> 2) + (e & 1) * 16 + (e >> 1) * 8];
            /* 17 terms below 1 in magnitude, summed in at least FP32 in any order */
            assert_true(fabsf(got - expected) <= 1e-5f);
            const uint16_t *tile = r.tiles + e * 64;
            assert_int_equal(r.plain[l * 4 + e], tile[2 * l] | (uint32_t)tile[2 * l + 1] << 16);
            const uint16_t *column = tile + (l & 3) * 16 + (l >> 2);
            assert_int_equal(r.trans[l * 4 + e], column[0] | (uint32_t)column[8] << 16);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(layouts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
