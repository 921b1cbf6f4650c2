/* From a SentencePiece model to a Tokenizer.
 *
 * Control pieces become special added tokens: they are parsed where special tokens are parsed, and never match text
 * otherwise. User-defined pieces are cut out of every text first. */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "data/sentencepiece.h"

static int is_one_character(SpmString s) {
    uint32_t code;
    return (size_t)utf8_decode(s.text, s.length, &code) == s.length;
}

/* Greater scores merge first, equal ones together. */
static int compare_scores(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static uint32_t *rank_pieces(const SpmModel *model) {
    float *scores = memory_alloc(model->count * sizeof *scores);
    for (size_t i = 0; i < model->count; i++)
        scores[i] = model->pieces[i].score;
    qsort(scores, model->count, sizeof *scores, compare_scores);
    uint32_t *ranks = memory_alloc(model->count * sizeof *ranks);
    for (size_t i = 0; i < model->count; i++) {
        SpmType type = model->pieces[i].type;
        /* Text is cut into characters whatever their type; only user-defined symbols stay as they are. */
        ranks[i] = type != SPM_USER_DEFINED && is_one_character(model->pieces[i].text) ? RANK_PART : RANK_APART;
        if (type != SPM_NORMAL) continue;
        size_t low = 0, high = model->count; /* the first score that is not greater: the same for equal ones */
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (scores[middle] > model->pieces[i].score)
                low = middle + 1;
            else
                high = middle;
        }
        ranks[i] = (uint32_t)low;
    }
    memory_free(scores);
    return ranks;
}

/* Merging starts from characters that are pieces; sentencepiece also joins others, which its trainer never needs. */
static Status check_characters(const Tokenizer *t, const SpmModel *model, Error *err) {
    for (size_t i = 0; i < model->count; i++) {
        SpmString s = model->pieces[i].text;
        for (size_t at = 0; model->pieces[i].type == SPM_NORMAL && at < s.length;) {
            uint32_t code;
            size_t n = (size_t)utf8_decode(s.text + at, s.length - at, &code);
            if (vocab_find(&t->vocab, s.text + at, n) < 0)
                FAIL("%s: piece %zu '%.*s' has the character U+%04X, which is no piece; such a model is not supported",
                     model->path, i, (int)(s.length < 80 ? s.length : 80), s.text, (unsigned)code);
            at += n;
        }
    }
    return OK;
}

/* sentencepiece makes UNUSED pieces by merging and takes them apart again; here they are left out, where none can be made. */
static Status check_unused(const Tokenizer *t, const SpmModel *model, const uint32_t *ranks, Error *err) {
    for (size_t i = 0; i < model->count; i++) {
        SpmString s = model->pieces[i].text;
        for (size_t at = 1; model->pieces[i].type == SPM_UNUSED && at < s.length; at++) {
            int32_t left = vocab_find(&t->vocab, s.text, at), right = vocab_find(&t->vocab, s.text + at, s.length - at);
            if (left >= 0 && right >= 0 && ranks[left] != RANK_APART && ranks[right] != RANK_APART)
                FAIL("%s: piece %zu '%.*s' is of type UNUSED and can be merged from others; such a model is not supported",
                     model->path, i, (int)(s.length < 80 ? s.length : 80), s.text);
        }
    }
    return OK;
}

static Status add_tokens(Tokenizer *t, const SpmModel *model, const TokenizerSettings *settings, Error *err) {
    for (size_t i = 0; i < model->count; i++) {
        const SpmPiece *piece = &model->pieces[i];
        AddedToken token = {.length = piece->text.length, .id = (int32_t)i, .special = piece->type == SPM_CONTROL};
        if (piece->type != SPM_CONTROL && piece->type != SPM_USER_DEFINED) continue;
        int listed = 0;
        for (size_t j = 0; piece->type == SPM_CONTROL && j < settings->added.count && !listed; j++)
            listed = settings->added.list[j].id == token.id;
        if (listed) continue;
        token.content = memory_alloc(token.length + 1);
        memcpy(token.content, piece->text.text, token.length);
        token.content[token.length] = 0;
        Status status = added_add(piece->type == SPM_CONTROL ? &t->added : &t->bpe.frozen, &token, t->path, err);
        memory_free(token.content);
        TRY(status);
    }
    TRY(settings_apply(settings, t, err));
    return added_index(&t->bpe.frozen, t, t->path, err);
}

