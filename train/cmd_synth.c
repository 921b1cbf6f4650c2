/* nibble synth: a model folder of any shape with random weights, for benchmarks and tests.
 *
 * Matrices are normal with standard deviation initializer_range, norm weights 1, biases 0. Element i of weight w is a
 * function of (seed, w, i) alone, so the files do not depend on the number of threads. Weights are drawn and written slab by
 * slab: the memory does not grow with the model.
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/philox.h"
#include "core/text.h"
#include "data/safetensors.h"
#include "train/commands.h"
#include "train/options.h"
#include "train/output_folder.h"
#include "train/synth.h"
#include "train/weights.h"

#define CONFIG_LIMIT ((size_t)4 << 20)
#define SHARD_BYTES ((uint64_t)5000000000)
#define NAME_MAX_BYTES 192

enum { PIECE = 1 << 16, PIECES = 64 }; /* elements of one item of work, items of one slab; PIECE is a multiple of 4 */

typedef struct Synth {
    const char *arch; /* the shape's file */
    ModelConfig config;
    double deviation; /* initializer_range */
    uint64_t seed;
    DType dtype;
    Pool *pool;
    int64_t count;
    TensorSpec *specs; /* names are owned */
    int32_t *ids;      /* weight number of each */
    void *slab;        /* PIECE * PIECES elements */
    int64_t first, length;
    int32_t id; /* the slab being drawn: elements [first, first + length) of this weight */
} Synth;

/* Four normal numbers from one block (Box and Muller, "A note on the generation of random normal deviates", 1958). */
static void draw_normals(const uint32_t block[4], float deviation, float out[4]) {
    for (int pair = 0; pair < 2; pair++) {
        float u = 1.0f - random_unit(block[2 * pair]); /* in (0, 1]: the logarithm is finite */
        float angle = 6.283185307f * random_unit(block[2 * pair + 1]);
        float radius = deviation * sqrtf(-2.0f * logf(u));
        out[2 * pair] = radius * cosf(angle);
        out[2 * pair + 1] = radius * sinf(angle);
    }
}

static void draw_piece(void *context, int64_t item, int worker) {
    Synth *synth = context;
    int64_t begin = item * PIECE, end = begin + PIECE < synth->length ? begin + PIECE : synth->length;
    (void)worker;
    for (int64_t i = begin; i < end; i += 4) {
        uint32_t block[4];
        float values[4];
        random_block(synth->seed, RANDOM_WEIGHTS, (uint64_t)synth->id, (uint64_t)(synth->first + i) / 4, block);
        draw_normals(block, (float)synth->deviation, values);
        for (int64_t j = i; j < end && j < i + 4; j++) {
            if (synth->dtype == DTYPE_BF16)
                ((bf16 *)synth->slab)[j] = bf16_from_float(values[j - i]);
            else
                ((float *)synth->slab)[j] = values[j - i];
        }
    }
}

static void fill_constant(Synth *synth, float value) {
    for (int64_t i = 0; i < synth->length; i++) {
        if (synth->dtype == DTYPE_BF16)
            ((bf16 *)synth->slab)[i] = bf16_from_float(value);
        else
            ((float *)synth->slab)[i] = value;
    }
}

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    Synth *synth = context;
    int64_t index = 0, elements = spec->shape[0] * (spec->ndim == 2 ? spec->shape[1] : 1);
    while (strcmp(synth->specs[index].name, spec->name) != 0)
        index++; /* every spec that is asked for came from this list */
    synth->id = synth->ids[index];
    size_t length = strlen(spec->name);
    int is_bias = length > 5 && strcmp(spec->name + length - 5, ".bias") == 0;
    for (synth->first = 0; synth->first < elements; synth->first += synth->length) {
        int64_t left = elements - synth->first;
        synth->length = left < (int64_t)PIECE * PIECES ? left : (int64_t)PIECE * PIECES;
        if (spec->ndim == 2)
            pool_run(synth->pool, draw_piece, synth, (synth->length + PIECE - 1) / PIECE);
        else
            fill_constant(synth, is_bias ? 0.0f : 1.0f);
        TRY(tensor_write_bytes(writer, synth->slab, (size_t)synth->length * dtype_size(synth->dtype), err));
    }
    return OK;
}

