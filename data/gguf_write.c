/* Writing GGUF: keys are encoded as they are declared, tensors' data is streamed behind them. */
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_internal.h"

#define KEY_QUANTIZATION_VERSION "general.quantization_version"

struct GgufWriter {
    const char *path;
    Text values; /* encoded */
    char **keys; /* their names, owned; key_names borrows them */
    int64_t key_count, key_capacity;
    NameTable key_names;
    GgufTensor *tensors; /* names are owned */
    int64_t tensor_count, tensor_capacity;
    NameTable tensor_names;
    uint64_t alignment;
    AtomicFile *file;          /* while it is written */
    const GgufTensor *current; /* being produced */
    uint64_t written;          /* bytes of it */
};

GgufWriter *gguf_writer_create(const char *path) {
    GgufWriter *writer = memory_calloc(1, sizeof *writer);
    writer->path = path;
    writer->alignment = GGUF_ALIGNMENT;
    return writer;
}

void gguf_writer_free(GgufWriter *writer) {
    if (writer == NULL) return;
    for (int64_t i = 0; i < writer->key_count; i++)
        memory_free(writer->keys[i]);
    for (int64_t i = 0; i < writer->tensor_count; i++)
        memory_free((void *)(uintptr_t)writer->tensors[i].name);
    memory_free(writer->keys);
    memory_free(writer->tensors);
    names_free(&writer->key_names);
    names_free(&writer->tensor_names);
    text_free(&writer->values);
    memory_free(writer);
}

/* ---- keys ---------------------------------------------------------------------------------------------------------------- */

static void add_u32(Text *text, uint32_t value) {
    text_add(text, (const char *)&value, sizeof value);
}

static void add_u64(Text *text, uint64_t value) {
    text_add(text, (const char *)&value, sizeof value);
}

static void add_string(Text *text, const char *bytes, uint64_t length) {
    add_u64(text, length);
    text_add(text, bytes, (size_t)length);
}

