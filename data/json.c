#include "data/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/text.h"

/* What may come next. */
enum {
    STATE_VALUE,        /* a value */
    STATE_VALUE_OR_END, /* after '[' */
    STATE_KEY_OR_END,   /* after '{' */
    STATE_KEY,          /* after ',' in an object */
    STATE_AFTER_VALUE,  /* ',' or the end of the container; at depth 0 the end of the text */
    STATE_DONE
};

#define NUMBER_MAX_CHARACTERS 1024

#define FAIL_AT(reader, position, ...) return fail_at(reader, position, err, __VA_ARGS__)

static Status fail_at(const JsonReader *reader, const char *position, Error *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static Status fail_at(const JsonReader *reader, const char *position, Error *err, const char *format, ...) {
    char reason[256];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    FAIL("%s: line %lld (byte %lld): %s", reader->what, (long long)reader->line, (long long)(position - reader->text), reason);
}

/* The byte at `position` as a message shows it: 'x', 0xE9, or "the end of the text". */
static const char *shown(const JsonReader *reader, const char *position, char out[24]) {
    if (position >= reader->end) return "the end of the text";
    unsigned char c = (unsigned char)*position;
    if (c > 0x20 && c < 0x7F)
        (void)snprintf(out, 24, "'%c'", c);
    else
        (void)snprintf(out, 24, "byte 0x%02X", c);
    return out;
}

void json_open(JsonReader *reader, const char *what, const char *text, size_t length, int64_t first_line, JsonLimits limits) {
    memset(reader, 0, sizeof *reader);
    reader->what = what;
    reader->text = reader->at = text;
    reader->end = text + length;
    reader->line = first_line;
    reader->limits = limits;
    if (limits.depth <= 0 || limits.depth > JSON_MAX_DEPTH) reader->limits.depth = JSON_MAX_DEPTH;
    if (limits.string_bytes == 0) reader->limits.string_bytes = SIZE_MAX / 8;
    reader->state = STATE_VALUE;
}

void json_close(JsonReader *reader) {
    memory_free(reader->scratch);
    memset(reader, 0, sizeof *reader);
}

static void skip_space(JsonReader *reader) {
    const char *at = reader->at, *end = reader->end;
    for (; at < end; at++) {
        if (*at == '\n')
            reader->line++;
        else if (*at != ' ' && *at != '\t' && *at != '\r')
            break;
    }
    reader->at = at;
}

/* ---- strings ------------------------------------------------------------------------------------------------------- */

/* First byte at or after `at` that is not plain: '"', '\\', a control character or the start of a UTF-8 sequence.
 * Eight bytes at a time: `x - 0x01…` borrows into the top bit of a byte that is 0, so x ^ pattern finds equal bytes and
 * x - 0x20… finds smaller ones. A borrow may mark a byte above a real hit as well; the byte loop then decides. */
static const char *skip_plain(const char *at, const char *end) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    while (end - at >= 8) {
        uint64_t x;
        memcpy(&x, at, 8);
        uint64_t quote = x ^ (ones * '"'), backslash = x ^ (ones * '\\');
        if (((quote - ones) | (backslash - ones) | (x - ones * 0x20) | x) & tops) break;
        at += 8;
    }
    while (at < end && (unsigned char)*at >= 0x20 && (unsigned char)*at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

/* Checks the string whose first byte after the quote is at reader->at. Sets *close to its closing quote. */
static Status string_scan(const JsonReader *reader, const char **close, int *has_escapes, Error *err) {
    const char *at = reader->at;
    *has_escapes = 0;
    for (;;) {
        at = skip_plain(at, reader->end);
        if (at >= reader->end) FAIL_AT(reader, reader->at, "a string has no closing quote");
        unsigned char c = (unsigned char)*at;
        if (c == '"') break;
        if (c == '\\') {
            *has_escapes = 1;
            if (reader->end - at < 2) FAIL_AT(reader, at, "a string ends inside an escape");
            at += 2; /* what follows the backslash is judged when it is decoded; UTF-8 there is not an escape at all */
            if ((unsigned char)at[-1] >= 0x80 || (unsigned char)at[-1] < 0x20) FAIL_AT(reader, at - 2, "unknown escape");
        } else if (c >= 0x80) {
            uint32_t code;
            int n = utf8_decode(at, (size_t)(reader->end - at), &code);
            if (n <= 0) FAIL_AT(reader, at, "ill-formed UTF-8 (byte 0x%02X)", c);
            at += n;
        } else {
            FAIL_AT(reader, at, "control character 0x%02X in a string: it must be written as an escape", c);
        }
    }
    *close = at;
    return OK;
}

/* Four hexadecimal digits, or -1. */
static int32_t hex4(const char *at, const char *end) {
    if (end - at < 4) return -1;
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        int c = (unsigned char)at[i], lower = c | 0x20;
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            value = value * 16 + (lower - 'a' + 10);
        else
            return -1;
    }
    return value;
}

/* Decodes the escape at *at (a backslash) to `out` (room for 4), advancing *at; sets *length. */
static Status escape_decode(const JsonReader *reader, const char **at, const char *close, char *out, size_t *length,
                            Error *err) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *start = *at, c = start[1];
    const char *simple = c != 0 ? strchr(from, c) : NULL;
    if (simple != NULL) {
        *out = to[simple - from];
        *length = 1;
        *at = start + 2;
        return OK;
    }
    if (c != 'u') {
        char text[24];
        FAIL_AT(reader, start, "unknown escape: backslash and %s", shown(reader, start + 1, text));
    }
    int32_t code = hex4(start + 2, close);
    if (code < 0) FAIL_AT(reader, start, "\\u wants four hexadecimal digits");
    *at = start + 6;
    if (code >= 0xDC00 && code <= 0xDFFF) FAIL_AT(reader, start, "lone surrogate \\u%04X", (unsigned)code);
    if (code >= 0xD800 && code <= 0xDBFF) {
        int32_t low = close - *at >= 6 && (*at)[0] == '\\' && (*at)[1] == 'u' ? hex4(*at + 2, close) : -1;
        if (low < 0xDC00 || low > 0xDFFF) FAIL_AT(reader, start, "lone surrogate \\u%04X", (unsigned)code);
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        *at += 6;
    }
    *length = (size_t)utf8_encode((uint32_t)code, out);
    return OK;
}

