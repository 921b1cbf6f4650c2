/* What must hold of every tokenizer that opened, whatever its file was: ids in range, spans in order and inside of the text, whole
 * characters in a stream. */
#ifndef NIBBLE_TESTS_FUZZ_TOKENIZER_CHECKS_H
#define NIBBLE_TESTS_FUZZ_TOKENIZER_CHECKS_H

#include <stdint.h>
#include <stdlib.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

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

#endif
