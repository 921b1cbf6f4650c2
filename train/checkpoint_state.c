/* state.json: one object, every key exactly once, nothing else. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "data/json.h"
#include "train/checkpoint_internal.h"

#define FORMAT_VERSION 1

typedef enum FieldKind { FIELD_COUNT, FIELD_REAL, FIELD_HASH } FieldKind;

typedef struct Field {
    const char *name;
    FieldKind kind;
    size_t offset; /* into CheckpointState */
    int64_t least; /* FIELD_COUNT */
} Field;

#define FIELD(name, kind, least) \
    { #name, kind, offsetof(CheckpointState, name), least }

static const Field fields[] = {
    FIELD(step, FIELD_COUNT, 0),       FIELD(micro_batches, FIELD_COUNT, 0), FIELD(optimizer_steps, FIELD_COUNT, 0),
    FIELD(bad_steps, FIELD_COUNT, 0),  FIELD(tokens, FIELD_COUNT, 0),        FIELD(trained_tokens, FIELD_COUNT, 0),
    FIELD(seconds, FIELD_REAL, 0),     FIELD(first_eval, FIELD_REAL, 0),     FIELD(best_eval, FIELD_REAL, 0),
    FIELD(best_step, FIELD_COUNT, -1), FIELD(last_eval, FIELD_COUNT, -1),    FIELD(complete, FIELD_COUNT, 0),
    FIELD(data_hash, FIELD_HASH, 0),   FIELD(weights_hash, FIELD_HASH, 0),   FIELD(config_hash, FIELD_HASH, 0),
    FIELD(elements, FIELD_COUNT, 0),
};
#define FIELDS (sizeof fields / sizeof fields[0])

void checkpoint_state_print(const CheckpointState *state, const CheckpointFile *params, Text *out) {
    text_clear(out);
    text_addf(out, "{\n  \"version\": %d,\n", FORMAT_VERSION);
    for (size_t i = 0; i < FIELDS; i++) {
        const char *at = (const char *)state + fields[i].offset;
        int64_t count;
        double real;
        uint64_t hash;
        text_addf(out, "  \"%s\": ", fields[i].name);
        switch (fields[i].kind) {
            case FIELD_COUNT:
                memcpy(&count, at, sizeof count);
                text_addf(out, "%" PRId64, count);
                break;
            case FIELD_REAL: /* 17 digits give the same double back; JSON has no NaN and no infinity */
                memcpy(&real, at, sizeof real);
                if (isfinite(real))
                    text_addf(out, "%.17g", real);
                else
                    text_adds(out, "null");
                break;
            case FIELD_HASH:
                memcpy(&hash, at, sizeof hash);
                text_addf(out, "\"%016" PRIx64 "\"", hash);
                break;
        }
        text_adds(out, ",\n");
    }
    text_addf(out, "  \"params_bytes\": %" PRIu64 ",\n  \"params_xxh3\": \"%016" PRIx64 "\",\n  \"xxh3\":", params->bytes,
              params->hash);
    text_addf(out, " \"%016" PRIx64 "\"\n}\n", hash_bytes(out->data, out->length));
}

/* Exactly sixteen lower-case hexadecimal digits, so that no other text means the same. */
static Status parse_hash(JsonReader *reader, const char *name, uint64_t *out, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, name, &token, err));
    uint64_t value = 0;
    int good = token.length == 16;
    for (size_t i = 0; good && i < 16; i++) {
        char c = token.text[i];
        good = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
        value = value << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    if (!good) FAIL("%s: line %lld: %s: want 16 hexadecimal digits", reader->what, (long long)token.line, name);
    *out = value;
    return OK;
}

static Status parse_real(JsonReader *reader, const char *name, double *out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    *out = token.kind == JSON_NULL ? NAN : token.number;
    if (token.kind == JSON_NULL || token.kind == JSON_INTEGER || token.kind == JSON_NUMBER) return OK;
    FAIL("%s: line %lld: %s: want a number or null, got %s", reader->what, (long long)token.line, name,
         json_kind_name(token.kind));
}

