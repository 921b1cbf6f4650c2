/* tokenizer.* of a GGUF file as the files of a model folder, for exports from such a file.
 *
 *   "llama"   tokenizer.model: a SentencePiece BPE model (a protobuf) with the same pieces, scores and types
 *   "gpt2"    tokenizer.json: byte-level BPE, cut as the pre-tokenizer of that name cuts
 *
 * What the file does not say is llama.cpp's default for that kind. nibble itself reads the GGUF file (tokenizer_gguf.c).
 */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "data/gguf_model.h"
#include "data/gguf_vocab.h"
#include "data/sentencepiece.h"

static void add_string(Text *out, GgufString string) {
    text_add_json_string(out, string.bytes, (size_t)string.length);
}

static GgufTokenType type_of(const GgufVocab *v, int64_t id) {
    return v->types == NULL ? GGUF_TOKEN_NORMAL : (GgufTokenType)gguf_item_i32(v->types, (uint64_t)id);
}

static int is_added(GgufTokenType type) {
    return type == GGUF_TOKEN_CONTROL || type == GGUF_TOKEN_USER;
}

static void add_flags(Text *out, GgufTokenType type) {
    text_addf(out, ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": %s}",
              type == GGUF_TOKEN_CONTROL ? "true" : "false");
}

/* ---- tokenizer_config.json ------------------------------------------------------------------------------------------------- */

static void add_role(Text *out, const GgufVocab *v, const char *name, int32_t id) {
    if (id < 0) return;
    text_addf(out, ", \"%s\": ", name);
    add_string(out, v->tokens[id]);
}

static void add_config(Text *out, const GgufVocab *v) {
    text_addf(out, "{\"tokenizer_class\": \"%s\"", v->is_spm ? "LlamaTokenizer" : "PreTrainedTokenizerFast");
    add_role(out, v, "bos_token", v->bos);
    add_role(out, v, "eos_token", v->eos);
    add_role(out, v, "unk_token", v->unknown);
    add_role(out, v, "pad_token", v->padding);
    if (v->is_spm) {
        text_addf(out, ", \"add_bos_token\": %s, \"add_eos_token\": %s, \"legacy\": true", v->adds_bos ? "true" : "false",
                  v->adds_eos ? "true" : "false");
        if (!v->adds_space_prefix) text_adds(out, ", \"add_prefix_space\": false");
    }
    text_adds(out, ", \"clean_up_tokenization_spaces\": false, \"added_tokens_decoder\": {");
    for (int64_t id = 0, count = 0; id < v->count; id++) {
        if (!is_added(type_of(v, id))) continue;
        text_addf(out, "%s\"%lld\": {\"content\": ", count++ > 0 ? ", " : "", (long long)id);
        add_string(out, v->tokens[id]);
        add_flags(out, type_of(v, id));
    }
    text_adds(out, "}");
    if (v->chat_template.length > 0) {
        text_adds(out, ", \"chat_template\": ");
        add_string(out, v->chat_template);
    }
    text_adds(out, "}\n");
}

/* ---- tokenizer.json -------------------------------------------------------------------------------------------------------- */

#define BYTE_LEVEL(regex) \
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": " regex "}"
static void add_cuts(Text *out, const GgufPre *pre) {
    if (pre->normalizer != NULL) text_addf(out, ", \"normalizer\": %s", pre->normalizer);
    text_addf(out, ", \"pre_tokenizer\": %s", pre->cuts);
}

static void add_special(Text *out, GgufString token) {
    text_adds(out, "{\"SpecialToken\": {\"id\": ");
    add_string(out, token);
    text_adds(out, ", \"type_id\": 0}}");
}

static void add_special_ids(Text *out, const GgufVocab *v, int32_t id) {
    add_string(out, v->tokens[id]);
    text_adds(out, ": {\"id\": ");
    add_string(out, v->tokens[id]);
    text_addf(out, ", \"ids\": [%d], \"tokens\": [", (int)id);
    add_string(out, v->tokens[id]);
    text_adds(out, "]}");
}

