/* bitsandbytes' tensors in a pre-quantized folder.
 *
 *   4 bit    X.weight                    U8 [ceil(n/2), 1], or the same bytes as another quant_storage type
 *            X.weight.absmax             F32 [blocks], or U8 [blocks] when nested
 *            X.weight.quant_map          F32 [16]
 *            X.weight.nested_absmax      F32 [ceil(blocks/256)]       nested only
 *            X.weight.nested_quant_map   F32 [256]                    nested only
 *            X.weight.quant_state.bitsandbytes__nf4 or __fp4: U8, the text of a JSON object
 *   8 bit    X.weight I8 [out, in], X.SCB F32 [out], X.weight_format U8 = 0 (rows)
 *
 * Source: bitsandbytes functional.py QuantState (as_dict, from_dict), nn/modules.py Linear8bitLt. Everything is checked
 * against the weight's shape before it is used; the maps are the file's own.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "data/json.h"
#include "quant/double_quant.h"
#include "train/weights_internal.h"

#define QUANT_STATE_LIMIT 4096 /* the real ones have about 200 bytes */

typedef struct QuantState {
    char quant_type[8];
    int64_t blocksize, nested_blocksize, shape[2];
    double nested_offset;
    unsigned seen;
} QuantState;

enum {
    SEEN_TYPE = 1,
    SEEN_BLOCKSIZE = 2,
    SEEN_DTYPE = 4,
    SEEN_SHAPE = 8,
    SEEN_NESTED_BLOCKSIZE = 16,
    SEEN_NESTED_DTYPE = 32,
    SEEN_OFFSET = 64
};
#define SEEN_PLAIN (SEEN_TYPE | SEEN_BLOCKSIZE | SEEN_DTYPE | SEEN_SHAPE)
#define SEEN_NESTED (SEEN_NESTED_BLOCKSIZE | SEEN_NESTED_DTYPE | SEEN_OFFSET)

/* A short string that must be one of a list. */
static Status get_word(JsonReader *json, const char *key, const char *const *allowed, char *out, size_t capacity, Error *err) {
    JsonToken token;
    TRY(json_expect(json, JSON_STRING, key, &token, err));
    for (; *allowed != NULL; allowed++)
        if (json_key_is(&token, *allowed)) {
            if (out != NULL) (void)snprintf(out, capacity, "%s", *allowed);
            return OK;
        }
    FAIL("%s: %s: '%.*s' is not supported", json->what, key, (int)(token.length < 40 ? token.length : 40), token.text);
}

static Status get_shape(JsonReader *json, int64_t shape[2], Error *err) {
    JsonToken token;
    TRY(json_expect(json, JSON_ARRAY_BEGIN, "shape", &token, err));
    TRY(json_get_integer(json, "shape", 1, INT32_MAX, &shape[0], err));
    TRY(json_get_integer(json, "shape", 1, INT32_MAX, &shape[1], err));
    return json_expect(json, JSON_ARRAY_END, "shape", &token, err);
}

static Status get_value(JsonReader *json, const JsonToken *key, QuantState *state, Error *err) {
    static const char *const types[] = {"nf4", "fp4", NULL}, *const dtypes[] = {"bfloat16", "float16", "float32", NULL};
    static const char *const nested_dtypes[] = {"float32", NULL};
    static const char *const keys[] = {"quant_type",       "blocksize",    "dtype",        "shape",
                                       "nested_blocksize", "nested_dtype", "nested_offset"};
    int which = 0;
    while (which < 7 && !json_key_is(key, keys[which]))
        which++;
    if (which == 7) FAIL("%s: unknown key '%.*s'", json->what, (int)(key->length < 40 ? key->length : 40), key->text);
    if (state->seen & 1u << which) FAIL("%s: '%s' stands there twice", json->what, keys[which]);
    state->seen |= 1u << which;
    switch (which) {
        case 0: return get_word(json, keys[0], types, state->quant_type, sizeof state->quant_type, err);
        case 1: return json_get_integer(json, keys[1], 32, 4096, &state->blocksize, err);
        case 2: return get_word(json, keys[2], dtypes, NULL, 0, err);
        case 3: return get_shape(json, state->shape, err);
        case 4: return json_get_integer(json, keys[4], 1, 4096, &state->nested_blocksize, err);
        case 5: return get_word(json, keys[5], nested_dtypes, NULL, 0, err);
        default: return json_get_number(json, keys[6], &state->nested_offset, err);
    }
}

