/* The decoders. Each is called per token and, with token NULL, once at the end. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* ---- ByteLevel: characters back to bytes; ill-formed UTF-8 becomes U+FFFD, one per maximal subpart ---- */

/* Hands on the characters of held that no later byte can change; all of them at the end. */
static void characters_take(Text *held, int at_end, Text *out) {
    size_t i = 0;
    while (i < held->length) {
        Utf8State state;
        size_t n = utf8_scan(held->data + i, held->length - i, &state);
        if (state == UTF8_PARTIAL && !at_end) break;
        if (state == UTF8_WHOLE)
            text_add(out, held->data + i, n);
        else
            text_add(out, replacement, 3);
        i += n;
    }
    if (held->length) memmove(held->data, held->data + i, held->length - i);
    held->length -= i;
}

static void byte_level_spell(Text *held, const char *token, size_t length) {
    size_t before = held->length;
    for (size_t i = 0; i < length;) {
        uint32_t code;
        int n = utf8_decode(token + i, length - i, &code), byte = byte_level_byte(code);
        if (byte < 0) { /* not spelled by ByteLevel (an added token): as it is */
            held->length = before;
            text_add(held, token, length);
            return;
        }
        char c = (char)byte;
        text_add(held, &c, 1);
        i += (size_t)n;
    }
}

static Status byte_level_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length,
                                Error *err) {
    (void)state;
    Text *held = &decoder->steps[index].held;
    if (token != NULL) byte_level_spell(held, token, length);
    if (token != NULL && !decoder->streaming) return OK;
    Text out = {0};
    characters_take(held, token == NULL, &out);
    Status status =
        out.length || token == NULL ? decoder_push(decoder, index + 1, out.data ? out.data : "", out.length, err) : OK;
    text_free(&out);
    return status == OK && token == NULL ? decoder_push(decoder, index + 1, NULL, 0, err) : status;
}

const ComponentKind decoder_byte_level = {.type = "ByteLevel", .decode = byte_level_decode};

/* ---- Replace, in every token ---- */
typedef struct DecoderReplace {
    Pattern pattern;
    Text content;
} DecoderReplace;

static void replace_close(void *state) {
    DecoderReplace *replace = state;
    pattern_free(&replace->pattern);
    text_free(&replace->content);
    memory_free(replace);
}

static Status replace_parse(void **state, const Tree *json, Error *err) {
    DecoderReplace *replace = *state = memory_calloc(1, sizeof *replace);
    const Tree *content;
    TRY(tree_string(json, "content", "decoder: Replace", &content, err));
    text_add(&replace->content, content->text, content->length);
    return pattern_parse(&replace->pattern, json, "decoder: Replace", err);
}

static Status replace_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    const DecoderReplace *replace = state;
    if (token == NULL) return decoder_push(decoder, index + 1, NULL, 0, err);
    TRY(pattern_find(&replace->pattern, &decoder->matcher, token, length, err));
    const Matches *found = &decoder->matcher.found;
    Text out = {0};
    for (size_t i = 0; i < found->count; i++) {
        const Match *match = &found->data[i];
        if (match->is_match)
            text_add(&out, replace->content.data, replace->content.length);
        else
            text_add(&out, token + match->begin, match->end - match->begin);
    }
    Status status = decoder_push(decoder, index + 1, out.data ? out.data : "", out.length, err);
    text_free(&out);
    return status;
}

const ComponentKind decoder_replace = {
    .type = "Replace", .parse = replace_parse, .close = replace_close, .decode = replace_decode};

/* ---- ByteFallback: a run of <0xXX> tokens becomes its text, or one U+FFFD per byte when it is not UTF-8 ---- */
static int fallback_byte(const char *token, size_t length) {
    if (length != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>') return -1;
    int byte = 0;
    for (int i = 3; i < 5; i++) {
        char c = token[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (i == 3 && c == '+') digit = 0; /* the reference's number parser takes a sign */
        if (digit < 0) return -1;
        byte = byte * 16 + digit;
    }
    return byte;
}

static int is_utf8(const Text *text) {
    Utf8State state = UTF8_WHOLE;
    for (size_t i = 0; i < text->length && state == UTF8_WHOLE;)
        i += utf8_scan(text->data + i, text->length - i, &state);
    return state == UTF8_WHOLE;
}

static Status fallback_flush(Decoder *decoder, size_t index, Error *err) {
    Text *held = &decoder->steps[index].held;
    Status status = OK;
    if (held->length && is_utf8(held))
        status = decoder_push(decoder, index + 1, held->data, held->length, err);
    else
        for (size_t i = 0; i < held->length && status == OK; i++)
            status = decoder_push(decoder, index + 1, replacement, 3, err);
    held->length = 0;
    return status;
}

static Status fallback_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    (void)state;
    Text *held = &decoder->steps[index].held;
    int byte = token ? fallback_byte(token, length) : -1;
    if (byte < 0) {
        TRY(fallback_flush(decoder, index, err));
        return decoder_push(decoder, index + 1, token, length, err);
    }
    char c = (char)byte;
    text_add(held, &c, 1);
    if (!decoder->streaming) return OK;
    Text out = {0}; /* in a stream whole characters go at once, before it is known whether all of the run is UTF-8 */
    characters_take(held, 0, &out);
    Status status = out.length ? decoder_push(decoder, index + 1, out.data, out.length, err) : OK;
    text_free(&out);
    return status;
}

const ComponentKind decoder_byte_fallback = {.type = "ByteFallback", .decode = fallback_decode};

/* ---- Fuse: one token of everything ---- */
static Status fuse_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    (void)state;
    if (decoder->streaming) return decoder_push(decoder, index + 1, token, length, err);
    Text *held = &decoder->steps[index].held;
    if (token != NULL) {
        text_add(held, token, length);
        return OK;
    }
    TRY(decoder_push(decoder, index + 1, held->data ? held->data : "", held->length, err));
    return decoder_push(decoder, index + 1, NULL, 0, err);
}

