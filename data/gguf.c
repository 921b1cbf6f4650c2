/* Opening GGUF files; finding and reading what is in them. */
#include "data/gguf.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_internal.h"

Status gguf_open(GgufFile **out, const char *path, Error *err) {
    GgufFile *file = memory_calloc(1, sizeof *file);
    *out = NULL;
    file->path = file_is_folder(path) ? path_join(path, GGUF_MODEL_FILE) : memory_strdup(path);
    file->fd = -1;
    Status status = file_open(file->path, &file->fd, &file->size, err);
    if (status == OK) status = gguf_header_read(file, err);
    if (status == OK)
        *out = file;
    else
        gguf_close(file);
    return status;
}

void gguf_close(GgufFile *file) {
    if (file == NULL) return;
    if (file->fd >= 0) (void)close(file->fd);
    for (int64_t i = 0; i < file->value_count; i++)
        memory_free((void *)(uintptr_t)file->values[i].strings);
    memory_free(file->values);
    memory_free(file->tensors);
    names_free(&file->keys);
    names_free(&file->names);
    arena_free(&file->header);
    memory_free(file->path);
    memory_free(file);
}

const char *gguf_path(const GgufFile *file) {
    return file->path;
}

int64_t gguf_value_count(const GgufFile *file) {
    return file->value_count;
}

const GgufValue *gguf_value(const GgufFile *file, int64_t index) {
    return &file->values[index];
}

const GgufValue *gguf_find(const GgufFile *file, const char *key) {
    int64_t index = names_find(&file->keys, key);
    return index < 0 ? NULL : &file->values[index];
}

int64_t gguf_tensor_count(const GgufFile *file) {
    return file->tensor_count;
}

const GgufTensor *gguf_tensor(const GgufFile *file, int64_t index) {
    return &file->tensors[index];
}

const GgufTensor *gguf_tensor_find(const GgufFile *file, const char *name) {
    int64_t index = names_find(&file->names, name);
    return index < 0 ? NULL : &file->tensors[index];
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

static Status value_of(const GgufFile *file, const char *key, GgufType type, int is_array, const GgufValue **out, Error *err) {
    const GgufValue *value = gguf_find(file, key);
    if (value == NULL)
        FAIL("%s: key '%s': want %s%s, got no such key", file->path, key, is_array ? "an array of " : "a ",
             gguf_type_name(type));
    if (value->type != type || value->is_array != is_array)
        FAIL("%s: key '%s': want %s%s, got %s%s", file->path, key, is_array ? "an array of " : "a ", gguf_type_name(type),
             value->is_array ? "an array of " : "a ", gguf_type_name(value->type));
    *out = value;
    return OK;
}

Status gguf_get_u32(const GgufFile *file, const char *key, uint32_t *out, Error *err) {
    const GgufValue *value;
    TRY(value_of(file, key, GGUF_U32, 0, &value, err));
    memcpy(out, value->items, sizeof *out);
    return OK;
}

Status gguf_get_f32(const GgufFile *file, const char *key, float *out, Error *err) {
    const GgufValue *value;
    TRY(value_of(file, key, GGUF_F32, 0, &value, err));
    memcpy(out, value->items, sizeof *out);
    return OK;
}

Status gguf_get_bool(const GgufFile *file, const char *key, int *out, Error *err) {
    const GgufValue *value;
    TRY(value_of(file, key, GGUF_BOOL, 0, &value, err));
    *out = value->items[0];
    return OK;
}

Status gguf_get_string(const GgufFile *file, const char *key, GgufString *out, Error *err) {
    const GgufValue *value;
    TRY(value_of(file, key, GGUF_STRING, 0, &value, err));
    *out = value->strings[0];
    return OK;
}

Status gguf_get_array(const GgufFile *file, const char *key, GgufType type, const GgufValue **out, Error *err) {
    return value_of(file, key, type, 1, out, err);
}

float gguf_item_f32(const GgufValue *value, uint64_t i) {
    float item;
    memcpy(&item, value->items + i * sizeof item, sizeof item);
    return item;
}

int32_t gguf_item_i32(const GgufValue *value, uint64_t i) {
    int32_t item;
    memcpy(&item, value->items + i * sizeof item, sizeof item);
    return item;
}

static void string_text(GgufString string, size_t bytes, Text *out) {
    size_t length = string.length < bytes ? (size_t)string.length : bytes;
    while (length > 0 && length < string.length && ((unsigned char)string.bytes[length] & 0xC0u) == 0x80u)
        length--; /* not in the middle of a character */
    text_add_json_string(out, string.bytes, length);
    if (length < string.length) text_adds(out, "...");
}

void gguf_item_text(const GgufValue *value, uint64_t i, size_t bytes, Text *out) {
    if (value->type == GGUF_STRING) {
        string_text(value->strings[i], bytes, out);
        return;
    }
    size_t size = gguf_type_size(value->type);
    uint64_t bits = 0;
    memcpy(&bits, value->items + i * size, size);
    double number = 0.0;
    memcpy(&number, &bits, sizeof number);
    switch (value->type) {
        case GGUF_I8: text_addf(out, "%d", (int8_t)bits); break;
        case GGUF_I16: text_addf(out, "%d", (int16_t)bits); break;
        case GGUF_I32: text_addf(out, "%d", (int32_t)bits); break;
        case GGUF_I64: text_addf(out, "%lld", (long long)bits); break;
        case GGUF_F32: text_addf(out, "%.9g", (double)gguf_item_f32(value, i)); break;
        case GGUF_F64: text_addf(out, "%.17g", number); break;
        case GGUF_BOOL: text_adds(out, bits ? "true" : "false"); break;
        default: text_addf(out, "%llu", (unsigned long long)bits); break;
    }
}

Status gguf_read(const GgufFile *file, const GgufTensor *tensor, uint64_t offset, void *out, size_t bytes, int drop_cache,
                 Error *err) {
    if (offset > tensor->bytes || bytes > tensor->bytes - offset)
        FAIL("%s: tensor '%s': want %zu bytes at %llu of it, got a tensor of %llu bytes", file->path, tensor->name, bytes,
             (unsigned long long)offset, (unsigned long long)tensor->bytes);
    if (bytes == 0) return OK;
    uint64_t start = tensor->offset + offset;
    Status status = file_read_at(file->fd, file->path, start, out, bytes, err);
    if (status != OK) error_prefix(err, "tensor '%s'", tensor->name);
    /* Advice only: where it is refused the pages merely stay cached. */
    if (status == OK && drop_cache) (void)posix_fadvise(file->fd, (off_t)start, (off_t)bytes, POSIX_FADV_DONTNEED);
    return status;
}
