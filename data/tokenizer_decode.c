/* Ids to text: a chain of decoders, each given one token after another and then the end.
 *
 *   id ── spelling ──> step 0 ──> step 1 ──> … ──> out
 *
 * A whole decode and a stream are the same chain. In a whole decode a step may wait for the end (Fuse makes one token
 * of everything); in a stream it hands on what it knows, cut between characters.
 */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

void decoder_open(Decoder *decoder, const Tokenizer *tokenizer, int streaming, int skip_special) {
    *decoder = (Decoder){.tokenizer = tokenizer, .streaming = streaming, .skip_special = skip_special};
}

void decoder_close(Decoder *decoder) {
    for (size_t i = 0; i < TOKENIZER_STEPS; i++)
        text_free(&decoder->steps[i].held);
    matcher_free(&decoder->matcher);
    text_free(&decoder->out);
}

Status decoder_push(Decoder *decoder, size_t index, const char *token, size_t length, Error *err) {
    const Components *steps = &decoder->tokenizer->decoder;
    if (index < steps->count)
        return steps->list[index].kind->decode(steps->list[index].state, decoder, index, token, length, err);
    if (token != NULL) {
        /* Without a decoder the reference joins the tokens with spaces. */
        if (steps->count == 0 && decoder->steps[0].tokens++) text_add(&decoder->out, " ", 1);
        text_add(&decoder->out, token, length);
    }
    return OK;
}

Status decoder_id(Decoder *decoder, int32_t id, Error *err) {
    const Tokenizer *tokenizer = decoder->tokenizer;
    if (id < 0) FAIL("tokenizer: %d is not a token id; want 0 to %lld", id, (long long)tokenizer->size - 1);
    const AddedToken *added = added_find(&tokenizer->added, id);
    /* The reference spells an added token as it was searched for, and looks that spelling up among the special ones. */
    if (added != NULL) {
        int plain = added->pattern_length == added->length && memcmp(added->pattern, added->content, added->length) == 0;
        if (decoder->skip_special && added->special && plain)
            return tokenizer->is_sentencepiece ? decoder_push(decoder, 0, "", 0, err) : OK;
        return decoder_push(decoder, 0, added->pattern, added->pattern_length, err);
    }
    size_t length;
    const char *text = vocab_text(&tokenizer->vocab, id, &length);
    return text ? decoder_push(decoder, 0, text, length, err) : OK; /* a hole, or a row that only pads the matrix: no text */
}

Status tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, int64_t count, int skip_special, char **text,
                        size_t *length, Error *err) {
    Decoder decoder;
    decoder_open(&decoder, tokenizer, 0, skip_special);
    Status status = OK;
    for (int64_t i = 0; i < count && status == OK; i++)
        status = decoder_id(&decoder, ids[i], err);
    if (status == OK) status = decoder_push(&decoder, 0, NULL, 0, err);
    if (status == OK) {
        text_add(&decoder.out, "", 0);
        *text = decoder.out.data ? decoder.out.data : memory_strdup("");
        *length = decoder.out.length;
        decoder.out = (Text){0};
    }
    decoder_close(&decoder);
    return status;
}
