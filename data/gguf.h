/* GGUF version 3: reading with every check of the format, and writing.
 *
 *   "GGUF" | u32 3 | u64 tensors | u64 keys | keys: string, u32 type, value | tensors: string, u32 n, u64 ne[n], u32 type,
 *   u64 offset | zeros to the alignment | data: each tensor at its offset, padded to the alignment
 *
 *   string = u64 length, bytes.   array = u32 item type, u64 count, items.   ne[0] is the fastest dimension.
 *
 * Source: ggml docs/gguf.md and the checks of src/gguf.cpp (ggml 0.25.3): duplicate keys and names, arrays of arrays, alignments
 * that are no power of two, dimensions that overflow or are no multiple of the block, and offsets that are not exactly
 * sequential are refused. Refused beyond those: a header over GGUF_HEADER_MAX bytes, control characters in keys and names,
 * truth values other than 0 and 1, types of unknown size, version 2. Memory stays within three times the header's own size, which
 * the file's size bounds, and one read ahead. Covered by tests/unit/test_gguf*.c.
 */
#ifndef NIBBLE_DATA_GGUF_H
#define NIBBLE_DATA_GGUF_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "core/text.h"
#include "quant/ggml.h"

#define GGUF_HEADER_MAX ((uint64_t)256 << 20)
#define GGUF_ITEMS_MAX ((uint64_t)1 << 30) /* of an array, and bytes of a string */
#define GGUF_NAME_MAX 63                   /* bytes of a tensor's name */
#define GGUF_KEY_MAX 65535
#define GGUF_DIMS_MAX 4
#define GGUF_ALIGNMENT 32 /* where general.alignment says nothing */

/* The numbers in the file. */
typedef enum GgufType {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
} GgufType;

typedef struct GgufString {
    const char *bytes; /* not zero-terminated */
    uint64_t length;
} GgufString;

typedef struct GgufValue {
    const char *key; /* lives as long as its file, like all that is here */
    GgufType type;   /* of the value or, in an array, of its items */
    int is_array;
    uint64_t count;            /* items; 1 outside of an array */
    const uint8_t *items;      /* little-endian, not aligned; NULL for strings */
    const GgufString *strings; /* NULL for other types */
} GgufValue;

typedef struct GgufTensor {
    const char *name;
    const GgmlTypeInfo *type;
    int ndim;
    int64_t ne[GGUF_DIMS_MAX]; /* ones beyond ndim */
    uint64_t bytes;            /* of its data; fits int64_t */
    uint64_t offset;           /* absolute, in the file */
} GgufTensor;

typedef struct GgufFile GgufFile;

#define GGUF_MODEL_FILE "model.gguf"

/* Opens and checks everything but the tensors' data. Of a folder: the GGUF_MODEL_FILE in it. */
Status gguf_open(GgufFile **file, const char *path, Error *err);
void gguf_close(GgufFile *file); /* NULL is fine */
const char *gguf_path(const GgufFile *file);

int64_t gguf_value_count(const GgufFile *file);
const GgufValue *gguf_value(const GgufFile *file, int64_t index);  /* in file order */
const GgufValue *gguf_find(const GgufFile *file, const char *key); /* NULL when absent; constant time */
int64_t gguf_tensor_count(const GgufFile *file);
const GgufTensor *gguf_tensor(const GgufFile *file, int64_t index);         /* in file order */
const GgufTensor *gguf_tensor_find(const GgufFile *file, const char *name); /* NULL when absent; constant time */

/* One value of exactly this type, as llama.cpp's loader takes it; a key that is absent or has another type is an error that names
 * both. Overwrites *out. */
Status gguf_get_u32(const GgufFile *file, const char *key, uint32_t *out, Error *err);
Status gguf_get_f32(const GgufFile *file, const char *key, float *out, Error *err);
Status gguf_get_bool(const GgufFile *file, const char *key, int *out, Error *err);
Status gguf_get_string(const GgufFile *file, const char *key, GgufString *out, Error *err);
/* An array with items of this type. */
Status gguf_get_array(const GgufFile *file, const char *key, GgufType type, const GgufValue **out, Error *err);
/* Item i of a value that is of type F32, and of type I32. */
float gguf_item_f32(const GgufValue *value, uint64_t i);
int32_t gguf_item_i32(const GgufValue *value, uint64_t i);
/* Item i as text: numbers in full, strings as JSON strings of at most `bytes` bytes, then "...". */
void gguf_item_text(const GgufValue *value, uint64_t i, size_t bytes, Text *out);
const char *gguf_type_name(GgufType type); /* "u32" */

/* Reads `bytes` bytes at byte `offset` inside the tensor; thread-safe; does not keep the file's pages cached when
 * `drop_cache`. */
Status gguf_read(const GgufFile *file, const GgufTensor *tensor, uint64_t offset, void *out, size_t bytes, int drop_cache,
                 Error *err);

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

/* Keys and tensors are declared first, in the order in which they will stand in the file; then the producer is asked for the data
 * of each tensor in that order. */
typedef struct GgufWriter GgufWriter;

/* path is borrowed; nothing is written before gguf_writer_write. */
GgufWriter *gguf_writer_create(const char *path);
void gguf_writer_free(GgufWriter *writer); /* NULL is fine */

/* `count` items as they lie in memory (BOOL: bytes of 0 or 1; STRING: GgufString), copied. Refused: keys that are not 1 to 65,535
 * bytes of [a-z0-9_.] or there already, GGUF_ARRAY as type, a general.alignment that is no power of two or no multiple
 * of 8. */
Status gguf_put(GgufWriter *writer, const char *key, GgufType type, const void *value, Error *err);
Status gguf_put_array(GgufWriter *writer, const char *key, GgufType type, const void *items, uint64_t count, Error *err);
Status gguf_put_u32(GgufWriter *writer, const char *key, uint32_t value, Error *err);
Status gguf_put_f32(GgufWriter *writer, const char *key, float value, Error *err);
Status gguf_put_bool(GgufWriter *writer, const char *key, int value, Error *err);
Status gguf_put_text(GgufWriter *writer, const char *key, const char *value, Error *err);

/* ne: as in GgufTensor; a [out, in] matrix is ne = {in, out}. */
Status gguf_add_tensor(GgufWriter *writer, const char *name, uint32_t type, int ndim, const int64_t *ne, Error *err);

/* A callback that produces the data of one declared tensor (offset is not set), in pieces, by calling gguf_write_bytes. Exactly
 * its bytes must come; it may fail, and then nothing is left of the file. */
typedef Status GgufProducer(void *context, const GgufTensor *tensor, GgufWriter *writer, Error *err);
/* Writes the file atomically. A file with a quantized tensor must have general.quantization_version. */
Status gguf_writer_write(GgufWriter *writer, GgufProducer *producer, void *context, Error *err);
Status gguf_write_bytes(GgufWriter *writer, const void *bytes, size_t length, Error *err);

#endif
