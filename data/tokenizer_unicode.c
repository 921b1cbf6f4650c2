/* The Unicode normalization forms, with offsets.
 *
 * Text is cut into segments that cannot influence each other: a segment starts at a character whose decomposition
 * starts with neither a mark nor a conjoining Hangul vowel or final, the only characters that reorder or compose with
 * what is before them. Each segment is normalized alone; when that changes it, every byte of the result stands for the
 * whole segment. utf8proc supplies the decompositions and the composition; the reordering is done here, because a
 * hostile run of marks must not cost quadratic time.
 */
#include <string.h>
#include <utf8proc.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

/* The longest decomposition of one character has 18 code points (U+FDFA). */
#define DECOMPOSED_MAX 32

static int decompose(uint32_t code, utf8proc_option_t options, int32_t out[DECOMPOSED_MAX]) {
    int boundclass = 0;
    utf8proc_ssize_t n =
        utf8proc_decompose_char((utf8proc_int32_t)code, out, DECOMPOSED_MAX, options | UTF8PROC_DECOMPOSE, &boundclass);
    if (n > 0 && n <= DECOMPOSED_MAX) return (int)n;
    out[0] = (int32_t)code; /* decomposes to nothing: kept */
    return 1;
}

static int starts_segment(int32_t code) {
    if (code >= 0x1160 && code <= 0x11FF) return 0;
    utf8proc_category_t category = utf8proc_category(code);
    return category != UTF8PROC_CATEGORY_MN && category != UTF8PROC_CATEGORY_MC && category != UTF8PROC_CATEGORY_ME;
}

static int combining_class(int32_t code) {
    return utf8proc_get_property(code)->combining_class;
}

/* Stable merge sort by combining class of a run in which every class is above 0. */
static void reorder_run(int32_t *codes, size_t count) {
    int sorted = 1;
    for (size_t i = 1; i < count && sorted; i++)
        sorted = combining_class(codes[i - 1]) <= combining_class(codes[i]);
    if (sorted) return;
    int32_t *spare = memory_alloc(count * sizeof *spare);
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t low = 0; low < count; low += 2 * width) {
            size_t middle = low + width < count ? low + width : count, high = middle + width < count ? middle + width : count;
            size_t a = low, b = middle, k = low;
            while (a < middle || b < high) {
                int left = b == high || (a < middle && combining_class(codes[a]) <= combining_class(codes[b]));
                spare[k++] = left ? codes[a++] : codes[b++];
            }
        }
        memcpy(codes, spare, count * sizeof *codes);
    }
    memory_free(spare);
}

static void reorder(int32_t *codes, size_t count) {
    for (size_t i = 0; i < count;) {
        size_t begin = i;
        while (i < count && combining_class(codes[i]) != 0)
            i++;
        if (i - begin > 1) reorder_run(codes + begin, i - begin);
        if (i == begin) i++;
    }
}

static void codes_add(Encoder *encoder, size_t *count, const int32_t *codes, int n) {
    if (*count + (size_t)n > encoder->codes_capacity) {
        encoder->codes_capacity = (*count + (size_t)n) * 2;
        encoder->codes = memory_resize(encoder->codes, encoder->codes_capacity * sizeof *encoder->codes);
    }
    memcpy(encoder->codes + *count, codes, (size_t)n * sizeof *codes);
    *count += (size_t)n;
}

/* Appends the normal form of now.text[begin, end) whose decomposition is encoder->codes[0, count). */
static Status segment_add(Encoder *encoder, utf8proc_option_t options, size_t begin, size_t end, size_t count, Error *err) {
    reorder(encoder->codes, count);
    if (options & UTF8PROC_COMPOSE) {
        utf8proc_ssize_t n = utf8proc_normalize_utf32(encoder->codes, (utf8proc_ssize_t)count, options);
        if (n < 0) FAIL("text: normalization failed: %s", utf8proc_errmsg(n));
        count = (size_t)n;
    }
    const char *text = encoder->now.text;
    const Span *align = encoder->now.align;
    size_t at = encoder->next.length, same = begin;
    Span span = {align[begin].begin, align[end - 1].end};
    for (size_t i = 0; i < count; i++) {
        char bytes[4];
        size_t n = (size_t)utf8_encode((uint32_t)encoder->codes[i], bytes);
        if (same <= end && end - same >= n && memcmp(text + same, bytes, n) == 0)
            same += n;
        else
            same = end + 1;
        TRY(aligned_add_at(&encoder->next, bytes, n, span, err));
    }
    if (same == end) memcpy(encoder->next.align + at, align + begin, (end - begin) * sizeof *align); /* unchanged */
    return OK;
}

static Status normalize_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    utf8proc_option_t options = *(const utf8proc_option_t *)state;
    const char *text = encoder->now.text;
    size_t begin = piece->begin, count = 0;
    for (size_t i = piece->begin; i < piece->end;) {
        uint32_t code;
        size_t n = (size_t)utf8_decode(text + i, piece->end - i, &code);
        int32_t parts[DECOMPOSED_MAX];
        int m = 1;
        if (code < 0x80)
            parts[0] = (int32_t)code;
        else
            m = decompose(code, options, parts);
        if (i > begin && (code < 0x80 || starts_segment(parts[0]))) {
            TRY(segment_add(encoder, options, begin, i, count, err));
            begin = i;
            count = 0;
        }
        codes_add(encoder, &count, parts, m);
        i += n;
    }
    return segment_add(encoder, options, begin, piece->end, count, err);
}

static const utf8proc_option_t nfc = UTF8PROC_STABLE | UTF8PROC_COMPOSE, nfd = UTF8PROC_STABLE,
                               nfkc = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
                               nfkd = UTF8PROC_STABLE | UTF8PROC_COMPAT;

static Status nfc_rewrite(const void *state, Encoder *encoder, Error *err) {
    (void)state;
    return encoder_change(encoder, normalize_piece, &nfc, err);
}
static Status nfd_rewrite(const void *state, Encoder *encoder, Error *err) {
    (void)state;
    return encoder_change(encoder, normalize_piece, &nfd, err);
}
static Status nfkc_rewrite(const void *state, Encoder *encoder, Error *err) {
    (void)state;
    return encoder_change(encoder, normalize_piece, &nfkc, err);
}
static Status nfkd_rewrite(const void *state, Encoder *encoder, Error *err) {
    (void)state;
    return encoder_change(encoder, normalize_piece, &nfkd, err);
}

const ComponentKind normalizer_nfc = {.type = "NFC", .rewrite = nfc_rewrite};
const ComponentKind normalizer_nfd = {.type = "NFD", .rewrite = nfd_rewrite};
const ComponentKind normalizer_nfkc = {.type = "NFKC", .rewrite = nfkc_rewrite};
const ComponentKind normalizer_nfkd = {.type = "NFKD", .rewrite = nfkd_rewrite};
