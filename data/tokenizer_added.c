/* Added tokens: whole strings that are cut out of the text before the model sees it, leftmost and longest first. */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

#define ADDED_LIMIT 262144

static Status added_parse_one(AddedToken *token, JsonReader *reader, Error *err) {
    JsonToken key;
    int64_t id = -1;
    token->normalized = 0;
    for (;;) {
        TRY(json_next(reader, &key, err));
        if (key.kind == JSON_OBJECT_END) break;
        if (json_key_is(&key, "id")) {
            TRY(json_get_integer(reader, "added_tokens: id", 0, TOKENIZER_ID_LIMIT - 1, &id, err));
        } else if (json_key_is(&key, "content")) {
            memory_free(token->content);
            token->content = NULL;
            TRY(json_get_string(reader, "added_tokens: content", &token->content, &token->length, err));
        } else if (json_key_is(&key, "single_word")) {
            TRY(json_get_bool(reader, "added_tokens: single_word", &token->single_word, err));
        } else if (json_key_is(&key, "lstrip")) {
            TRY(json_get_bool(reader, "added_tokens: lstrip", &token->lstrip, err));
        } else if (json_key_is(&key, "rstrip")) {
            TRY(json_get_bool(reader, "added_tokens: rstrip", &token->rstrip, err));
        } else if (json_key_is(&key, "normalized")) {
            TRY(json_get_bool(reader, "added_tokens: normalized", &token->normalized, err));
        } else if (json_key_is(&key, "special")) {
            TRY(json_get_bool(reader, "added_tokens: special", &token->special, err));
        } else {
            TRY(json_skip(reader, &key, err));
        }
    }
    if (id < 0 || token->content == NULL) FAIL("%s: added_tokens: an entry has no id or no content", reader->what);
    token->id = (int32_t)id;
    return OK;
}

Status added_add(AddedTokens *added, const AddedToken *token, const char *where, Error *err) {
    if (token->length == 0 || token->length > TOKENIZER_CONTENT_LIMIT)
        FAIL("%s: added token %d: want a content of 1 to %d bytes, got %zu", where, token->id, TOKENIZER_CONTENT_LIMIT,
             token->length);
    if (added->count == ADDED_LIMIT) FAIL("%s: added_tokens: want at most %d, got more", where, ADDED_LIMIT);
    if (added->count == added->capacity) {
        added->capacity = added->capacity ? added->capacity * 2 : 64;
        added->list = memory_resize(added->list, added->capacity * sizeof *added->list);
    }
    AddedToken *copy = &added->list[added->count++];
    *copy = *token;
    copy->content = memory_alloc(token->length + 1);
    memcpy(copy->content, token->content, token->length);
    copy->content[token->length] = 0;
    copy->pattern = NULL;
    copy->pattern_length = 0;
    return OK;
}

Status added_parse(AddedTokens *added, JsonReader *reader, Error *err) {
    JsonToken token;
    TRY(json_next(reader, &token, err));
    if (token.kind == JSON_NULL) return OK;
    if (token.kind != JSON_ARRAY_BEGIN || added->count)
        FAIL("%s: added_tokens: want one list, got %s", reader->what, json_kind_name(token.kind));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_ARRAY_END) return OK;
        if (token.kind != JSON_OBJECT_BEGIN)
            FAIL("%s: added_tokens: want objects, got %s", reader->what, json_kind_name(token.kind));
        AddedToken one = {0};
        Status status = added_parse_one(&one, reader, err);
        if (status == OK) status = added_add(added, &one, reader->what, err);
        memory_free(one.content);
        TRY(status);
    }
}

static int compare_ids(const void *a, const void *b) {
    int32_t x = ((const AddedToken *)a)->id, y = ((const AddedToken *)b)->id;
    return (x > y) - (x < y);
}

static int compare_patterns(const void *a, const void *b, void *list) {
    const AddedToken *x = (const AddedToken *)list + *(const uint32_t *)a, *y = (const AddedToken *)list + *(const uint32_t *)b;
    size_t n = x->pattern_length < y->pattern_length ? x->pattern_length : y->pattern_length;
    int order = memcmp(x->pattern, y->pattern, n);
    return order ? order : (x->pattern_length > y->pattern_length) - (x->pattern_length < y->pattern_length);
}

