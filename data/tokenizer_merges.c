/* Merges that a file does not list but means: sentencepiece and tiktoken join two neighbours whenever the joined text is a
 * token. Every way to cut a token into two others is one entry of the pair table, so that encoding is the same as with
 * written merges. Tokens of equal score have equal rank: then the leftmost pair goes first, as in sentencepiece. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

#define PAIRS_LIMIT ((size_t)1 << 24)

typedef struct PairList {
    MergeSlot *data;
    size_t count, capacity;
} PairList;

static Status pairs_add(PairList *pairs, MergeSlot pair, const char *path, Error *err) {
    if (pairs->count == PAIRS_LIMIT) FAIL("%s: want at most %zu ways to merge its tokens, got more", path, PAIRS_LIMIT);
    if (pairs->count == pairs->capacity) {
        pairs->capacity = pairs->capacity ? pairs->capacity * 2 : 4096;
        pairs->data = memory_resize(pairs->data, pairs->capacity * sizeof *pairs->data);
    }
    pairs->data[pairs->count++] = pair;
    return OK;
}

/* Cuts stand between characters: a token's bytes are well-formed UTF-8. */
static Status add_cuts(const Tokenizer *t, const uint32_t *ranks, int32_t id, PairList *pairs, const char *path, Error *err) {
    size_t length;
    const char *text = vocab_text(&t->vocab, id, &length);
    for (size_t at = 1; text != NULL && at < length; at++) {
        if (((uint8_t)text[at] & 0xC0) == 0x80) continue;
        int32_t left = vocab_find(&t->vocab, text, at);
        if (left < 0 || ranks[left] == RANK_APART) continue;
        int32_t right = vocab_find(&t->vocab, text + at, length - at);
        if (right < 0 || ranks[right] == RANK_APART) continue;
        TRY(pairs_add(pairs, (MergeSlot){.left = left, .right = right, .rank = ranks[id], .merged = id}, path, err));
    }
    return OK;
}

/* Whether a token reaches over the start of a word (see bpe_encode). */
static int crosses_words(const Vocab *vocab, int64_t id) {
    size_t length;
    const char *text = vocab_text(vocab, id, &length);
    for (size_t at = 1; text != NULL && at + 3 <= length; at++)
        if (word_starts_at(text, 0, at)) return 1;
    return 0;
}

static void fill_slots(Bpe *bpe, const PairList *pairs) {
    size_t size = 16;
    while (size < pairs->count * 2)
        size *= 2;
    bpe->slots = memory_alloc(size * sizeof *bpe->slots);
    bpe->mask = size - 1;
    for (size_t i = 0; i < size; i++)
        bpe->slots[i].left = -1;
    for (size_t i = 0; i < pairs->count; i++)
        *bpe_slot(bpe, pairs->data[i].left, pairs->data[i].right) = pairs->data[i];
}

Status bpe_derive_merges(Tokenizer *t, const uint32_t *ranks, const char *path, Error *err) {
    PairList pairs = {0};
    Status status = OK;
    t->bpe.words_apart = !t->bpe.ignore_merges && vocab_find(&t->vocab, "\xE2\x96\x81", 3) >= 0;
    for (int64_t id = 0; id < t->vocab.ids && status == OK; id++) {
        if (ranks[id] >= RANK_PART) continue;
        if (t->bpe.words_apart && crosses_words(&t->vocab, id)) t->bpe.words_apart = 0;
        status = add_cuts(t, ranks, (int32_t)id, &pairs, path, err);
    }
    for (size_t i = 0; i < t->bpe.frozen.count; i++)
        if (crosses_words(&t->vocab, t->bpe.frozen.list[i].id)) t->bpe.words_apart = 0;
    if (status == OK) fill_slots(&t->bpe, &pairs);
    memory_free(pairs.data);
    return status;
}

void bpe_find_bytes(Tokenizer *t) {
    for (int byte = 0; byte < 256; byte++) {
        static const char digits[] = "0123456789ABCDEF";
        char name[] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        t->bpe.bytes[byte] = vocab_find(&t->vocab, name, sizeof name);
    }
}
