/* Encoding is linear on hostile text, by work counted and not by the clock: ten times the text is ten times the symbols, pairs looked
 * up and pieces compared, for texts without a cut in every family. Each pair costs one step of a heap, whose depth is the
 * logarithm of a word's length. (Patterns are bounded by PCRE2's match limit, which test_tokenizer.c meets.) */
#include "tests/unit/test_core.h"

#include "core/memory.h"
#include "data/tokenizer_internal.h"
#include "tests/support/compare.h"

#define SHORT_BYTES ((size_t)20000)
#define TIMES 10
/* Of a byte: a symbol at most; a pair with the next, and two more with each merge; in a unigram model, one for each byte of the longest
 * piece that begins there. */
#define PAIRS_OF_BYTE 4
#define PIECE_BYTES 64

static const char *const units[] = {"a",
                                    " ",
                                    "7",
                                    "\n",
                                    "!",
                                    "=-",
                                    "a ",
                                    "\t ",
                                    "'s",
                                    "the",
                                    "qwertyuiopasdfghjklzxcvbnm",
                                    "\xC3\xA9",
                                    "\xC2\xA0",
                                    "\xCC\x81",
                                    "\xE2\x96\x81",
                                    "\xE6\xBC\xA2",
                                    "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x9A\x80",
                                    "\xFF",
                                    "<|im_",
                                    "<0x41>"};

static int64_t work_of(const Tokenizer *tokenizer, const char *unit, size_t bytes) {
    size_t n = strlen(unit), length = bytes / n * n;
    char *text = memory_alloc(length);
    TokenBuffer tokens = {0};
    Error err;
    for (size_t i = 0; i < length; i += n)
        memcpy(text + i, unit, n);
    assert_ok(tokenizer_encode(tokenizer, text, length, 0, 1, &tokens, &err), &err);
    int64_t work = ((const Encoder *)tokens.scratch)->work;
    token_buffer_free(&tokens);
    memory_free(text);
    return work;
}

static void test_linear(void **state) {
    (void)state;
    static const char *const names[] = {"deepseek_coder_style.json", "deepseek_v3_style.json",  "digits_style.json",
                                        "falcon_style.json",         "gemma2_style.json",       "gemma_style.json",
                                        "llama2_style.json",         "llama3_style.json",       "metaspace_style.json",
                                        "o200k_style.json",          "phi4_style.json",         "qwen2_style.json",
                                        "starcoder_style.json",      "spm_bpe.model",           "spm_suffix.model",
                                        "spm_unigram.model",         "spm_unigram_bytes.model", "tiktoken.model"};
    int64_t most = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = memory_format("tests/golden/tokenizer_%s", names[i]);
        Tokenizer *tokenizer;
        Error err;
        assert_ok(tokenizer_open(&tokenizer, path, &err), &err);
        int64_t of_byte = tokenizer->unigram != NULL ? PIECE_BYTES : PAIRS_OF_BYTE;
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            int64_t few = work_of(tokenizer, units[u], SHORT_BYTES), many = work_of(tokenizer, units[u], TIMES * SHORT_BYTES);
            /* the last word is cut elsewhere, and a text's ends differ from its middle: a few words' work */
            if (many > TIMES * few + 200)
                fail_msg("%s: '%s' in %zu bytes: %lld, in %d times as many: %lld", names[i], units[u], SHORT_BYTES,
                         (long long)few, TIMES, (long long)many);
            /* a normalizer may make three bytes of one, and a fault one U+FFFD */
            if (many > 3 * of_byte * (int64_t)(TIMES * SHORT_BYTES))
                fail_msg("%s: '%s': %lld for %zu bytes", names[i], units[u], (long long)many, TIMES * SHORT_BYTES);
            if (many > most) most = many;
        }
        tokenizer_close(tokenizer);
        memory_free(path);
    }
    assert_true(most > (int64_t)(TIMES * SHORT_BYTES)); /* it is counted at all */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_linear)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
