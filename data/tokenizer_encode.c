/* From text to ids: the stages in order (see tokenizer_internal.h), and the working memory of one thread. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

Encoder *encoder_create(void) {
    return memory_calloc(1, sizeof(Encoder));
}

void encoder_free(Encoder *encoder) {
    if (encoder == NULL) return;
    aligned_free(&encoder->now);
    aligned_free(&encoder->next);
    memory_free(encoder->pieces.data);
    memory_free(encoder->next_pieces.data);
    matcher_free(&encoder->matcher);
    memory_free(encoder->symbols);
    memory_free(encoder->heap);
    memory_free(encoder->codes);
    memory_free(encoder->cache);
    memory_free(encoder->nodes);
    memory_free(encoder);
}

void token_buffer_free(TokenBuffer *buffer) {
    if (buffer == NULL) return;
    memory_free(buffer->ids);
    memory_free(buffer->begin);
    memory_free(buffer->end);
    encoder_free(buffer->scratch);
    *buffer = (TokenBuffer){0};
}

static void swap_pieces(Encoder *encoder) {
    Pieces pieces = encoder->pieces;
    encoder->pieces = encoder->next_pieces;
    encoder->next_pieces = pieces;
    encoder->next_pieces.count = 0;
}

Status encoder_change(Encoder *encoder, TextChange change, const void *state, Error *err) {
    encoder->next.length = 0;
    for (size_t i = 0; i < encoder->pieces.count; i++) {
        Piece piece = encoder->pieces.data[i];
        if (piece.id < 0) {
            size_t begin = encoder->next.length;
            TRY(change(state, encoder, &piece, err));
            if (encoder->next.length == begin) continue;
            piece.begin = begin;
            piece.end = encoder->next.length;
        }
        pieces_add(&encoder->next_pieces, piece);
    }
    Aligned text = encoder->now;
    encoder->now = encoder->next;
    encoder->next = text;
    swap_pieces(encoder);
    return OK;
}

Status encoder_divide(Encoder *encoder, PieceCut cut, const void *state, Error *err) {
    for (size_t i = 0; i < encoder->pieces.count; i++) {
        Piece piece = encoder->pieces.data[i];
        if (piece.id < 0)
            TRY(cut(state, encoder, &piece, err));
        else
            pieces_add(&encoder->next_pieces, piece);
    }
    swap_pieces(encoder);
    return OK;
}

void encoder_cut(Encoder *encoder, size_t begin, size_t end) {
    if (begin < end)
        pieces_add(&encoder->next_pieces,
                   (Piece){.begin = begin, .end = end, .origin = encoder->now.align[begin].begin, .id = -1});
}

Status encoder_run(Encoder *encoder, const Components *components, Error *err) {
    for (size_t i = 0; i < components->count; i++)
        TRY(components->list[i].kind->rewrite(components->list[i].state, encoder, err));
    return OK;
}

void tokens_add(TokenBuffer *out, int32_t id, Span span) {
    if (out->count == out->capacity) {
        int64_t capacity = out->capacity ? out->capacity * 2 : 256;
        out->ids = memory_resize(out->ids, (size_t)capacity * sizeof *out->ids);
        out->begin = memory_resize(out->begin, (size_t)capacity * sizeof *out->begin);
        out->end = memory_resize(out->end, (size_t)capacity * sizeof *out->end);
        out->capacity = capacity;
    }
    out->ids[out->count] = id;
    out->begin[out->count] = span.begin;
    out->end[out->count++] = span.end;
}

/* The working memory of `out`, emptied; the word cache is forgotten when another tokenizer filled it. */
static Encoder *encoder_of(const Tokenizer *tokenizer, TokenBuffer *out) {
    if (out->scratch == NULL) out->scratch = encoder_create();
    Encoder *encoder = out->scratch;
    if (encoder->cache == NULL || encoder->owner != tokenizer->hash) {
        memory_free(encoder->cache);
        encoder->cache = memory_calloc(CACHE_SLOTS, sizeof *encoder->cache);
        encoder->owner = tokenizer->hash;
    }
    encoder->now.length = 0;
    encoder->pieces.count = encoder->next_pieces.count = 0;
    return encoder;
}

static void encode_pieces(const Tokenizer *tokenizer, Encoder *encoder, TokenBuffer *out) {
    for (size_t i = 0; i < encoder->pieces.count; i++) {
        const Piece *piece = &encoder->pieces.data[i];
        if (encoder->now.text == NULL || encoder->now.align == NULL) { /* no text at all: only added tokens */
            if (piece->id >= 0) tokens_add(out, piece->id, piece->source);
            continue;
        }
        const char *text = encoder->now.text + piece->begin;
        const Span *align = encoder->now.align + piece->begin;
        if (piece->id >= 0)
            tokens_add(out, piece->id, piece->source);
        else if (tokenizer->unigram)
            unigram_encode(tokenizer->unigram, encoder, text, align, piece->end - piece->begin, out);
        else
            bpe_encode(tokenizer, encoder, text, align, piece->end - piece->begin, out);
    }
}

static Status encode(const Tokenizer *tokenizer, Encoder *encoder, const char *text, size_t length, int add_special,
                     int parse_special, TokenBuffer *out, Error *err) {
    int64_t count = out->count;
    Status status = OK;
    for (size_t i = 0; add_special && i < tokenizer->around.before_count; i++)
        tokens_add(out, tokenizer->around.before[i], (Span){0, 0});
    TRY_GOTO(aligned_repair(&encoder->now, text, length, tokenizer->is_sentencepiece, err));
    if (encoder->now.length)
        pieces_add(&encoder->pieces, (Piece){.begin = 0, .end = encoder->now.length, .origin = 0, .id = -1});
    if (parse_special) TRY_GOTO(added_split(&tokenizer->added, 0, encoder, err));
    TRY_GOTO(encoder_run(encoder, &tokenizer->normalizer, err));
    if (parse_special) TRY_GOTO(added_split(&tokenizer->added, 1, encoder, err));
    TRY_GOTO(encoder_run(encoder, &tokenizer->pre_tokenizer, err));
    encode_pieces(tokenizer, encoder, out);
    for (size_t i = 0; add_special && i < tokenizer->around.after_count; i++)
        tokens_add(out, tokenizer->around.after[i], (Span){(int32_t)length, (int32_t)length});
done:
    if (status != OK) out->count = count;
    return status;
}

Status tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length, int add_special, int parse_special,
                        TokenBuffer *out, Error *err) {
    return encode(tokenizer, encoder_of(tokenizer, out), text, length, add_special, parse_special, out, err);
}

Status tokenizer_encode_guarded(const Tokenizer *tokenizer, const char *text, size_t length, int add_special,
                                const TokenRange *plain, size_t count, TokenBuffer *out, Error *err) {
    Encoder *encoder = encoder_of(tokenizer, out);
    encoder->plain = plain;
    encoder->plain_count = count;
    Status status = encode(tokenizer, encoder, text, length, add_special, 1, out, err);
    encoder->plain = NULL;
    encoder->plain_count = 0;
    return status;
}
