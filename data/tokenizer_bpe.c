/* Byte pair encoding of one piece.
 *
 *   symbols:  [ H ][ e ][ l ][ l ][ o ]     a linked list in an array; a merge keeps the left one
 *   heap:     (rank, position) of every adjacent pair that has a merge, lowest rank first, then leftmost
 *
 * O(n log n) in the length of the piece. An entry of the heap may be out of date; as in the reference it still counts
 * when the pair that now stands at its position gives the same token.
 */
#include <string.h>

#include "core/hash.h"
#include "core/memory.h"
#include "data/tokenizer_internal.h"

static size_t pair_slot(const Bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u; /* golden ratio */
    return (size_t)(key >> 20 ^ key >> 44) & bpe->mask;
}

MergeSlot *bpe_slot(const Bpe *bpe, int32_t left, int32_t right) {
    size_t slot = pair_slot(bpe, left, right);
    while (bpe->slots[slot].left >= 0 && (bpe->slots[slot].left != left || bpe->slots[slot].right != right))
        slot = (slot + 1) & bpe->mask;
    return &bpe->slots[slot];
}

const MergeSlot *bpe_merge(const Bpe *bpe, int32_t left, int32_t right) {
    const MergeSlot *slot = bpe_slot(bpe, left, right);
    return slot->left >= 0 ? slot : NULL;
}

void bpe_free(Bpe *bpe) {
    memory_free(bpe->slots);
    added_free(&bpe->frozen);
    *bpe = (Bpe){0};
}

/* ---- the heap ---- */
static void heap_sift_down(HeapEntry *heap, size_t count, size_t at) {
    HeapEntry entry = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1].key < heap[child].key) child++;
        if (heap[child].key >= entry.key) break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

static HeapEntry heap_pop(Encoder *encoder) {
    HeapEntry top = encoder->heap[0];
    encoder->heap[0] = encoder->heap[--encoder->heap_count];
    if (encoder->heap_count) heap_sift_down(encoder->heap, encoder->heap_count, 0);
    return top;
}

static void heap_reserve(Encoder *encoder) {
    if (encoder->heap_count < encoder->heap_capacity) return;
    encoder->heap_capacity = encoder->heap_capacity ? encoder->heap_capacity * 2 : 256;
    encoder->heap = memory_resize(encoder->heap, encoder->heap_capacity * sizeof *encoder->heap);
}

static HeapEntry entry_of(const MergeSlot *merge, int32_t position) {
    return (HeapEntry){.key = (uint64_t)merge->rank << 32 | (uint32_t)position, .merged = merge->merged};
}

