/* What the reader's and the writer's source files share. Not for other folders' use. */
#ifndef NIBBLE_DATA_SAFETENSORS_PRIVATE_H
#define NIBBLE_DATA_SAFETENSORS_PRIVATE_H

#include "data/safetensors.h"

/* Hard cap of the format on the header's length, for readers and writers alike. */
#define HEADER_MAX_BYTES 100000000u
#define TENSOR_NAME_MAX_BYTES 1024u

/* Names to numbers: open addressing, linear probing, at most half full. Borrows the names. */
typedef struct NameEntry {
    const char *name; /* NULL: free */
    uint64_t hash;
    int64_t value;
} NameEntry;

typedef struct NameTable {
    NameEntry *slots;
    size_t capacity; /* a power of two, or 0 */
    size_t count;
} NameTable;

/* The value put under this name, or -1. */
int64_t names_find(const NameTable *table, const char *name);
/* Returns -1 and keeps `value` (>= 0), or returns the value that is already there and changes nothing. */
int64_t names_put(NameTable *table, const char *name, int64_t value);
void names_free(NameTable *table);

/* One file's header, decoded and checked. */
typedef struct TensorHeader {
    TensorInfo *tensors; /* in offset order; names point into `names`, `file` is 0 */
    int64_t count, capacity;
    char *names; /* every decoded name, key and value, each with a zero byte */
    size_t names_length;
    size_t names_capacity; /* the header's length: quotes and colons leave room for the zero bytes */
    const char **metadata; /* {key, value} pairs */
    int64_t metadata_count, metadata_capacity;
} TensorHeader;

/* Checks everything in a header of `length` bytes at `text` of a file of `file_size` bytes: the tensors tile the data
 * exactly. path is for messages only. On failure *header needs no freeing. */
Status header_parse(TensorHeader *header, const char *path, const char *text, size_t length, uint64_t file_size, Error *err);
void header_free(TensorHeader *header);

/* Bytes of a tensor of this shape; fails when they do not fit 64 bits. */
int shape_bytes(DType dtype, int ndim, const int64_t *shape, uint64_t *bytes);

/* Grows *items (of `size` bytes each) so that one more fits. */
void *grow_array(void *items, int64_t count, int64_t *capacity, size_t size);

#endif