/* What is searched: for a normalized token its normal form. */
static Status set_pattern(AddedToken *token, const Tokenizer *tokenizer, Encoder *encoder, Error *err) {
    const char *pattern = token->content;
    size_t length = token->length;
    if (token->normalized) {
        encoder->now.length = 0;
        encoder->pieces.count = encoder->next_pieces.count = 0;
        TRY(aligned_repair(&encoder->now, token->content, token->length, tokenizer->is_sentencepiece, err));
        pieces_add(&encoder->pieces, (Piece){.begin = 0, .end = encoder->now.length, .id = -1});
        TRY(encoder_run(encoder, &tokenizer->normalizer, err));
        pattern = encoder->now.text;
        length = encoder->now.length;
    }
    token->pattern = memory_alloc(length + 1);
    memcpy(token->pattern, pattern, length);
    token->pattern[length] = 0;
    token->pattern_length = length;
    return OK;
}

static Status check_id(const AddedToken *token, const Tokenizer *tokenizer, const char *path, Error *err) {
    int32_t known = vocab_find(&tokenizer->vocab, token->content, token->length);
    if (known >= 0 && known != token->id)
        FAIL("%s: added_tokens: '%.80s' has id %d, but model.vocab gives it %d", path, token->content, token->id, known);
    size_t length;
    const char *other = vocab_text(&tokenizer->vocab, token->id, &length);
    if (known < 0 && other != NULL)
        FAIL("%s: added_tokens: '%.80s' has id %d, which model.vocab gives to '%.80s'", path, token->content, token->id, other);
    return OK;
}

static Status sort_patterns(AddedTokens *added, int cooked, uint32_t **out, size_t *count, const char *path, Error *err) {
    uint32_t *order = *out = memory_alloc(added->count * sizeof *order);
    size_t n = 0;
    for (uint32_t i = 0; i < added->count; i++)
        if (added->list[i].normalized == cooked && added->list[i].pattern_length > 0) order[n++] = i;
    if (n) qsort_r(order, n, sizeof *order, compare_patterns, added->list);
    for (size_t i = 1; i < n; i++)
        if (compare_patterns(&order[i - 1], &order[i], added->list) == 0)
            FAIL("%s: added_tokens: ids %d and %d are the same text '%.80s'", path, added->list[order[i - 1]].id,
                 added->list[order[i]].id, added->list[order[i]].pattern);
    *count = n;
    return OK;
}

Status added_index(AddedTokens *added, const Tokenizer *tokenizer, const char *path, Error *err) {
    if (added->count) qsort(added->list, added->count, sizeof *added->list, compare_ids);
    Encoder *encoder = encoder_create();
    Status status = OK;
    for (size_t i = 0; i < added->count; i++) {
        if (i && added->list[i].id == added->list[i - 1].id) {
            status = error_set(err, ERR_FAILED, "%s: added_tokens: id %d is there twice", path, added->list[i].id);
            goto done;
        }
        TRY_GOTO(check_id(&added->list[i], tokenizer, path, err));
        TRY_GOTO(set_pattern(&added->list[i], tokenizer, encoder, err));
    }
    TRY_GOTO(sort_patterns(added, 0, &added->raw, &added->raw_count, path, err));
    TRY_GOTO(sort_patterns(added, 1, &added->cooked, &added->cooked_count, path, err));
done:
    encoder_free(encoder);
    return status;
}

const AddedToken *added_find(const AddedTokens *added, int32_t id) {
    AddedToken wanted = {.id = id};
    return added->count ? bsearch(&wanted, added->list, added->count, sizeof *added->list, compare_ids) : NULL;
}

const AddedToken *added_named(const AddedTokens *added, const char *content) {
    size_t length = strlen(content);
    for (size_t i = 0; i < added->count; i++)
        if (added->list[i].length == length && memcmp(added->list[i].content, content, length) == 0) return &added->list[i];
    return NULL;
}

/* The longest pattern that starts at `at`, by narrowing the sorted list byte by byte; NULL when there is none. */
static const AddedToken *longest_at(const AddedTokens *added, const uint32_t *order, size_t count, const char *text,
                                    size_t available) {
    const AddedToken *best = NULL;
    size_t low = 0, high = count;
    for (size_t depth = 0; depth < available && low < high; depth++) {
        uint8_t byte = (uint8_t)text[depth];
        for (size_t end = high; low < end;) { /* first with a byte >= this one */
            size_t middle = low + (end - low) / 2;
            if ((uint8_t)added->list[order[middle]].pattern[depth] < byte)
                low = middle + 1;
            else
                end = middle;
        }
        size_t start = low;
        for (size_t end = high; start < end;) { /* first with a byte > this one */
            size_t middle = start + (end - start) / 2;
            if ((uint8_t)added->list[order[middle]].pattern[depth] <= byte)
                start = middle + 1;
            else
                end = middle;
        }
        high = start;
        /* A pattern that ends here sorts first; it has no byte at depth + 1, so it leaves the range. */
        if (low < high && added->list[order[low]].pattern_length == depth + 1) best = &added->list[order[low++]];
    }
    return best;
}

