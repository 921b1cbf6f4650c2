/* Exports to folders of grouped integers: gptq, awq, compressed-tensors.
 *
 *   export_grouped.c         which grid, what options mean, the linears' codes
 *   export_grouped_folder.c  tensors, quantization_config
 *
 * The grid is the one that the adapter's run trained on (quantization-aware training), else the folder's own where it holds
 * grouped integers, else 4 bits in groups of 128; options change it piece by piece. Codes:
 *   nothing added, same grid      copied; no value passes through floats
 *   learned scales of the run     quantized with them (train/qat_scales.h)
 *   else                          by --quantizer (export_calibrate.c) from the FP32 merge
 */
#ifndef NIBBLE_TRAIN_EXPORT_GROUPED_H
#define NIBBLE_TRAIN_EXPORT_GROUPED_H

#include "quant/grouped_layout.h"
#include "train/export.h"

/* Whether a format writes grouped integers. */
int export_is_grouped(ExportFormat format);
GroupedLayout export_grouped_layout(const Export *export);
/* Refuses options that belong to other formats, or that the format at hand does not know. */
Status export_grouped_check(const ExportOptions *options, Error *err);
/* Decides export->spec, once the base is open. */
Status export_grouped_choose(Export *export, Error *err);
/* Into an empty folder. */
Status export_grouped_write(Export *export, const char *folder, Error *err);

/* What is written. tensors: by number; rows 0: the source's tensor is copied, or, where vectors has one, written from FP32 (what
 * a quantizer folds into norms and biases). */
typedef struct GroupedFolder {
    Export *export;
    const QuantizedTensor *tensors; /* [weight_count] */
    float *const *vectors;          /* [weight_count], each [cols] or NULL; NULL: none at all */
} GroupedFolder;
Status export_grouped_folder(const GroupedFolder *grouped, const char *folder, Error *err);

#endif
