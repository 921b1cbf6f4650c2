/* Inside of the tokenizers: shared by data/tokenizer*.c and nothing else.
 *
 *   text ── repair ──> added tokens (raw) ──> normalizers ──> added tokens (normalized)
 *        ──> pre-tokenizers ──> model, per piece ──> post-processors ──> ids
 *
 * Between the stages the text lives in an Aligned buffer: its bytes, and for every byte the range of the caller's
 * bytes it stands for. Pieces are ranges of that buffer, or finished ids. A stage that only cuts rewrites the
 * pieces; a stage that changes text builds `next` and swaps. Order and details: formats.md 7.1; checked against the
 * `tokenizers` package by tests/peers/tokenizer_vectors.py.
 *
 * A normalizer, pre-tokenizer, post-processor or decoder is a ComponentKind in its section's table; a new one is a
 * new file and a line in that table.
 */
#ifndef NIBBLE_DATA_TOKENIZER_INTERNAL_H
#define NIBBLE_DATA_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/text.h"
#include "data/json.h"
#include "data/tokenizer.h"

/* Caps on untrusted input. Gemma's file is 34 MB with 262,144 tokens and about 6,000 added ones. */
#define TOKENIZER_FILE_LIMIT ((size_t)256 << 20)
#define TOKENIZER_STRING_LIMIT ((size_t)16 << 20) /* of one JSON string: a precompiled map, a chat template */
#define TOKENIZER_ID_LIMIT ((int64_t)1 << 22)
#define TOKENIZER_CONTENT_LIMIT 4096           /* bytes of an added token, a pattern, a replacement */
#define TOKENIZER_TEXT_LIMIT ((size_t)1 << 29) /* bytes of one text, before and after normalization: offsets are int32 */
#define TOKENIZER_STEPS 32                     /* components in one section, sequences flattened */

/* ---- tokenizer_tree.c: a small JSON value in memory, for the sections that are not vocabularies ---- */
typedef struct Tree {
    JsonKind kind; /* OBJECT_BEGIN, ARRAY_BEGIN or a scalar */
    char *key;     /* inside an object */
    char *text;    /* STRING, zero-terminated */
    size_t length;
    int64_t integer;
    double number;
    struct Tree *first, *next; /* children, sibling */
} Tree;
Status tree_read(JsonReader *reader, Tree **out, Error *err); /* the next value */
void tree_free(Tree *tree);
const Tree *tree_get(const Tree *object, const char *key); /* NULL when absent or not an object */
/* Each fails with `what` and the key; a missing key or null gives the fallback where there is one. */
Status tree_string(const Tree *object, const char *key, const char *what, const Tree **out, Error *err);
Status tree_flag(const Tree *object, const char *key, int fallback, const char *what, int *out, Error *err);
Status tree_count(const Tree *object, const char *key, int64_t maximum, const char *what, int64_t *out, Error *err);

/* ---- tokenizer_text.c: aligned text and pieces ---- */
typedef struct Span {
    int32_t begin, end;
} Span;

typedef struct Aligned {
    char *text;
    Span *align; /* per byte */
    size_t length, capacity;
} Aligned;
Status aligned_add(Aligned *aligned, const char *text, const Span *align, size_t length, Error *err);
Status aligned_add_at(Aligned *aligned, const char *text, size_t length, Span span, Error *err); /* all bytes stand for span */
void aligned_free(Aligned *aligned);
/* The caller's text with ill-formed bytes replaced by U+FFFD: one per maximal subpart, or, `bytewise`, one per byte. */
Status aligned_repair(Aligned *aligned, const char *text, size_t length, int bytewise, Error *err);

typedef enum Utf8State { UTF8_WHOLE, UTF8_BROKEN, UTF8_PARTIAL } Utf8State;
/* Length of the sequence at p, or of the longest start of one; PARTIAL when more bytes could complete it. */
size_t utf8_scan(const char *p, size_t available, Utf8State *state);
int char_is_space(uint32_t code);                                /* Unicode White_Space */
int char_is_word(uint32_t code);                                 /* \w of UTS 18 */
size_t char_before(const char *text, size_t at, uint32_t *code); /* bytes of the character that ends at `at` > 0 */

typedef struct Piece {
    size_t begin, end; /* in `now`; unused for a finished id */
    Span source;       /* of a finished id, in the caller's text */
    int32_t origin;    /* where the piece started in the caller's text when it was cut */
    int32_t id;        /* -1: text */
} Piece;