static void list_weights(Synth *synth) {
    int32_t count = weight_count(&synth->config);
    synth->specs = memory_calloc((size_t)count, sizeof *synth->specs);
    synth->ids = memory_calloc((size_t)count, sizeof *synth->ids);
    for (int32_t id = 0; id < count; id++) {
        char name[NAME_MAX_BYTES];
        int64_t rows, cols;
        if (!weight_describe(&synth->config, id, name, sizeof name, &rows, &cols)) continue;
        if (id == WEIGHT_HEAD && synth->config.tied_embeddings) continue;
        int is_matrix = id == WEIGHT_EMBED || id == WEIGHT_HEAD ||
                        (id >= WEIGHT_GLOBALS && (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS < LAYER_LINEARS);
        TensorSpec *spec = &synth->specs[synth->count];
        spec->name = memory_strdup(name);
        spec->dtype = synth->dtype;
        spec->ndim = is_matrix ? 2 : 1;
        spec->shape[0] = is_matrix ? rows : cols;
        spec->shape[1] = is_matrix ? cols : 0;
        synth->ids[synth->count++] = id;
    }
}

/* The shape file as it is, but for the type that the weights are written in; also reads initializer_range. */
static Status convert_config(Synth *synth, const char *path, const char *folder, Error *err) {
    char *text = NULL, *printed = NULL, *target = NULL;
    size_t length;
    cJSON *root = NULL;
    Status status = file_read(path, CONFIG_LIMIT, &text, &length, err);
    if (status != OK) return status;
    root = cJSON_ParseWithLength(text, length);
    memory_free(text);
    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        FAIL("%s: not a JSON object", path);
    }
    const cJSON *range = cJSON_GetObjectItemCaseSensitive(root, "initializer_range");
    synth->deviation = range == NULL ? 0.02 : range->valuedouble; /* transformers' default for these families */
    if (range != NULL && (!cJSON_IsNumber(range) || !(synth->deviation >= 0.0 && synth->deviation <= 1e3))) {
        status = error_set(err, ERR_FAILED, "%s: initializer_range: want a number from 0 to 1000", path);
        goto done;
    }
    cJSON_DeleteItemFromObjectCaseSensitive(root, "dtype");
    cJSON_DeleteItemFromObjectCaseSensitive(root, "torch_dtype");
    cJSON_AddStringToObject(root, "torch_dtype", synth->dtype == DTYPE_BF16 ? "bfloat16" : "float32");
    printed = cJSON_Print(root);
    if (printed == NULL) {
        status = error_set(err, ERR_FAILED, "%s: not enough memory to print it", path);
        goto done;
    }
    target = path_join(folder, "config.json");
    status = file_write_atomic(target, printed, strlen(printed), err);
done:
    memory_free(target);
    cJSON_free(printed);
    cJSON_Delete(root);
    return status;
}

static Status write_folder(void *context, const char *folder, Error *err) {
    Synth *synth = context;
    int has_tokenizer;
    TRY(convert_config(synth, synth->arch, folder, err));
    TRY(synth_tokenizer_write(folder, &synth->config, &has_tokenizer, err));
    if (!has_tokenizer)
        log_warning("a vocabulary of %lld has no room for 256 bytes and the special tokens: no tokenizer is written",
                    (long long)synth->config.vocab);
    return tensors_write_sharded(folder, "model", SHARD_BYTES, synth->specs, synth->count, produce, synth, err);
}

static void synth_free(Synth *synth) {
    for (int64_t i = 0; i < synth->count; i++)
        memory_free((char *)(uintptr_t)synth->specs[i].name);
    memory_free(synth->specs);
    memory_free(synth->ids);
    memory_free(synth->slab);
    pool_free(synth->pool);
}

static Status synthesize(Synth *synth, const char *out, int overwrite, Error *err) {
    TRY(model_config_read(synth->arch, &synth->config, err));
    if (synth->config.prequant != PREQUANT_NONE)
        FAIL("%s: has a quantization_config; the weights of nibble synth are not quantized, remove it from the shape file",
             synth->arch);
    list_weights(synth);
    synth->slab = memory_alloc((size_t)PIECE * PIECES * dtype_size(synth->dtype));
    return output_folder_write(out, overwrite, write_folder, synth, err);
}

Status command_synth(int argc, char **argv, Error *err) {
    int overwrite = 0, positional_count, helped;
    const char *arch = NULL, *out = NULL, *dtype = "bf16";
    int64_t seed = 1234, threads = 0;
    const OptionSpec specs[] = {
        {"arch", OPTION_STRING, "FILE", "a Hugging Face config.json: the shape", &arch},
        {"out", OPTION_STRING, "DIR", "the folder to write", &out},
        {"seed", OPTION_INTEGER, "N", "decides the weights", &seed},
        {"dtype", OPTION_STRING, "TYPE", "bf16 or f32", &dtype},
        {"threads", OPTION_INTEGER, "N", "threads; 0: all that this process may use", &threads},
        {"overwrite", OPTION_FLAG, NULL, "replace DIR when it is not empty", &overwrite},
    };
    const CommandHelp help = {
        .usage = "nibble synth --arch FILE --out DIR [options]",
        .summary = "Writes a model folder with random weights, and a tokenizer that gives one id a byte.",
        .example = "nibble synth --arch configs/arch/synth-500m.json --out models/synth-500m",
    };
    TRY(options_parse(argc, argv, &help, specs, sizeof specs / sizeof *specs, NULL, 0, 0, &positional_count, &helped, err));
    if (helped) return OK;
    if (arch == NULL || out == NULL) FAIL_USAGE("want both --arch FILE and --out DIR");
    if (strcmp(dtype, "bf16") != 0 && strcmp(dtype, "f32") != 0) FAIL_USAGE("--dtype: want bf16 or f32, got \"%.60s\"", dtype);
    if (seed < 0) FAIL_USAGE("--seed: want a number of at least 0, got %lld", (long long)seed);
    if (threads < 0 || threads > 4096) FAIL_USAGE("--threads: want 0 to 4096, got %lld", (long long)threads);
    TRY(output_folder_check(out, overwrite, err));
    Synth synth = {.arch = arch, .seed = (uint64_t)seed, .dtype = dtype[0] == 'b' ? DTYPE_BF16 : DTYPE_F32};
    Status status = pool_create(&synth.pool, (int)threads, err);
    if (status == OK) status = synthesize(&synth, out, overwrite, err);
    if (status == OK) {
        char size[32];
        log_info("%s: %lld parameters, %s of weights, seed %lld", out, (long long)synth.config.parameters,
                 format_bytes((double)synth.config.parameters * (double)dtype_size(synth.dtype), size, sizeof size),
                 (long long)seed);
    }
    synth_free(&synth);
    return status;
}
