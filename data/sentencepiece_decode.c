/* SentencePiece's way from pieces to text: the first space goes where one was put, bytes that are no UTF-8 become one U+FFFD
 * each, the unknown piece its surface. Nothing waits longer than for the end of a character. */
#include <string.h>

#include "core/memory.h"
#include "data/sentencepiece.h"

typedef struct SpmDecoder {
    int drops_first, drops_more, byte_fallback;
    Text unk, surface;
} SpmDecoder;

static void spm_decoder_close(void *state) {
    SpmDecoder *d = state;
    text_free(&d->unk);
    text_free(&d->surface);
    memory_free(d);
}

void spm_decoder_open(void **state, const SpmModel *model) {
    SpmDecoder *d = *state = memory_calloc(1, sizeof *d);
    d->drops_first = model->add_dummy_prefix || model->remove_extra_whitespaces;
    d->drops_more = model->remove_extra_whitespaces;
    d->byte_fallback = model->byte_fallback;
    text_add(&d->unk, model->pieces[model->unk].text.text, model->pieces[model->unk].text.length);
    text_add(&d->surface, model->unk_surface.text, model->unk_surface.length);
}

static int byte_of(const SpmDecoder *d, const char *token, size_t length) {
    int value = 0;
    if (!d->byte_fallback || length != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>') return -1;
    for (int i = 3; i < 5; i++) {
        char c = token[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Hands on the held bytes' characters; all of them `at_end`, else those that no later byte can change. */
static Status hand_on_bytes(Decoder *decoder, size_t index, int at_end, Error *err) {
    struct DecoderStep *step = &decoder->steps[index];
    Text out = {0};
    size_t i = 0;
    while (i < step->held.length) {
        Utf8State state;
        size_t n = utf8_scan(step->held.data + i, step->held.length - i, &state);
        if (state == UTF8_PARTIAL && !at_end) break;
        if (state == UTF8_WHOLE)
            text_add(&out, step->held.data + i, n);
        else
            text_add(&out, "\xEF\xBF\xBD", 3);
        i += state == UTF8_WHOLE ? n : 1;
    }
    if (i) memmove(step->held.data, step->held.data + i, step->held.length - i);
    step->held.length -= i;
    if (out.length) step->done = 1;
    Status status = out.length ? decoder_push(decoder, index + 1, out.data, out.length, err) : OK;
    text_free(&out);
    return status;
}

static Status hand_on_piece(const SpmDecoder *d, Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    static const char mark[] = "\xE2\x96\x81"; /* U+2581 */
    struct DecoderStep *step = &decoder->steps[index];
    if (length == d->unk.length && memcmp(token, d->unk.data, length) == 0) {
        if (d->surface.length) step->done = 1;
        return d->surface.length ? decoder_push(decoder, index + 1, d->surface.data, d->surface.length, err) : OK;
    }
    if (!step->done && d->drops_first && length >= 3 && memcmp(token, mark, 3) == 0) {
        token += 3;
        length -= 3;
        if (!d->drops_more) step->done = 1;
    }
    if (length) step->done = 1;
    Text out = {0};
    for (size_t i = 0; i < length;) {
        int is_mark = i + 3 <= length && memcmp(token + i, mark, 3) == 0;
        text_add(&out, is_mark ? " " : token + i, 1);
        i += is_mark ? 3 : 1;
    }
    Status status = out.length ? decoder_push(decoder, index + 1, out.data, out.length, err) : OK;
    text_free(&out);
    return status;
}

static Status spm_decode(const void *state, Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    const SpmDecoder *d = state;
    int byte = token ? byte_of(d, token, length) : -1;
    if (byte >= 0) {
        char c = (char)byte;
        text_add(&decoder->steps[index].held, &c, 1);
        return hand_on_bytes(decoder, index, 0, err);
    }
    TRY(hand_on_bytes(decoder, index, 1, err));
    return token ? hand_on_piece(d, decoder, index, token, length, err) : decoder_push(decoder, index + 1, NULL, 0, err);
}

const ComponentKind decoder_sentencepiece = {.type = "SentencePiece", .close = spm_decoder_close, .decode = spm_decode};