typedef struct Pieces {
    Piece *data;
    size_t count, capacity;
} Pieces;
void pieces_add(Pieces *pieces, Piece piece);

/* ---- tokenizer_pattern.c: literal or regular expression ---- */
typedef struct Match {
    size_t begin, end;
    int is_match; /* 0: what lies between matches */
} Match;

typedef struct Matches {
    Match *data;
    size_t count, capacity;
} Matches;
void matches_add(Matches *matches, size_t begin, size_t end, int is_match);

typedef struct Pattern {
    pcre2_code *code; /* NULL: the literal */
    char *literal;
    size_t length;
} Pattern;

typedef struct Matcher { /* per thread */
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    Matches found;
} Matcher;

/* From {"String": …} or {"Regex": …} under "pattern"; `what` names the component. */
Status pattern_parse(Pattern *pattern, const Tree *component, const char *what, Error *err);
/* Compiles Oniguruma (Ruby) syntax; what PCRE2 would understand differently is translated or refused. */
Status pattern_compile(Pattern *pattern, const char *regex, const char *what, Error *err);
void pattern_free(Pattern *pattern);
/* Overwrites matcher->found with alternating matches and gaps that cover the text. */
Status pattern_find(const Pattern *pattern, Matcher *matcher, const char *text, size_t length, Error *err);
void matcher_free(Matcher *matcher);

/* ---- tokenizer_vocab.c: strings and ids ---- */
typedef struct VocabEntry {
    uint32_t offset, length;
    int32_t id;
} VocabEntry;

typedef struct Vocab {
    char *bytes; /* zero-terminated strings one after another */
    size_t bytes_length, bytes_capacity;
    VocabEntry *entries;
    size_t count, capacity;
    uint32_t *slots; /* entry + 1, open addressing */
    size_t mask;
    uint32_t *by_id; /* entry + 1 */
    int64_t ids;     /* greatest id + 1 */
} Vocab;
void vocab_add(Vocab *vocab, const char *text, size_t length, int32_t id);
Status vocab_index(Vocab *vocab, const char *path, Error *err);          /* once, after the last add; refuses duplicates */
int32_t vocab_find(const Vocab *vocab, const char *text, size_t length); /* -1 when absent */
const char *vocab_text(const Vocab *vocab, int64_t id, size_t *length);  /* NULL for a hole */
void vocab_free(Vocab *vocab);

/* ---- components ---- */
typedef struct Encoder Encoder;
typedef struct Decoder Decoder;
typedef struct Surround Surround;
typedef struct ComponentKind {
    const char *type;
    Status (*parse)(void **state, const Tree *json, Error *err); /* NULL: no parameters that matter */
    void (*close)(void *state);
    Status (*rewrite)(const void *state, Encoder *encoder, Error *err); /* normalizers, pre-tokenizers: all pieces */
    Status (*process)(const void *state, Surround *around, Error *err); /* post-processors: once, when opened */
    /* Decoders: one token, or the end (token NULL), of step `index`; hands on with decoder_push(…, index + 1, …). */
    Status (*decode)(const void *state, Decoder *decoder, size_t index, const char *token, size_t length, Error *err);
} ComponentKind;

typedef struct Component {
    const ComponentKind *kind;
    void *state;
} Component;

typedef struct Components {
    Component list[TOKENIZER_STEPS];
    size_t count;
} Components;

typedef struct Section {
    const char *name;                  /* "normalizer" */
    const char *children;              /* "normalizers": a Sequence's key */
    const ComponentKind *const *kinds; /* ends with NULL */
} Section;
extern const Section section_normalizer, section_pre_tokenizer, section_post_processor, section_decoder;
/* null gives an empty list; sequences are flattened; an unknown type is refused by name. */
Status components_parse(Components *components, const Section *section, const Tree *json, Error *err);
void components_free(Components *components);

extern const ComponentKind normalizer_prepend, normalizer_replace, normalizer_strip, normalizer_lowercase;
extern const ComponentKind normalizer_nfc, normalizer_nfd, normalizer_nfkc, normalizer_nfkd;
extern const ComponentKind pre_tokenizer_split, pre_tokenizer_digits, pre_tokenizer_metaspace, pre_tokenizer_byte_level;
extern const ComponentKind pre_tokenizer_punctuation;
extern const ComponentKind post_processor_byte_level, post_processor_template;
extern const ComponentKind decoder_byte_level, decoder_replace, decoder_byte_fallback, decoder_fuse, decoder_strip;
extern const ComponentKind decoder_metaspace;

