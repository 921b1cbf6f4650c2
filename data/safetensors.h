/* safetensors: reading with every check of the format, and writing.
 *
 *   u64 N | JSON header, N bytes, padded with spaces | data, contiguous, no holes
 *
 * Source: huggingface/safetensors (README.md and the nine checks of the Rust
 * reader's tensor.rs). Refused beyond those: duplicate names, unknown fields,
 * control characters in names, names over 1,024 bytes, more than
 * TENSOR_MAX_DIMS dimensions, sub-byte and complex dtypes. Tensors are not
 * assumed to be aligned in the file. Nothing is allocated that the file's own
 * size does not justify. Covered by tests/unit/test_safetensors.c.
 */
#ifndef NIBBLE_DATA_SAFETENSORS_H
#define NIBBLE_DATA_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/error.h"

#define TENSOR_MAX_DIMS 8

typedef struct TensorInfo {
    const char *name; /* lives as long as its TensorFiles */
    DType dtype;
    uint32_t ggml; /* a quantized GgmlType in a GGUF file: rows of blocks, dtype U8; else 0 */
    int ndim;      /* 0: a scalar */
    int64_t shape[TENSOR_MAX_DIMS];
    uint64_t bytes;  /* of its data: product of the shape times dtype_size (not where ggml); fits int64_t */
    int file;        /* which file of the set */
    uint64_t offset; /* absolute, in that file */
} TensorInfo;

/* One file, or all the shards of a model folder, as one set of names. A GGUF file has the names, shapes and order of rows of the
 * model folder that it stands for (data/gguf_model.h). */
typedef struct TensorFiles TensorFiles;

/* A .safetensors or GGUF file, or a folder with model.safetensors or model.safetensors.index.json (name "model" replaced by
 * `stem`, e.g. "adapter_model"; NULL means "model"). Where a folder has both, the single file is taken. Opens and checks every
 * header. An index's weight_map must name plain files beside it and only tensors that are where it says; tensors of those
 * files that it does not name belong to the set as well. */
Status tensors_open(TensorFiles **files, const char *path, const char *stem, Error *err);
void tensors_close(TensorFiles *files); /* NULL is fine */
int64_t tensors_count(const TensorFiles *files);
const TensorInfo *tensors_get(const TensorFiles *files, int64_t index);     /* in file order, then offset order */
const TensorInfo *tensors_find(const TensorFiles *files, const char *name); /* NULL when absent; constant time */
/* The path under which a file of the set was opened. */
const char *tensors_file_name(const TensorFiles *files, int file);
/* Metadata string of the first file, or NULL; borrowed. */
const char *tensors_metadata(const TensorFiles *files, const char *key);
/* Reads `bytes` bytes at byte `offset` inside the tensor; thread-safe; does not keep the file's pages cached when
 * `drop_cache` (so that loading a big model does not push everything else out). */
Status tensors_read(const TensorFiles *files, const TensorInfo *tensor, uint64_t offset, void *out, size_t bytes,
                    int drop_cache, Error *err);

/* Writing: every tensor is declared first; then the producer is asked for the data of each, in file order. */
typedef struct TensorWriter TensorWriter;
typedef struct TensorSpec {
    const char *name;
    DType dtype;
    int ndim;
    int64_t shape[TENSOR_MAX_DIMS];
} TensorSpec;

/* A callback that produces the data of one tensor, in pieces, by calling tensor_write_bytes. Exactly the tensor's bytes must
 * come; it may fail, and then nothing is left of the file. spec points into the caller's array. */
typedef Status TensorProducer(void *context, const TensorSpec *spec, TensorWriter *writer, Error *err);
/* Writes one file atomically: header padded to 8, tensors sorted by dtype (the reference's enum, greatest
 * alignment first) then name, `metadata` pairs {key, value, …, NULL} or NULL ({"format","pt"} is always added, and is not the
 * caller's to give). */
Status tensors_write(const char *path, const TensorSpec *specs, int64_t count, const char *const *metadata,
                     TensorProducer *producer, void *context, Error *err);
Status tensor_write_bytes(TensorWriter *writer, const void *bytes, size_t length, Error *err);
/* A model folder's weights: STEM.safetensors, or shards of at most shard_bytes each (a larger tensor gets one of its own), filled
 * in the order of specs, and then STEM.safetensors.index.json, sorted by name. stem NULL means "model". The folder exists. */
Status tensors_write_sharded(const char *folder, const char *stem, uint64_t shard_bytes, const TensorSpec *specs, int64_t count,
                             TensorProducer *producer, void *context, Error *err);

#endif
