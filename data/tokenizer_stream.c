/* Streaming decode: the decoders' chain, its output handed out as it comes. Special tokens give no text. */
#include "core/memory.h"
#include "data/tokenizer_internal.h"

struct TokenStream {
    Decoder decoder;
};

Status token_stream_open(TokenStream **stream, const Tokenizer *tokenizer, Error *err) {
    (void)err;
    *stream = memory_calloc(1, sizeof **stream);
    decoder_open(&(*stream)->decoder, tokenizer, 1, 1);
    return OK;
}

static Status take(TokenStream *stream, Status status, const char **text, size_t *length) {
    *text = stream->decoder.out.data ? stream->decoder.out.data : "";
    *length = stream->decoder.out.length;
    return status;
}

Status token_stream_next(TokenStream *stream, int32_t id, const char **text, size_t *length, Error *err) {
    text_clear(&stream->decoder.out);
    return take(stream, decoder_id(&stream->decoder, id, err), text, length);
}

Status token_stream_flush(TokenStream *stream, const char **text, size_t *length, Error *err) {
    text_clear(&stream->decoder.out);
    return take(stream, decoder_push(&stream->decoder, 0, NULL, 0, err), text, length);
}

void token_stream_close(TokenStream *stream) {
    if (stream == NULL) return;
    decoder_close(&stream->decoder);
    memory_free(stream);
}