/* The ids that a post-processor puts around a text. */
struct Surround {
    int32_t *before, *after;
    size_t before_count, after_count;
};
void surround_add(Surround *around, int32_t id, int after); /* behind what is there already on that side */

/* ---- tokenizer_bytelevel.c ---- */
uint32_t byte_level_code(uint8_t byte); /* the character that stands for a byte */
int byte_level_byte(uint32_t code);     /* and back; -1 */

/* ---- tokenizer_added.c ---- */
typedef struct AddedToken {
    char *content;
    size_t length;
    char *pattern; /* what is searched: content, or its normalized form */
    size_t pattern_length;
    int32_t id;
    int single_word, lstrip, rstrip, normalized, special;
} AddedToken;

typedef struct AddedTokens {
    AddedToken *list; /* sorted by id */
    size_t count, capacity;
    uint32_t *raw, *cooked; /* indices sorted by pattern: normalized false, true */
    size_t raw_count, cooked_count;
} AddedTokens;
Status added_parse(AddedTokens *added, JsonReader *reader, Error *err);
/* Takes a copy of the content; refuses an empty or too long one, and more than the cap. `where` begins the message. */
Status added_add(AddedTokens *added, const AddedToken *token, const char *where, Error *err);
Status added_index(AddedTokens *added, const Tokenizer *tokenizer, const char *path, Error *err);
const AddedToken *added_find(const AddedTokens *added, int32_t id);
const AddedToken *added_named(const AddedTokens *added, const char *content);
/* The longest raw one that `text` starts with; NULL when there is none. */
const AddedToken *added_longest(const AddedTokens *added, const char *text, size_t available);
Status added_split(const AddedTokens *added, int cooked, Encoder *encoder, Error *err);
void added_free(AddedTokens *added);

/* ---- tokenizer_model.c, tokenizer_bpe.c: the model ---- */
typedef struct MergeSlot {
    int32_t left, right; /* left -1: free */
    uint32_t rank;
    int32_t merged;
} MergeSlot;

typedef struct Bpe {
    MergeSlot *slots;
    size_t mask;
    int32_t unk; /* -1: none */
    int fuse_unk, ignore_merges, byte_fallback;
    int words_apart;    /* no merge joins a `▁` to another character before it */
    int32_t bytes[256]; /* ids of <0xXX>, -1 */
    AddedTokens frozen; /* whole strings that are cut out first and never merged: sentencepiece's user-defined symbols */
} Bpe;
Status model_parse(Tokenizer *tokenizer, JsonReader *reader, const char *path, Error *err);
/* The same model from the texts of vocab.json and merges.txt; `path` is for messages. */
Status model_parse_files(Tokenizer *tokenizer, const char *path, const char *vocab, size_t vocab_length, const char *merges,
                         size_t merges_length, Error *err);
/* merges.txt's form alone, for a vocabulary whose words were added already and not indexed. */
Status model_parse_merges(Tokenizer *tokenizer, const char *path, const char *merges, size_t length, Error *err);
/* Where no merges are written down: two tokens merge when their texts together are a token. ranks: per id, the order of
 * merging, or one of the two below. The vocabulary is indexed. */
#define RANK_APART UINT32_MAX      /* neither merged nor made */
#define RANK_PART (UINT32_MAX - 1) /* merged, but not made */
Status bpe_derive_merges(Tokenizer *tokenizer, const uint32_t *ranks, const char *path, Error *err);
void bpe_find_bytes(Tokenizer *tokenizer); /* fills bytes */
void bpe_free(Bpe *bpe);
const MergeSlot *bpe_merge(const Bpe *bpe, int32_t left, int32_t right); /* NULL when the pair does not merge */
MergeSlot *bpe_slot(const Bpe *bpe, int32_t left, int32_t right);        /* its slot, or the free one */
/* Whether text[at…] is a `▁` that follows another character (text[begin] on; at least 3 bytes at `at`). */
int word_starts_at(const char *text, size_t begin, size_t at);
/* Appends the ids of one piece. Cannot fail: pieces are at most TOKENIZER_TEXT_LIMIT bytes. */
void bpe_encode(const Tokenizer *tokenizer, Encoder *encoder, const char *text, const Span *align, size_t length,
                TokenBuffer *out);
void tokens_add(TokenBuffer *out, int32_t id, Span span);

typedef struct Symbol {
    int32_t id; /* -1: merged away */
    int32_t begin, end, previous, next;
} Symbol;

typedef struct HeapEntry {
    uint64_t key; /* rank, position: the order of merging */
    int32_t merged;
} HeapEntry;

