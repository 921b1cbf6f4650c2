/* The JSON header of a safetensors file and the nine checks of the reference reader (formats: huggingface/safetensors,
 * safetensors/src/tensor.rs). Stricter than the reference in what never occurs in honest files: duplicate names, unknown
 * fields, control characters in names and more than TENSOR_MAX_DIMS dimensions are refused.
 */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/json.h"
#include "data/safetensors_private.h"

/* Depth that a well-formed header needs: the object, a tensor, its shape. */
#define HEADER_DEPTH 3

/* ---- names --------------------------------------------------------------------------------------------------------- */

static uint64_t name_hash(const char *name) {
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a, then mixed so that the low bits depend on every byte */
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001B3u;
    return hash ^ (hash >> 29);
}

static NameEntry *names_slot(const NameTable *table, const char *name, uint64_t hash) {
    size_t mask = table->capacity - 1;
    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        NameEntry *entry = &table->slots[i];
        if (entry->name == NULL || (entry->hash == hash && strcmp(entry->name, name) == 0)) return entry;
    }
}

int64_t names_find(const NameTable *table, const char *name) {
    if (table->count == 0) return -1;
    const NameEntry *entry = names_slot(table, name, name_hash(name));
    return entry->name == NULL ? -1 : entry->value;
}

static void names_grow(NameTable *table) {
    NameTable larger = {.capacity = table->capacity ? table->capacity * 2 : 64, .count = table->count};
    larger.slots = memory_calloc(larger.capacity, sizeof *larger.slots);
    for (size_t i = 0; i < table->capacity; i++) {
        const NameEntry *entry = &table->slots[i];
        if (entry->name != NULL) *names_slot(&larger, entry->name, entry->hash) = *entry;
    }
    memory_free(table->slots);
    *table = larger;
}

int64_t names_put(NameTable *table, const char *name, int64_t value) {
    if (table->count * 2 >= table->capacity) names_grow(table);
    uint64_t hash = name_hash(name);
    NameEntry *entry = names_slot(table, name, hash);
    if (entry->name != NULL) return entry->value;
    *entry = (NameEntry){name, hash, value};
    table->count++;
    return -1;
}

void names_free(NameTable *table) {
    memory_free(table->slots);
    *table = (NameTable){0};
}

void *grow_array(void *items, int64_t count, int64_t *capacity, size_t size) {
    if (count < *capacity) return items;
    *capacity = *capacity ? *capacity * 2 : 16;
    return memory_resize(items, (size_t)*capacity * size);
}

/* ---- fields -------------------------------------------------------------------------------------------------------- */

int shape_bytes(DType dtype, int ndim, const int64_t *shape, uint64_t *bytes) {
    uint64_t product = 1;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(product, (uint64_t)shape[i], &product)) return 1;
    if (__builtin_mul_overflow(product, (uint64_t)dtype_size(dtype), bytes)) return 1;
    return *bytes > (uint64_t)INT64_MAX;
}

static Status dtype_parse(const char *path, const char *name, const JsonToken *token, DType *out, Error *err) {
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (json_key_is(token, dtype_name((DType)i))) {
            *out = (DType)i;
            return OK;
        }
    FAIL("%s: tensor '%s': dtype: want F32, BF16, F16, F64, an integer type, BOOL, F8_E4M3 or F8_E5M2, got '%.*s'", path, name,
         (int)(token->length < 32 ? token->length : 32), token->text);
}

static Status shape_parse(JsonReader *reader, const char *path, TensorInfo *tensor, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_ARRAY_BEGIN, "shape", &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind != JSON_INTEGER || token.is_negative || token.unsigned_integer > (uint64_t)INT64_MAX)
            FAIL("%s: tensor '%s': shape: want integers from 0 to 2^63-1, got %s", path, tensor->name,
                 token.kind == JSON_INTEGER ? "an integer outside of that" : json_kind_name(token.kind));
        if (tensor->ndim == TENSOR_MAX_DIMS)
            FAIL("%s: tensor '%s': shape: want at most %d dimensions, got more", path, tensor->name, TENSOR_MAX_DIMS);
        tensor->shape[tensor->ndim++] = token.integer;
    }
}

