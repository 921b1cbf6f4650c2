/* A tokenizer.json and a text, separated by a zero byte: whatever opens must encode the text in order and within it, and
 * decode and stream any ids. The text is also bounded: patterns may be slow by design, up to their match limit. */
#include <stdint.h>
#include <string.h>

#include "tests/fuzz/tokenizer_checks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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
