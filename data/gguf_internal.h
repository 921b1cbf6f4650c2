/* What the reader's and the writer's source files share. Not for other folders' use. */
#ifndef NIBBLE_DATA_GGUF_INTERNAL_H
#define NIBBLE_DATA_GGUF_INTERNAL_H

#include "core/memory.h"
#include "data/gguf.h"
#include "data/safetensors_private.h" /* NameTable, grow_array */

/* Values are copied between file and memory as they are. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF is little-endian");

#define GGUF_MAGIC "GGUF"
#define GGUF_VERSION 3u
#define GGUF_KEY_ALIGNMENT "general.alignment"

struct GgufFile {
    char *path;
    int fd;
    uint64_t size;   /* of the file */
    Arena header;    /* the bytes from the file's start; address space is reserved, pages come as they are read */
    uint64_t loaded; /* of them */
    GgufValue *values;
    int64_t value_count, value_capacity;
    GgufTensor *tensors;
    int64_t tensor_count, tensor_capacity;
    NameTable keys, names;
    uint64_t alignment;
};

/* Bytes of one value of a fixed size; 0 for strings, arrays and numbers that are no type. */
size_t gguf_type_size(uint32_t type);

/* Fills all of *file but path, fd and size, which are given. What it leaves after a failure gguf_close frees. */
Status gguf_header_read(GgufFile *file, Error *err);

/* The data's bytes of a tensor of this type and shape, all of it checked; `what` is for the message. */
Status gguf_tensor_bytes(const char *what, const GgmlTypeInfo *type, int ndim, const int64_t *ne, uint64_t *bytes, Error *err);

/* value up to the next multiple of alignment, a power of two; non-zero when it does not fit. */
int gguf_align(uint64_t value, uint64_t alignment, uint64_t *out);

#endif
