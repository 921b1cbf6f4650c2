/* The files of a folder of grouped integers (layouts: quant/grouped_layout.h; names: train/weights_grouped.c), as transformers,
 * GPTQModel, AutoAWQ and compressed-tensors read them. */
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/export_grouped.h"
#include "train/output_folder.h"
#include "train/weights.h"

#define PARTS_PER_WEIGHT 5
#define PIECE_BYTES ((size_t)2 << 20)

typedef enum PartKind { PART_COPY, PART_VECTOR, PART_CODES, PART_SCALES, PART_ZEROS, PART_ORDER, PART_SHAPE } PartKind;

typedef struct Part {
    PartKind kind;
    int32_t id;
    char *name;
} Part;

typedef struct Folder {
    const GroupedFolder *grouped;
    const ModelConfig *model;
    GroupedLayout layout;
    int stored_less; /* GPTQ's first format */
    int ordered;     /* some tensor has an order: all of them say theirs */
    int64_t count;
    TensorSpec *specs;
    Part *parts;
} Folder;

/* ---- what to write ----------------------------------------------------------------------------------------------------------- */

/* second 0: one dimension */
static void add(Folder *f, PartKind kind, int32_t id, const char *module, const char *suffix, DType type, int64_t first,
                int64_t second) {
    Part *part = &f->parts[f->count];
    *part = (Part){.kind = kind, .id = id, .name = memory_format("%s%s", module, suffix)};
    f->specs[f->count++] =
        (TensorSpec){.name = part->name, .dtype = type, .ndim = second > 0 ? 2 : 1, .shape = {first, second}};
}

static void add_transposed(Folder *f, int32_t id, const char *module, const QuantizedTensor *t) {
    int64_t groups = t->blocks / t->rows, packed = t->rows * t->spec.bits / 32;
    int gptq = f->layout == GROUPED_GPTQ;
    add(f, PART_CODES, id, module, ".qweight", DTYPE_I32, grouped_lines(f->layout, t), gptq ? t->rows : packed);
    add(f, PART_ZEROS, id, module, ".qzeros", DTYPE_I32, groups, packed);
    add(f, PART_SCALES, id, module, ".scales", t->spec.scale_type, groups, t->rows);
    if (gptq) add(f, PART_ORDER, id, module, ".g_idx", DTYPE_I32, t->cols, 0);
}

static void add_compressed(Folder *f, int32_t id, const char *module, const QuantizedTensor *t) {
    int64_t groups = t->blocks / t->rows;
    int rows = f->layout == GROUPED_INT_ROWS;
    if (rows)
        add(f, PART_CODES, id, module, ".weight", DTYPE_I8, t->rows, t->cols);
    else
        add(f, PART_CODES, id, module, ".weight_packed", DTYPE_I32, t->rows, grouped_line_bytes(f->layout, t) / 4);
    add(f, PART_SCALES, id, module, ".weight_scale", t->spec.scale_type, t->rows, groups);
    if (!rows) add(f, PART_SHAPE, id, module, ".weight_shape", DTYPE_I64, 2, 0);
    if (t->spec.zeros && rows)
        add(f, PART_ZEROS, id, module, ".weight_zero_point", DTYPE_I8, t->rows, 1);
    else if (t->spec.zeros)
        add(f, PART_ZEROS, id, module, ".weight_zero_point", DTYPE_I32, (t->rows * t->spec.bits + 31) / 32, groups);
    if (f->ordered) add(f, PART_ORDER, id, module, ".weight_g_idx", DTYPE_I32, t->cols, 0);
}

