#include "core/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/memory.h"

/* Room for `more` bytes and the zero. */
static void reserve(Text *text, size_t more) {
    size_t needed, doubled;
    if (size_add(text->length, more, &needed) || size_add(needed, 1, &needed)) abort(); /* no such memory exists */
    if (needed <= text->capacity) return;
    if (size_mul(text->capacity, 2, &doubled) || doubled < needed) doubled = needed;
    if (doubled < 64) doubled = 64;
    text->data = memory_resize(text->data, doubled);
    text->capacity = doubled;
}

void text_add(Text *text, const char *bytes, size_t length) {
    reserve(text, length);
    if (length != 0) memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = 0;
}

void text_adds(Text *text, const char *string) {
    text_add(text, string, strlen(string));
}

void text_addf(Text *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) return; /* the C library's own limit; the formats of this program cannot reach it */
    reserve(text, (size_t)n);
    va_start(args, format);
    (void)vsnprintf(text->data + text->length, (size_t)n + 1, format, args);
    va_end(args);
    text->length += (size_t)n;
}

void text_add_json_string(Text *text, const char *bytes, size_t length) {
    text_add(text, "\"", 1);
    for (size_t i = 0; i < length;) {
        uint32_t code;
        int n = utf8_decode(bytes + i, length - i, &code);
        if (n == 0) {
            text_adds(text, "\xEF\xBF\xBD");
            i++;
            continue;
        }
        switch (code) {
            case '"': text_adds(text, "\\\""); break;
            case '\\': text_adds(text, "\\\\"); break;
            case '\n': text_adds(text, "\\n"); break;
            case '\r': text_adds(text, "\\r"); break;
            case '\t': text_adds(text, "\\t"); break;
            default:
                if (code < 0x20)
                    text_addf(text, "\\u%04x", (unsigned)code);
                else
                    text_add(text, bytes + i, (size_t)n);
        }
        i += (size_t)n;
    }
    text_add(text, "\"", 1);
}

void text_clear(Text *text) {
    text->length = 0;
    if (text->data != NULL) text->data[0] = 0;
}

void text_free(Text *text) {
    memory_free(text->data);
    memset(text, 0, sizeof *text);
}

const char *format_bytes(double bytes, char *out, size_t capacity) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    while (unit + 1 < sizeof units / sizeof *units && fabs(bytes) >= 1023.995) {
        bytes /= 1024.0;
        unit++;
    }
    (void)snprintf(out, capacity, unit == 0 ? "%.0f %s" : "%.2f %s", bytes, units[unit]);
    return out;
}

const char *format_duration(double seconds, char *out, size_t capacity) {
    if (!(seconds >= 0.0 && seconds < 1e15)) {
        (void)snprintf(out, capacity, "?");
        return out;
    }
    long long whole = (long long)(seconds + 0.5);
    long long hours = whole / 3600, minutes = whole / 60 % 60;
    if (hours > 0)
        (void)snprintf(out, capacity, "%lldh%02lldm", hours, minutes);
    else if (minutes > 0)
        (void)snprintf(out, capacity, "%lldm%02llds", minutes, whole % 60);
    else
        (void)snprintf(out, capacity, "%llds", whole);
    return out;
}

int utf8_decode(const char *p, size_t available, uint32_t *code) {
    const unsigned char *s = (const unsigned char *)p;
    if (available == 0) return 0;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    /* C0, C1 and F5.. never occur; the second byte's range is narrower after E0, ED, F0 and F4 (RFC 3629, section 4). */
    int length = s[0] >= 0xC2 && s[0] <= 0xDF ? 2 : s[0] >= 0xE0 && s[0] <= 0xEF ? 3 : s[0] >= 0xF0 && s[0] <= 0xF4 ? 4 : 0;
    if (length == 0 || (size_t)length > available) return 0;
    unsigned low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < low || s[1] > high) return 0;
    uint32_t value = s[0] & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        value = (value << 6) | (s[i] & 0x3Fu);
    }
    *code = value;
    return length;
}

int utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return 0;
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80u | (code & 0x3Fu));
        code >>= 6;
    }
    out[0] = (char)((0xF00u >> length & 0xFFu) | code);
    return length;
}

#define WORD_LONGEST 63

/* Edits (insert, remove, replace, swap of neighbours) from a to b; both at most WORD_LONGEST bytes. */
static size_t edit_distance(const char *a, size_t a_length, const char *b, size_t b_length) {
    size_t rows[3][WORD_LONGEST + 1];
    for (size_t j = 0; j <= b_length; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_above[j - 2] + 1 < best)
                best = two_above[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[a_length % 3][b_length];
}

const char *nearest_word(const char *word, const char *const *candidates, size_t count) {
    size_t length = strlen(word);
    if (length > WORD_LONGEST) return NULL;
    size_t best = length < 6 ? (length + 1) / 2 : length / 3 + 1; /* a hint further away than this would be a guess */
    const char *found = NULL;
    for (size_t i = 0; i < count; i++) {
        size_t other = strlen(candidates[i]);
        if (other > WORD_LONGEST) continue;
        size_t distance = edit_distance(word, length, candidates[i], other);
        if (distance < best || (found == NULL && distance == best && distance < length)) {
            best = distance;
            found = candidates[i];
        }
    }
    return found;
}

double clock_seconds(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
