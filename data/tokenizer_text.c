/* Text with its origin per byte, pieces of it, and the few questions about characters that are not in utf8proc. */
#include <string.h>
#include <utf8proc.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

static Status aligned_reserve(Aligned *aligned, size_t more, Error *err) {
    if (more > TOKENIZER_TEXT_LIMIT || aligned->length + more > TOKENIZER_TEXT_LIMIT)
        FAIL("text: want at most %zu bytes after normalization; split the text", TOKENIZER_TEXT_LIMIT);
    if (aligned->length + more <= aligned->capacity) return OK;
    size_t capacity = aligned->capacity * 2 > aligned->length + more ? aligned->capacity * 2 : aligned->length + more + 256;
    aligned->text = memory_resize(aligned->text, capacity);
    aligned->align = memory_resize(aligned->align, capacity * sizeof *aligned->align);
    aligned->capacity = capacity;
    return OK;
}

Status aligned_add(Aligned *aligned, const char *text, const Span *align, size_t length, Error *err) {
    if (length == 0) return OK;
    TRY(aligned_reserve(aligned, length, err));
    memcpy(aligned->text + aligned->length, text, length);
    memcpy(aligned->align + aligned->length, align, length * sizeof *align);
    aligned->length += length;
    return OK;
}

Status aligned_add_at(Aligned *aligned, const char *text, size_t length, Span span, Error *err) {
    if (length == 0) return OK;
    TRY(aligned_reserve(aligned, length, err));
    memcpy(aligned->text + aligned->length, text, length);
    for (size_t i = 0; i < length; i++)
        aligned->align[aligned->length + i] = span;
    aligned->length += length;
    return OK;
}

void aligned_free(Aligned *aligned) {
    memory_free(aligned->text);
    memory_free(aligned->align);
    *aligned = (Aligned){0};
}

/* Table 3-7 of the Unicode standard: which second bytes a first byte allows. */
static int second_byte_fits(uint8_t first, uint8_t second) {
    uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    return second >= low && second <= high;
}

size_t utf8_scan(const char *p, size_t available, Utf8State *state) {
    uint8_t first = (uint8_t)p[0];
    *state = UTF8_WHOLE;
    if (first < 0x80) return 1;
    size_t want = first >= 0xC2 && first <= 0xDF ? 2 : (first & 0xF0) == 0xE0 ? 3 : first >= 0xF0 && first <= 0xF4 ? 4 : 0;
    *state = UTF8_BROKEN;
    if (want == 0) return 1;
    for (size_t i = 1; i < want; i++) {
        if (i == available) {
            *state = UTF8_PARTIAL;
            return i;
        }
        uint8_t byte = (uint8_t)p[i];
        if (i == 1 ? !second_byte_fits(first, byte) : (byte & 0xC0) != 0x80) return i;
    }
    *state = UTF8_WHOLE;
    return want;
}

Status aligned_repair(Aligned *aligned, const char *text, size_t length, int bytewise, Error *err) {
    if (length > TOKENIZER_TEXT_LIMIT)
        FAIL("text: want at most %zu bytes, got %zu; split the text", TOKENIZER_TEXT_LIMIT, length);
    TRY(aligned_reserve(aligned, length, err));
    for (size_t i = 0; i < length;) {
        Utf8State state;
        size_t n = utf8_scan(text + i, length - i, &state);
        if (state != UTF8_WHOLE) {
            if (bytewise) n = 1;
            TRY(aligned_add_at(aligned, "\xEF\xBF\xBD", 3, (Span){(int32_t)i, (int32_t)(i + n)}, err));
            i += n;
            continue;
        }
        TRY(aligned_reserve(aligned, n, err));
        for (size_t end = i + n; i < end; i++) {
            aligned->text[aligned->length] = text[i];
            aligned->align[aligned->length++] = (Span){(int32_t)i, (int32_t)i + 1};
        }
    }
    return OK;
}

int char_is_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

int char_is_word(uint32_t code) {
    switch (utf8proc_category((utf8proc_int32_t)code)) {
        case UTF8PROC_CATEGORY_LU:
        case UTF8PROC_CATEGORY_LL:
        case UTF8PROC_CATEGORY_LT:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_LO:
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_MC:
        case UTF8PROC_CATEGORY_ME:
        case UTF8PROC_CATEGORY_ND:
        case UTF8PROC_CATEGORY_NL:
        case UTF8PROC_CATEGORY_PC: return 1;
        default: break;
    }
    /* Join_Control, and the letters in circles and squares that are Alphabetic though of category So. */
    return code == 0x200C || code == 0x200D || (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
           (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
}

size_t char_before(const char *text, size_t at, uint32_t *code) {
    size_t start = at - 1;
    while (start > 0 && ((uint8_t)text[start] & 0xC0) == 0x80)
        start--;
    utf8_decode(text + start, at - start, code);
    return at - start;
}

void pieces_add(Pieces *pieces, Piece piece) {
    if (pieces->count == pieces->capacity) {
        pieces->capacity = pieces->capacity ? pieces->capacity * 2 : 64;
        pieces->data = memory_resize(pieces->data, pieces->capacity * sizeof *pieces->data);
    }
    pieces->data[pieces->count++] = piece;
}