static void heap_push(Encoder *encoder, const MergeSlot *merge, int32_t position) {
    heap_reserve(encoder);
    HeapEntry entry = entry_of(merge, position);
    size_t at = encoder->heap_count++;
    while (at > 0 && encoder->heap[(at - 1) / 2].key > entry.key) {
        encoder->heap[at] = encoder->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    encoder->heap[at] = entry;
}

/* ---- the symbols ---- */
static void symbol_add(Encoder *encoder, int32_t id, size_t begin, size_t end) {
    if (encoder->symbols_count == encoder->symbols_capacity) {
        encoder->symbols_capacity = encoder->symbols_capacity ? encoder->symbols_capacity * 2 : 256;
        encoder->symbols = memory_resize(encoder->symbols, encoder->symbols_capacity * sizeof *encoder->symbols);
    }
    int32_t index = (int32_t)encoder->symbols_count++;
    encoder->symbols[index] =
        (Symbol){.id = id, .begin = (int32_t)begin, .end = (int32_t)end, .previous = index - 1, .next = -1};
    if (index) encoder->symbols[index - 1].next = index;
}

/* Whether every byte of the character has a token; then they are added. */
static int add_bytes(const Bpe *bpe, Encoder *encoder, const char *text, size_t begin, size_t end) {
    if (!bpe->byte_fallback) return 0;
    for (size_t i = begin; i < end; i++)
        if (bpe->bytes[(uint8_t)text[i]] < 0) return 0;
    for (size_t i = begin; i < end; i++)
        symbol_add(encoder, bpe->bytes[(uint8_t)text[i]], i, i + 1);
    return 1;
}

/* One symbol per character. An unknown character waits, to be fused with unknown ones that follow; as in the reference
 * only a known character or another unknown one ends the wait, byte tokens overtake it. */
static void add_symbols(const Tokenizer *tokenizer, Encoder *encoder, const char *text, size_t length) {
    const Bpe *bpe = &tokenizer->bpe;
    size_t unknown = 0, unknown_end = 0; /* none when equal */
    encoder->symbols_count = 0;
    for (size_t i = 0, end; i < length; i = end) {
        uint32_t code;
        const AddedToken *frozen = added_longest(&bpe->frozen, text + i, length - i);
        end = i + (frozen ? frozen->length : (size_t)utf8_decode(text + i, length - i, &code));
        int32_t id = frozen ? frozen->id : vocab_find(&tokenizer->vocab, text + i, end - i);
        if (id < 0 && (add_bytes(bpe, encoder, text, i, end) || bpe->unk < 0)) continue;
        if (unknown_end > unknown && (id >= 0 || !bpe->fuse_unk)) {
            symbol_add(encoder, bpe->unk, unknown, unknown_end);
            unknown = unknown_end = 0;
        }
        if (id >= 0) {
            symbol_add(encoder, id, i, end);
        } else {
            if (unknown_end == unknown) unknown = i;
            unknown_end = end;
        }
    }
    if (unknown_end > unknown) symbol_add(encoder, bpe->unk, unknown, unknown_end);
}

static void merge_symbols(const Bpe *bpe, Encoder *encoder) {
    Symbol *s = encoder->symbols;
    encoder->heap_count = 0;
    for (size_t i = 0; i + 1 < encoder->symbols_count; i++) {
        const MergeSlot *merge = bpe_merge(bpe, s[i].id, s[i + 1].id);
        if (merge == NULL) continue;
        heap_reserve(encoder);
        encoder->heap[encoder->heap_count++] = entry_of(merge, (int32_t)i);
    }
    for (size_t i = encoder->heap_count / 2; i-- > 0;)
        heap_sift_down(encoder->heap, encoder->heap_count, i);
    encoder->work += (int64_t)encoder->symbols_count;
    while (encoder->heap_count) {
        HeapEntry top = heap_pop(encoder);
        encoder->work++;
        int32_t at = (int32_t)(uint32_t)top.key, right = s[at].next;
        if (s[at].id < 0 || right < 0) continue;
        const MergeSlot *merge = bpe_merge(bpe, s[at].id, s[right].id);
        if (merge == NULL || merge->merged != top.merged) continue;
        s[at].id = top.merged;
        s[at].end = s[right].end;
        s[at].next = s[right].next;
        s[right].id = -1;
        if (s[at].next >= 0) s[s[at].next].previous = at;
        int32_t left = s[at].previous, next = s[at].next;
        if (left >= 0 && (merge = bpe_merge(bpe, s[left].id, s[at].id)) != NULL) heap_push(encoder, merge, left);
        if (next >= 0 && (merge = bpe_merge(bpe, s[at].id, s[next].id)) != NULL) heap_push(encoder, merge, at);
    }
}

/* ---- words ---- */
static Span span_of(const Span *align, size_t begin, size_t end) {
    return (Span){align[begin].begin, align[end - 1].end};
}

static void cache_fill(const Encoder *encoder, CachedWord *word, const char *text, size_t length) {
    word->length = 0;
    size_t n = 0;
    for (size_t i = 0; i < encoder->symbols_count; i++) {
        const Symbol *s = &encoder->symbols[i];
        if (s->id < 0) continue;
        if (n == CACHE_TOKENS) return;
        word->ids[n] = s->id;
        word->begin[n] = (uint8_t)s->begin;
        word->end[n++] = (uint8_t)s->end;
    }
    memcpy(word->text, text, length);
    word->count = (uint8_t)n;
    word->length = (uint8_t)length;
}

static void encode_word(const Tokenizer *tokenizer, Encoder *encoder, const char *text, const Span *align, size_t length,
                        TokenBuffer *out) {
    CachedWord *word = NULL;
    if (length <= CACHE_WORD) {
        word = &encoder->cache[hash_bytes(text, length) % CACHE_SLOTS];
        if (word->length == length && memcmp(word->text, text, length) == 0) {
            for (size_t i = 0; i < word->count; i++)
                tokens_add(out, word->ids[i], span_of(align, word->begin[i], word->end[i]));
            return;
        }
    }
    int32_t whole = tokenizer->bpe.ignore_merges ? vocab_find(&tokenizer->vocab, text, length) : -1;
    if (whole >= 0) {
        encoder->symbols_count = 0;
        symbol_add(encoder, whole, 0, length);
    } else {
        add_symbols(tokenizer, encoder, text, length);
        merge_symbols(&tokenizer->bpe, encoder);
    }
    for (size_t i = 0; i < encoder->symbols_count; i++) {
        const Symbol *s = &encoder->symbols[i];
        if (s->id >= 0) tokens_add(out, s->id, span_of(align, (size_t)s->begin, (size_t)s->end));
    }
    if (word) cache_fill(encoder, word, text, length);
}

int word_starts_at(const char *text, size_t begin, size_t at) {
    static const char mark[] = "\xE2\x96\x81"; /* U+2581 */
    if (memcmp(text + at, mark, 3) != 0) return 0;
    return at < begin + 3 || memcmp(text + at - 3, mark, 3) != 0;
}

/* A sentencepiece tokenizer has no pre-tokenizer: a text is one piece. Where no merge reaches over the start of a word,
 * merging the words apart gives the same ids, and words can be cached. */
void bpe_encode(const Tokenizer *tokenizer, Encoder *encoder, const char *text, const Span *align, size_t length,
                TokenBuffer *out) {
    size_t begin = 0;
    for (size_t at = 1; tokenizer->bpe.words_apart && at + 3 <= length; at++) {
        if (!word_starts_at(text, begin, at)) continue;
        encode_word(tokenizer, encoder, text + begin, align + begin, at - begin, out);
        begin = at;
    }
    encode_word(tokenizer, encoder, text + begin, align + begin, length - begin, out);
}
