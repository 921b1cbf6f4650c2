/* Values that leave for host memory and come back, through the plugin's own entries: as they come, captured and replayed, with memory
 * written over before and after. With EMU_STREAMS=lazy copies run as late as they may, with ahead as early. */
#include "kernels/cuda/plugin.h"
#include "tests/cuda_emu/device.h"

extern const DevicePlugin nibble_device_plugin;

enum { BYTES = 3000, VALUES = 4 };

typedef struct Stashing {
    Backend backend;
    Exec exec;
    Device device;
    Scope scope;
    Batch batch;
    uint8_t *host, *memory, *out[VALUES];
    void *batch_memory;
    Error err;
} Stashing;

static void open_stashing(Stashing *s) {
    memset(s, 0, sizeof *s);
    s->exec = (Exec){.config = {.act = DTYPE_F32, .threads = 1}};
    char name[96];
    void *memory;
    int64_t lengths[1] = {3};
    nibble_device_plugin.install(&s->backend);
    assert_ok(nibble_device_plugin.open(0, &s->exec.device, name, sizeof name, &s->err), &s->err);
    assert_ok(s->backend.pinned_take(&s->exec, "values", VALUES * BYTES, &memory, &s->err), &s->err);
    s->host = memory;
    s->memory = device_out(&s->device, NULL, BYTES);
    for (int i = 0; i < VALUES; i++)
        s->out[i] = device_out(&s->device, NULL, BYTES);
    s->batch = scope_batch(&s->scope, lengths, 1, 10);
    s->batch_memory = device_out(&s->device, NULL, s->backend.batch_bytes(3, s->batch.supervised));
    assert_cuda(cudaDeviceSynchronize());
}

static void close_stashing(Stashing *s) {
    s->backend.pinned_give(&s->exec, s->host);
    device_close(&s->device);
    nibble_device_plugin.close(s->exec.device);
    scope_close(&s->scope);
}

static void begin(Stashing *s) {
    assert_ok(s->backend.begin(&s->exec, &s->batch, 3, s->batch.supervised, 0, 1, s->batch_memory, &s->err), &s->err);
}

static void fill(Stashing *s, void *to, int byte) {
    assert_ok(s->backend.fill(&s->exec, to, byte, BYTES, &s->err), &s->err);
}

static void stash(Stashing *s, int value) {
    assert_ok(s->backend.stash(&s->exec, s->host + value * BYTES, s->memory, BYTES, &s->err), &s->err);
}

static void fetch(Stashing *s, int value) {
    assert_ok(s->backend.fetch(&s->exec, s->memory, s->host + value * BYTES, BYTES, &s->err), &s->err);
}

static void settle(Stashing *s) {
    assert_ok(s->backend.settle(&s->exec, s->memory, &s->err), &s->err);
}

/* One place on the device makes all values in turn, and gets them back in the other order. */
static void there_and_back(Stashing *s, int first) {
    for (int i = 0; i < VALUES; i++) {
        fill(s, s->memory, first + i);
        stash(s, i);
        fill(s, s->out[i], 0); /* beside the copy */
        settle(s);
    }
    fill(s, s->memory, 0xEE);
    for (int i = VALUES - 1; i >= 0; i--) {
        fetch(s, i);
        fill(s, s->out[i], 0xEE);
        settle(s);
        assert_ok(s->backend.copy_within(&s->exec, s->out[i], s->memory, BYTES, &s->err), &s->err);
    }
}

static void check(Stashing *s, int first) {
    uint8_t got[BYTES], want[BYTES];
    for (int i = 0; i < VALUES; i++) {
        device_read(got, s->out[i], BYTES);
        memset(want, first + i, BYTES);
        assert_memory_equal(got, want, BYTES);
        assert_memory_equal(s->host + i * BYTES, want, BYTES);
    }
}

static void test_there_and_back(void **state) {
    (void)state;
    Stashing *s = memory_alloc(sizeof *s);
    open_stashing(s);
    for (int run = 0; run < 2; run++) {
        begin(s);
        there_and_back(s, 1 + run * 10);
        check(s, 1 + run * 10);
    }
    /* as it comes, captured, replayed: the host's copies are spoiled in between */
    const void *const key[PART_KEYS] = {s};
    for (int run = 0; run < 3; run++) {
        int done;
        memset(s->host, 0xDD, VALUES * BYTES);
        begin(s);
        assert_ok(s->backend.part_begin(&s->exec, key, 0, &done, &s->err), &s->err);
        assert_int_equal(done, run == 2);
        if (!done) {
            there_and_back(s, 40);
            assert_ok(s->backend.part_end(&s->exec, &s->err), &s->err);
        }
        check(s, 40);
    }
    close_stashing(s);
    memory_free(s);
}

static void test_mistakes(void **state) {
    (void)state;
    Stashing *s = memory_alloc(sizeof *s);
    open_stashing(s);
    begin(s);
    assert_int_equal(s->backend.settle(&s->exec, s->memory, &s->err), ERR_FAILED);
    stash(s, 0);
    stash(s, 1);
    assert_int_equal(s->backend.stash(&s->exec, s->host, s->memory, BYTES, &s->err), ERR_FAILED);
    begin(s); /* what a failed run leaves is forgotten */
    assert_int_equal(s->backend.settle(&s->exec, s->memory, &s->err), ERR_FAILED);
    there_and_back(s, 70);
    check(s, 70);
    close_stashing(s);
    memory_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
