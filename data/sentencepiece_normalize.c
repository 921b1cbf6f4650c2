/* SentencePiece's normalizer: a map of character sequences, white space trimmed and marked with `▁`, a space in front.
 *
 *   charsmap := u32 bytes of the trie | trie | replacements, each ended by a zero byte
 *
 * The trie is a double array as darts-clone writes it: one u32 per unit, with label, offset and whether a value follows. */
#include <string.h>

#include "core/memory.h"
#include "data/sentencepiece.h"

typedef struct SpmNormalizer {
    int dummy_prefix, as_suffix, remove_extra, escape, every_segment;
    const AddedTokens *symbols; /* user-defined: taken over as they are */
    uint32_t *trie;             /* NULL: nothing is mapped */
    size_t units;
    char *forms;
    size_t forms_length;
} SpmNormalizer;

/* The start of the input and what it becomes. */
typedef struct Prefix {
    const char *text;
    size_t length, consumed;
} Prefix;

static void normalizer_close(void *state) {
    SpmNormalizer *n = state;
    memory_free(n->trie);
    memory_free(n->forms);
    memory_free(n);
}

static Status read_charsmap(SpmNormalizer *n, const SpmModel *model, Error *err) {
    SpmString map = model->charsmap;
    uint32_t bytes = 0;
    if (map.length == 0) return OK;
    for (unsigned i = 0; i < 4 && i < map.length; i++)
        bytes |= (uint32_t)(uint8_t)map.text[i] << 8 * i;
    if (map.length < 9 || bytes == 0 || bytes % 4 || bytes >= map.length - 4 || map.text[map.length - 1] != 0)
        FAIL("%s: precompiled_charsmap: %u bytes of trie do not fit into %zu bytes", model->path, bytes, map.length);
    n->units = bytes / 4;
    n->trie = memory_alloc(bytes);
    for (size_t i = 0; i < n->units; i++) {
        const uint8_t *p = (const uint8_t *)map.text + 4 + 4 * i;
        n->trie[i] = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    n->forms_length = map.length - 4 - bytes;
    n->forms = memory_alloc(n->forms_length);
    memcpy(n->forms, map.text + 4 + bytes, n->forms_length);
    Utf8State state = UTF8_WHOLE;
    for (size_t at = 0; at < n->forms_length && state == UTF8_WHOLE;)
        at += utf8_scan(n->forms + at, n->forms_length - at, &state);
    if (state != UTF8_WHOLE) FAIL("%s: precompiled_charsmap: its replacements are not UTF-8", model->path);
    return OK;
}

Status spm_normalizer_open(void **state, const SpmModel *model, const AddedTokens *symbols, int every_segment, Error *err) {
    SpmNormalizer *n = *state = memory_calloc(1, sizeof *n);
    *n = (SpmNormalizer){.dummy_prefix = model->add_dummy_prefix,
                         .as_suffix = model->whitespace_is_suffix,
                         .remove_extra = model->remove_extra_whitespaces,
                         .escape = model->escape_whitespaces,
                         .every_segment = every_segment,
                         .symbols = symbols};
    return read_charsmap(n, model, err);
}

/* Whether a character begins at p, or a text ends there. */
static int is_boundary(const char *p) {
    return ((uint8_t)*p & 0xC0) != 0x80;
}

static size_t unit_offset(uint32_t unit) {
    return (size_t)(unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The longest key of whole characters that the text starts with: its value, and its length or 0. */
static size_t trie_longest(const SpmNormalizer *n, const char *text, size_t length, uint32_t *value) {
    size_t best = 0, at = unit_offset(n->trie[0]);
    for (size_t i = 0; i < length; i++) {
        at ^= (uint8_t)text[i];
        if (at >= n->units || (n->trie[at] & 0x800000FFu) != (uint8_t)text[i]) break;
        uint32_t unit = n->trie[at];
        at ^= unit_offset(unit);
        if (at >= n->units) break;
        if ((unit >> 8 & 1) && (i + 1 == length || is_boundary(text + i + 1))) {
            *value = n->trie[at] & 0x7FFFFFFFu;
            best = i + 1;
        }
    }
    return best;
}

/* U+FFFD in the place of one byte that was no UTF-8: it is not mapped. */
static int is_repaired(const char *text, const Span *align, size_t length) {
    return length >= 3 && memcmp(text, "\xEF\xBF\xBD", 3) == 0 && align[0].begin == align[2].begin;
}

static Prefix prefix_of(const SpmNormalizer *n, const char *text, const Span *align, size_t length) {
    if (is_repaired(text, align, length)) return (Prefix){text, 3, 3};
    const AddedToken *symbol = added_longest(n->symbols, text, length);
    if (symbol != NULL) return (Prefix){text, symbol->length, symbol->length};
    if (n->trie == NULL && n->symbols->raw_count == 0) { /* nothing to look up: all up to the next space */
        const char *space = memchr(text, ' ', length);
        size_t run = space == NULL ? length : space == text ? 1 : (size_t)(space - text);
        return (Prefix){text, run, run};
    }
    uint32_t value = 0, code;
    size_t key = n->trie ? trie_longest(n, text, length, &value) : 0;
    if (key && value < n->forms_length && is_boundary(n->forms + value))
        return (Prefix){n->forms + value, strlen(n->forms + value), key};
    size_t one = (size_t)utf8_decode(text, length, &code);
    return (Prefix){text, one, one};
}

static Status add_space(const SpmNormalizer *n, Encoder *encoder, Span span, Error *err) {
    return aligned_add_at(&encoder->next, n->escape ? "\xE2\x96\x81" : " ", n->escape ? 3 : 1, span, err);
}

/* Appends what a prefix became; bytes taken over keep their place, others stand for the whole prefix. */
static Status add_prefix(const SpmNormalizer *n, Encoder *encoder, const Prefix *prefix, const char *from, const Span *align,
                         Error *err) {
    Span whole = {align[0].begin, align[prefix->consumed - 1].end};
    for (size_t i = 0, end; i < prefix->length; i = end) {
        const char *space = n->escape ? memchr(prefix->text + i, ' ', prefix->length - i) : NULL;
        end = space == NULL ? prefix->length : (size_t)(space - prefix->text);
        if (end == i) {
            TRY(add_space(n, encoder, prefix->consumed == 1 ? align[0] : whole, err));
            end = i + 1;
        } else if (prefix->text >= from && prefix->text <= from + prefix->consumed) {
            size_t skipped = (size_t)(prefix->text - from);
            TRY(aligned_add(&encoder->next, prefix->text + i, align + skipped + i, end - i, err));
        } else {
            TRY(aligned_add_at(&encoder->next, prefix->text + i, end - i, whole, err));
        }
    }
    return OK;
}

static void drop_trailing_spaces(const SpmNormalizer *n, Encoder *encoder, size_t begin) {
    const char *space = n->escape ? "\xE2\x96\x81" : " ";
    size_t length = n->escape ? 3 : 1;
    Aligned *next = &encoder->next;
    while (next->length - begin >= length && memcmp(next->text + next->length - length, space, length) == 0)
        next->length -= length;
}

static Status normalize_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const SpmNormalizer *n = state;
    const char *text = encoder->now.text;
    const Span *align = encoder->now.align;
    size_t at = piece->begin, begin = encoder->next.length;
    while (n->remove_extra && at < piece->end) {
        Prefix prefix = prefix_of(n, text + at, align + at, piece->end - at);
        if (prefix.length != 1 || prefix.text[0] != ' ') break;
        at += prefix.consumed;
    }
    if (at == piece->end) return OK;
    int marks = n->dummy_prefix && (n->every_segment || piece->origin == 0), after_space = n->remove_extra;
    Span first = {align[at].begin, align[at].end};
    if (marks && !n->as_suffix) TRY(add_space(n, encoder, first, err));
    while (at < piece->end) {
        Prefix prefix = prefix_of(n, text + at, align + at, piece->end - at);
        while (after_space && prefix.length && prefix.text[0] == ' ') {
            prefix.text++;
            prefix.length--;
        }
        if (prefix.length) {
            TRY(add_prefix(n, encoder, &prefix, text + at, align + at, err));
            after_space = n->remove_extra && prefix.text[prefix.length - 1] == ' ';
        }
        at += prefix.consumed;
    }
    if (n->remove_extra) drop_trailing_spaces(n, encoder, begin);
    Span last = align[piece->end - 1];
    return marks && n->as_suffix ? add_space(n, encoder, last, err) : OK;
}

static Status normalizer_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_change(encoder, normalize_piece, state, err);
}

const ComponentKind normalizer_sentencepiece = {
    .type = "SentencePiece", .close = normalizer_close, .rewrite = normalizer_rewrite};