static Status parse_quant_state(JsonReader *json, QuantState *state, Error *err) {
    JsonToken token;
    TRY(json_expect(json, JSON_OBJECT_BEGIN, "quant_state", &token, err));
    for (;;) {
        TRY(json_next(json, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        TRY(get_value(json, &token, state, err));
    }
    return json_expect(json, JSON_END, "quant_state", &token, err);
}

static Status read_quant_state(const TensorFiles *files, const TensorInfo *blob, QuantState *state, Error *err) {
    char text[QUANT_STATE_LIMIT];
    if (blob->dtype != DTYPE_U8 || blob->bytes == 0 || blob->bytes > sizeof text)
        FAIL("%s: want 1 to %zu bytes of U8, got %llu of %s", blob->name, sizeof text, (unsigned long long)blob->bytes,
             dtype_name(blob->dtype));
    TRY(tensors_read(files, blob, 0, text, (size_t)blob->bytes, 0, err));
    JsonReader json;
    json_open(&json, blob->name, text, (size_t)blob->bytes, 1, (JsonLimits){.depth = 2, .string_bytes = 64});
    *state = (QuantState){0};
    Status status = parse_quant_state(&json, state, err);
    json_close(&json);
    return status;
}

/* The tensor `<name><suffix>` of this type and number of values; fails when it is not there or not that. */
static Status find_part(WeightCheck *check, const char *name, const char *suffix, DType type, int64_t values,
                        const TensorInfo **out, Error *err) {
    char full[WEIGHT_NAME_MAX + 64];
    (void)snprintf(full, sizeof full, "%s%s", name, suffix);
    const TensorInfo *tensor = tensors_find(check->files, full);
    if (tensor == NULL) FAIL("%s is missing", full);
    if (tensor->dtype != type || tensor->bytes != (uint64_t)values * dtype_size(type))
        FAIL("%s: want %lld values of %s, got %llu bytes of %s", full, (long long)values, dtype_name(type),
             (unsigned long long)tensor->bytes, dtype_name(tensor->dtype));
    check->used[check->used_count++] = tensor;
    *out = tensor;
    return OK;
}

static int has_part(const TensorFiles *files, const char *name, const char *suffix) {
    char full[WEIGHT_NAME_MAX + 64];
    (void)snprintf(full, sizeof full, "%s%s", name, suffix);
    return tensors_find(files, full) != NULL;
}

/* What the blob says must be what its name, the config and the other tensors say. */
static Status check_quant_state(const TensorInfo *blob, const QuantState *state, WeightFormat format, int nested,
                                const WeightEntry *entry, Error *err) {
    unsigned wanted = SEEN_PLAIN | (nested ? (unsigned)SEEN_NESTED : 0u);
    if ((state->seen & wanted) != wanted)
        FAIL("%s: quant_type, blocksize, dtype, shape%s: not all of them are there", blob->name,
             nested ? " and the nested ones" : "");
    if (!nested && (state->seen & SEEN_NESTED) != 0) FAIL("%s: nested values without a nested_absmax tensor", blob->name);
    if (strcmp(state->quant_type, weight_format_name(format)) != 0)
        FAIL("%s: quant_type: got %s", blob->name, state->quant_type);
    if (state->shape[0] != entry->rows || state->shape[1] != entry->cols)
        FAIL("%s: shape: want [%lld, %lld], got [%lld, %lld]", blob->name, (long long)entry->rows, (long long)entry->cols,
             (long long)state->shape[0], (long long)state->shape[1]);
    if (nested && state->nested_blocksize != NESTED_BLOCK)
        FAIL("%s: nested_blocksize: want %d, got %lld", blob->name, NESTED_BLOCK, (long long)state->nested_blocksize);
    if (nested && !isfinite((float)state->nested_offset)) FAIL("%s: nested_offset is out of range", blob->name);
    return OK;
}

static Status find_parts(WeightCheck *check, const char *name, int nested, WeightEntry *entry, Error *err) {
    int64_t blocks = weight_blocks(entry->rows, entry->cols, entry->spec.block_size);
    DType constants = nested ? DTYPE_U8 : DTYPE_F32;
    TRY(find_part(check, name, ".absmax", constants, blocks, &entry->scales, err));
    TRY(find_part(check, name, ".quant_map", DTYPE_F32, 16, &entry->map, err));
    if (!nested) return OK;
    int64_t groups = (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
    TRY(find_part(check, name, ".nested_absmax", DTYPE_F32, groups, &entry->nested_absmax, err));
    return find_part(check, name, ".nested_quant_map", DTYPE_F32, DYNAMIC_MAP_ENTRIES, &entry->nested_map, err);
}

/* The packed codes: any storage type, one column (a single row is the transposed layout of old releases). */
static Status check_codes(const TensorInfo *codes, const WeightEntry *entry, Error *err) {
    uint64_t want = ((uint64_t)(entry->rows * entry->cols) + 1) / 2;
    if (codes->bytes != want)
        FAIL("%s: want %llu bytes of packed codes, got %llu", codes->name, (unsigned long long)want,
             (unsigned long long)codes->bytes);
    if (codes->ndim != 2 || codes->shape[1] != 1)
        FAIL(
            "%s: want packed codes as one column [n, 1]; other layouts (a transposed one of an early bitsandbytes) are not "
            "supported",
            codes->name);
    return OK;
}

Status bnb4_find(WeightCheck *check, const char *name, WeightEntry *entry, int *found, Error *err) {
    static const struct {
        const char *suffix;
        WeightFormat format;
    } states[2] = {{".quant_state.bitsandbytes__nf4", WEIGHT_NF4}, {".quant_state.bitsandbytes__fp4", WEIGHT_FP4}};
    *found = 0;
    int which = has_part(check->files, name, states[0].suffix) ? 0 : has_part(check->files, name, states[1].suffix) ? 1 : -1;
    if (which < 0) return OK;
    char full[WEIGHT_NAME_MAX + 64];
    (void)snprintf(full, sizeof full, "%s%s", name, states[which].suffix);
    const TensorInfo *blob = tensors_find(check->files, full);
    check->used[check->used_count++] = blob;
    int nested = has_part(check->files, name, ".nested_absmax");
    QuantState state;
    TRY(read_quant_state(check->files, blob, &state, err));
    TRY(check_quant_state(blob, &state, states[which].format, nested, entry, err));
    TRY(check_codes(entry->file, entry, err));
    entry->origin = ORIGIN_BNB4;
    entry->quantized = 1;
    entry->spec = (QuantSpec){.format = states[which].format, .double_quant = nested, .block_size = (int32_t)state.blocksize};
    entry->nested_offset = (float)state.nested_offset;
    TRY(quant_check(&entry->spec, entry->rows, entry->cols, err));
    *found = 1;
    return find_parts(check, name, nested, entry, err);
}

/* ---- LLM.int8 ---- */

/* "….q_proj.weight" and suffix -> "….q_proj<suffix>" */
static void module_part(const char *name, const char *suffix, char *out, size_t capacity) {
    size_t length = strlen(name) - strlen(".weight");
    (void)snprintf(out, capacity, "%.*s%s", (int)length, name, suffix);
}

Status bnb8_find(WeightCheck *check, const char *name, WeightEntry *entry, int *found, Error *err) {
    *found = 0;
    char full[WEIGHT_NAME_MAX + 64];
    module_part(name, ".SCB", full, sizeof full);
    if (entry->file->dtype != DTYPE_I8 || tensors_find(check->files, full) == NULL) return OK;
    TRY(find_part(check, full, "", DTYPE_F32, entry->rows, &entry->scales, err));
    module_part(name, ".weight_format", full, sizeof full);
    const TensorInfo *layout = tensors_find(check->files, full);
    if (layout != NULL) {
        uint8_t value;
        if (layout->dtype != DTYPE_U8 || layout->bytes != 1) FAIL("%s: want one U8", full);
        TRY(tensors_read(check->files, layout, 0, &value, 1, 0, err));
        if (value != 0) FAIL("%s: want 0 (rows), got %d; save the model with a newer bitsandbytes", full, (int)value);
        check->used[check->used_count++] = layout;
    }
    entry->origin = ORIGIN_INT8;
    *found = 1;
    return OK;
}