/* begin and end, relative to the data. */
static Status offsets_parse(JsonReader *reader, const char *path, const char *name, uint64_t offsets[2], Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_ARRAY_BEGIN, "data_offsets", &token, err));
    for (int i = 0; i < 2; i++) {
        TRY(json_next(reader, &token, err));
        if (token.kind != JSON_INTEGER || token.is_negative)
            FAIL("%s: tensor '%s': data_offsets: want two integers from 0 to 2^64-1, got %s", path, name,
                 token.kind == JSON_INTEGER ? "a negative integer" : json_kind_name(token.kind));
        offsets[i] = token.unsigned_integer;
    }
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_ARRAY_END)
        FAIL("%s: tensor '%s': data_offsets: want two integers, got a third entry (%s)", path, name,
             json_kind_name(token.kind));
    return OK;
}

/* Copies a decoded string with a zero byte into header->names. There is room: see names_capacity. */
static Status keep_string(TensorHeader *header, const char *path, const char *what, const JsonToken *token, const char **out,
                          Error *err) {
    if (memchr(token->text, 0, token->length) != NULL) FAIL("%s: %s contains a zero byte", path, what);
    if (token->length + 1 > header->names_capacity - header->names_length)
        FAIL("%s: %s does not fit the header's own length", path, what);
    char *copy = header->names + header->names_length;
    memcpy(copy, token->text, token->length);
    copy[token->length] = 0;
    header->names_length += token->length + 1;
    *out = copy;
    return OK;
}

static Status metadata_parse(TensorHeader *header, JsonReader *reader, const char *path, Error *err) {
    JsonToken token;
    if (header->metadata != NULL) FAIL("%s: __metadata__ appears twice", path);
    header->metadata = grow_array(NULL, 0, &header->metadata_capacity, sizeof *header->metadata);
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "__metadata__", &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) return OK;
        const char *key = NULL, *value = NULL;
        TRY(keep_string(header, path, "a key of __metadata__", &token, &key, err));
        TRY(json_next(reader, &token, err));
        if (token.kind != JSON_STRING)
            FAIL("%s: __metadata__: '%.200s': want a string, got %s", path, key, json_kind_name(token.kind));
        TRY(keep_string(header, path, "a value of __metadata__", &token, &value, err));
        header->metadata = (const char **)grow_array((void *)header->metadata, header->metadata_count + 1,
                                                     &header->metadata_capacity, sizeof *header->metadata);
        header->metadata[header->metadata_count++] = key;
        header->metadata[header->metadata_count++] = value;
    }
}

static Status name_parse(TensorHeader *header, const char *path, const JsonToken *token, const char **name, Error *err) {
    if (token->length > TENSOR_NAME_MAX_BYTES)
        FAIL("%s: a tensor's name: want at most %u bytes, got %zu", path, TENSOR_NAME_MAX_BYTES, token->length);
    for (size_t i = 0; i < token->length; i++) {
        unsigned char c = (unsigned char)token->text[i];
        if (c < 0x20 || c == 0x7F) FAIL("%s: a tensor's name contains the control character 0x%02X", path, c);
    }
    return keep_string(header, path, "a tensor's name", token, name, err);
}

/* One {"dtype", "shape", "data_offsets"}; leaves the relative BEGIN in offset and END - BEGIN in bytes, not yet compared
 * with the shape. */