#define CACHE_SLOTS 16384u
#define CACHE_WORD 24
#define CACHE_TOKENS 6
typedef struct CachedWord { /* ids of a short word; empty when length is 0 */
    char text[CACHE_WORD];
    uint8_t length, count;
    uint8_t begin[CACHE_TOKENS], end[CACHE_TOKENS];
    int32_t ids[CACHE_TOKENS];
} CachedWord;

/* ---- sentencepiece_unigram.c: the other model of sentencepiece ---- */
typedef struct Unigram Unigram;
void unigram_free(Unigram *unigram);
void unigram_encode(const Unigram *unigram, Encoder *encoder, const char *text, const Span *align, size_t length,
                    TokenBuffer *out);

/* ---- the whole ---- */
struct Tokenizer {
    char *path;
    const char *form;     /* what describes it, for people; NULL: a tokenizer.json's text */
    Unigram *unigram;     /* instead of bpe; NULL */
    int is_sentencepiece; /* faults are replaced per byte, and a special token ends a run of byte tokens */
    Vocab vocab;
    AddedTokens added;
    Components normalizer, pre_tokenizer, post_processor, decoder;
    Bpe bpe;
    Surround around;
    int64_t size;
    uint64_t hash;
    int32_t bos, eos, pad;
    char *chat_template;
};
/* Empty, without special ids; its hash is that of `bytes`. */
Tokenizer *tokenizer_new(const char *path, const char *bytes, size_t length);
/* The text of a tokenizer.json; `path` is for messages. No files are read: bos, eos, pad and the template are absent. */
Status tokenizer_parse(Tokenizer **tokenizer, const char *path, const char *text, size_t length, Error *err);
/* Indexes the added tokens and asks the post-processors. */
Status tokenizer_finish(Tokenizer *tokenizer, Error *err);
/* bos, eos, pad and the chat template from the files in `folder`; absent files are fine. */
Status tokenizer_config_read(Tokenizer *tokenizer, const char *folder, Error *err);

struct Encoder {
    uint64_t owner;          /* hash of the tokenizer whose words are in the cache */
    const TokenRange *plain; /* of the caller's text: where special tokens are not parsed */
    size_t plain_count;
    Aligned now, next;
    Pieces pieces, next_pieces;
    Matcher matcher;
    Symbol *symbols;
    size_t symbols_count, symbols_capacity;
    HeapEntry *heap;
    size_t heap_count, heap_capacity;
    int32_t *codes; /* normalization forms: one segment */
    size_t codes_capacity;
    CachedWord *cache;
    struct UnigramNode *nodes; /* of the best paths */
    size_t nodes_capacity;
    int64_t work; /* symbols, pairs looked up, pieces compared with a text; tests hold it to a multiple of the length */
};
Encoder *encoder_create(void);
void encoder_free(Encoder *encoder);
/* For a stage that changes text: appends what each text piece becomes to encoder->next, then makes it current. */
typedef Status (*TextChange)(const void *state, Encoder *encoder, const Piece *piece, Error *err);
Status encoder_change(Encoder *encoder, TextChange change, const void *state, Error *err);
/* For a stage that cuts: replaces each text piece by the pieces it becomes, added with encoder_cut. */
typedef Status (*PieceCut)(const void *state, Encoder *encoder, const Piece *piece, Error *err);
Status encoder_divide(Encoder *encoder, PieceCut cut, const void *state, Error *err);
/* Adds the part [begin, end) of `now` as a text piece; an empty part vanishes. */
void encoder_cut(Encoder *encoder, size_t begin, size_t end);
/* Runs the normalizers or the pre-tokenizers over the pieces. */
Status encoder_run(Encoder *encoder, const Components *components, Error *err);

/* ---- tokenizer_decode.c ---- */
struct Decoder {
    const Tokenizer *tokenizer;
    int streaming; /* hand on what is certain instead of waiting for the whole */
    int skip_special;
    struct DecoderStep {
        Text held;      /* bytes that wait */
        int64_t tokens; /* seen so far */
        int64_t stripped;
        int done;
    } steps[TOKENIZER_STEPS];
    Matcher matcher;
    Text out;
};
void decoder_open(Decoder *decoder, const Tokenizer *tokenizer, int streaming, int skip_special);
void decoder_close(Decoder *decoder);
Status decoder_push(Decoder *decoder, size_t index, const char *token, size_t length, Error *err); /* NULL: the end */
Status decoder_id(Decoder *decoder, int32_t id, Error *err);

#endif
