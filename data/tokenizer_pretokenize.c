/* Pre-tokenizers other than ByteLevel: Split, Digits, Punctuation, Metaspace. */
#include <string.h>
#include <utf8proc.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

typedef enum Behaviour { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS } Behaviour;

/* Runs of matches and gaps that stay together: [first, *last] of found from `first` on. */
static size_t group_end(const Matches *found, size_t first, Behaviour behaviour) {
    size_t last = first;
    while (last + 1 < found->count) {
        int here = found->data[last].is_match, next = found->data[last + 1].is_match;
        int joined = behaviour == CONTIGUOUS             ? here == next
                     : behaviour == MERGED_WITH_PREVIOUS ? next && !here
                     : behaviour == MERGED_WITH_NEXT     ? here && !next
                                                         : 0;
        if (!joined) break;
        last++;
    }
    return last;
}

static void cut_matches(Encoder *encoder, const Piece *piece, Behaviour behaviour) {
    const Matches *found = &encoder->matcher.found;
    for (size_t i = 0; i < found->count; i++) {
        if (behaviour == REMOVED && found->data[i].is_match) continue;
        size_t last = group_end(found, i, behaviour);
        encoder_cut(encoder, piece->begin + found->data[i].begin, piece->begin + found->data[last].end);
        i = last;
    }
}

/* ---- Split ---- */
typedef struct Split {
    Pattern pattern;
    Behaviour behaviour;
    int invert;
} Split;

static void split_close(void *state) {
    Split *split = state;
    pattern_free(&split->pattern);
    memory_free(split);
}

static Status behaviour_parse(const Tree *json, const char *what, Behaviour *out, Error *err) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const Tree *behaviour;
    TRY(tree_string(json, "behavior", what, &behaviour, err));
    size_t i = 0, count = sizeof names / sizeof *names;
    while (i < count && strcmp(names[i], behaviour->text) != 0)
        i++;
    if (i == count) FAIL("%s: the behavior '%.80s' is not supported", what, behaviour->text);
    *out = (Behaviour)i;
    return OK;
}

static Status split_parse(void **state, const Tree *json, Error *err) {
    const char *what = "pre_tokenizer: Split";
    Split *split = *state = memory_calloc(1, sizeof *split);
    TRY(behaviour_parse(json, what, &split->behaviour, err));
    TRY(tree_flag(json, "invert", 0, what, &split->invert, err));
    return pattern_parse(&split->pattern, json, what, err);
}

static Status split_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const Split *split = state;
    TRY(pattern_find(&split->pattern, &encoder->matcher, encoder->now.text + piece->begin, piece->end - piece->begin, err));
    Matches *found = &encoder->matcher.found;
    for (size_t i = 0; split->invert && i < found->count; i++)
        found->data[i].is_match = !found->data[i].is_match;
    cut_matches(encoder, piece, split->behaviour);
    return OK;
}

static Status split_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_divide(encoder, split_piece, state, err);
}

const ComponentKind pre_tokenizer_split = {
    .type = "Split", .parse = split_parse, .close = split_close, .rewrite = split_rewrite};

/* Fills encoder->matcher.found with one match per character that `wanted` accepts. */
static void find_characters(Encoder *encoder, const Piece *piece, int (*wanted)(uint32_t code, uint32_t argument),
                            uint32_t argument) {
    Matches *found = &encoder->matcher.found;
    const char *text = encoder->now.text + piece->begin;
    size_t length = piece->end - piece->begin, done = 0;
    found->count = 0;
    for (size_t i = 0; i < length;) {
        uint32_t code;
        size_t n = (size_t)utf8_decode(text + i, length - i, &code);
        if (wanted(code, argument)) {
            if (done < i) matches_add(found, done, i, 0);
            matches_add(found, i, i + n, 1);
            done = i + n;
        }
        i += n;
    }
    if (done < length) matches_add(found, done, length, 0);
}

/* ---- Digits: numeric characters (Nd, Nl, No), one by one or in runs ---- */
static Status digits_parse(void **state, const Tree *json, Error *err) {
    int *individual = *state = memory_calloc(1, sizeof *individual);
    return tree_flag(json, "individual_digits", 0, "pre_tokenizer: Digits", individual, err);
}

static int is_numeric(uint32_t code, uint32_t argument) {
    (void)argument;
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

static Status digits_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)err;
    find_characters(encoder, piece, is_numeric, 0);
    cut_matches(encoder, piece, *(const int *)state ? ISOLATED : CONTIGUOUS);
    return OK;
}

static Status digits_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_divide(encoder, digits_piece, state, err);
}

const ComponentKind pre_tokenizer_digits = {
    .type = "Digits", .parse = digits_parse, .close = memory_free, .rewrite = digits_rewrite};

