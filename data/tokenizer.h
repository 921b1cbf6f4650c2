/* Tokenizers: text to ids and back, as the model's own tokenizer.json, tokenizer.model or vocab.json and merges.txt define.
 *
 * Pieces that are not supported are refused by name when the tokenizer is
 * opened. A tokenizer is immutable after opening and may be used from many
 * threads at once, each with its own TokenBuffer.
 */
#ifndef NIBBLE_DATA_TOKENIZER_H
#define NIBBLE_DATA_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

typedef struct Tokenizer Tokenizer;

typedef struct TokenBuffer {
    int32_t *ids;
    int32_t *begin, *end; /* byte offsets into the encoded text, per token; a token inside a character has its bytes' range */
    int64_t count, capacity;
    void *scratch; /* the encoder's own working memory */
} TokenBuffer;
void token_buffer_free(TokenBuffer *buffer);

/* A model folder, whose tokenizer.json, else tokenizer.model (SentencePiece, tiktoken), else vocab.json with merges.txt is read
 * with the settings beside it; or a tokenizer.json or ….model by its name, or a GGUF file. */
Status tokenizer_open(Tokenizer **tokenizer, const char *path, Error *err);
void tokenizer_close(Tokenizer *tokenizer);

/* Appends the ids of `text` (ill-formed UTF-8 is replaced by U+FFFD as the reference does).
 * add_special: apply the post-processor (BOS, …). parse_special: added tokens that stand in the text become their ids;
 * 0 treats them as plain text. */
Status tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length, int add_special, int parse_special,
                        TokenBuffer *out, Error *err);

/* A range of the encoded text, in bytes. */
typedef struct TokenRange {
    size_t begin, end;
} TokenRange;

/* As tokenizer_encode with parse_special = 1, but a special token is not parsed where it would touch one of the `count`
 * ranges of `plain` (in order, apart): that text was typed by somebody and commands nothing. */
Status tokenizer_encode_guarded(const Tokenizer *tokenizer, const char *text, size_t length, int add_special,
                                const TokenRange *plain, size_t count, TokenBuffer *out, Error *err);

/* Text of ids, as the reference's decode; skip_special leaves special tokens out. Zero-terminated, memory_free. */
Status tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, int64_t count, int skip_special, char **text,
                        size_t *length, Error *err);

/* Streaming: feeds one id at a time, returns the new whole characters only (may be empty). Special
 * tokens give no text. The text is valid until the next call. All parts together are what decode gives, save where byte
 * tokens never become UTF-8: there a stream has already given the characters before the fault. */
typedef struct TokenStream TokenStream;
Status token_stream_open(TokenStream **stream, const Tokenizer *tokenizer, Error *err);
Status token_stream_next(TokenStream *stream, int32_t id, const char **text, size_t *length, Error *err);
/* The bytes still held back, when generation ends. */
Status token_stream_flush(TokenStream *stream, const char **text, size_t *length, Error *err);
void token_stream_close(TokenStream *stream);

/* What describes it: "SentencePiece tokenizer.model, BPE", "tokenizer.json", ... */
const char *tokenizer_form(const Tokenizer *tokenizer);
int64_t tokenizer_vocab_size(const Tokenizer *tokenizer);                    /* greatest id + 1, added tokens included */
int32_t tokenizer_token_id(const Tokenizer *tokenizer, const char *content); /* -1 when absent */
/* The token as it is spelled in the file ("Ġthe", "▁the"); NULL for a hole. */
const char *tokenizer_token(const Tokenizer *tokenizer, int32_t id);
int tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);
int32_t tokenizer_bos(const Tokenizer *tokenizer); /* from tokenizer_config.json, -1 when none */
int32_t tokenizer_eos(const Tokenizer *tokenizer);
int32_t tokenizer_pad(const Tokenizer *tokenizer);
/* Whether encoding with add_special puts BOS in front. */
int tokenizer_adds_bos(const Tokenizer *tokenizer);
/* The chat template's Jinja source, from tokenizer_config.json or chat_template.jinja; NULL when there is none. */
const char *tokenizer_chat_template(const Tokenizer *tokenizer);
/* A 64-bit hash of everything that decides the ids (cache keys, resume checks). */
uint64_t tokenizer_hash(const Tokenizer *tokenizer);

#endif
