/* SentencePiece's unigram model: of all ways to cut a text into pieces the one with the greatest sum of scores.
 *
 *   node[i]: the best path that ends at byte i: its score, its last piece, where that begins
 *
 * Sums are kept in float and added in double, in the order of the reference (unigram_model.cc, EncodeOptimized), because
 * equal sums are decided by what came first. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/sentencepiece.h"

#define UNKNOWN_PENALTY 10.0f

typedef struct UnigramPiece {
    const char *text; /* in the tokenizer's vocabulary */
    size_t length;
    double score;
    int32_t id;
} UnigramPiece;

struct Unigram {
    UnigramPiece *pieces; /* sorted by text */
    size_t count;
    size_t first[257]; /* where the pieces of each first byte begin */
    float unk_score;
    int32_t unk;
    int byte_fallback;
    const int32_t *bytes; /* ids of <0xXX> */
};

typedef struct UnigramNode {
    float score;
    int32_t begin, id; /* begin -1: not reached */
} UnigramNode;

static int compare_texts(const void *a, const void *b) {
    const UnigramPiece *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

Unigram *unigram_open(const SpmModel *model, const Vocab *vocab, const int32_t bytes[256]) {
    Unigram *u = memory_calloc(1, sizeof *u);
    float least = FLT_MAX, greatest = FLT_MIN;
    for (size_t i = 0; i < model->count; i++) {
        if (model->pieces[i].type != SPM_NORMAL) continue;
        if (model->pieces[i].score < least) least = model->pieces[i].score;
        if (model->pieces[i].score > greatest) greatest = model->pieces[i].score;
    }
    u->pieces = memory_alloc(model->count * sizeof *u->pieces);
    for (size_t i = 0; i < model->count; i++) {
        const SpmPiece *piece = &model->pieces[i];
        if (piece->type != SPM_NORMAL && piece->type != SPM_USER_DEFINED) continue;
        UnigramPiece *p = &u->pieces[u->count++];
        p->text = vocab_text(vocab, (int64_t)i, &p->length);
        p->id = (int32_t)i;
        /* A user-defined symbol is as good as its length of the best pieces. */
        p->score = piece->type == SPM_NORMAL ? (double)piece->score : (double)((float)p->length * greatest) - 0.1;
    }
    if (u->count) qsort(u->pieces, u->count, sizeof *u->pieces, compare_texts);
    size_t at = 0;
    for (size_t byte = 0; byte <= 256; byte++) {
        while (at < u->count && (uint8_t)u->pieces[at].text[0] < byte)
            at++;
        u->first[byte] = at;
    }
    u->unk = model->unk;
    u->unk_score = least - UNKNOWN_PENALTY;
    u->byte_fallback = model->byte_fallback;
    u->bytes = bytes;
    return u;
}

void unigram_free(Unigram *unigram) {
    if (unigram == NULL) return;
    memory_free(unigram->pieces);
    memory_free(unigram);
}

static void offer(UnigramNode *node, double score, size_t begin, int32_t id) {
    if (node->begin >= 0 && !(score > (double)node->score)) return;
    *node = (UnigramNode){.score = (float)score, .begin = (int32_t)begin, .id = id};
}

/* First of pieces [low, high) whose byte at `depth` is at least `byte`; all have the bytes before, and one there. */
static size_t lower_bound(const Unigram *u, size_t low, size_t high, size_t depth, unsigned byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uint8_t)u->pieces[middle].text[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Offers every piece that the text at `begin` starts with; whether one of them is the first character alone. Adds the bytes looked
 * at to *work. */
static int offer_pieces(const Unigram *u, UnigramNode *nodes, const char *text, size_t begin, size_t length, size_t one,
                        int64_t *work) {
    uint8_t byte = (uint8_t)text[begin];
    size_t low = u->first[byte], high = u->first[byte + 1];
    double score = (double)nodes[begin].score;
    int single = 0;
    for (size_t depth = 0; begin + depth < length && low < high; depth++) {
        byte = (uint8_t)text[begin + depth];
        ++*work;
        if (depth) {
            low = lower_bound(u, low, high, depth, byte);
            high = lower_bound(u, low, high, depth, byte + 1u);
        }
        if (low == high || u->pieces[low].length != depth + 1) continue;
        const UnigramPiece *piece = &u->pieces[low++]; /* the shorter sorts first */
        offer(&nodes[begin + depth + 1], piece->score + score, begin, piece->id);
        if (depth + 1 == one) single = 1;
    }
    return single;
}

/* Unknown characters: their bytes, or one token for a run of them. */
static void add_unknown(const Unigram *u, const char *text, const Span *align, size_t begin, size_t end, int joins,
                        TokenBuffer *out) {
    if (u->byte_fallback) {
        for (size_t i = begin; i < end; i++)
            tokens_add(out, u->bytes[(uint8_t)text[i]], align[i]);
    } else if (joins) {
        out->end[out->count - 1] = align[end - 1].end;
    } else {
        tokens_add(out, u->unk, (Span){align[begin].begin, align[end - 1].end});
    }
}

void unigram_encode(const Unigram *u, Encoder *encoder, const char *text, const Span *align, size_t length, TokenBuffer *out) {
    if (encoder->nodes_capacity < length + 1) {
        encoder->nodes_capacity = length + 1 + length / 2;
        encoder->nodes = memory_resize(encoder->nodes, encoder->nodes_capacity * sizeof *encoder->nodes);
    }
    UnigramNode *nodes = encoder->nodes;
    nodes[0] = (UnigramNode){.begin = 0};
    for (size_t i = 1; i <= length; i++)
        nodes[i] = (UnigramNode){.begin = -1};
    for (size_t begin = 0, one; begin < length; begin += one) {
        uint32_t code;
        one = (size_t)utf8_decode(text + begin, length - begin, &code);
        if (!offer_pieces(u, nodes, text, begin, length, one, &encoder->work))
            offer(&nodes[begin + one], (double)(u->unk_score + nodes[begin].score), begin, u->unk);
    }
    /* Turn the links around, so that the path can be walked forwards: begin becomes the end of the piece that starts here. */
    int32_t end = (int32_t)length, id = nodes[length].id;
    for (int32_t at = nodes[length].begin; end > 0;) {
        UnigramNode link = nodes[at];
        nodes[at].begin = end;
        nodes[at].id = id;
        end = at;
        at = link.begin;
        id = link.id;
    }
    int after_unknown = 0;
    for (size_t begin = 0; begin < length; begin = (size_t)nodes[begin].begin) {
        size_t stop = (size_t)nodes[begin].begin;
        if (nodes[begin].id == u->unk)
            add_unknown(u, text, align, begin, stop, after_unknown, out);
        else
            tokens_add(out, nodes[begin].id, (Span){align[begin].begin, align[stop - 1].end});
        after_unknown = nodes[begin].id == u->unk;
    }
}
