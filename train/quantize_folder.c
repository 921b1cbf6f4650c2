/* The files of a pre-quantized folder, as transformers and bitsandbytes write them (layouts in weights_bnb.c). */
#include "train/quantize_folder.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/safetensors.h"
#include "quant/double_quant.h"
#include "train/output_folder.h"
#include "train/weights.h"

#define SHARD_BYTES ((uint64_t)5000000000) /* as huggingface_hub splits */
#define PARTS_PER_WEIGHT 6
#define COPY_BYTES ((size_t)8 << 20)

/* One tensor to write: bytes in memory, or a tensor of the source. */
typedef struct Part {
    const void *data;
    const TensorInfo *copy;
    char *name, *owned; /* freed with the part */
    int32_t weight;
} Part;

typedef struct Folder {
    ModelConfig config;
    QuantSpec spec;
    TensorFiles *files;
    WeightView (*view)(const void *context, int32_t id);
    const void *views;
    int64_t count;
    TensorSpec *specs;
    Part *parts;
    void *buffer;          /* COPY_BYTES */
    uint8_t weight_format; /* LLM.int8: 0, rows */
} Folder;

static uint64_t spec_bytes(const TensorSpec *spec) {
    uint64_t bytes = dtype_size(spec->dtype);
    for (int d = 0; d < spec->ndim; d++)
        bytes *= (uint64_t)spec->shape[d];
    return bytes;
}

/* ---- what to write ---- */

static Part *add_part(Folder *folder, int32_t weight, const char *base, const char *suffix, DType dtype, const void *data) {
    Part *part = &folder->parts[folder->count];
    *part = (Part){.data = data, .weight = weight, .name = memory_format("%s%s", base, suffix)};
    folder->specs[folder->count] = (TensorSpec){.name = part->name, .dtype = dtype};
    folder->count++;
    return part;
}

static void set_shape(Folder *folder, int ndim, int64_t first, int64_t second) {
    TensorSpec *spec = &folder->specs[folder->count - 1];
    spec->ndim = ndim;
    spec->shape[0] = first;
    spec->shape[1] = second;
}

static const char *torch_name(DType type) {
    return type == DTYPE_BF16 ? "bfloat16" : type == DTYPE_F16 ? "float16" : "float32";
}

/* The JSON that names what the tensors cannot: order and spacing as Python's json.dumps gives them. */
static char *quant_state(const WeightView *view, DType source) {
    char nested[160] = "";
    if (view->nested_codes != NULL)
        (void)snprintf(nested, sizeof nested,
                       ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %.9g", NESTED_BLOCK,
                       (double)view->nested_offset);
    return memory_format("{\"quant_type\": \"%s\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": [%lld, %lld]%s}",
                         weight_format_name(view->format), (int)view->block_size, torch_name(source), (long long)view->rows,
                         (long long)view->cols, nested);
}

