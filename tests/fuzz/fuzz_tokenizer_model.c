/* A tokenizer.model, SentencePiece or tiktoken, whose end is also the text: whatever opens must encode it in order and within it, and
 * decode and stream any ids. The first byte says which settings stand beside it. */
#include <stdint.h>
#include <string.h>

#include "data/sentencepiece.h"
#include "tests/fuzz/tokenizer_checks.h"

#define TEXT_BYTES 96

static const char sample[] = "The sack of  flour \xE2\x96\x81 \xC3\xA9\xFF<s>";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    TokenizerSettings settings = {
        .add_bos = data[0] & 1, .add_eos = data[0] >> 1 & 1, .legacy = data[0] >> 2 & 1, .add_prefix_space = -1};
    const char *bytes = (const char *)data + 1;
    size_t length = size - 1, text = length < TEXT_BYTES ? length : TEXT_BYTES;
    Tokenizer *tokenizer;
    Error err;
    if (tokenizer_model_parse(&tokenizer, "fuzz", bytes, length, &settings, &err) != OK) return 0;
    check_text(tokenizer, bytes + length - text, text);
    check_text(tokenizer, sample, sizeof sample - 1);
    tokenizer_close(tokenizer);
    return 0;
}
