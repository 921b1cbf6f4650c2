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

#endif
