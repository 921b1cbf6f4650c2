/* A growing string, and small text helpers that more than one folder needs. */
#ifndef NIBBLE_CORE_TEXT_H
#define NIBBLE_CORE_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct Text {
    char *data; /* zero-terminated once anything was added; NULL before */
    size_t length, capacity;
} Text;

void text_add(Text *text, const char *bytes, size_t length);
void text_adds(Text *text, const char *string);
void text_addf(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_json_string(Text *text, const char *bytes,
                          size_t length); /* quoted and escaped; ill-formed UTF-8 becomes U+FFFD */
void text_clear(Text *text);
void text_free(Text *text);

/* "1.23 GiB" into a caller's buffer; returns the buffer. */
const char *format_bytes(double bytes, char *out, size_t capacity);
const char *format_duration(double seconds, char *out, size_t capacity); /* "1h02m", "3m05s", "12s" */

/* Length in bytes of the well-formed UTF-8 sequence at p (1..4), and its code point; 0 when ill-formed (rules of
 * RFC 3629: no overlong forms, surrogates, or values over 10FFFF). */
int utf8_decode(const char *p, size_t available, uint32_t *code);
int utf8_encode(uint32_t code, char out[4]);

/* The candidate with the least edit distance to `word`, or NULL when none is near enough to be worth a hint. */
const char *nearest_word(const char *word, const char *const *candidates, size_t count);

double clock_seconds(void); /* monotonic */

#endif
