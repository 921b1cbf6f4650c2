/* nibble bench load: seconds from a model's files to weights where they are used, beside merely reading the same files. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/bench.h"
#include "train/config.h"
#include "train/device.h"
#include "train/engine.h"

#define PIECE ((size_t)8 << 20)

typedef struct LoadBench {
    const BenchOptions *options;
    Config config;
    char **files;
    int count;
    uint64_t bytes; /* of the files */
    double reading, loading;
    size_t weights; /* bytes that they take in memory */
    char device[128];
} LoadBench;

static int has_weights(const char *name) {
    static const char *const ends[] = {".safetensors", ".gguf"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (length > strlen(ends[i]) && strcmp(name + length - strlen(ends[i]), ends[i]) == 0) return 1;
    return 0;
}

static void add_file(LoadBench *b, char *path) {
    b->files = memory_resize(b->files, (size_t)(b->count + 1) * sizeof *b->files);
    b->files[b->count++] = path;
}

static Status find_files(LoadBench *b, Error *err) {
    const char *model = b->options->model;
    if (!file_is_folder(model)) {
        add_file(b, memory_strdup(model));
        return OK;
    }
    DIR *folder = opendir(model);
    if (folder == NULL) FAIL("%s: %s", model, strerror(errno));
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (has_weights(entry->d_name)) add_file(b, path_join(model, entry->d_name));
    (void)closedir(folder);
    if (b->count == 0) FAIL("%s: want a folder with .safetensors files, or a .gguf file", model);
    return OK;
}

/* Asks the kernel to forget the files' pages, so that both measurements start from the disk. What is not written yet stays. */
static Status forget(LoadBench *b, Error *err) {
    for (int i = 0; i < b->count; i++) {
        int fd;
        TRY(file_open(b->files[i], &fd, NULL, err));
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        (void)close(fd);
    }
    return OK;
}

static Status read_file(LoadBench *b, const char *path, char *piece, Error *err) {
    int fd;
    uint64_t size;
    TRY(file_open(path, &fd, &size, err));
    Status status = OK;
    for (uint64_t at = 0; at < size && status == OK; at += PIECE)
        status = file_read_at(fd, path, at, piece, size - at < PIECE ? (size_t)(size - at) : PIECE, err);
    (void)close(fd);
    b->bytes += size;
    return status;
}

static Status measure_reading(LoadBench *b, Error *err) {
    TRY(forget(b, err));
    char *piece = memory_alloc(PIECE);
    double begin = clock_seconds();
    Status status = OK;
    for (int i = 0; i < b->count && status == OK; i++)
        status = read_file(b, b->files[i], piece, err);
    b->reading = clock_seconds() - begin;
    memory_free(piece);
    return status;
}

static Status load_once(LoadBench *b, Error *err) {
    Engine engine;
    EngineOptions options = {.model = b->options->model,
                             .act = precision_type(b->config.precision),
                             .threads = (int)b->options->threads,
                             .cpu = getenv("NIBBLE_CPU"),
                             .device = b->options->device,
                             .method = METHOD_FROZEN};
    TRY(weight_options_from_config(&b->config, &options.weights, err));
    double begin = clock_seconds();
    Status status = engine_open(&engine, &options, err);
    if (status == OK) status = weights_to_device(engine.weights, &engine.backend, &engine.exec, err);
    b->loading = clock_seconds() - begin;
    if (status == OK) b->weights = weights_bytes(engine.weights);
    (void)snprintf(b->device, sizeof b->device, "%s", engine.device.name);
    engine_close(&engine);
    return status;
}

static Status measure_loading(LoadBench *b, Error *err) {
    Device device; /* a device's first opening takes a second that is not loading's */
    Status opened = device_open(&device, b->options->device, NULL, err);
    device_close(&device);
    TRY(opened);
    TRY(forget(b, err));
    return load_once(b, err);
}

static void print_result(const LoadBench *b, Text *out) {
    double bytes = (double)b->bytes, rate = bytes / b->loading, ceiling = bytes / b->reading;
    const char *model = b->options->model, *quant = strcmp(b->config.method, "qlora") == 0 ? b->config.quant.type : "none";
    if (b->options->json) {
        text_adds(out, "{\"model\": ");
        text_add_json_string(out, model, strlen(model));
        text_addf(out, ", \"device\": \"%s\", \"quant\": \"%s\", \"file_bytes\": %llu, \"weight_bytes\": %zu, ", b->device,
                  quant, (unsigned long long)b->bytes, b->weights);
        text_addf(out, "\"seconds\": %.6g, \"bytes_per_second\": %.6g, \"read_bytes_per_second\": %.6g, \"fraction\": %.4f}\n",
                  b->loading, rate, ceiling, rate / ceiling);
        return;
    }
    char files[32], weights[32];
    text_addf(out, "%s: %s in files, %s as %s on %s\n", model, format_bytes(bytes, files, sizeof files),
              format_bytes((double)b->weights, weights, sizeof weights), quant, b->device);
    text_addf(out, "  %-28s %10.3f s  %10.2f GB/s\n", "reading the files", b->reading, ceiling / 1e9);
    text_addf(out, "  %-28s %10.3f s  %10.2f GB/s %6.1f %% of reading\n", "loading", b->loading, rate / 1e9,
              100.0 * rate / ceiling);
}

static Status run_bench(LoadBench *b, Text *out, Error *err) {
    TRY(config_load(&b->config, NULL, b->options->overrides, b->options->override_count, err));
    TRY(find_files(b, err));
    TRY(measure_reading(b, err));
    TRY(measure_loading(b, err));
    print_result(b, out);
    return OK;
}

Status bench_load(const BenchOptions *options, Text *out, Error *err) {
    LoadBench *b = memory_calloc(1, sizeof *b);
    b->options = options;
    Status status = run_bench(b, out, err);
    for (int i = 0; i < b->count; i++)
        memory_free(b->files[i]);
    memory_free(b->files);
    config_free(&b->config);
    memory_free(b);
    return status;
}
