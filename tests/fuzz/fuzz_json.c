/* Every token of any text, with and without skipping; and decoded strings are well-formed UTF-8. */
#include <stdint.h>
#include <stdlib.h>

#include "core/text.h"
#include "data/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_utf8(const JsonToken *token) {
    for (size_t i = 0; i < token->length;) {
        uint32_t code;
        int n = utf8_decode(token->text + i, token->length - i, &code);
        if (n <= 0) abort();
        i += (size_t)n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int skips = 0; skips < 2; skips++) {
        JsonReader reader;
        JsonToken token;
        Error err;
        json_open(&reader, "fuzz", (const char *)data, size, 1, (JsonLimits){.depth = 20, .string_bytes = 1000});
        size_t tokens = 0;
        while (json_next(&reader, &token, &err) == OK && token.kind != JSON_END) {
            if (++tokens > size) abort(); /* a text of n bytes has at most n tokens before its end */
            if (token.kind == JSON_KEY || token.kind == JSON_STRING) check_utf8(&token);
            if (skips && token.depth == 1 && json_skip(&reader, &token, &err) != OK) break;
        }
        json_close(&reader);
    }
    return 0;
}
