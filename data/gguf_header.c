/* A GGUF file's header: keys and tensors, decoded in place and checked. Every length is compared with what is left of the file
 * before anything is read or allocated for it. */
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_internal.h"

#define READ_AHEAD ((uint64_t)64 << 10)

typedef struct Cursor {
    GgufFile *file;
    uint8_t *bytes;
    uint64_t at, limit; /* the file's size, or the cap where that is less */
} Cursor;

size_t gguf_type_size(uint32_t type) {
    static const uint8_t sizes[GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < GGUF_TYPES ? sizes[type] : 0;
}

const char *gguf_type_name(GgufType type) {
    static const char *const names[GGUF_TYPES] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                  "bool", "string", "array", "u64", "i64", "f64"};
    return names[type];
}

/* Makes `count` bytes at the cursor available and steps over them. */
static Status take(Cursor *cursor, uint64_t count, uint8_t **out, const char *what, Error *err) {
    GgufFile *file = cursor->file;
    if (count > cursor->limit - cursor->at) {
        if (cursor->limit < file->size)
            FAIL("%s: %s: the header is larger than %llu MiB", file->path, what, (unsigned long long)(GGUF_HEADER_MAX >> 20));
        FAIL("%s: %s: want %llu bytes at %llu, got a file of %llu; it is truncated or damaged", file->path, what,
             (unsigned long long)count, (unsigned long long)cursor->at, (unsigned long long)file->size);
    }
    uint64_t end = cursor->at + count;
    if (end > file->loaded) {
        uint64_t target = end + READ_AHEAD < cursor->limit ? end + READ_AHEAD : cursor->limit;
        TRY(file_read_at(file->fd, file->path, file->loaded, cursor->bytes + file->loaded, (size_t)(target - file->loaded),
                         err));
        file->loaded = target;
    }
    *out = cursor->bytes + cursor->at;
    cursor->at = end;
    return OK;
}

static Status take_u32(Cursor *cursor, uint32_t *out, const char *what, Error *err) {
    uint8_t *bytes;
    TRY(take(cursor, sizeof *out, &bytes, what, err));
    memcpy(out, bytes, sizeof *out);
    return OK;
}

static Status take_u64(Cursor *cursor, uint64_t *out, const char *what, Error *err) {
    uint8_t *bytes;
    TRY(take(cursor, sizeof *out, &bytes, what, err));
    memcpy(out, bytes, sizeof *out);
    return OK;
}

static Status take_string(Cursor *cursor, GgufString *out, uint64_t most, const char *what, Error *err) {
    uint8_t *bytes;
    TRY(take_u64(cursor, &out->length, what, err));
    if (out->length > most)
        FAIL("%s: %s: want a string of at most %llu bytes, got %llu", cursor->file->path, what, (unsigned long long)most,
             (unsigned long long)out->length);
    TRY(take(cursor, out->length, &bytes, what, err));
    out->bytes = (const char *)bytes;
    return OK;
}

/* A key or a tensor's name: they go into messages and tables. */
static Status name_check(const Cursor *cursor, GgufString name, const char *what, Error *err) {
    if (name.length == 0) FAIL("%s: %s is empty", cursor->file->path, what);
    for (uint64_t i = 0; i < name.length;) {
        uint32_t code;
        int length = utf8_decode(name.bytes + i, (size_t)(name.length - i), &code);
        if (length == 0 || code < 32 || code == 127)
            FAIL("%s: %s: want UTF-8 without control characters, got byte 0x%02x at %llu of it", cursor->file->path, what,
                 (unsigned)(unsigned char)name.bytes[i], (unsigned long long)i);
        i += (uint64_t)length;
    }
    return OK;
}

/* Its length is behind it and its successor was read: the byte after it is free to end it. */
static const char *name_end(GgufString name) {
    char *bytes = (char *)(uintptr_t)name.bytes;
    bytes[name.length] = 0;
    return bytes;
}

/* ---- keys ---------------------------------------------------------------------------------------------------------------- */

static Status strings_read(Cursor *cursor, GgufValue *value, Error *err) {
    if (value->count > (cursor->limit - cursor->at) / sizeof(uint64_t))
        FAIL("%s: key '%s': %llu strings do not fit in what is left of the file", cursor->file->path, value->key,
             (unsigned long long)value->count);
    GgufString *strings = memory_alloc((size_t)value->count * sizeof *strings);
    value->strings = strings;
    for (uint64_t i = 0; i < value->count; i++)
        TRY(take_string(cursor, &strings[i], GGUF_ITEMS_MAX, value->key, err));
    return OK;
}