static Status tensor_parse(TensorHeader *header, JsonReader *reader, const char *path, const char *name, Error *err) {
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    TensorInfo tensor = {.name = name};
    uint64_t offsets[2] = {0, 0};
    JsonToken token;
    int seen = 0;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, name, &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        int field = 0;
        while (field < 3 && !json_key_is(&token, fields[field]))
            field++;
        if (field == 3)
            FAIL("%s: tensor '%s': unknown field '%.*s'", path, name, (int)(token.length < 64 ? token.length : 64), token.text);
        if (seen & (1 << field)) FAIL("%s: tensor '%s': %s appears twice", path, name, fields[field]);
        seen |= 1 << field;
        if (field == 0) {
            TRY(json_expect(reader, JSON_STRING, "dtype", &token, err));
            TRY(dtype_parse(path, name, &token, &tensor.dtype, err));
        } else if (field == 1) {
            TRY(shape_parse(reader, path, &tensor, err));
        } else {
            TRY(offsets_parse(reader, path, name, offsets, err));
        }
    }
    for (int field = 0; field < 3; field++)
        if (!(seen & (1 << field))) FAIL("%s: tensor '%s': %s is missing", path, name, fields[field]);
    if (offsets[1] < offsets[0])
        FAIL("%s: tensor '%s': data_offsets: want END >= BEGIN, got [%llu, %llu]", path, name, (unsigned long long)offsets[0],
             (unsigned long long)offsets[1]);
    tensor.offset = offsets[0];
    tensor.bytes = offsets[1] - offsets[0];
    header->tensors = grow_array(header->tensors, header->count, &header->capacity, sizeof *header->tensors);
    header->tensors[header->count++] = tensor;
    return OK;
}

/* ---- the whole header ---------------------------------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b) {
    const TensorInfo *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty tensors come before the one that starts there */
    return strcmp(x->name, y->name);
}

/* Shapes against ranges, ranges against one another and against the file: a running cursor forbids overlaps and holes. */
static Status layout_check(TensorHeader *header, const char *path, uint64_t data_start, uint64_t data_bytes, Error *err) {
    if (header->count > 1) qsort(header->tensors, (size_t)header->count, sizeof *header->tensors, by_offset);
    uint64_t cursor = 0;
    for (int64_t i = 0; i < header->count; i++) {
        TensorInfo *tensor = &header->tensors[i];
        uint64_t bytes = 0;
        if (tensor->offset != cursor)
            FAIL("%s: tensor '%s': data_offsets: want BEGIN %llu (no overlaps, no holes), got %llu", path, tensor->name,
                 (unsigned long long)cursor, (unsigned long long)tensor->offset);
        if (shape_bytes(tensor->dtype, tensor->ndim, tensor->shape, &bytes))
            FAIL("%s: tensor '%s': shape: its size in bytes overflows 63 bits", path, tensor->name);
        if (bytes != tensor->bytes)
            FAIL("%s: tensor '%s': want %llu bytes for its dtype and shape, got %llu from data_offsets", path, tensor->name,
                 (unsigned long long)bytes, (unsigned long long)tensor->bytes);
        cursor += tensor->bytes; /* no overflow: BEGIN + (END - BEGIN) is END */
        tensor->offset += data_start;
    }
    if (cursor != data_bytes)
        FAIL("%s: want %llu bytes of tensor data as the header declares, got %llu; the file is truncated or has trailing bytes",
             path, (unsigned long long)cursor, (unsigned long long)data_bytes);
    return OK;
}

static Status tensors_parse(TensorHeader *header, JsonReader *reader, const char *path, NameTable *seen, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "header", &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (json_key_is(&token, "__metadata__")) {
            TRY(metadata_parse(header, reader, path, err));
            continue;
        }
        const char *name = NULL;
        TRY(name_parse(header, path, &token, &name, err));
        if (names_put(seen, name, 0) >= 0) FAIL("%s: tensor '%s' appears twice", path, name);
        TRY(tensor_parse(header, reader, path, name, err));
    }
    return json_expect(reader, JSON_END, "what follows the header", &token, err);
}

Status header_parse(TensorHeader *header, const char *path, const char *text, size_t length, uint64_t file_size, Error *err) {
    *header = (TensorHeader){.names = memory_alloc(length), .names_capacity = length};
    NameTable seen = {0};
    JsonReader reader;
    json_open(&reader, path, text, length, 1, (JsonLimits){.depth = HEADER_DEPTH, .string_bytes = length});
    Status status = tensors_parse(header, &reader, path, &seen, err);
    if (status == OK) status = layout_check(header, path, 8 + (uint64_t)length, file_size - 8 - length, err);
    json_close(&reader);
    names_free(&seen);
    if (status != OK) header_free(header);
    return status;
}

void header_free(TensorHeader *header) {
    memory_free(header->tensors);
    memory_free(header->names);
    memory_free((void *)header->metadata);
    *header = (TensorHeader){0};
}