/* ---- Punctuation: ASCII's punctuation and symbols, and the categories P* ---- */
static Status punctuation_parse(void **state, const Tree *json, Error *err) {
    Behaviour *behaviour = *state = memory_calloc(1, sizeof *behaviour);
    *behaviour = ISOLATED;
    return tree_get(json, "behavior") ? behaviour_parse(json, "pre_tokenizer: Punctuation", behaviour, err) : OK;
}

static int is_punctuation(uint32_t code, uint32_t argument) {
    (void)argument;
    if (code < 128)
        return (code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) ||
               (code >= 123 && code <= 126);
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

static Status punctuation_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)err;
    find_characters(encoder, piece, is_punctuation, 0);
    cut_matches(encoder, piece, *(const Behaviour *)state);
    return OK;
}

static Status punctuation_rewrite(const void *state, Encoder *encoder, Error *err) {
    return encoder_divide(encoder, punctuation_piece, state, err);
}

const ComponentKind pre_tokenizer_punctuation = {
    .type = "Punctuation", .parse = punctuation_parse, .close = memory_free, .rewrite = punctuation_rewrite};

/* ---- Metaspace: spaces become `▁`, one may be put in front, and words may be cut before each ---- */
typedef struct Metaspace {
    char mark[4];
    size_t length;
    uint32_t code;
    enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } scheme;
    int split;
} Metaspace;

static Status metaspace_parse(void **state, const Tree *json, Error *err) {
    const char *what = "pre_tokenizer: Metaspace";
    Metaspace *meta = *state = memory_calloc(1, sizeof *meta);
    const Tree *mark, *scheme = tree_get(json, "prepend_scheme");
    TRY(tree_string(json, "replacement", what, &mark, err));
    int n = mark->length ? utf8_decode(mark->text, mark->length, &meta->code) : 0;
    if (n == 0 || (size_t)n != mark->length) FAIL("%s: 'replacement': want one character, got '%.80s'", what, mark->text);
    memcpy(meta->mark, mark->text, mark->length);
    meta->length = mark->length;
    if (scheme != NULL) {
        TRY(tree_string(json, "prepend_scheme", what, &scheme, err));
        if (strcmp(scheme->text, "always") == 0)
            meta->scheme = PREPEND_ALWAYS;
        else if (strcmp(scheme->text, "first") == 0)
            meta->scheme = PREPEND_FIRST;
        else if (strcmp(scheme->text, "never") == 0)
            meta->scheme = PREPEND_NEVER;
        else
            FAIL("%s: 'prepend_scheme': want always, first or never, got '%.80s'", what, scheme->text);
    }
    int prefix;
    TRY(tree_flag(json, "add_prefix_space", 1, what, &prefix, err));
    if (!prefix && scheme != NULL && meta->scheme != PREPEND_NEVER)
        FAIL("%s: add_prefix_space false contradicts prepend_scheme '%s'", what, scheme->text);
    if (!prefix) meta->scheme = PREPEND_NEVER;
    return tree_flag(json, "split", 1, what, &meta->split, err);
}

static Status metaspace_mark(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    const Metaspace *meta = state;
    const char *text = encoder->now.text;
    const Span *align = encoder->now.align;
    uint32_t code;
    size_t n = (size_t)utf8_decode(text + piece->begin, piece->end - piece->begin, &code);
    int starts = code == meta->code || code == ' ';
    int wanted = meta->scheme == PREPEND_ALWAYS || (meta->scheme == PREPEND_FIRST && piece->origin == 0);
    if (!starts && wanted) {
        Span first = {align[piece->begin].begin, align[piece->begin + n - 1].end};
        TRY(aligned_add_at(&encoder->next, meta->mark, meta->length, first, err));
    }
    for (size_t i = piece->begin, end; i < piece->end; i = end) {
        end = i + 1;
        if (text[i] == ' ') {
            TRY(aligned_add_at(&encoder->next, meta->mark, meta->length, align[i], err));
            continue;
        }
        while (end < piece->end && text[end] != ' ')
            end++;
        TRY(aligned_add(&encoder->next, text + i, align + i, end - i, err));
    }
    return OK;
}

static int is_code(uint32_t code, uint32_t argument) {
    return code == argument;
}

static Status metaspace_cut(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)err;
    find_characters(encoder, piece, is_code, ((const Metaspace *)state)->code);
    cut_matches(encoder, piece, MERGED_WITH_NEXT);
    return OK;
}

static Status metaspace_rewrite(const void *state, Encoder *encoder, Error *err) {
    const Metaspace *meta = state;
    TRY(encoder_change(encoder, metaspace_mark, meta, err));
    return meta->split ? encoder_divide(encoder, metaspace_cut, meta, err) : OK;
}

const ComponentKind pre_tokenizer_metaspace = {
    .type = "Metaspace", .parse = metaspace_parse, .close = memory_free, .rewrite = metaspace_rewrite};