static void list_parts(Folder *f) {
    Export *export = f->grouped->export;
    int32_t count = weight_count(f->model);
    f->specs = memory_calloc((size_t)count, PARTS_PER_WEIGHT * sizeof *f->specs);
    f->parts = memory_calloc((size_t)count, PARTS_PER_WEIGHT * sizeof *f->parts);
    for (int32_t id = 0; id < count; id++)
        f->ordered |= f->grouped->tensors[id].group_index != NULL;
    for (int32_t id = 0; id < count; id++) {
        char name[192], module[192];
        int64_t rows, cols;
        const QuantizedTensor *t = &f->grouped->tensors[id];
        MergeWeight weight = merge_weight(export->merge, id);
        if (!weight.present || !weight_describe(f->model, id, name, sizeof name, &rows, &cols)) continue;
        if (t->rows == 0) {
            int changed = f->grouped->vectors != NULL && f->grouped->vectors[id] != NULL;
            add(f, changed ? PART_VECTOR : PART_COPY, id, name, "", weight.file->dtype, weight.file->shape[0],
                weight.file->ndim == 2 ? weight.file->shape[1] : 0);
            continue;
        }
        (void)snprintf(module, sizeof module, "%.*s", (int)(strlen(name) - strlen(".weight")), name);
        if (f->layout == GROUPED_GPTQ || f->layout == GROUPED_AWQ)
            add_transposed(f, id, module, t);
        else
            add_compressed(f, id, module, t);
    }
    for (int64_t i = 0; i < f->count; i++) {
        const TensorSpec *spec = &f->specs[i];
        export->bytes += (uint64_t)spec->shape[0] * (uint64_t)(spec->ndim == 2 ? spec->shape[1] : 1) * dtype_size(spec->dtype);
    }
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------------- */

static Status write_copy(const Folder *f, int32_t id, uint8_t *buffer, TensorWriter *writer, Error *err) {
    Merge *merge = f->grouped->export->merge;
    const TensorInfo *tensor = merge_weight(merge, id).file;
    for (uint64_t at = 0; at < tensor->bytes;) {
        uint64_t rest = tensor->bytes - at;
        size_t count = rest < PIECE_BYTES ? (size_t)rest : PIECE_BYTES;
        TRY(tensors_read(merge_files(merge), tensor, at, buffer, count, 1, err));
        TRY(tensor_write_bytes(writer, buffer, count, err));
        at += count;
    }
    return OK;
}

static Status write_vector(const Folder *f, int32_t id, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    uint8_t *bytes = memory_alloc((size_t)spec->shape[0] * dtype_size(spec->dtype));
    dtype_convert(bytes, spec->dtype, f->grouped->vectors[id], DTYPE_F32, spec->shape[0]);
    Status status = tensor_write_bytes(writer, bytes, (size_t)spec->shape[0] * dtype_size(spec->dtype), err);
    memory_free(bytes);
    return status;
}

static Status write_codes(const Folder *f, const QuantizedTensor *t, uint8_t *buffer, TensorWriter *writer, Error *err) {
    int64_t lines = grouped_lines(f->layout, t), bytes = grouped_line_bytes(f->layout, t);
    int64_t at_once = (int64_t)PIECE_BYTES / bytes > 0 ? (int64_t)PIECE_BYTES / bytes : 1;
    uint8_t *line = (size_t)bytes > PIECE_BYTES ? memory_alloc((size_t)bytes) : buffer;
    Status status = OK;
    for (int64_t first = 0; first < lines && status == OK; first += at_once) {
        int64_t count = lines - first < at_once ? lines - first : at_once;
        grouped_codes_out(f->layout, t, first, count, line);
        status = tensor_write_bytes(writer, line, (size_t)(count * bytes), err);
    }
    if (line != buffer) memory_free(line);
    return status;
}

static Status write_constants(const Folder *f, const Part *part, const QuantizedTensor *t, TensorWriter *writer, Error *err) {
    size_t scale_bytes = (size_t)t->blocks * dtype_size(t->spec.scale_type);
    size_t length = part->kind == PART_SCALES ? scale_bytes : (size_t)grouped_zero_bytes(f->layout, t);
    uint8_t *bytes = memory_alloc(length);
    if (part->kind == PART_SCALES)
        grouped_scales_out(f->layout, t, bytes);
    else
        grouped_zeros_out(f->layout, t, f->stored_less, bytes);
    Status status = tensor_write_bytes(writer, bytes, length, err);
    memory_free(bytes);
    return status;
}

static Status write_order(const QuantizedTensor *t, TensorWriter *writer, Error *err) {
    int64_t group = t->cols / (t->blocks / t->rows);
    int32_t *order = memory_alloc((size_t)t->cols * sizeof *order);
    for (int64_t c = 0; c < t->cols; c++)
        order[c] = t->group_index != NULL ? t->group_index[c] : (int32_t)(c / group);
    Status status = tensor_write_bytes(writer, order, (size_t)t->cols * sizeof *order, err);
    memory_free(order);
    return status;
}

static Status produce(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err) {
    const Folder *f = context;
    const Part *part = &f->parts[spec - f->specs];
    const QuantizedTensor *t = &f->grouped->tensors[part->id];
    int64_t shape[2] = {t->rows, t->cols};
    TRY(export_interrupted(err));
    switch (part->kind) {
        case PART_VECTOR: return write_vector(f, part->id, spec, writer, err);
        case PART_SCALES:
        case PART_ZEROS: return write_constants(f, part, t, writer, err);
        case PART_ORDER: return write_order(t, writer, err);
        case PART_SHAPE: return tensor_write_bytes(writer, shape, sizeof shape, err);
        case PART_COPY:
        case PART_CODES: break;
    }
    uint8_t *buffer = memory_alloc(PIECE_BYTES);
    Status status =
        part->kind == PART_COPY ? write_copy(f, part->id, buffer, writer, err) : write_codes(f, t, buffer, writer, err);
    memory_free(buffer);
    return status;
}

/* ---- settings ---------------------------------------------------------------------------------------------------------------- */

static const char *truth(int value) {
    return value ? "true" : "false";
}

static long long group_size(const Folder *f) {
    int32_t group = f->grouped->export->spec.block_size;
    return group > 0 ? (long long)group : -1;
}

/* The object between its braces, each line behind `indent`. */
static void add_gptq(const Folder *f, const char *indent, Text *out) {
    const QuantSpec *spec = &f->grouped->export->spec;
    text_addf(out,
              "%s\"bits\": %d,\n%s\"group_size\": %lld,\n%s\"desc_act\": %s,\n%s\"sym\": %s,\n%s\"lm_head\": false,\n"
              "%s\"quant_method\": \"gptq\",\n%s\"checkpoint_format\": \"%s\",\n%s\"pack_dtype\": \"int32\"\n",
              indent, spec->bits, indent, group_size(f), indent, truth(f->ordered), indent, truth(!spec->zeros), indent, indent,
              indent, f->stored_less ? "gptq" : "gptq_v2", indent);
}

/* Modules that stay in 16 bits, as a JSON list. */
static void add_left_out(const Folder *f, int head, Text *out) {
    int some = head;
    text_adds(out, head ? "[\"lm_head\"" : "[");
    for (int32_t id = WEIGHT_GLOBALS; id < weight_count(f->model); id++) {
        char name[192];
        int64_t rows, cols;
        if ((id - WEIGHT_GLOBALS) % LAYER_WEIGHTS >= LAYER_LINEARS || f->grouped->tensors[id].rows > 0) continue;
        if (!weight_describe(f->model, id, name, sizeof name, &rows, &cols)) continue;
        text_addf(out, "%s\"%.*s\"", some++ ? ", " : "", (int)(strlen(name) - strlen(".weight")), name);
    }
    text_adds(out, "]");
}

static void add_awq(const Folder *f, Text *out) {
    text_addf(out,
              "    \"quant_method\": \"awq\",\n    \"bits\": 4,\n    \"group_size\": %lld,\n    \"zero_point\": true,\n"
              "    \"version\": \"gemm\",\n    \"modules_to_not_convert\": ",
              group_size(f));
    Text left = {0};
    add_left_out(f, 0, &left);
    text_adds(out, left.length > 2 ? left.data : "null");
    text_adds(out, "\n");
    text_free(&left);
}

static void add_args(Text *out, int bits, const char *strategy, long long group, int symmetric, int dynamic, int ordered) {
    char size[32];
    (void)snprintf(size, sizeof size, "%lld", group);
    text_addf(out,
              "{\n          \"num_bits\": %d,\n          \"type\": \"int\",\n          \"symmetric\": %s,\n"
              "          \"strategy\": \"%s\",\n          \"group_size\": %s,\n          \"dynamic\": %s,\n"
              "          \"actorder\": %s,\n          \"block_structure\": null,\n          \"observer\": %s,\n"
              "          \"observer_kwargs\": {}\n        }",
              bits, truth(symmetric), strategy, group > 0 ? size : "null", truth(dynamic), ordered ? "\"group\"" : "null",
              dynamic ? "null" : "\"minmax\"");
}

static void add_compressed_config(const Folder *f, Text *out) {
    const Export *export = f->grouped->export;
    const QuantSpec *spec = &export->spec;
    text_addf(out,
              "    \"quant_method\": \"compressed-tensors\",\n    \"format\": \"%s\",\n"
              "    \"quantization_status\": \"compressed\",\n    \"global_compression_ratio\": null,\n"
              "    \"kv_cache_scheme\": null,\n    \"ignore\": ",
              f->layout == GROUPED_INT_ROWS ? "int-quantized" : "pack-quantized");
    add_left_out(f, 1, out);
    text_adds(out,
              ",\n    \"config_groups\": {\n      \"group_0\": {\n        \"targets\": [\"Linear\"],\n        \"weights\": ");
    add_args(out, spec->bits, spec->block_size > 0 ? "group" : "channel", spec->block_size, !spec->zeros, 0, f->ordered);
    text_adds(out, ",\n        \"input_activations\": ");
    if (export->int8_activations)
        add_args(out, 8, "token", 0, 1, 1, 0);
    else
        text_adds(out, "null");
    text_adds(out, ",\n        \"output_activations\": null\n      }\n    }\n");
}

/* Readers of gptq and awq compute in F16, whose numbers their scales are; what is copied keeps its own type in the file. */
static Status write_settings(const Folder *f, const char *folder, Error *err) {
    const char *source = f->grouped->export->options->model;
    int half = f->layout == GROUPED_GPTQ || f->layout == GROUPED_AWQ;
    Text text = {0}, alone = {0};
    if (f->ordered && f->layout == GROUPED_PACKED)
        log_warning(
            "columns are grouped in an order of their own (weight_g_idx), which compressed-tensors reads no longer since 0.20; "
            "--format gptq has such orders, and --static-groups needs none");
    text_adds(&text, "\"quantization_config\": {\n");
    if (f->layout == GROUPED_GPTQ)
        add_gptq(f, "    ", &text);
    else if (f->layout == GROUPED_AWQ)
        add_awq(f, &text);
    else
        add_compressed_config(f, &text);
    text_adds(&text, "  }");
    Status status;
    TRY_GOTO(output_folder_write_config(source, folder, half ? DTYPE_F16 : f->model->dtype, 1, err));
    TRY_GOTO(output_folder_add_to_config(folder, text.data, err));
    TRY_GOTO(output_folder_copy_settings(source, folder, err));
    if (f->layout != GROUPED_GPTQ) goto done;
    char *path = path_join(folder, "quantize_config.json");
    text_adds(&alone, "{\n");
    add_gptq(f, "  ", &alone);
    text_adds(&alone, "}\n");
    status = file_write_atomic(path, alone.data, alone.length, err);
    memory_free(path);
done:
    text_free(&text);
    text_free(&alone);
    return status;
}

Status export_grouped_folder(const GroupedFolder *grouped, const char *folder, Error *err) {
    Export *export = grouped->export;
    Folder f = {.grouped = grouped,
                .model = merge_model(export->merge),
                .layout = export_grouped_layout(export),
                .stored_less = export->options->format == EXPORT_GPTQ && !export->spec.zeros};
    export->bytes = 0;
    list_parts(&f);
    Status status = tensors_write_sharded(folder, NULL, export_shard_bytes(export), f.specs, f.count, produce, &f, err);
    if (status == OK) status = write_settings(&f, folder, err);
    for (int64_t i = 0; i < f.count; i++)
        memory_free(f.parts[i].name);
    memory_free(f.parts);
    memory_free(f.specs);
    return status;
}
