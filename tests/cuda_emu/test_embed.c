/* Embedding on the device: rows of every format to the reference's bits, the table's gradient too; and sums over columns. */
#include "tests/cuda_emu/device.h"

enum { SPARE = 2 };

static void check_forward(DType act, WeightFormat format, int32_t block, int nested, int64_t tokens, int64_t hidden) {
    Scope scope = {0};
    Device device = {0};
    Backend reference;
    Error err = {0};
    cpu_backend_reference(&reference);
    Exec exec = exec_open(act, 1);
    int64_t vocab = 19, count = tokens * hidden, spare = SPARE * hidden;
    Batch batch = scope_batch(&scope, &tokens, 1, (int32_t)vocab);
    WeightView table = scope_weight(&scope, format, vocab, hidden, block, nested), there = device_weight(&device, &table);
    EmbedShape shape = {tokens + SPARE, vocab, hidden, 1};
    void *y = scope_nan(&scope, act, count);
    assert_ok(reference.embed_forward(&exec, &shape, &batch, &table, y, &err), &err);
    void *dev_y = device_nan(&device, act, count + spare);
    const DeviceBatch *dev_batch = device_batch(&device, &batch, 0);
    assert_cuda(cuda_embed_forward(act, dev_batch, tokens + SPARE, &there, dev_y, 0));
    device_compare("y", act, dev_y, y, count, spare, 0.0, "the same products, rounded once");

    const void *dy = scope_random(&scope, act, count, 1.0), *start = scope_filled(&scope, DTYPE_F32, vocab * hidden, 0.75);
    float *d_table = scope_filled(&scope, DTYPE_F32, vocab * hidden, 0.75);
    assert_ok(reference.embed_backward(&exec, &shape, &batch, dy, d_table, NULL, &err), &err);
    float *dev_d_table = device_out(&device, start, (size_t)(vocab * hidden) * sizeof(float));
    const void *dev_dy = device_in_values(&device, act, dy, count);
    assert_cuda(cuda_embed_backward(act, dev_batch, tokens + SPARE, hidden, dev_dy, dev_d_table, 0));
    device_compare("d_table", DTYPE_F32, dev_d_table, d_table, vocab * hidden, 0, 0.0, "the same additions in the same order");
    exec_close(&exec);
    device_close(&device);
    scope_close(&scope);
}

static void embeds(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        DType act = t ? DTYPE_BF16 : DTYPE_F32;
        check_forward(act, WEIGHT_BF16, 0, 0, 1, 1);
        check_forward(act, WEIGHT_BF16, 0, 0, 37, 264);
        check_forward(act, WEIGHT_F32, 0, 0, 9, 31);
        check_forward(act, WEIGHT_F32, 0, 0, 300, 8);
        check_forward(act, WEIGHT_NF4, 64, 1, 23, 96);
        check_forward(act, WEIGHT_NF4, 64, 0, 5, 37);
        check_forward(act, WEIGHT_INT8, 0, 0, 11, 2056);
        check_forward(act, WEIGHT_INT4, 32, 0, 7, 64);
    }
}

static void check_columns(DType act, int64_t tokens, int64_t columns) {
    Scope scope = {0};
    Device device = {0};
    Batch batch = scope_batch(&scope, &tokens, 1, 5);
    int64_t count = tokens * columns;
    const void *x = scope_random(&scope, act, count, 1.0), *start = scope_filled(&scope, DTYPE_F32, columns, 2.0);
    float *want = scope_filled(&scope, DTYPE_F32, columns, 2.0);
    for (int64_t c = 0; c < columns; c++) {
        double sum = 2.0;
        for (int64_t t = 0; t < tokens; t++)
            sum += element_of(act, x, t * columns + c);
        want[c] = (float)sum;
    }
    void *dev_x = device_nan(&device, act, count + SPARE * columns);
    assert_cuda(cudaMemcpy(dev_x, x, (size_t)count * dtype_size(act), cudaMemcpyHostToDevice));
    float *sums = device_out(&device, start, (size_t)columns * sizeof(float));
    const DeviceBatch *there = device_batch(&device, &batch, 0);
    assert_cuda(cuda_column_sums(act, there, tokens + SPARE, columns, dev_x, 0, sums, 0));
    device_compare("sums", DTYPE_F32, sums, want, columns, 0, 1e-6, "FP32 sums of at most 130 values");
    assert_cuda(cuda_zero_tail(act, there, tokens + SPARE, columns, dev_x, 0, 0));
    void *all = scope_filled(&scope, act, count + SPARE * columns, 0.0);
    memcpy(all, x, (size_t)count * dtype_size(act));
    device_compare("rows and tail", act, dev_x, all, count + SPARE * columns, 0, 0.0, "copies");
    int64_t stride = columns + 3, rows = tokens + SPARE; /* the same inside wider rows */
    void *joined = device_nan(&device, act, rows * stride), *member = device_member(act, joined, 2);
    device_put(act, member, stride, x, tokens, columns);
    sums = device_out(&device, start, (size_t)columns * sizeof(float));
    assert_cuda(cuda_column_sums(act, there, rows, columns, member, stride, sums, 0));
    device_compare("sums", DTYPE_F32, sums, want, columns, 0, 1e-6, "FP32 sums of at most 130 values");
    assert_cuda(cuda_zero_tail(act, there, rows, columns, member, stride, 0));
    member = device_take(&device, act, member, stride, rows, columns);
    device_compare("rows and tail", act, member, all, rows * columns, 0, 0.0, "copies");
    device_is_nan("beside them", act, joined, rows * stride);
    device_close(&device);
    scope_close(&scope);
}

static void sums_columns(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {31, 31}, {32, 32}, {33, 33}, {130, 97}, {7, 300}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_columns(DTYPE_F32, sizes[i][0], sizes[i][1]);
        check_columns(DTYPE_BF16, sizes[i][0], sizes[i][1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(embeds), cmocka_unit_test(sums_columns)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
