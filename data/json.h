/* A bounded, streaming reader of untrusted JSON.
 *
 * Pulls one token after another out of a text in memory, in one pass, with
 * exact 64-bit integers, line numbers, and caps on depth and string length; a
 * text of n bytes gives at most n + 1 tokens. Refused (RFC 8259, strictly):
 * ill-formed UTF-8, a byte order mark, lone surrogates, control characters in
 * strings, numbers that JSON does not allow or a double cannot hold, trailing
 * commas, anything after the value. Never recurses; allocates only for strings
 * that contain escapes, and never more than such a string's own length.
 *
 * Used for safetensors headers, tokenizers, JSONL, checkpoints and a model's
 * config.json. Duplicate keys are passed on as they stand: what they mean is the
 * caller's business.
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
    JSON_INTEGER, /* no fraction, no exponent, and fits int64_t or uint64_t */
    JSON_NUMBER,  /* any other number: number */
    JSON_TRUE,
    JSON_FALSE,
    JSON_NULL
} JsonKind;

typedef struct JsonToken {
    JsonKind kind;
    const char *text; /* KEY, STRING: decoded UTF-8, not zero-terminated; valid until the next call */
    size_t length;
    int64_t integer;           /* INTEGER: the value; INT64_MAX when it is greater than that */
    uint64_t unsigned_integer; /* INTEGER without a minus sign: the value */
    int is_negative;           /* INTEGER: written with a minus sign (also -0) */
    double number;             /* INTEGER and NUMBER: nearest double */
    int64_t line;              /* 1-based line on which the token starts, counted from first_line */
    int depth;                 /* containers around the token: 0 for the outermost value; BEGIN and its END have the same */
} JsonToken;

typedef struct JsonLimits {
    int depth;           /* containers inside one another; 0 means JSON_MAX_DEPTH, which is also the most there can be */
    size_t string_bytes; /* of one decoded string or key; 0: no cap but the text's own length */
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

/* Conveniences that take the next token and fail with the line, the wanted kind and `name`. json_get_string's copy has a
 * zero byte after it, but may contain zero bytes. json_get_number accepts integers too. */
Status json_expect(JsonReader *reader, JsonKind kind, const char *name, JsonToken *token, Error *err);
Status json_get_string(JsonReader *reader, const char *name, char **out, size_t *length, Error *err); /* memory_free */
Status json_get_integer(JsonReader *reader, const char *name, int64_t minimum, int64_t maximum, int64_t *out, Error *err);
Status json_get_number(JsonReader *reader, const char *name, double *out, Error *err);
Status json_get_bool(JsonReader *reader, const char *name, int *out, Error *err);
/* Whether the token (a KEY or a STRING) is exactly this text. */
int json_key_is(const JsonToken *token, const char *key);
const char *json_kind_name(JsonKind kind);

#endif
