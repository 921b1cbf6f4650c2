/* Tables of tensors, and the writer of named values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/inspect.h"

#define KEY_COLUMN 22
#define LARGEST 8

void inspect_key(InspectOutput *out, const char *key) {
    if (out->json) {
        text_addf(&out->text, "%s\"%s\": ", out->members++ > 0 ? ", " : "", key);
        return;
    }
    size_t length = strlen(key);
    for (size_t i = 0; i < length; i++)
        text_add(&out->text, key[i] == '_' ? " " : &key[i], 1);
    text_addf(&out->text, "%*s", length < KEY_COLUMN ? (int)(KEY_COLUMN - length) : 1, "");
}

void inspect_string(InspectOutput *out, const char *key, const char *value) {
    inspect_key(out, key);
    if (out->json)
        text_add_json_string(&out->text, value, strlen(value));
    else
        text_addf(&out->text, "%s\n", value);
}

void inspect_integer(InspectOutput *out, const char *key, int64_t value) {
    inspect_key(out, key);
    text_addf(&out->text, "%lld%s", (long long)value, out->json ? "" : "\n");
}

void inspect_number(InspectOutput *out, const char *key, double value) {
    inspect_key(out, key);
    if (isfinite(value))
        text_addf(&out->text, "%.9g%s", value, out->json ? "" : "\n");
    else
        text_adds(&out->text, out->json ? "null" : "none\n");
}

void inspect_bool(InspectOutput *out, const char *key, int value) {
    inspect_key(out, key);
    text_addf(&out->text, "%s%s", out->json ? (value ? "true" : "false") : (value ? "yes" : "no"), out->json ? "" : "\n");
}

void inspect_size(InspectOutput *out, const char *key, uint64_t bytes) {
    char size[32];
    inspect_key(out, key);
    if (out->json)
        text_addf(&out->text, "%llu", (unsigned long long)bytes);
    else
        text_addf(&out->text, "%s\n", format_bytes((double)bytes, size, sizeof size));
}

/* ---- tensors ------------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    const TensorInfo *x = *(const TensorInfo *const *)a, *y = *(const TensorInfo *const *)b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return strcmp(x->name, y->name);
}

static void add_tensor(InspectOutput *out, const TensorInfo *tensor, int first) {
    char size[32];
    Text shape = {0};
    text_adds(&shape, "[");
    for (int d = 0; d < tensor->ndim; d++)
        text_addf(&shape, "%s%lld", d > 0 ? ", " : "", (long long)tensor->shape[d]);
    text_adds(&shape, "]");
    if (out->json) {
        text_addf(&out->text, "%s{\"name\": ", first ? "" : ", ");
        text_add_json_string(&out->text, tensor->name, strlen(tensor->name));
        text_addf(&out->text, ", \"dtype\": \"%s\", \"shape\": %s, \"bytes\": %llu}", dtype_name(tensor->dtype), shape.data,
                  (unsigned long long)tensor->bytes);
    } else {
        text_addf(&out->text, "  %-56s %-5s %-20s %s\n", tensor->name, dtype_name(tensor->dtype), shape.data,
                  format_bytes((double)tensor->bytes, size, sizeof size));
    }
    text_free(&shape);
}

static void add_types(InspectOutput *out, const TensorFiles *files) {
    int64_t tensors[DTYPE_COUNT] = {0};
    uint64_t bytes[DTYPE_COUNT] = {0};
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        tensors[tensor->dtype]++;
        bytes[tensor->dtype] += tensor->bytes;
    }
    inspect_key(out, "types");
    text_adds(&out->text, out->json ? "{" : "\n");
    for (int type = 0, first = 1; type < DTYPE_COUNT; type++) {
        char size[32];
        if (tensors[type] == 0) continue;
        if (out->json)
            text_addf(&out->text, "%s\"%s\": {\"tensors\": %lld, \"elements\": %llu, \"bytes\": %llu}", first ? "" : ", ",
                      dtype_name((DType)type), (long long)tensors[type],
                      (unsigned long long)(bytes[type] / dtype_size((DType)type)), (unsigned long long)bytes[type]);
        else
            text_addf(&out->text, "  %-6s %6lld tensors  %14llu elements  %s\n", dtype_name((DType)type),
                      (long long)tensors[type], (unsigned long long)(bytes[type] / dtype_size((DType)type)),
                      format_bytes((double)bytes[type], size, sizeof size));
        first = 0;
    }
    text_adds(&out->text, out->json ? "}" : "");
}

Status inspect_tensors(InspectOutput *out, const TensorFiles *files, Error *err) {
    int64_t count = tensors_count(files), shown = out->all_tensors || count < LARGEST ? count : LARGEST;
    if (count < 1) FAIL("%s: holds no tensors", tensors_file_name(files, 0));
    const TensorInfo **list = memory_alloc((size_t)count * sizeof *list);
    uint64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        list[i] = tensors_get(files, i);
        bytes += list[i]->bytes;
    }
    if (!out->all_tensors) qsort(list, (size_t)count, sizeof *list, by_size);
    inspect_integer(out, "tensors", count);
    inspect_size(out, "bytes", bytes);
    add_types(out, files);
    inspect_key(out, out->all_tensors ? "tensor_list" : "largest");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (int64_t i = 0; i < shown; i++)
        add_tensor(out, list[i], i == 0);
    text_adds(&out->text, out->json ? "]" : "");
    memory_free(list);
    return OK;
}
