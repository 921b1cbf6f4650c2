/* ByteLevel: every byte becomes a printable character. Bytes 33-126, 161-172 and 174-255 stand for themselves, the
 * other 68 take U+0100, U+0101, … in order (a space is U+0120). As pre-tokenizer it may first cut by GPT-2's pattern. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* The hidden bytes: 0-32, 127-160, 173. */
uint32_t byte_level_code(uint8_t byte) {
    if (byte <= 32) return 0x100u + byte;
    if (byte >= 127 && byte <= 160) return 0x100u + 33 + (byte - 127u);
    if (byte == 173) return 0x100u + 67;
    return byte;
}

int byte_level_byte(uint32_t code) {
    if (code >= 0x100 && code < 0x144) {
        uint32_t n = code - 0x100;
        return (int)(n <= 32 ? n : n < 67 ? n - 33 + 127 : 173);
    }
    return code < 0x100 && byte_level_code((uint8_t)code) == code ? (int)code : -1;
}

typedef struct ByteLevel {
    int add_prefix_space, use_regex;
    Pattern pattern;
} ByteLevel;

static void byte_level_close(void *state) {
    ByteLevel *level = state;
    pattern_free(&level->pattern);
    memory_free(level);
}

static Status byte_level_parse(void **state, const Tree *json, Error *err) {
    const char *what = "pre_tokenizer: ByteLevel";
    ByteLevel *level = *state = memory_calloc(1, sizeof *level);
    TRY(tree_flag(json, "add_prefix_space", 1, what, &level->add_prefix_space, err));
    TRY(tree_flag(json, "use_regex", 1, what, &level->use_regex, err));
    return level->use_regex ? pattern_compile(&level->pattern, gpt2_pattern, what, err) : OK;
}

static Status space_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)state;
    const char *text = encoder->now.text + piece->begin;
    const Span *align = encoder->now.align + piece->begin;
    size_t length = piece->end - piece->begin;
    if (text[0] != ' ') {
        uint32_t code;
        int n = utf8_decode(text, length, &code);
        TRY(aligned_add_at(&encoder->next, " ", 1, (Span){align[0].begin, align[n - 1].end}, err));
    }
    return aligned_add(&encoder->next, text, align, length, err);
}

static Status cut_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const ByteLevel *level = state;
    TRY(pattern_find(&level->pattern, &encoder->matcher, encoder->now.text + piece->begin, piece->end - piece->begin, err));
    const Matches *found = &encoder->matcher.found;
    for (size_t i = 0; i < found->count; i++)
        encoder_cut(encoder, piece->begin + found->data[i].begin, piece->begin + found->data[i].end);
    return OK;
}

static Status spell_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)state;
    for (size_t i = piece->begin; i < piece->end; i++) {
        char bytes[4];
        int n = utf8_encode(byte_level_code((uint8_t)encoder->now.text[i]), bytes);
        TRY(aligned_add_at(&encoder->next, bytes, (size_t)n, encoder->now.align[i], err));
    }
    return OK;
}

static Status byte_level_rewrite(const void *state, Encoder *encoder, Error *err) {
    const ByteLevel *level = state;
    if (level->add_prefix_space) TRY(encoder_change(encoder, space_piece, level, err));
    if (level->use_regex) TRY(encoder_divide(encoder, cut_piece, level, err));
    return encoder_change(encoder, spell_piece, level, err);
}

const ComponentKind pre_tokenizer_byte_level = {
    .type = "ByteLevel", .parse = byte_level_parse, .close = byte_level_close, .rewrite = byte_level_rewrite};