static Status key_check(const GgufWriter *writer, const char *key, GgufType type, Error *err) {
    size_t length = strlen(key);
    if (length == 0 || length > GGUF_KEY_MAX || strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789_.") != length)
        FAIL("%s: key '%.200s': want 1 to %d bytes of [a-z0-9_.]", writer->path, key, GGUF_KEY_MAX);
    if (names_find(&writer->key_names, key) >= 0) FAIL("%s: key '%s' is to be written twice", writer->path, key);
    if (type != GGUF_STRING && gguf_type_size(type) == 0)
        FAIL("%s: key '%s': arrays of arrays cannot be written", writer->path, key);
    return OK;
}

static Status items_check(const GgufWriter *writer, const char *key, GgufType type, const void *items, uint64_t count,
                          Error *err) {
    const GgufString *strings = items;
    const uint8_t *bytes = items;
    if (count > GGUF_ITEMS_MAX)
        FAIL("%s: key '%s': want at most %llu items, got %llu", writer->path, key, (unsigned long long)GGUF_ITEMS_MAX,
             (unsigned long long)count);
    for (uint64_t i = 0; i < count; i++) {
        if (type == GGUF_STRING && strings[i].length > GGUF_ITEMS_MAX)
            FAIL("%s: key '%s': a string of %llu bytes is too long", writer->path, key, (unsigned long long)strings[i].length);
        if (type == GGUF_BOOL && bytes[i] > 1)
            FAIL("%s: key '%s': want a truth value of 0 or 1, got %d", writer->path, key, bytes[i]);
    }
    return OK;
}

static Status alignment_put(GgufWriter *writer, const char *key, GgufType type, const void *value, Error *err) {
    uint32_t alignment = 0;
    if (strcmp(key, GGUF_KEY_ALIGNMENT) != 0) return OK;
    if (type == GGUF_U32) memcpy(&alignment, value, sizeof alignment);
    if (alignment < 8 || (alignment & (alignment - 1)) != 0)
        FAIL("%s: key '%s': want a u32 that is a power of two and at least 8", writer->path, key);
    writer->alignment = alignment;
    return OK;
}

static Status put(GgufWriter *writer, const char *key, GgufType type, int is_array, const void *items, uint64_t count,
                  Error *err) {
    TRY(key_check(writer, key, type, err));
    TRY(items_check(writer, key, type, items, count, err));
    TRY(alignment_put(writer, key, is_array ? GGUF_ARRAY : type, items, err));
    writer->keys = grow_array(writer->keys, writer->key_count, &writer->key_capacity, sizeof *writer->keys);
    char *name = writer->keys[writer->key_count++] = memory_strdup(key);
    (void)names_put(&writer->key_names, name, writer->key_count - 1);
    add_string(&writer->values, key, strlen(key));
    if (is_array) add_u32(&writer->values, GGUF_ARRAY);
    add_u32(&writer->values, type);
    if (is_array) add_u64(&writer->values, count);
    if (type != GGUF_STRING) {
        if (count > 0) text_add(&writer->values, items, (size_t)count * gguf_type_size(type));
        return OK;
    }
    const GgufString *strings = items;
    for (uint64_t i = 0; i < count; i++)
        add_string(&writer->values, strings[i].bytes, strings[i].length);
    return OK;
}

Status gguf_put(GgufWriter *writer, const char *key, GgufType type, const void *value, Error *err) {
    return put(writer, key, type, 0, value, 1, err);
}

Status gguf_put_array(GgufWriter *writer, const char *key, GgufType type, const void *items, uint64_t count, Error *err) {
    return put(writer, key, type, 1, items, count, err);
}

Status gguf_put_u32(GgufWriter *writer, const char *key, uint32_t value, Error *err) {
    return gguf_put(writer, key, GGUF_U32, &value, err);
}

Status gguf_put_f32(GgufWriter *writer, const char *key, float value, Error *err) {
    return gguf_put(writer, key, GGUF_F32, &value, err);
}

Status gguf_put_bool(GgufWriter *writer, const char *key, int value, Error *err) {
    uint8_t byte = value != 0;
    return gguf_put(writer, key, GGUF_BOOL, &byte, err);
}

Status gguf_put_text(GgufWriter *writer, const char *key, const char *value, Error *err) {
    GgufString string = {value, strlen(value)};
    return gguf_put(writer, key, GGUF_STRING, &string, err);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------------- */

static Status tensor_check(const GgufWriter *writer, const char *name, uint32_t type, int ndim, Error *err) {
    size_t length = strlen(name);
    if (length == 0 || length > GGUF_NAME_MAX)
        FAIL("%s: tensor '%.200s': want a name of 1 to %d bytes", writer->path, name, GGUF_NAME_MAX);
    for (size_t i = 0; i < length;) {
        uint32_t code;
        int step = utf8_decode(name + i, length - i, &code);
        if (step == 0 || code < 32 || code == 127) FAIL("%s: a tensor's name has bytes that are no text", writer->path);
        i += (size_t)step;
    }
    if (names_find(&writer->tensor_names, name) >= 0) FAIL("%s: tensor '%s' is to be written twice", writer->path, name);
    if (ggml_type_info(type) == NULL) FAIL("%s: tensor '%s': type %u is not known", writer->path, name, type);
    if (ndim < 1 || ndim > GGUF_DIMS_MAX)
        FAIL("%s: tensor '%s': want 1 to %d dimensions, got %d", writer->path, name, GGUF_DIMS_MAX, ndim);
    return OK;
}

Status gguf_add_tensor(GgufWriter *writer, const char *name, uint32_t type, int ndim, const int64_t *ne, Error *err) {
    TRY(tensor_check(writer, name, type, ndim, err));
    GgufTensor tensor = {.type = ggml_type_info(type), .ndim = ndim, .ne = {1, 1, 1, 1}};
    memcpy(tensor.ne, ne, (size_t)ndim * sizeof *ne);
    Status status = gguf_tensor_bytes(name, tensor.type, ndim, ne, &tensor.bytes, err);
    if (status != OK) {
        error_prefix(err, "%s: tensor", writer->path);
        return status;
    }
    writer->tensors = grow_array(writer->tensors, writer->tensor_count, &writer->tensor_capacity, sizeof *writer->tensors);
    tensor.name = memory_strdup(name);
    (void)names_put(&writer->tensor_names, tensor.name, writer->tensor_count);
    writer->tensors[writer->tensor_count++] = tensor;
    return OK;
}

/* ---- the file ------------------------------------------------------------------------------------------------------------ */

static Status header_encode(const GgufWriter *writer, Text *text, Error *err) {
    uint64_t offset = 0;
    text_add(text, GGUF_MAGIC, 4);
    add_u32(text, GGUF_VERSION);
    add_u64(text, (uint64_t)writer->tensor_count);
    add_u64(text, (uint64_t)writer->key_count);
    text_add(text, writer->values.data, writer->values.length);
    for (int64_t i = 0; i < writer->tensor_count; i++) {
        const GgufTensor *tensor = &writer->tensors[i];
        add_string(text, tensor->name, strlen(tensor->name));
        add_u32(text, (uint32_t)tensor->ndim);
        for (int d = 0; d < tensor->ndim; d++)
            add_u64(text, (uint64_t)tensor->ne[d]);
        add_u32(text, tensor->type->type);
        add_u64(text, offset);
        if (__builtin_add_overflow(offset, tensor->bytes, &offset) || gguf_align(offset, writer->alignment, &offset) ||
            offset > (uint64_t)INT64_MAX)
            FAIL("%s: its data would be larger than 2^63 bytes", writer->path);
    }
    if (text->length > GGUF_HEADER_MAX)
        FAIL("%s: a header of %zu bytes exceeds %llu", writer->path, text->length, (unsigned long long)GGUF_HEADER_MAX);
    return OK;
}

static Status pad(const GgufWriter *writer, uint64_t length, Error *err) {
    static const uint8_t zeros[256];
    uint64_t end;
    if (gguf_align(length, writer->alignment, &end)) FAIL("%s: is too large", writer->path);
    for (uint64_t left = end - length; left > 0;) {
        size_t count = left < sizeof zeros ? (size_t)left : sizeof zeros;
        TRY(atomic_write(writer->file, zeros, count, err));
        left -= count;
    }
    return OK;
}

Status gguf_write_bytes(GgufWriter *writer, const void *bytes, size_t length, Error *err) {
    const GgufTensor *tensor = writer->current;
    if (length > tensor->bytes - writer->written)
        FAIL("%s: tensor '%s': want %llu bytes, got at least %llu from its producer", writer->path, tensor->name,
             (unsigned long long)tensor->bytes, (unsigned long long)(writer->written + length));
    writer->written += length;
    return length == 0 ? OK : atomic_write(writer->file, bytes, length, err);
}

static Status file_fill(GgufWriter *writer, const Text *header, GgufProducer *producer, void *context, Error *err) {
    TRY(atomic_write(writer->file, header->data, header->length, err));
    TRY(pad(writer, header->length, err));
    for (int64_t i = 0; i < writer->tensor_count; i++) {
        const GgufTensor *tensor = writer->current = &writer->tensors[i];
        writer->written = 0;
        TRY(producer(context, tensor, writer, err));
        if (writer->written != tensor->bytes)
            FAIL("%s: tensor '%s': want %llu bytes, got %llu from its producer", writer->path, tensor->name,
                 (unsigned long long)tensor->bytes, (unsigned long long)writer->written);
        TRY(pad(writer, tensor->bytes, err));
    }
    return OK;
}

static Status ready_check(const GgufWriter *writer, Error *err) {
    for (int64_t i = 0; i < writer->tensor_count; i++)
        if (writer->tensors[i].type->is_quantized && names_find(&writer->key_names, KEY_QUANTIZATION_VERSION) < 0)
            FAIL("%s: tensor '%s' is quantized: want the key " KEY_QUANTIZATION_VERSION, writer->path, writer->tensors[i].name);
    return OK;
}

Status gguf_writer_write(GgufWriter *writer, GgufProducer *producer, void *context, Error *err) {
    Text header = {0};
    TRY(ready_check(writer, err));
    Status status = header_encode(writer, &header, err);
    if (status == OK) status = atomic_open(&writer->file, writer->path, err);
    if (status == OK) {
        status = file_fill(writer, &header, producer, context, err);
        if (status == OK)
            status = atomic_commit(writer->file, err);
        else
            atomic_abandon(writer->file);
    }
    writer->file = NULL;
    text_free(&header);
    return status;
}
