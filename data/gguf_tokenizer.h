/* A loaded tokenizer as the keys tokenizer.ggml.* of a GGUF file.
 *
 * Byte-level BPE becomes model "gpt2" with the id of its pre-tokenizer, which is recognised by the regular expression in
 * tokenizer.json; BPE with byte fallback becomes "llama" (SPM), whose scores are the negative rank at which a token is first
 * merged: the order of merging is what llama.cpp makes of them. What llama.cpp would cut differently is refused by name.
 * Source: llama.cpp (in llama-cpp-python 0.3.36), src/llama-vocab.cpp.
 */
#ifndef NIBBLE_DATA_GGUF_TOKENIZER_H
#define NIBBLE_DATA_GGUF_TOKENIZER_H

#include "data/gguf.h"
#include "data/tokenizer.h"

/* folder: the tokenizer's. vocab: rows of the embedding; holes are filled with unused tokens. eos: -1, or the id where the
 * tokenizer names none. */
Status gguf_put_tokenizer(GgufWriter *writer, const Tokenizer *tokenizer, const char *folder, int64_t vocab, int32_t eos,
                          Error *err);

/* The same for a model that is a GGUF file: its own keys, unchanged. */
Status gguf_copy_tokenizer(GgufWriter *writer, const char *path, Error *err);

#endif