const AddedToken *added_longest(const AddedTokens *added, const char *text, size_t available) {
    return added->raw_count ? longest_at(added, added->raw, added->raw_count, text, available) : NULL;
}

static int stands_alone(const char *text, size_t length, size_t begin, size_t end) {
    uint32_t code;
    if (begin > 0) {
        char_before(text, begin, &code);
        if (char_is_word(code)) return 0;
    }
    if (end < length) {
        utf8_decode(text + end, length - end, &code);
        if (char_is_word(code)) return 0;
    }
    return 1;
}

static size_t spaces_before(const char *text, size_t at) {
    uint32_t code;
    while (at > 0) {
        size_t n = char_before(text, at, &code);
        if (!char_is_space(code)) break;
        at -= n;
    }
    return at;
}

static size_t spaces_after(const char *text, size_t length, size_t at) {
    uint32_t code;
    while (at < length) {
        int n = utf8_decode(text + at, length - at, &code);
        if (!char_is_space(code)) break;
        at += (size_t)n;
    }
    return at;
}

/* Whether bytes [begin, end) of the caller's text touch a range in which special tokens are not parsed. */
static int is_plain(const Encoder *encoder, size_t begin, size_t end) {
    size_t low = 0, high = encoder->plain_count;
    while (low < high) { /* the first range that ends after begin */
        size_t middle = low + (high - low) / 2;
        if (encoder->plain[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low < encoder->plain_count && encoder->plain[low].begin < end;
}

typedef struct AddedOrder {
    const AddedTokens *added;
    const uint32_t *order;
    size_t count;
    uint8_t first[256]; /* whether any pattern starts with the byte */
} AddedOrder;

static Status split_piece(const void *state, Encoder *encoder, const Piece *piece, Error *err) {
    (void)err;
    const AddedOrder *o = state;
    const char *text = encoder->now.text + piece->begin;
    size_t length = piece->end - piece->begin, done = 0;
    for (size_t at = 0; at < length;) {
        const AddedToken *token =
            o->first[(uint8_t)text[at]] ? longest_at(o->added, o->order, o->count, text + at, length - at) : NULL;
        if (token == NULL) {
            at++;
            continue;
        }
        size_t begin = at, end = at + token->pattern_length;
        const Span *align = encoder->now.align + piece->begin;
        if (token->special && is_plain(encoder, (size_t)align[begin].begin, (size_t)align[end - 1].end)) {
            at++;
            continue;
        }
        at = end;
        if (token->single_word && !stands_alone(text, length, begin, end)) continue;
        if (token->lstrip) {
            begin = spaces_before(text, begin);
            if (begin < done) begin = done;
        }
        if (token->rstrip) end = spaces_after(text, length, end);
        encoder_cut(encoder, piece->begin + done, piece->begin + begin);
        pieces_add(&encoder->next_pieces,
                   (Piece){.source = {align[begin].begin, align[end - 1].end}, .id = token->id, .origin = align[begin].begin});
        done = end;
    }
    encoder_cut(encoder, piece->begin + done, piece->end);
    return OK;
}

Status added_split(const AddedTokens *added, int cooked, Encoder *encoder, Error *err) {
    AddedOrder o = {
        .added = added, .order = cooked ? added->cooked : added->raw, .count = cooked ? added->cooked_count : added->raw_count};
    if (o.count == 0) return OK;
    for (size_t i = 0; i < o.count; i++)
        o.first[(uint8_t)added->list[o.order[i]].pattern[0]] = 1;
    return encoder_divide(encoder, split_piece, &o, err);
}

void added_free(AddedTokens *added) {
    for (size_t i = 0; i < added->count; i++) {
        memory_free(added->list[i].content);
        memory_free(added->list[i].pattern);
    }
    memory_free(added->list);
    memory_free(added->raw);
    memory_free(added->cooked);
    *added = (AddedTokens){0};
}