/* BOS in front and EOS behind, where they are added. */
static void add_template(Text *out, const GgufVocab *v) {
    int bos = v->adds_bos && v->bos >= 0, eos = v->adds_eos && v->eos >= 0;
    if (!bos && !eos) {
        text_adds(out, ", \"post_processor\": " BYTE_LEVEL("true"));
        return;
    }
    text_adds(out, ", \"post_processor\": {\"type\": \"TemplateProcessing\"");
    for (int pair = 0; pair < 2; pair++) {
        text_addf(out, ", \"%s\": [", pair ? "pair" : "single");
        for (int part = 0; part <= pair; part++) {
            if (part > 0) text_adds(out, ", ");
            if (bos) add_special(out, v->tokens[v->bos]);
            text_addf(out, "%s{\"Sequence\": {\"id\": \"%s\", \"type_id\": 0}}%s", bos ? ", " : "", part ? "B" : "A",
                      eos ? ", " : "");
            if (eos) add_special(out, v->tokens[v->eos]);
        }
        text_adds(out, "]");
    }
    text_adds(out, ", \"special_tokens\": {");
    if (bos) add_special_ids(out, v, v->bos);
    if (eos && (!bos || v->eos != v->bos)) {
        if (bos) text_adds(out, ", ");
        add_special_ids(out, v, v->eos);
    }
    text_adds(out, "}}");
}

/* A row of the embedding without a token: convert_hf_to_gguf.py and gguf_put_tokenizer call it [PAD<id>]. */
static int is_hole(const GgufVocab *v, int64_t id) {
    char name[32];
    int length = snprintf(name, sizeof name, "[PAD%lld]", (long long)id);
    return type_of(v, id) == GGUF_TOKEN_UNUSED && v->tokens[id].length == (uint64_t)length &&
           memcmp(v->tokens[id].bytes, name, (size_t)length) == 0;
}

static void add_model(Text *out, const GgufVocab *v, const GgufPre *pre) {
    text_addf(out,
              ", \"decoder\": " BYTE_LEVEL("true") ", \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
                                                   "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, "
                                                   "\"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": %s, "
                                                   "\"vocab\": {",
              pre->ignore_merges ? "true" : "false");
    for (int64_t id = 0, count = 0; id < v->count; id++) {
        if (is_added(type_of(v, id)) || is_hole(v, id)) continue;
        if (count++ > 0) text_adds(out, ", ");
        add_string(out, v->tokens[id]);
        text_addf(out, ": %lld", (long long)id);
    }
    text_adds(out, "}, \"merges\": [");
    for (int64_t i = 0; i < v->merge_count; i++) {
        if (i > 0) text_adds(out, ", ");
        add_string(out, v->merges[i]);
    }
    text_adds(out, "]}}\n");
}