const ComponentKind decoder_fuse = {.type = "Fuse", .decode = fuse_decode};

/* ---- Strip: up to `start` characters from the front of every token, up to `stop` from its end ---- */
typedef struct DecoderStrip {
    char content[4];
    size_t length;
    int64_t start, stop;
} DecoderStrip;

static Status strip_parse(void **state, const Tree *json, Error *err) {
    DecoderStrip *strip = *state = memory_calloc(1, sizeof *strip);
    const Tree *content;
    uint32_t code;
    TRY(tree_string(json, "content", "decoder: Strip", &content, err));
    if (content->length == 0 || (size_t)utf8_decode(content->text, content->length, &code) != content->length)
        FAIL("decoder: Strip: 'content': want one character, got '%.80s'", content->text);
    memcpy(strip->content, content->text, content->length);
    strip->length = content->length;
    TRY(tree_count(json, "start", 1 << 20, "decoder: Strip", &strip->start, err));
    return tree_count(json, "stop", 1 << 20, "decoder: Strip", &strip->stop, err);
}

static int step_fuses(const Decoder *decoder, size_t index) {
    const Components *steps = &decoder->tokenizer->decoder;
    for (size_t i = 0; i < index; i++)
        if (steps->list[i].kind == &decoder_fuse || steps->list[i].kind == &decoder_byte_level) return 1;
    return 0;
}

static Status strip_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    const DecoderStrip *strip = state;
    struct DecoderStep *step = &decoder->steps[index];
    if (token == NULL) return decoder_push(decoder, index + 1, NULL, 0, err);
    int fused = decoder->streaming && step_fuses(decoder, index);
    if (fused && strip->stop) FAIL("decoder: Strip with 'stop' above 0 after Fuse is not supported in a stream");
    int64_t stripped = fused ? step->stripped : 0;
    while (!(fused && step->done) && stripped < strip->start && length >= strip->length &&
           memcmp(token, strip->content, strip->length) == 0) {
        token += strip->length;
        length -= strip->length;
        stripped++;
    }
    step->stripped = stripped;
    if (length > 0) step->done = 1;
    for (int64_t i = 0; i < strip->stop && length >= strip->length; i++) {
        if (memcmp(token + length - strip->length, strip->content, strip->length) != 0) break;
        length -= strip->length;
    }
    return decoder_push(decoder, index + 1, token, length, err);
}

const ComponentKind decoder_strip = {.type = "Strip", .parse = strip_parse, .close = memory_free, .decode = strip_decode};

/* ---- Metaspace: `▁` becomes a space, or nothing in the first token unless none was put there ---- */
typedef struct DecoderMetaspace {
    uint32_t code;
    int drops_first;
} DecoderMetaspace;

static Status metaspace_parse(void **state, const Tree *json, Error *err) {
    const char *what = "decoder: Metaspace";
    DecoderMetaspace *meta = *state = memory_calloc(1, sizeof *meta);
    const Tree *mark, *scheme = tree_get(json, "prepend_scheme");
    int prefix;
    TRY(tree_string(json, "replacement", what, &mark, err));
    if (mark->length == 0 || (size_t)utf8_decode(mark->text, mark->length, &meta->code) != mark->length)
        FAIL("%s: 'replacement': want one character, got '%.80s'", what, mark->text);
    if (scheme != NULL) TRY(tree_string(json, "prepend_scheme", what, &scheme, err));
    TRY(tree_flag(json, "add_prefix_space", 1, what, &prefix, err));
    meta->drops_first = prefix && (scheme == NULL || strcmp(scheme->text, "never") != 0);
    return OK;
}

static Status metaspace_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length,
                               Error *err) {
    const DecoderMetaspace *meta = state;
    if (token == NULL) return decoder_push(decoder, index + 1, NULL, 0, err);
    int drop = decoder->steps[index].tokens++ == 0 && meta->drops_first;
    Text out = {0};
    for (size_t i = 0; i < length;) {
        uint32_t code;
        size_t n = (size_t)utf8_decode(token + i, length - i, &code);
        if (code != meta->code)
            text_add(&out, token + i, n);
        else if (!drop)
            text_add(&out, " ", 1);
        i += n;
    }
    Status status = decoder_push(decoder, index + 1, out.data ? out.data : "", out.length, err);
    text_free(&out);
    return status;
}

const ComponentKind decoder_metaspace = {
    .type = "Metaspace", .parse = metaspace_parse, .close = memory_free, .decode = metaspace_decode};
