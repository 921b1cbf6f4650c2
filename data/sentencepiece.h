/* Inside of the tokenizers: SentencePiece's .model files and tiktoken's, for folders without a tokenizer.json.
 *
 *   bytes ── spm_read ──> SpmModel ── sentencepiece_parse ──> Tokenizer
 *                                       normalizer, decoder: components of their own
 *                                       model: bpe with derived merges, or unigram
 *
 * Field numbers: sentencepiece's sentencepiece_model.proto; formats.md 7.2. Checked against the `sentencepiece` and
 * `tiktoken` packages by tests/peers/tokenizer_models.py.
 */
#ifndef NIBBLE_DATA_SENTENCEPIECE_H
#define NIBBLE_DATA_SENTENCEPIECE_H

#include "data/tokenizer_internal.h"

#define SPM_PIECE_LIMIT 1024 /* bytes; the trainer's own limit is 16 characters unless set */

typedef enum SpmType { SPM_NORMAL = 1, SPM_UNKNOWN, SPM_CONTROL, SPM_USER_DEFINED, SPM_UNUSED, SPM_BYTE } SpmType;

typedef struct SpmString { /* points into the file */
    const char *text;
    size_t length;
} SpmString;

typedef struct SpmPiece {
    SpmString text;
    float score;
    SpmType type;
} SpmPiece;

typedef struct SpmModel {
    const char *path;
    SpmPiece *pieces;
    size_t count, capacity;
    int is_unigram, byte_fallback, whitespace_is_suffix;
    int add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    SpmString charsmap, unk_surface, bos, eos, pad;
    int32_t unk; /* the one piece of type UNKNOWN */
} SpmModel;

/* Reads and checks; the strings point into `bytes`. */
Status spm_read(SpmModel *model, const char *path, const char *bytes, size_t length, Error *err);
/* What must hold of the pieces, whoever filled them in; finds `unk`, which is -1 before. */
Status spm_check(SpmModel *model, Error *err);
void spm_free(SpmModel *model);

/* ---- sentencepiece_normalize.c, sentencepiece_decode.c: the two components; their states copy what they need ---- */
extern const ComponentKind normalizer_sentencepiece, decoder_sentencepiece;
/* every_segment: a space is put in front of each piece of text between special tokens, not of the first alone. */
Status spm_normalizer_open(void **state, const SpmModel *model, const AddedTokens *symbols, int every_segment, Error *err);
void spm_decoder_open(void **state, const SpmModel *model);

/* ---- sentencepiece_unigram.c ---- */
/* Keeps pointers into the tokenizer's vocabulary and byte table. */
Unigram *unigram_open(const SpmModel *model, const Vocab *vocab, const int32_t bytes[256]);

/* ---- tokenizer_settings.c: what tokenizer_config.json, special_tokens_map.json and added_tokens.json say to a tokenizer
 *      that is not described by a tokenizer.json ---- */
typedef enum SettingsRole { ROLE_BOS, ROLE_EOS, ROLE_UNK, ROLE_PAD, ROLES } SettingsRole;
typedef struct TokenizerSettings {
    char *class; /* tokenizer_class without "Fast"; NULL */
    char *roles[ROLES];
    AddedTokens specials;                           /* contents of additional_special_tokens; ids mean nothing */
    int add_bos, add_eos, legacy, add_prefix_space; /* -1: not said */
    AddedTokens added;                              /* not indexed */
} TokenizerSettings;
Status settings_read(TokenizerSettings *settings, const char *folder, Error *err);
void settings_free(TokenizerSettings *settings);
/* Adds the settings' tokens, and each role's content where the vocabulary has it, to the tokenizer; mixes all into its hash. */
Status settings_apply(const TokenizerSettings *settings, Tokenizer *tokenizer, Error *err);
int settings_class_is(const TokenizerSettings *settings, const char *const *names); /* names end with NULL */

/* ---- the parsers ---- */
Status sentencepiece_parse(Tokenizer **tokenizer, const char *path, const char *bytes, size_t length,
                           const TokenizerSettings *settings, Error *err);
Status tiktoken_parse(Tokenizer **tokenizer, const char *path, const char *text, size_t length,
                      const TokenizerSettings *settings, Error *err);
/* A tokenizer.model is one of the two: a protobuf begins with a tag that is no base64 digit. */
Status tokenizer_model_parse(Tokenizer **tokenizer, const char *path, const char *bytes, size_t length,
                             const TokenizerSettings *settings, Error *err);
/* Builds a new tokenizer from a model that spm_check accepted. */
Status sentencepiece_build(Tokenizer *tokenizer, const SpmModel *model, const TokenizerSettings *settings, Error *err);
/* ---- tokenizer_gguf.c: the vocabulary of a GGUF file; copies what it needs ---- */
Status tokenizer_gguf_open(Tokenizer **tokenizer, const char *path, Error *err);
/* A component list from JSON text written in the source. */
Status components_add(Components *components, const Section *section, const char *json, Error *err);

/* The families' regular expressions, as JSON strings (formats.md 7.1). */
extern const char *const split_llama3, *const split_qwen2;

#endif