/* The weight first: if a shard ends inside the group, shard_limit sees it at the small parts. */
static void add_4bit(Folder *folder, int32_t id, const char *name, const WeightView *view, DType source) {
    int64_t blocks = weight_blocks(view->rows, view->cols, view->block_size);
    int nested = view->nested_codes != NULL;
    (void)add_part(folder, id, name, "", DTYPE_U8, view->data);
    set_shape(folder, 2, (view->rows * view->cols + 1) / 2, 1);
    if (nested)
        (void)add_part(folder, id, name, ".absmax", DTYPE_U8, view->nested_codes);
    else
        (void)add_part(folder, id, name, ".absmax", DTYPE_F32, view->scales);
    set_shape(folder, 1, blocks, 0);
    (void)add_part(folder, id, name, ".quant_map", DTYPE_F32, view->codes);
    set_shape(folder, 1, 16, 0);
    if (nested) {
        (void)add_part(folder, id, name, ".nested_absmax", DTYPE_F32, view->nested_absmax);
        set_shape(folder, 1, (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK, 0);
        (void)add_part(folder, id, name, ".nested_quant_map", DTYPE_F32, view->nested_map);
        set_shape(folder, 1, DYNAMIC_MAP_ENTRIES, 0);
    }
    char *blob = quant_state(view, source);
    Part *part = add_part(folder, id, name,
                          view->format == WEIGHT_NF4 ? ".quant_state.bitsandbytes__nf4" : ".quant_state.bitsandbytes__fp4",
                          DTYPE_U8, blob);
    part->owned = blob;
    set_shape(folder, 1, (int64_t)strlen(blob), 0);
}

static void add_int8(Folder *folder, int32_t id, const char *name, const WeightView *view) {
    char module[192];
    (void)snprintf(module, sizeof module, "%.*s", (int)(strlen(name) - strlen(".weight")), name);
    (void)add_part(folder, id, name, "", DTYPE_I8, view->data);
    set_shape(folder, 2, view->rows, view->cols);
    (void)add_part(folder, id, module, ".SCB", DTYPE_F32, view->scales);
    set_shape(folder, 1, view->rows, 0);
    (void)add_part(folder, id, module, ".weight_format", DTYPE_U8, &folder->weight_format);
    set_shape(folder, 0, 0, 0);
}

static void add_copy(Folder *folder, int32_t id, const char *name, const TensorInfo *source) {
    add_part(folder, id, name, "", source->dtype, NULL)->copy = source;
    TensorSpec *spec = &folder->specs[folder->count - 1];
    spec->ndim = source->ndim;
    memcpy(spec->shape, source->shape, sizeof spec->shape);
}

static int is_float(DType type) {
    return type == DTYPE_F32 || type == DTYPE_BF16 || type == DTYPE_F16;
}

/* Every weight of the model; the loader has found them all, and nothing else, in the files. */
static void list_parts(Folder *folder, QuantizedFolder *result) {
    int32_t count = weight_count(&folder->config);
    folder->specs = memory_calloc((size_t)count, PARTS_PER_WEIGHT * sizeof *folder->specs);
    folder->parts = memory_calloc((size_t)count, PARTS_PER_WEIGHT * sizeof *folder->parts);
    for (int32_t id = 0; id < count; id++) {
        char name[192];
        int64_t rows, cols;
        if (!weight_describe(&folder->config, id, name, sizeof name, &rows, &cols)) continue;
        const TensorInfo *source = tensors_find(folder->files, name);
        WeightView view = folder->view(folder->views, id);
        if (source != NULL) result->bytes_before += source->bytes; /* NULL: the codes of grouped integers */
        if (view.rows == 0) {
            add_copy(folder, id, name, source);
            continue;
        }
        result->linears++;
        if (view.format == WEIGHT_INT8)
            add_int8(folder, id, name, &view);
        else
            add_4bit(folder, id, name, &view, source != NULL && is_float(source->dtype) ? source->dtype : folder->config.dtype);
    }
    for (int64_t i = 0; i < folder->count; i++)
        result->bytes += spec_bytes(&folder->specs[i]);
}

/* ---- writing ---- */

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    Folder *folder = context;
    const Part *part = &folder->parts[spec - folder->specs];
    if (part->copy == NULL) return tensor_write_bytes(writer, part->data, (size_t)spec_bytes(spec), err);
    for (uint64_t at = 0; at < part->copy->bytes;) {
        uint64_t rest = part->copy->bytes - at;
        size_t count = rest < COPY_BYTES ? (size_t)rest : COPY_BYTES;
        TRY(tensors_read(folder->files, part->copy, at, folder->buffer, count, 0, err));
        TRY(tensor_write_bytes(writer, folder->buffer, count, err));
        at += count;
    }
    return OK;
}

/* Whether shards of `limit`, filled in order, put two parts of one weight into different files. */
static int splits_a_weight(const Folder *folder, uint64_t limit) {
    uint64_t used = 0;
    for (int64_t i = 0; i < folder->count; i++) {
        uint64_t bytes = spec_bytes(&folder->specs[i]);
        if (used > 0 && used + bytes > limit) {
            if (folder->parts[i].weight == folder->parts[i - 1].weight) return 1;
            used = 0;
        }
        used += bytes;
    }
    return 0;
}

/* transformers before its release 5 wants all parts of a weight in one shard. */
static uint64_t shard_limit(const Folder *folder) {
    uint64_t limit = SHARD_BYTES;
    while (splits_a_weight(folder, limit) && limit > SHARD_BYTES / 2)
        limit -= (uint64_t)1 << 20;
    return limit;
}

