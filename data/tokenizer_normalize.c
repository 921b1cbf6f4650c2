/* Normalizers other than the Unicode forms: Prepend, Replace, Strip, Lowercase. */
#include <string.h>
#include <utf8proc.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

/* ---- Prepend: text in front of every piece; it stands for the piece's first character, as the reference says ---- */
static Status prepend_parse(void **state, const Tree *json, Error *err) {
    const Tree *text;
    TRY(tree_string(json, "prepend", "normalizer: Prepend", &text, err));
    Text *copy = *state = memory_calloc(1, sizeof *copy);
    text_add(copy, text->text, text->length);
    return OK;
}

static void prepend_close(void *state) {
    text_free(state);
    memory_free(state);
}

static Status prepend_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const Text *text = state;
    const char *first = encoder->now.text + piece->begin;
    const Span *align = encoder->now.align + piece->begin;
    uint32_t code;
    int n = utf8_decode(first, piece->end - piece->begin, &code);
    TRY(aligned_add_at(&encoder->next, text->data, text->length, (Span){align[0].begin, align[n - 1].end}, err));
    return aligned_add(&encoder->next, first, align, piece->end - piece->begin, err);
}

static Status prepend_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_change(encoder, prepend_piece, state, err);
}

const ComponentKind normalizer_prepend = {
    .type = "Prepend", .parse = prepend_parse, .close = prepend_close, .rewrite = prepend_rewrite};

/* ---- Replace: every match by a text that stands for the whole match ---- */
typedef struct Replace {
    Pattern pattern;
    Text content;
} Replace;

static void replace_close(void *state) {
    Replace *replace = state;
    pattern_free(&replace->pattern);
    text_free(&replace->content);
    memory_free(replace);
}

static Status replace_parse(void **state, const Tree *json, Error *err) {
    const Tree *content;
    Replace *replace = *state = memory_calloc(1, sizeof *replace);
    TRY(tree_string(json, "content", "normalizer: Replace", &content, err));
    text_add(&replace->content, content->text, content->length);
    return pattern_parse(&replace->pattern, json, "normalizer: Replace", err);
}

static Status replace_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const Replace *replace = state;
    const char *text = encoder->now.text + piece->begin;
    const Span *align = encoder->now.align + piece->begin;
    TRY(pattern_find(&replace->pattern, &encoder->matcher, text, piece->end - piece->begin, err));
    const Matches *found = &encoder->matcher.found;
    for (size_t i = 0; i < found->count; i++) {
        size_t begin = found->data[i].begin, end = found->data[i].end;
        if (!found->data[i].is_match) {
            TRY(aligned_add(&encoder->next, text + begin, align + begin, end - begin, err));
            continue;
        }
        Span span = {begin ? align[begin - 1].end : align[0].begin, 0};
        span.end = span.begin;
        if (end > begin) span = (Span){align[begin].begin, align[end - 1].end};
        TRY(aligned_add_at(&encoder->next, replace->content.data, replace->content.length, span, err));
    }
    return OK;
}

static Status replace_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_change(encoder, replace_piece, state, err);
}

const ComponentKind normalizer_replace = {
    .type = "Replace", .parse = replace_parse, .close = replace_close, .rewrite = replace_rewrite};

/* ---- Strip: white space at the ends ---- */
typedef struct Strip {
    int left, right;
} Strip;

static Status strip_parse(void **state, const Tree *json, Error *err) {
    Strip *strip = *state = memory_calloc(1, sizeof *strip);
    TRY(tree_flag(json, "strip_left", 0, "normalizer: Strip", &strip->left, err));
    return tree_flag(json, "strip_right", 0, "normalizer: Strip", &strip->right, err);
}

static Status strip_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const Strip *strip = state;
    const char *text = encoder->now.text;
    size_t begin = piece->begin, end = piece->end;
    uint32_t code;
    while (strip->left && begin < end) {
        int n = utf8_decode(text + begin, end - begin, &code);
        if (!char_is_space(code)) break;
        begin += (size_t)n;
    }
    while (strip->right && end > begin) {
        size_t n = char_before(text, end, &code);
        if (!char_is_space(code)) break;
        end -= n;
    }
    return aligned_add(&encoder->next, text + begin, encoder->now.align + begin, end - begin, err);
}

static Status strip_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_change(encoder, strip_piece, state, err);
}

const ComponentKind normalizer_strip = {.type = "Strip", .parse = strip_parse, .close = memory_free, .rewrite = strip_rewrite};

/* ---- Lowercase: character by character, without context (no final sigma) ---- */
static Status lowercase_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)state;
    const char *text = encoder->now.text;
    const Span *align = encoder->now.align;
    for (size_t i = piece->begin; i < piece->end;) {
        uint32_t code;
        size_t n = (size_t)utf8_decode(text + i, piece->end - i, &code);
        uint32_t lower = (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
        if (code == 0x130) { /* the only character whose lower case is two: i and a dot above */
            TRY(aligned_add_at(&encoder->next, "i\xCC\x87", 3, (Span){align[i].begin, align[i + n - 1].end}, err));
        } else if (lower == code) {
            TRY(aligned_add(&encoder->next, text + i, align + i, n, err));
        } else {
            char bytes[4];
            int m = utf8_encode(lower, bytes);
            TRY(aligned_add_at(&encoder->next, bytes, (size_t)m, (Span){align[i].begin, align[i + n - 1].end}, err));
        }
        i += n;
    }
    return OK;
}

static Status lowercase_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_change(encoder, lowercase_piece, state, err);
}

const ComponentKind normalizer_lowercase = {.type = "Lowercase", .rewrite = lowercase_rewrite};