static Status items_read(Cursor *cursor, GgufValue *value, Error *err) {
    if (value->type == GGUF_STRING) return strings_read(cursor, value, err);
    uint8_t *bytes; /* at most 2^30 items of 8 bytes: no overflow */
    TRY(take(cursor, value->count * gguf_type_size(value->type), &bytes, value->key, err));
    value->items = bytes;
    if (value->type != GGUF_BOOL) return OK;
    for (uint64_t i = 0; i < value->count; i++)
        if (bytes[i] > 1) FAIL("%s: key '%s': want a truth value of 0 or 1, got %d", cursor->file->path, value->key, bytes[i]);
    return OK;
}

static Status type_check(const Cursor *cursor, const char *key, uint32_t type, Error *err) {
    if (type >= GGUF_TYPES || type == GGUF_ARRAY)
        FAIL("%s: key '%s': want a value of type 0 to 12%s, got type %u", cursor->file->path, key,
             type == GGUF_ARRAY ? " in an array, and not an array of arrays" : "", type);
    return OK;
}

static Status value_read(Cursor *cursor, Error *err) {
    GgufFile *file = cursor->file;
    GgufString key;
    uint32_t type;
    TRY(take_string(cursor, &key, GGUF_KEY_MAX, "a key", err));
    TRY(name_check(cursor, key, "a key", err));
    TRY(take_u32(cursor, &type, "a key's type", err));
    file->values = grow_array(file->values, file->value_count, &file->value_capacity, sizeof *file->values);
    GgufValue *value = &file->values[file->value_count];
    *value = (GgufValue){.key = name_end(key), .count = 1, .is_array = type == GGUF_ARRAY};
    if (names_put(&file->keys, value->key, file->value_count++) >= 0)
        FAIL("%s: key '%.200s' appears twice", file->path, value->key);
    if (value->is_array) {
        TRY(take_u32(cursor, &type, value->key, err));
        TRY(take_u64(cursor, &value->count, value->key, err));
        if (value->count > GGUF_ITEMS_MAX)
            FAIL("%s: key '%s': want at most %llu items, got %llu", file->path, value->key, (unsigned long long)GGUF_ITEMS_MAX,
                 (unsigned long long)value->count);
    }
    TRY(type_check(cursor, value->key, type, err));
    value->type = (GgufType)type;
    return items_read(cursor, value, err);
}

