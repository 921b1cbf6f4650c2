/* A bounded, streaming reader of untrusted JSON.
 *
 * Pulls one token after another out of a text in memory, in one pass, with
 * exact 64-bit integers, line numbers, and caps on depth, string length and
 * number of tokens. Refused: ill-formed UTF-8, lone surrogates, control characters
 * in strings, numbers that JSON does not allow, trailing commas, anything after
 * the value. Never recurses. Used for safetensors headers, tokenizers, JSONL
 * and checkpoints; cJSON is only used for configs and small metadata.
 */
#ifndef NIBBLE_DATA_JSON_H
#define NIBBLE_DATA_JSON_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef enum JsonKind {
    JSON_END, /* the value is complete and nothing but white space follows */
    JSON_OBJECT_BEGIN,
    JSON_OBJECT_END,
    JSON_ARRAY_BEGIN,
    JSON_ARRAY_END,
    JSON_KEY, /* text: the decoded key; the value is the next token */
    JSON_STRING,
    JSON_INTEGER, /* no fraction, no exponent, and fits: integer, or unsigned_integer when is_unsigned */
    JSON_NUMBER,  /* any other number: number */
    JSON_TRUE,
    JSON_FALSE,
    JSON_NULL
} JsonKind;

typedef struct JsonToken {
    JsonKind kind;
    const char *text; /* KEY, STRING: decoded UTF-8, not zero-terminated; valid until the next call */
    size_t length;
    int64_t integer;           /* INTEGER: the value when it fits int64_t */
    uint64_t unsigned_integer; /* INTEGER >= 0: the value */
    int is_negative;
    double number; /* INTEGER and NUMBER: nearest double */
    int64_t line;  /* 1-based line on which the token starts, counted from first_line */
    int depth;     /* of the container the token belongs to; BEGIN and its END have the same depth */
} JsonToken;

typedef struct JsonLimits {
    int depth;            /* at most 64 */
    size_t string_bytes;  /* of one decoded string */
} JsonLimits;

#define JSON_MAX_DEPTH 64

typedef struct JsonReader {
    const char *what; /* for messages: the file's name */
    const char *text, *at, *end;
    JsonLimits limits;
    int64_t line;
    int depth;
    uint8_t container[JSON_MAX_DEPTH]; /* '{' or '[' per depth */
    int state;
    char *scratch; /* decoded strings that contain escapes */
    size_t scratch_capacity;
} JsonReader;

/* Borrows text (length bytes, no terminator needed) and what. first_line is the number of the text's first line. */
void json_open(JsonReader *reader, const char *what, const char *text, size_t length, int64_t first_line, JsonLimits limits);
void json_close(JsonReader *reader);
/* Overwrites *token with the next one. After JSON_END it keeps returning JSON_END. */
Status json_next(JsonReader *reader, JsonToken *token, Error *err);
/* Skips the rest of the value that `token` (just returned) begins; a scalar is already whole; after a KEY skips its value. */
Status json_skip(JsonReader *reader, const JsonToken *token, Error *err);

/* Conveniences that fail with the line, the wanted kind and `name`. */
Status json_expect(JsonReader *reader, JsonKind kind, const char *name, JsonToken *token, Error *err);
Status json_get_string(JsonReader *reader, const char *name, char **out, size_t *length, Error *err); /* memory_free */
Status json_get_integer(JsonReader *reader, const char *name, int64_t minimum, int64_t maximum, int64_t *out, Error *err);
Status json_get_number(JsonReader *reader, const char *name, double *out, Error *err);
Status json_get_bool(JsonReader *reader, const char *name, int *out, Error *err);
int json_key_is(const JsonToken *token, const char *key);
const char *json_kind_name(JsonKind kind);

#endif
