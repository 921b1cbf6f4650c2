/* The tokenizer inside of a GGUF file: the keys tokenizer.ggml.*, checked against each other and borrowed from the file.
 *
 * model "llama": SentencePiece pieces merged by score; "gpt2": byte-level BPE by rank of merge. Others are refused by name.
 * Source: llama.cpp's src/llama-vocab.cpp and gguf-py/gguf/constants.py. Covered by tests/unit/test_gguf_vocab.c.
 */
#ifndef NIBBLE_DATA_GGUF_VOCAB_H
#define NIBBLE_DATA_GGUF_VOCAB_H

#include "data/gguf.h"

typedef enum GgufTokenType {
    GGUF_TOKEN_NORMAL = 1,
    GGUF_TOKEN_UNKNOWN,
    GGUF_TOKEN_CONTROL,
    GGUF_TOKEN_USER,
    GGUF_TOKEN_UNUSED,
    GGUF_TOKEN_BYTE
} GgufTokenType;

typedef struct GgufVocab {
    int is_spm;                         /* model "llama"; otherwise "gpt2" */
    GgufString pre;                     /* pre-tokenizer id; "default" where the file has none */
    GgufString chat_template;           /* Jinja source; length 0 where there is none */
    int64_t count;                      /* of tokens: 1 to INT32_MAX */
    const GgufString *tokens;           /* gpt2: in the byte-mapped spelling; llama: with U+2581 for a space */
    const GgufValue *scores;            /* F32 [count] (gguf_item_f32); NULL for gpt2 */
    const GgufValue *types;             /* I32 [count] (gguf_item_i32), each a GgufTokenType; NULL: all normal */
    int64_t merge_count;                /* 0 for llama */
    const GgufString *merges;           /* "a b", neither side empty */
    int32_t bos, eos, unknown, padding; /* -1 where the file has none */
    int adds_bos, adds_eos;             /* -1 where the file says nothing */
    int adds_space_prefix;              /* the same */
} GgufVocab;

/* Overwrites *vocab; it lives as long as the file. */
Status gguf_vocab_read(const GgufFile *file, GgufVocab *vocab, Error *err);

/* What a pre-tokenizer's name stands for, as JSON of a tokenizer.json. */
typedef struct GgufPre {
    char *cuts;             /* the pre-tokenizer; memory_free */
    const char *normalizer; /* NULL */
    int ignore_merges, adds_bos;
} GgufPre;
/* Refuses names that are not known; `path` is for the message. Defined in tokenizer_gguf.c. */
Status gguf_pre_read(const char *path, const GgufVocab *vocab, GgufPre *pre, Error *err);

#endif
