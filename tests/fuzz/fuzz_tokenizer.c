/* A tokenizer.json and a text, separated by a zero byte: whatever opens must encode the text in order and within it, and
 * decode and stream any ids. The text is also bounded: patterns may be slow by design, up to their match limit. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_stream(const Tokenizer *tokenizer, const TokenBuffer *tokens) {
    TokenStream *stream;
    Error err;
    const char *text;
    size_t length;
    if (token_stream_open(&stream, tokenizer, &err) != OK) return;
    Status status = OK;
    for (int64_t i = 0; i <= tokens->count && status == OK; i++) {
        status = i < tokens->count ? token_stream_next(stream, tokens->ids[i], &text, &length, &err)
                                   : token_stream_flush(stream, &text, &length, &err);
        for (size_t at = 0; status == OK && at < length;) {
            uint32_t code;
            int n = utf8_decode(text + at, length - at, &code);
            if (n <= 0) abort(); /* half a character */
            at += (size_t)n;
        }
    }
    token_stream_close(stream);
}

static void check_text(const Tokenizer *tokenizer, const char *text, size_t length) {
    TokenBuffer tokens = {0};
    Error err;
    for (int flags = 0; flags < 4; flags++) {
        tokens.count = 0;
        if (tokenizer_encode(tokenizer, text, length, flags & 1, flags >> 1, &tokens, &err) != OK) continue;
        for (int64_t i = 0; i < tokens.count; i++) {
            if (tokens.ids[i] < 0 || tokens.ids[i] >= tokenizer_vocab_size(tokenizer)) abort();
            if (tokens.begin[i] < 0 || tokens.begin[i] > tokens.end[i] || (size_t)tokens.end[i] > length) abort();
        }
        char *decoded;
        size_t decoded_length;
        if (tokenizer_decode(tokenizer, tokens.ids, tokens.count, flags & 1, &decoded, &decoded_length, &err) == OK)
            memory_free(decoded);
        check_stream(tokenizer, &tokens);
    }
    token_buffer_free(&tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t json = zero ? (size_t)(zero - data) : size;
    const char *text = (const char *)data + (zero ? json + 1 : 0);
    size_t length = zero ? size - json - 1 : json < 256 ? json : 256;
    Tokenizer *tokenizer;
    Error err;
    if (tokenizer_parse(&tokenizer, "fuzz", (const char *)data, json, &err) != OK) return 0;
    check_text(tokenizer, text, length);
    tokenizer_close(tokenizer);
    return 0;
}