static Status add_json(Text *out, const GgufFile *file, GgufVocab *v, Error *err) {
    GgufPre pre;
    TRY(gguf_pre_read(gguf_path(file), v, &pre, err));
    v->adds_bos = pre.adds_bos;
    v->adds_eos = v->adds_eos > 0;
    text_adds(out, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [");
    for (int64_t id = 0, count = 0; id < v->count; id++) {
        if (!is_added(type_of(v, id))) continue;
        text_addf(out, "%s{\"id\": %lld, \"content\": ", count++ > 0 ? ", " : "", (long long)id);
        add_string(out, v->tokens[id]);
        add_flags(out, type_of(v, id));
    }
    text_adds(out, "]");
    add_cuts(out, &pre);
    add_template(out, v);
    add_model(out, v, &pre);
    memory_free(pre.cuts);
    return OK;
}

/* ---- tokenizer.model ------------------------------------------------------------------------------------------------------- */

/* Fields of sentencepiece_model.proto. */
enum { MODEL_PIECES = 1, MODEL_TRAINER, MODEL_NORMALIZER };
enum { PIECE_TEXT = 1, PIECE_SCORE, PIECE_TYPE };
enum { TRAINER_TYPE = 3, TRAINER_VOCAB = 4, TRAINER_BYTES = 35, TRAINER_UNK = 40, TRAINER_BOS, TRAINER_EOS, TRAINER_PAD };
enum { NORMALIZER_PREFIX = 3, NORMALIZER_SQUEEZE };
enum { WIRE_VARINT = 0, WIRE_BYTES = 2, WIRE_FLOAT = 5, TRAINER_BPE = 2 };

static void add_varint(Text *out, uint64_t value) {
    do {
        char byte = (char)((value & 127) | (value > 127 ? 128 : 0));
        text_add(out, &byte, 1);
        value >>= 7;
    } while (value > 0);
}

static void add_number(Text *out, unsigned field, int64_t value) {
    add_varint(out, field << 3 | WIRE_VARINT);
    add_varint(out, (uint64_t)value);
}

static void add_bytes(Text *out, unsigned field, const char *bytes, size_t length) {
    add_varint(out, field << 3 | WIRE_BYTES);
    add_varint(out, length);
    text_add(out, bytes, length);
}

static SpmType spm_type(GgufTokenType type) {
    static const SpmType types[] = {
        [GGUF_TOKEN_NORMAL] = SPM_NORMAL,   [GGUF_TOKEN_UNKNOWN] = SPM_UNKNOWN,
        [GGUF_TOKEN_CONTROL] = SPM_CONTROL, [GGUF_TOKEN_USER] = SPM_CONTROL, /* added_tokens_decoder */
        [GGUF_TOKEN_UNUSED] = SPM_UNUSED,   [GGUF_TOKEN_BYTE] = SPM_BYTE};
    return types[type];
}

static void add_pieces(Text *out, const GgufVocab *v, int *has_bytes) {
    Text piece = {0};
    for (int64_t id = 0; id < v->count; id++) {
        float score = gguf_item_f32(v->scores, (uint64_t)id);
        char bits[4];
        memcpy(bits, &score, sizeof bits);
        text_clear(&piece);
        add_bytes(&piece, PIECE_TEXT, v->tokens[id].bytes, (size_t)v->tokens[id].length);
        add_varint(&piece, PIECE_SCORE << 3 | WIRE_FLOAT);
        text_add(&piece, bits, sizeof bits);
        add_number(&piece, PIECE_TYPE, spm_type(type_of(v, id)));
        add_bytes(out, MODEL_PIECES, piece.data, piece.length);
        *has_bytes |= type_of(v, id) == GGUF_TOKEN_BYTE;
    }
    text_free(&piece);
}

static int32_t or_default(int32_t id, int32_t otherwise, int64_t count) {
    return id >= 0 || otherwise >= count ? id : otherwise;
}

static void add_spm(Text *out, GgufVocab *v) {
    Text spec = {0};
    int has_bytes = 0;
    v->bos = or_default(v->bos, 1, v->count);
    v->eos = or_default(v->eos, 2, v->count);
    v->unknown = or_default(v->unknown, 0, v->count);
    v->adds_bos = v->adds_bos != 0;
    v->adds_eos = v->adds_eos > 0;
    v->adds_space_prefix = v->adds_space_prefix != 0;
    add_pieces(out, v, &has_bytes);
    add_number(&spec, TRAINER_TYPE, TRAINER_BPE);
    add_number(&spec, TRAINER_VOCAB, v->count);
    add_number(&spec, TRAINER_BYTES, has_bytes);
    add_number(&spec, TRAINER_UNK, v->unknown);
    add_number(&spec, TRAINER_BOS, v->bos);
    add_number(&spec, TRAINER_EOS, v->eos);
    add_number(&spec, TRAINER_PAD, v->padding);
    add_bytes(out, MODEL_TRAINER, spec.data, spec.length);
    text_clear(&spec);
    add_number(&spec, NORMALIZER_PREFIX, v->adds_space_prefix);
    add_number(&spec, NORMALIZER_SQUEEZE, 0);
    add_bytes(out, MODEL_NORMALIZER, spec.data, spec.length);
    text_free(&spec);
}

Status gguf_tokenizer_files(const GgufFile *file, GgufTokenizerFiles *files, Error *err) {
    GgufVocab vocab;
    *files = (GgufTokenizerFiles){0};
    TRY(gguf_vocab_read(file, &vocab, err));
    if (vocab.is_spm)
        add_spm(&files->model, &vocab);
    else
        TRY(add_json(&files->json, file, &vocab, err));
    add_config(&files->config, &vocab);
    return OK;
}

void gguf_tokenizer_files_free(GgufTokenizerFiles *files) {
    text_free(&files->json);
    text_free(&files->model);
    text_free(&files->config);
}
