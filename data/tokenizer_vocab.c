/* Strings to ids and back: one blob of strings, a hash table over it, and a table by id. */
#include <string.h>

#include "core/hash.h"
#include "core/memory.h"
#include "data/tokenizer_internal.h"

void vocab_add(Vocab *vocab, const char *text, size_t length, int32_t id) {
    if (vocab->bytes_length + length + 1 > vocab->bytes_capacity) {
        vocab->bytes_capacity = (vocab->bytes_length + length + 1) * 2;
        vocab->bytes = memory_resize(vocab->bytes, vocab->bytes_capacity);
    }
    if (vocab->count == vocab->capacity) {
        vocab->capacity = vocab->capacity ? vocab->capacity * 2 : 1024;
        vocab->entries = memory_resize(vocab->entries, vocab->capacity * sizeof *vocab->entries);
    }
    vocab->entries[vocab->count++] =
        (VocabEntry){.offset = (uint32_t)vocab->bytes_length, .length = (uint32_t)length, .id = id};
    if (length) memcpy(vocab->bytes + vocab->bytes_length, text, length);
    vocab->bytes[vocab->bytes_length + length] = 0;
    vocab->bytes_length += length + 1;
    if (id >= vocab->ids) vocab->ids = (int64_t)id + 1;
}

static int entry_is(const Vocab *vocab, uint32_t entry, const char *text, size_t length) {
    const VocabEntry *e = &vocab->entries[entry];
    return e->length == length && memcmp(vocab->bytes + e->offset, text, length) == 0;
}

/* The slot of the string, or the free one where it belongs. */
static size_t slot_of(const Vocab *vocab, const char *text, size_t length) {
    size_t slot = (size_t)hash_bytes(text, length) & vocab->mask;
    while (vocab->slots[slot] && !entry_is(vocab, vocab->slots[slot] - 1, text, length))
        slot = (slot + 1) & vocab->mask;
    return slot;
}

Status vocab_index(Vocab *vocab, const char *path, Error *err) {
    size_t size = 16;
    while (size < vocab->count * 2)
        size *= 2;
    vocab->slots = memory_calloc(size, sizeof *vocab->slots);
    vocab->mask = size - 1;
    vocab->by_id = memory_calloc((size_t)vocab->ids, sizeof *vocab->by_id);
    for (uint32_t i = 0; i < vocab->count; i++) {
        const VocabEntry *e = &vocab->entries[i];
        const char *text = vocab->bytes + e->offset;
        size_t slot = slot_of(vocab, text, e->length);
        if (vocab->slots[slot]) FAIL("%s: model.vocab: the token '%.80s' is there twice", path, text);
        if (vocab->by_id[e->id])
            FAIL("%s: model.vocab: id %d belongs to both '%.80s' and '%.80s'", path, e->id,
                 vocab->bytes + vocab->entries[vocab->by_id[e->id] - 1].offset, text);
        vocab->slots[slot] = i + 1;
        vocab->by_id[e->id] = i + 1;
    }
    return OK;
}

int32_t vocab_find(const Vocab *vocab, const char *text, size_t length) {
    if (vocab->slots == NULL) return -1;
    uint32_t entry = vocab->slots[slot_of(vocab, text, length)];
    return entry ? vocab->entries[entry - 1].id : -1;
}

const char *vocab_text(const Vocab *vocab, int64_t id, size_t *length) {
    if (id < 0 || id >= vocab->ids || vocab->by_id == NULL || vocab->by_id[id] == 0) return NULL;
    const VocabEntry *e = &vocab->entries[vocab->by_id[id] - 1];
    *length = e->length;
    return vocab->bytes + e->offset;
}

void vocab_free(Vocab *vocab) {
    memory_free(vocab->bytes);
    memory_free(vocab->entries);
    memory_free(vocab->slots);
    memory_free(vocab->by_id);
    *vocab = (Vocab){0};
}