static void add_quantization_config(const Folder *folder, Text *out) {
    const QuantSpec *spec = &folder->spec;
    int int8 = spec->format == WEIGHT_INT8;
    text_addf(out,
              "\"quantization_config\": {\n    \"quant_method\": \"bitsandbytes\",\n"
              "    \"load_in_4bit\": %s,\n    \"load_in_8bit\": %s,\n    \"_load_in_4bit\": %s,\n    \"_load_in_8bit\": %s,\n",
              int8 ? "false" : "true", int8 ? "true" : "false", int8 ? "false" : "true", int8 ? "true" : "false");
    if (!int8)
        text_addf(out,
                  "    \"bnb_4bit_quant_type\": \"%s\",\n    \"bnb_4bit_use_double_quant\": %s,\n"
                  "    \"bnb_4bit_compute_dtype\": \"%s\",\n    \"bnb_4bit_quant_storage\": \"uint8\",\n",
                  weight_format_name(spec->format), spec->double_quant ? "true" : "false", torch_name(folder->config.dtype));
    text_adds(out,
              "    \"llm_int8_threshold\": 6.0,\n    \"llm_int8_skip_modules\": null,\n"
              "    \"llm_int8_enable_fp32_cpu_offload\": false,\n    \"llm_int8_has_fp16_weight\": false\n  }");
}

/* Every key and number of the source keeps its spelling. */
static Status write_config(const Folder *folder, const char *model, const char *out, Error *err) {
    Text member = {0};
    add_quantization_config(folder, &member);
    Status status = output_folder_write_config(model, out, folder->config.dtype, 1, err);
    if (status == OK) status = output_folder_add_to_config(out, member.data, err);
    text_free(&member);
    return status;
}

static Status write_all(Folder *folder, const char *model, const char *out, QuantizedFolder *result, Error *err) {
    TRY(tensors_open(&folder->files, model, NULL, err));
    list_parts(folder, result);
    folder->buffer = memory_alloc(COPY_BYTES);
    TRY(folder_create(out, err));
    TRY(write_config(folder, model, out, err));
    TRY(output_folder_copy_settings(model, out, err));
    return tensors_write_sharded(out, "model", shard_limit(folder), folder->specs, folder->count, produce, folder, err);
}

Status quantize_folder_views(const char *model, const char *out, const QuantSpec *spec,
                             WeightView (*view)(const void *context, int32_t id), const void *context, QuantizedFolder *result,
                             Error *err) {
    Folder folder = {.spec = *spec, .view = view, .views = context};
    *result = (QuantizedFolder){0};
    TRY(model_config_read(model, &folder.config, err));
    if (folder.config.gguf.is_file)
        FAIL("%s: is a GGUF file; write it as a model folder first (nibble export %s --format hf --out DIR)", model, model);
    Status status = write_all(&folder, model, out, result, err);
    for (int64_t i = 0; i < folder.count; i++) {
        memory_free(folder.parts[i].name);
        memory_free(folder.parts[i].owned);
    }
    memory_free(folder.parts);
    memory_free(folder.specs);
    memory_free(folder.buffer);
    tensors_close(folder.files);
    return status;
}

static WeightView view_loaded(const void *context, int32_t id) {
    return weights_view(context, id);
}

Status quantize_folder(const char *model, const char *out, const QuantSpec *spec, const Backend *backend, Pool *pool,
                       QuantizedFolder *result, Error *err) {
    ModelConfig config;
    ModelWeights *weights;
    WeightOptions options = {.act = DTYPE_F32,
                             .linear = spec->format,
                             .double_quant = spec->double_quant,
                             .block_size = spec->block_size,
                             .linears_only = 1};
    TRY(model_config_read(model, &config, err));
    if (config.prequant != PREQUANT_NONE) FAIL("%s: is quantized already; take the original model", model);
    TRY(weights_load(&weights, model, &config, &options, backend, pool, err));
    Status status = quantize_folder_views(model, out, spec, view_loaded, weights, result, err);
    weights_free(weights);
    return status;
}