static Status alignment_read(GgufFile *file, Error *err) {
    uint32_t alignment = GGUF_ALIGNMENT;
    if (gguf_find(file, GGUF_KEY_ALIGNMENT) != NULL) TRY(gguf_get_u32(file, GGUF_KEY_ALIGNMENT, &alignment, err));
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
        FAIL("%s: key '%s': want a power of two, got %u", file->path, GGUF_KEY_ALIGNMENT, alignment);
    file->alignment = alignment;
    return OK;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------------- */

int gguf_align(uint64_t value, uint64_t alignment, uint64_t *out) {
    if (__builtin_add_overflow(value, alignment - 1, out)) return 1;
    *out &= ~(alignment - 1);
    return 0;
}

Status gguf_tensor_bytes(const char *what, const GgmlTypeInfo *type, int ndim, const int64_t *ne, uint64_t *bytes, Error *err) {
    int64_t elements = 1, total; /* zeros count as ones: a part of the shape must not overflow either */
    int is_empty = 0;
    for (int d = 0; d < ndim; d++) {
        if (ne[d] < 0) FAIL("%s: dimension %d: want less than 2^63, got %llu", what, d, (unsigned long long)ne[d]);
        is_empty |= ne[d] == 0;
        if (__builtin_mul_overflow(elements, ne[d] > 0 ? ne[d] : 1, &elements)) FAIL("%s: its dimensions are too large", what);
    }
    int64_t width = ndim > 0 ? ne[0] : 1;
    if (width % type->block != 0)
        FAIL("%s: type %s: want a first dimension that is a multiple of %d, got %lld", what, type->name, type->block,
             (long long)width);
    if (__builtin_mul_overflow(elements / type->block, (int64_t)type->bytes, &total)) FAIL("%s: its data is too large", what);
    *bytes = is_empty ? 0 : (uint64_t)total;
    return OK;
}

static Status shape_read(Cursor *cursor, GgufTensor *tensor, uint32_t ndim, Error *err) {
    if (ndim > GGUF_DIMS_MAX)
        FAIL("%s: tensor '%s': want at most %d dimensions, got %u", cursor->file->path, tensor->name, GGUF_DIMS_MAX, ndim);
    tensor->ndim = (int)ndim;
    for (int d = 0; d < GGUF_DIMS_MAX; d++) {
        uint64_t size = 1;
        if (d < tensor->ndim) TRY(take_u64(cursor, &size, tensor->name, err));
        tensor->ne[d] = (int64_t)size;
    }
    return OK;
}

/* offset: where the data of the tensors before it ends, padded; moved behind this one. */
static Status tensor_read(Cursor *cursor, uint64_t *offset, Error *err) {
    GgufFile *file = cursor->file;
    GgufString name;
    uint32_t ndim, type;
    uint64_t declared, end;
    TRY(take_string(cursor, &name, GGUF_NAME_MAX, "a tensor's name", err));
    TRY(name_check(cursor, name, "a tensor's name", err));
    TRY(take_u32(cursor, &ndim, "a tensor's dimensions", err));
    file->tensors = grow_array(file->tensors, file->tensor_count, &file->tensor_capacity, sizeof *file->tensors);
    GgufTensor *tensor = &file->tensors[file->tensor_count];
    *tensor = (GgufTensor){.name = name_end(name), .offset = *offset};
    if (names_put(&file->names, tensor->name, file->tensor_count++) >= 0)
        FAIL("%s: tensor '%s' appears twice", file->path, tensor->name);
    TRY(shape_read(cursor, tensor, ndim, err));
    TRY(take_u32(cursor, &type, tensor->name, err));
    TRY(take_u64(cursor, &declared, tensor->name, err));
    tensor->type = ggml_type_info(type);
    if (tensor->type == NULL)
        FAIL("%s: tensor '%s': type %u is not known or was removed from the format", file->path, tensor->name, type);
    Status status = gguf_tensor_bytes(tensor->name, tensor->type, tensor->ndim, tensor->ne, &tensor->bytes, err);
    if (status != OK) {
        error_prefix(err, "%s: tensor", file->path);
        return status;
    }
    if (declared != *offset)
        FAIL("%s: tensor '%s': want offset %llu (behind the tensor before it), got %llu", file->path, tensor->name,
             (unsigned long long)*offset, (unsigned long long)declared);
    if (__builtin_add_overflow(*offset, tensor->bytes, &end) || gguf_align(end, file->alignment, offset) ||
        *offset > (uint64_t)INT64_MAX)
        FAIL("%s: tensor '%s': the data would be larger than 2^63 bytes", file->path, tensor->name);
    return OK;
}

/* The last tensor's padding may be missing: llama.cpp reads such files. */
static Status data_check(GgufFile *file, uint64_t header_end, Error *err) {
    uint64_t start;
    if (file->tensor_count == 0) return OK;
    if (gguf_align(header_end, file->alignment, &start)) FAIL("%s: its header is too large", file->path);
    for (int64_t i = 0; i < file->tensor_count; i++) {
        GgufTensor *tensor = &file->tensors[i];
        uint64_t end;
        if (__builtin_add_overflow(start, tensor->offset, &tensor->offset) ||
            __builtin_add_overflow(tensor->offset, tensor->bytes, &end) || end > file->size)
            FAIL("%s: tensor '%s': want %llu bytes of data, got a file of %llu bytes; it is truncated", file->path,
                 tensor->name, (unsigned long long)tensor->bytes, (unsigned long long)file->size);
    }
    return OK;
}

/* ---- the header ---------------------------------------------------------------------------------------------------------- */

static Status version_read(Cursor *cursor, Error *err) {
    const char *path = cursor->file->path;
    uint8_t *magic;
    uint32_t version;
    TRY(take(cursor, 4, &magic, "the magic", err));
    if (memcmp(magic, GGUF_MAGIC, 4) != 0) FAIL("%s: want a file that begins with \"GGUF\"; this is none", path);
    TRY(take_u32(cursor, &version, "the version", err));
    if (version != 0 && (version & 0xFFFFu) == 0) FAIL("%s: its numbers are big-endian; convert it to little-endian", path);
    if (version != GGUF_VERSION)
        FAIL("%s: want GGUF version 3, got %u; write it again with a current llama.cpp", path, version);
    return OK;
}

Status gguf_header_read(GgufFile *file, Error *err) {
    Cursor cursor = {.file = file, .limit = file->size < GGUF_HEADER_MAX ? file->size : GGUF_HEADER_MAX};
    uint64_t tensors, values, offset = 0;
    void *bytes;
    if (cursor.limit == 0) FAIL("%s: is empty", file->path);
    TRY(arena_create(&file->header, "GGUF header", (size_t)cursor.limit, err));
    TRY(arena_take(&file->header, (size_t)cursor.limit, &bytes, err));
    cursor.bytes = bytes;
    TRY(version_read(&cursor, err));
    TRY(take_u64(&cursor, &tensors, "the number of tensors", err));
    TRY(take_u64(&cursor, &values, "the number of keys", err));
    /* The least that a key and a tensor take in the file. */
    if (values > cursor.limit / 14 || tensors > cursor.limit / 25)
        FAIL("%s: %llu keys and %llu tensors do not fit in a file of %llu bytes", file->path, (unsigned long long)values,
             (unsigned long long)tensors, (unsigned long long)file->size);
    for (uint64_t i = 0; i < values; i++)
        TRY(value_read(&cursor, err));
    TRY(alignment_read(file, err));
    for (uint64_t i = 0; i < tensors; i++)
        TRY(tensor_read(&cursor, &offset, err));
    return data_check(file, cursor.at, err);
}