/* Decodes [reader->at, close), which string_scan accepted, into the scratch buffer. */
static Status string_decode(JsonReader *reader, const char *close, JsonToken *token, Error *err) {
    const char *at = reader->at;
    size_t room = (size_t)(close - at); /* no escape is shorter than what it stands for */
    if (room > reader->scratch_capacity) {
        size_t capacity = room < SIZE_MAX / 2 ? room + room / 2 : room;
        memory_free(reader->scratch);
        reader->scratch = memory_alloc(capacity);
        reader->scratch_capacity = capacity;
    }
    size_t length = 0;
    while (at < close) {
        const char *backslash = memchr(at, '\\', (size_t)(close - at));
        size_t plain = (size_t)((backslash != NULL ? backslash : close) - at);
        memcpy(reader->scratch + length, at, plain);
        length += plain;
        at += plain;
        if (backslash == NULL) break;
        char out[4];
        size_t bytes = 0;
        TRY(escape_decode(reader, &at, close, out, &bytes, err));
        memcpy(reader->scratch + length, out, bytes);
        length += bytes;
    }
    token->text = reader->scratch;
    token->length = length;
    return OK;
}

/* reader->at is at the opening quote. */
static Status read_string(JsonReader *reader, JsonToken *token, Error *err) {
    const char *start = reader->at++, *close = start;
    int has_escapes = 0;
    TRY(string_scan(reader, &close, &has_escapes, err));
    token->text = reader->at;
    token->length = (size_t)(close - reader->at);
    /* An escape is at most six bytes for one. */
    if (token->length / 6 > reader->limits.string_bytes)
        FAIL_AT(reader, start, "a string is longer than the %zu bytes that are allowed here", reader->limits.string_bytes);
    if (has_escapes) TRY(string_decode(reader, close, token, err));
    if (token->length > reader->limits.string_bytes)
        FAIL_AT(reader, start, "a string of %zu bytes is longer than the %zu that are allowed here", token->length,
                reader->limits.string_bytes);
    reader->at = close + 1;
    return OK;
}

/* ---- numbers ------------------------------------------------------------------------------------------------------- */

static const char *skip_digits(const char *at, const char *end) {
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at;
}

/* The whole number [digits, at) as an integer; 0 when it does not fit. */
static int integer_parse(JsonToken *token, const char *digits, const char *at) {
    uint64_t value = 0;
    for (; digits < at; digits++)
        if (__builtin_mul_overflow(value, 10u, &value) || __builtin_add_overflow(value, (uint64_t)(*digits - '0'), &value))
            return 0;
    if (token->is_negative) {
        if (value > (uint64_t)INT64_MAX + 1) return 0;
        token->integer = value == (uint64_t)INT64_MAX + 1 ? INT64_MIN : -(int64_t)value;
        token->number = -(double)value;
    } else {
        token->integer = value > (uint64_t)INT64_MAX ? INT64_MAX : (int64_t)value;
        token->unsigned_integer = value;
        token->number = (double)value;
    }
    return 1;
}

