/* What is in a GGUF file: its keys, arrays by their first items, and its tensors. */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/gguf_model.h"
#include "train/inspect.h"

#define LARGEST 8
#define ITEMS_SHOWN 5
#define TEXT_SHOWN 72
#define KEY_COLUMN 44
#define TYPE_NUMBERS 64 /* all that ggml_type_info knows are below */

static void add_value(InspectOutput *out, const GgufValue *value, int first) {
    uint64_t shown = value->count < ITEMS_SHOWN ? value->count : ITEMS_SHOWN;
    if (out->json) {
        text_adds(&out->text, first ? "{" : ", {");
        text_addf(&out->text, "\"type\": \"%s\", \"count\": ", gguf_type_name(value->type));
        text_addf(&out->text, value->is_array ? "%llu, \"key\": " : "null, \"key\": ", (unsigned long long)value->count);
        text_add_json_string(&out->text, value->key, strlen(value->key));
        text_adds(&out->text, ", \"text\": ");
    } else {
        text_addf(&out->text, "  %-*s ", KEY_COLUMN, value->key);
    }
    Text items = {0};
    text_adds(&items, value->is_array ? "[" : "");
    for (uint64_t i = 0; i < shown; i++) {
        if (i > 0) text_adds(&items, ", ");
        gguf_item_text(value, i, TEXT_SHOWN, &items);
    }
    if (shown < value->count) text_addf(&items, ", ... %llu in all", (unsigned long long)value->count);
    text_adds(&items, value->is_array ? "]" : "");
    if (out->json) {
        text_add_json_string(&out->text, items.data, items.length);
        text_adds(&out->text, "}");
    } else {
        text_addf(&out->text, "%s\n", items.data);
    }
    text_free(&items);
}

static void add_values(InspectOutput *out, const GgufFile *file) {
    inspect_integer(out, "keys", gguf_value_count(file));
    inspect_key(out, "metadata");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (int64_t i = 0; i < gguf_value_count(file); i++)
        add_value(out, gguf_value(file, i), i == 0);
    text_adds(&out->text, out->json ? "]" : "");
}

static int by_size(const void *a, const void *b) {
    const GgufTensor *x = *(const GgufTensor *const *)a, *y = *(const GgufTensor *const *)b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return strcmp(x->name, y->name);
}

/* Shapes as elsewhere in nibble: rows first. */
static void add_tensor(InspectOutput *out, const GgufTensor *tensor, int first) {
    char size[32];
    Text shape = {0};
    text_adds(&shape, "[");
    for (int d = tensor->ndim - 1; d >= 0; d--)
        text_addf(&shape, "%lld%s", (long long)tensor->ne[d], d > 0 ? ", " : "");
    text_adds(&shape, "]");
    if (out->json) {
        text_adds(&out->text, first ? "{\"name\": " : ", {\"name\": ");
        text_add_json_string(&out->text, tensor->name, strlen(tensor->name));
        text_addf(&out->text, ", \"dtype\": \"%s\", \"shape\": %s, \"bytes\": %llu}", tensor->type->name, shape.data,
                  (unsigned long long)tensor->bytes);
    } else {
        text_addf(&out->text, "  %-56s %-7s %-20s %s\n", tensor->name, tensor->type->name, shape.data,
                  format_bytes((double)tensor->bytes, size, sizeof size));
    }
    text_free(&shape);
}

static void add_types(InspectOutput *out, const GgufFile *file) {
    int64_t tensors[TYPE_NUMBERS] = {0};
    uint64_t bytes[TYPE_NUMBERS] = {0};
    for (int64_t i = 0; i < gguf_tensor_count(file); i++) {
        const GgufTensor *tensor = gguf_tensor(file, i);
        tensors[tensor->type->type % TYPE_NUMBERS]++;
        bytes[tensor->type->type % TYPE_NUMBERS] += tensor->bytes;
    }
    inspect_key(out, "types");
    text_adds(&out->text, out->json ? "{" : "\n");
    for (uint32_t type = 0, first = 1; type < TYPE_NUMBERS; type++) {
        char size[32];
        if (tensors[type] == 0) continue;
        const char *name = ggml_type_info(type)->name;
        if (out->json)
            text_addf(&out->text, "%s\"%s\": {\"tensors\": %lld, \"bytes\": %llu}", first ? "" : ", ", name,
                      (long long)tensors[type], (unsigned long long)bytes[type]);
        else
            text_addf(&out->text, "  %-7s %6lld tensors  %s\n", name, (long long)tensors[type],
                      format_bytes((double)bytes[type], size, sizeof size));
        first = 0;
    }
    text_adds(&out->text, out->json ? "}" : "");
}

static void add_tensors(InspectOutput *out, const GgufFile *file) {
    int64_t count = gguf_tensor_count(file), shown = out->all_tensors || count < LARGEST ? count : LARGEST;
    const GgufTensor **list = memory_alloc((size_t)count * sizeof *list);
    uint64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        list[i] = gguf_tensor(file, i);
        bytes += list[i]->bytes; /* at most the file's size */
    }
    if (!out->all_tensors && count > 1) qsort((void *)list, (size_t)count, sizeof *list, by_size);
    inspect_integer(out, "tensors", count);
    inspect_size(out, "bytes", bytes);
    add_types(out, file);
    inspect_key(out, out->all_tensors ? "tensor_list" : "largest");
    text_adds(&out->text, out->json ? "[" : "\n");
    for (int64_t i = 0; i < shown; i++)
        add_tensor(out, list[i], i == 0);
    text_adds(&out->text, out->json ? "]" : "");
    memory_free((void *)list);
}

/* Whether it can be given as MODEL, or why not. */
static void add_use(InspectOutput *out, const GgufFile *file) {
    Text config = {0};
    Error why = {0};
    GgufString type = {0};
    if (gguf_get_string(file, "general.type", &type, &why) == OK && type.length == 7 && memcmp(type.bytes, "adapter", 7) == 0) {
        inspect_string(out, "runs_here", "as --adapter, with the model that it was trained on");
        return;
    }
    int runs = gguf_config_text(file, &config, &why) == OK;
    inspect_string(out, "runs_here", runs ? "yes" : why.text);
    text_free(&config);
}

Status inspect_gguf(InspectOutput *out, const char *path, Error *err) {
    GgufFile *file;
    TRY(gguf_open(&file, path, err));
    inspect_string(out, "kind", "gguf");
    add_values(out, file);
    add_tensors(out, file);
    add_use(out, file);
    gguf_close(file);
    return OK;
}