static Status build_model(Tokenizer *t, const SpmModel *model, Error *err) {
    bpe_find_bytes(t);
    if (model->is_unigram) {
        t->unigram = unigram_open(model, &t->vocab, t->bpe.bytes);
        return OK;
    }
    TRY(check_characters(t, model, err));
    t->bpe.unk = model->unk;
    t->bpe.fuse_unk = 1;
    t->bpe.byte_fallback = model->byte_fallback;
    uint32_t *ranks = rank_pieces(model);
    Status status = check_unused(t, model, ranks, err);
    if (status == OK) status = bpe_derive_merges(t, ranks, t->path, err);
    memory_free(ranks);
    return status;
}

/* The id of a piece that is of type CONTROL; -1. */
static int32_t control_id(const Tokenizer *t, const SpmModel *model, SpmString name) {
    int32_t id = vocab_find(&t->vocab, name.text, name.length);
    return id >= 0 && model->pieces[id].type == SPM_CONTROL ? id : -1;
}

static int32_t role_id(const Tokenizer *t, const TokenizerSettings *settings, SettingsRole role, int32_t otherwise) {
    int32_t id = settings->roles[role] ? tokenizer_token_id(t, settings->roles[role]) : -1;
    return id >= 0 ? id : otherwise;
}

/* Llama's slow tokenizer puts BOS in front unless told not to, and EOS behind only when told. */
static void set_roles(Tokenizer *t, const SpmModel *model, const TokenizerSettings *settings) {
    t->bos = role_id(t, settings, ROLE_BOS, control_id(t, model, model->bos));
    t->eos = role_id(t, settings, ROLE_EOS, control_id(t, model, model->eos));
    t->pad = role_id(t, settings, ROLE_PAD, control_id(t, model, model->pad));
    if (t->bos >= 0 && settings->add_bos != 0) surround_add(&t->around, t->bos, 0);
    if (t->eos >= 0 && settings->add_eos == 1) surround_add(&t->around, t->eos, 1);
}

static Status check_class(const Tokenizer *t, const TokenizerSettings *settings, Error *err) {
    static const char *const known[] = {"LlamaTokenizer",      "CodeLlamaTokenizer", "GemmaTokenizer",
                                        "PreTrainedTokenizer", "TokenizersBackend",  NULL};
    if (settings->class != NULL && !settings_class_is(settings, known))
        FAIL(
            "%s: tokenizer_class '%.80s' reads a SentencePiece model in its own way and is not supported; supported: "
            "LlamaTokenizer, CodeLlamaTokenizer, GemmaTokenizer; or save the tokenizer as tokenizer.json",
            t->path, settings->class);
    return OK;
}

Status sentencepiece_build(Tokenizer *t, const SpmModel *model, const TokenizerSettings *settings, Error *err) {
    TRY(check_class(t, settings, err));
    t->is_sentencepiece = 1;
    for (size_t i = 0; i < model->count; i++)
        vocab_add(&t->vocab, model->pieces[i].text.text, model->pieces[i].text.length, (int32_t)i);
    TRY(vocab_index(&t->vocab, t->path, err));
    Component *normalizer = &t->normalizer.list[t->normalizer.count++], *decoder = &t->decoder.list[t->decoder.count++];
    *normalizer = (Component){.kind = &normalizer_sentencepiece};
    *decoder = (Component){.kind = &decoder_sentencepiece};
    spm_decoder_open(&decoder->state, model);
    TRY(spm_normalizer_open(&normalizer->state, model, &t->bpe.frozen, settings->legacy != 0, err));
    TRY(add_tokens(t, model, settings, err));
    TRY(build_model(t, model, err));
    TRY(tokenizer_finish(t, err));
    set_roles(t, model, settings);
    return OK;
}

Status sentencepiece_parse(Tokenizer **tokenizer, const char *path, const char *bytes, size_t length,
                           const TokenizerSettings *settings, Error *err) {
    SpmModel model;
    Tokenizer *t = *tokenizer = tokenizer_new(path, bytes, length);
    Status status = spm_read(&model, t->path, bytes, length, err);
    if (status == OK) status = sentencepiece_build(t, &model, settings, err);
    spm_free(&model);
    if (status != OK) {
        tokenizer_close(t);
        *tokenizer = NULL;
    }
    return status;
}