static Status read_number(JsonReader *reader, JsonToken *token, Error *err) {
    const char *start = reader->at, *at = start, *end = reader->end;
    int whole = 1;
    token->is_negative = *at == '-';
    if (token->is_negative) at++;
    const char *digits = at;
    at = skip_digits(at, end);
    if (at == digits) FAIL_AT(reader, start, "a number wants a digit after '-'");
    if (*digits == '0' && at - digits > 1) FAIL_AT(reader, start, "a number must not start with 0");
    if (at < end && *at == '.') {
        const char *fraction = ++at;
        at = skip_digits(at, end);
        if (at == fraction) FAIL_AT(reader, start, "a number wants a digit after '.'");
        whole = 0;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        const char *exponent = at;
        at = skip_digits(at, end);
        if (at == exponent) FAIL_AT(reader, start, "a number wants a digit in its exponent");
        whole = 0;
    }
    reader->at = at;
    token->kind = JSON_INTEGER;
    if (whole && integer_parse(token, digits, at)) return OK;
    token->kind = JSON_NUMBER;
    char copy[NUMBER_MAX_CHARACTERS + 1];
    if (at - start > NUMBER_MAX_CHARACTERS)
        FAIL_AT(reader, start, "a number is longer than %d characters", NUMBER_MAX_CHARACTERS);
    memcpy(copy, start, (size_t)(at - start));
    copy[at - start] = 0;
    token->number = strtod(copy, NULL);
    if (isinf(token->number)) FAIL_AT(reader, start, "a number is too large for a double");
    return OK;
}

/* ---- structure ----------------------------------------------------------------------------------------------------- */

static void value_done(JsonReader *reader) {
    reader->state = STATE_AFTER_VALUE;
}

static Status read_literal(JsonReader *reader, const char *word, JsonKind kind, JsonToken *token, Error *err) {
    size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        FAIL_AT(reader, reader->at, "want a value, got a word that is not %s", word);
    reader->at += length;
    token->kind = kind;
    value_done(reader);
    return OK;
}

static Status container_begin(JsonReader *reader, JsonToken *token, Error *err) {
    if (reader->depth >= reader->limits.depth)
        FAIL_AT(reader, reader->at, "nested deeper than the %d levels that are allowed here", reader->limits.depth);
    int is_object = *reader->at == '{';
    token->kind = is_object ? JSON_OBJECT_BEGIN : JSON_ARRAY_BEGIN;
    reader->container[reader->depth++] = (uint8_t)*reader->at++;
    reader->state = is_object ? STATE_KEY_OR_END : STATE_VALUE_OR_END;
    return OK;
}

static void container_end(JsonReader *reader, JsonToken *token) {
    reader->depth--;
    reader->at++;
    token->kind = reader->container[reader->depth] == '{' ? JSON_OBJECT_END : JSON_ARRAY_END;
    token->depth = reader->depth;
    value_done(reader);
}

static Status read_value(JsonReader *reader, JsonToken *token, Error *err) {
    char text[24];
    char c = reader->at < reader->end ? *reader->at : 0;
    switch (c) {
        case '{':
        case '[': return container_begin(reader, token, err);
        case '"':
            token->kind = JSON_STRING;
            TRY(read_string(reader, token, err));
            value_done(reader);
            return OK;
        case 't': return read_literal(reader, "true", JSON_TRUE, token, err);
        case 'f': return read_literal(reader, "false", JSON_FALSE, token, err);
        case 'n': return read_literal(reader, "null", JSON_NULL, token, err);
        default: break;
    }
    if (c != '-' && (c < '0' || c > '9'))
        FAIL_AT(reader, reader->at, "want a value, got %s%s", shown(reader, reader->at, text),
                (unsigned char)c == 0xEF ? " (a byte order mark? save the file without it)" : "");
    TRY(read_number(reader, token, err));
    value_done(reader);
    return OK;
}

/* A key and its colon. */
static Status read_key(JsonReader *reader, JsonToken *token, Error *err) {
    char text[24];
    if (reader->at >= reader->end || *reader->at != '"')
        FAIL_AT(reader, reader->at, "want a key in double quotes, got %s", shown(reader, reader->at, text));
    token->kind = JSON_KEY;
    TRY(read_string(reader, token, err));
    skip_space(reader);
    if (reader->at >= reader->end || *reader->at != ':')
        FAIL_AT(reader, reader->at, "want ':' after a key, got %s", shown(reader, reader->at, text));
    reader->at++;
    reader->state = STATE_VALUE;
    return OK;
}

