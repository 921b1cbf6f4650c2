/* A Hugging Face folder to a pre-quantized one (nibble quantize; exports that end in bitsandbytes' formats). */
#ifndef NIBBLE_TRAIN_QUANTIZE_FOLDER_H
#define NIBBLE_TRAIN_QUANTIZE_FOLDER_H

#include <stdint.h>

#include "core/error.h"
#include "core/pool.h"
#include "kernels/ops.h"
#include "quant/quantize.h"

typedef struct QuantizedFolder {
    int64_t linears;              /* quantized weights */
    uint64_t bytes_before, bytes; /* of all weights that the model uses */
} QuantizedFolder;

/* Writes into `out`, which is made; a caller that wants it whole or not at all uses output_folder_write. spec: NF4, FP4 or
 * INT8. Memory: the quantized linears and the loader's staging. Refuses a model that is quantized already. */
Status quantize_folder(const char *model, const char *out, const QuantSpec *spec, const Backend *backend, Pool *pool,
                       QuantizedFolder *result, Error *err);

/* The same with weights that the caller has quantized: view gives weight `id` as it is to be written (rows 0: the source's tensor
 * is copied), valid until the function returns. The source may be a quantized folder; its quantization_config is replaced. */
Status quantize_folder_views(const char *model, const char *out, const QuantSpec *spec,
                             WeightView (*view)(const void *context, int32_t id), const void *context, QuantizedFolder *result,
                             Error *err);

#endif
