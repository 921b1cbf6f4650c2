/* bitsandbytes' NF4: every linear of the merge is quantized from FP32, with no rounding before it. */
#include <string.h>

#include "core/memory.h"
#include "train/export.h"
#include "train/quantize_folder.h"
#include "train/weights.h"

typedef struct Quantized {
    Arena arena;
    QuantizedTensor *tensors; /* by number; rows 0: copied */
} Quantized;

static int is_linear(int32_t id) {
    return id >= WEIGHT_GLOBALS && (id - WEIGHT_GLOBALS) % LAYER_WEIGHTS < LAYER_LINEARS;
}

static Status take(const Export *export, Quantized *q, Arena *arena, Error *err) {
    int32_t count = weight_count(merge_model(export->merge));
    for (int32_t id = 0; id < count; id++) {
        MergeWeight weight = merge_weight(export->merge, id);
        if (!is_linear(id) && weight.folder_quantized)
            FAIL("%s is quantized, which no bnb-nf4 folder has; use --format hf", weight.file->name);
        if (weight.present && is_linear(id))
            TRY(quantized_take(&q->tensors[id], &export->spec, weight.rows, weight.cols, arena, err));
    }
    return OK;
}

static Status quantize_all(Export *export, Quantized *q, Error *err) {
    Arena counted;
    arena_count(&counted, "quantized weights");
    TRY(take(export, q, &counted, err));
    TRY(arena_create(&q->arena, "quantized weights", counted.used, err));
    TRY(take(export, q, &q->arena, err));
    for (int32_t id = 0; id < weight_count(merge_model(export->merge)); id++) {
        if (q->tensors[id].rows == 0) continue;
        TRY(export_interrupted(err));
        TRY(merge_begin(export->merge, id, err));
        Status status = merge_quantize(export->merge, 1, &q->tensors[id], err);
        if (status != OK) {
            error_prefix(err, "%s", merge_weight(export->merge, id).file->name);
            return status;
        }
    }
    return OK;
}

static WeightView view(const void *context, int32_t id) {
    const Quantized *q = context;
    return q->tensors[id].rows == 0 ? (WeightView){0} : quantized_view(&q->tensors[id]);
}

Status export_nf4_write(Export *export, const char *folder, Error *err) {
    Quantized q = {0};
    QuantizedFolder result = {0};
    q.tensors = memory_calloc((size_t)weight_count(merge_model(export->merge)), sizeof *q.tensors);
    Status status = quantize_all(export, &q, err);
    if (status == OK) status = quantize_folder_views(export->options->model, folder, &export->spec, view, &q, &result, err);
    export->bytes = result.bytes;
    arena_free(&q.arena);
    memory_free(q.tensors);
    return status;
}