/* Steps over the comma after a value, or takes the end of the container or of the text. *taken: the token is complete. */
static Status after_value(JsonReader *reader, JsonToken *token, int *taken, Error *err) {
    char text[24];
    *taken = 1;
    if (reader->depth == 0) {
        if (reader->at < reader->end)
            FAIL_AT(reader, reader->at, "want nothing after the value, got %s", shown(reader, reader->at, text));
        reader->state = STATE_DONE;
        token->kind = JSON_END;
        return OK;
    }
    int is_object = reader->container[reader->depth - 1] == '{';
    char close = is_object ? '}' : ']', c = reader->at < reader->end ? *reader->at : 0;
    if (c == close) {
        container_end(reader, token);
        return OK;
    }
    if (c != ',') FAIL_AT(reader, reader->at, "want ',' or '%c', got %s", close, shown(reader, reader->at, text));
    reader->at++;
    reader->state = is_object ? STATE_KEY : STATE_VALUE;
    *taken = 0;
    skip_space(reader);
    return OK;
}

Status json_next(JsonReader *reader, JsonToken *token, Error *err) {
    memset(token, 0, sizeof *token);
    skip_space(reader);
    token->line = reader->line;
    token->depth = reader->depth;
    if (reader->state == STATE_DONE) {
        token->kind = JSON_END;
        return OK;
    }
    if (reader->state == STATE_AFTER_VALUE) {
        int taken = 0;
        TRY(after_value(reader, token, &taken, err));
        if (taken) return OK;
        token->line = reader->line;
    }
    char c = reader->at < reader->end ? *reader->at : 0;
    if ((reader->state == STATE_VALUE_OR_END && c == ']') || (reader->state == STATE_KEY_OR_END && c == '}')) {
        container_end(reader, token);
        return OK;
    }
    if (reader->state == STATE_KEY || reader->state == STATE_KEY_OR_END) return read_key(reader, token, err);
    return read_value(reader, token, err);
}

Status json_skip(JsonReader *reader, const JsonToken *token, Error *err) {
    JsonToken next = *token;
    if (token->kind == JSON_KEY) TRY(json_next(reader, &next, err));
    if (next.kind != JSON_OBJECT_BEGIN && next.kind != JSON_ARRAY_BEGIN) return OK;
    const int depth = next.depth;
    do
        TRY(json_next(reader, &next, err));
    while (next.depth != depth);
    return OK;
}

/* ---- conveniences -------------------------------------------------------------------------------------------------- */

const char *json_kind_name(JsonKind kind) {
    static const char *const names[] = {"the end of the text",
                                        "an object",
                                        "the end of an object",
                                        "an array",
                                        "the end of an array",
                                        "a key",
                                        "a string",
                                        "an integer",
                                        "a number",
                                        "true",
                                        "false",
                                        "null"};
    return names[kind];
}

static Status wrong_kind(const JsonReader *reader, const JsonToken *token, const char *name, const char *want, Error *err) {
    FAIL("%s: line %lld: %s: want %s, got %s", reader->what, (long long)token->line, name, want, json_kind_name(token->kind));
}

Status json_expect(JsonReader *reader, JsonKind kind, const char *name, JsonToken *token, Error *err) {
    TRY(json_next(reader, token, err));
    if (token->kind != kind) return wrong_kind(reader, token, name, json_kind_name(kind), err);
    return OK;
}

Status json_get_string(JsonReader *reader, const char *name, char **out, size_t *length, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, name, &token, err));
    *out = memory_alloc(token.length + 1);
    memcpy(*out, token.text, token.length);
    (*out)[token.length] = 0;
    if (length != NULL) *length = token.length;
    return OK;
}

Status json_get_integer(JsonReader *reader, const char *name, int64_t minimum, int64_t maximum, int64_t *out, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_INTEGER, name, &token, err));
    int too_large = !token.is_negative && token.unsigned_integer > (uint64_t)INT64_MAX;
    if (too_large || token.integer < minimum || token.integer > maximum)
        FAIL("%s: line %lld: %s: want an integer from %lld to %lld, got %s%llu", reader->what, (long long)token.line, name,
             (long long)minimum, (long long)maximum, token.is_negative ? "-" : "",
             token.is_negative ? 0ull - (unsigned long long)token.integer : (unsigned long long)token.unsigned_integer);
    *out = token.integer;
    return OK;
}

Status json_get_number(JsonReader *reader, const char *name, double *out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_INTEGER && token.kind != JSON_NUMBER) return wrong_kind(reader, &token, name, "a number", err);
    *out = token.number;
    return OK;
}

Status json_get_bool(JsonReader *reader, const char *name, int *out, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind != JSON_TRUE && token.kind != JSON_FALSE) return wrong_kind(reader, &token, name, "true or false", err);
    *out = token.kind == JSON_TRUE;
    return OK;
}

int json_key_is(const JsonToken *token, const char *key) {
    size_t length = strlen(key);
    return token->length == length && memcmp(token->text, key, length) == 0;
}