static Status parse_field(JsonReader *reader, const Field *field, CheckpointState *state, Error *err) {
    char *at = (char *)state + field->offset;
    int64_t count = 0;
    double real = 0.0;
    uint64_t hash = 0;
    switch (field->kind) {
        case FIELD_COUNT:
            TRY(json_get_integer(reader, field->name, field->least, INT64_MAX, &count, err));
            memcpy(at, &count, sizeof count);
            return OK;
        case FIELD_REAL:
            TRY(parse_real(reader, field->name, &real, err));
            memcpy(at, &real, sizeof real);
            return OK;
        case FIELD_HASH:
            TRY(parse_hash(reader, field->name, &hash, err));
            memcpy(at, &hash, sizeof hash);
            return OK;
    }
    FAIL("internal error: field %s has no kind", field->name);
}

/* The keys come in the order in which they are printed: a missing, doubled or unknown one is met where another is wanted. */
static Status expect_key(JsonReader *reader, const char *name, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_KEY && json_key_is(&token, name)) return OK;
    FAIL("%s: line %lld: want the key \"%s\" here", reader->what, (long long)token.line, name);
}

static Status parse_all(JsonReader *reader, CheckpointState *state, CheckpointFile *params, uint64_t *claimed, size_t *covered,
                        Error *err) {
    JsonToken token;
    int64_t version, bytes;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "the checkpoint's state", &token, err));
    TRY(expect_key(reader, "version", err));
    TRY(json_get_integer(reader, "version", FORMAT_VERSION, FORMAT_VERSION, &version, err));
    for (size_t i = 0; i < FIELDS; i++) {
        TRY(expect_key(reader, fields[i].name, err));
        TRY(parse_field(reader, &fields[i], state, err));
    }
    TRY(expect_key(reader, "params_bytes", err));
    TRY(json_get_integer(reader, "params_bytes", 0, INT64_MAX, &bytes, err));
    params->bytes = (uint64_t)bytes;
    TRY(expect_key(reader, "params_xxh3", err));
    TRY(parse_hash(reader, "params_xxh3", &params->hash, err));
    TRY(expect_key(reader, "xxh3", err));
    *covered = (size_t)(reader->at - reader->text);
    TRY(parse_hash(reader, "xxh3", claimed, err));
    TRY(json_expect(reader, JSON_OBJECT_END, "the end of the checkpoint's state", &token, err));
    TRY(json_expect(reader, JSON_END, "the end of the file", &token, err));
    if (state->elements > CHECKPOINT_MAX_ELEMENTS)
        FAIL("%s: elements: want at most %lld, got %lld", reader->what, (long long)CHECKPOINT_MAX_ELEMENTS,
             (long long)state->elements);
    return OK;
}

Status checkpoint_state_parse(const char *what, const char *text, size_t length, CheckpointState *state, CheckpointFile *params,
                              uint64_t *claimed, size_t *covered, Error *err) {
    memset(state, 0, sizeof *state);
    memset(params, 0, sizeof *params);
    JsonReader reader;
    json_open(&reader, what, text, length, 1, (JsonLimits){.depth = 1, .string_bytes = 64});
    Status status = parse_all(&reader, state, params, claimed, covered, err);
    json_close(&reader);
    return status;
}

Status checkpoint_state_read(const char *folder, CheckpointState *state, CheckpointFile *params, Error *err) {
    char *path = path_join(folder, CHECKPOINT_STATE_NAME), *text;
    size_t length, covered = 0;
    uint64_t claimed = 0;
    Status status = file_read(path, CHECKPOINT_STATE_LIMIT, &text, &length, err);
    memory_free(path);
    TRY(status);
    status = checkpoint_state_parse(CHECKPOINT_STATE_NAME, text, length, state, params, &claimed, &covered, err);
    if (status == OK && hash_bytes(text, covered) != claimed)
        status = error_set(err, ERR_FAILED, "%s: checksum differs; the file was changed or is damaged", CHECKPOINT_STATE_NAME);
    memory_free(text);
    return status;
}
