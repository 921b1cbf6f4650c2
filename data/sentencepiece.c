/* SentencePiece's ModelProto, by a protobuf reader that knows four wire types and no more.
 *
 *   message := field*        field := tag value        tag := varint(number << 3 | wire type)
 *
 * Fields that are not read are stepped over. Nothing recurses: the sub-messages that are read have none of their own. */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "data/sentencepiece.h"

typedef struct Proto {
    const char *path, *file; /* of the whole: offsets in messages */
    const char *at, *end;
} Proto;

typedef enum Wire { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 } Wire;

typedef struct Field {
    uint64_t number;
    Wire wire;
    uint64_t value;  /* VARINT, FIXED32 */
    SpmString bytes; /* BYTES */
} Field;

static Status proto_varint(Proto *proto, uint64_t *out, Error *err) {
    *out = 0;
    const char *start = proto->at;
    for (unsigned shift = 0; proto->at < proto->end && shift < 70; shift += 7) {
        uint8_t byte = (uint8_t)*proto->at++;
        if (shift < 64) *out |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return OK;
    }
    FAIL("%s: byte %lld: want a whole number of at most 10 bytes, got a longer or cut one", proto->path,
         (long long)(start - proto->file));
}

static Status proto_skip(Proto *proto, uint64_t length, const char **from, Error *err) {
    size_t left = (size_t)(proto->end - proto->at);
    if (length > left)
        FAIL("%s: byte %lld: a field of %llu bytes, but only %zu are left", proto->path, (long long)(proto->at - proto->file),
             (unsigned long long)length, left);
    *from = proto->at;
    proto->at += length;
    return OK;
}

/* The next field; *more 0 at the end of the message. */
static Status proto_next(Proto *proto, Field *field, int *more, Error *err) {
    *more = proto->at < proto->end;
    if (!*more) return OK;
    long long offset = proto->at - proto->file;
    const char *from;
    uint64_t tag;
    TRY(proto_varint(proto, &tag, err));
    *field = (Field){.number = tag >> 3, .wire = (Wire)(tag & 7)};
    if (field->number == 0) FAIL("%s: byte %lld: field number 0; this is no SentencePiece model", proto->path, offset);
    switch (tag & 7) {
        case WIRE_VARINT: return proto_varint(proto, &field->value, err);
        case WIRE_FIXED64: return proto_skip(proto, 8, &from, err);
        case WIRE_FIXED32:
            TRY(proto_skip(proto, 4, &from, err));
            for (unsigned i = 0; i < 4; i++)
                field->value |= (uint64_t)(uint8_t)from[i] << 8 * i;
            return OK;
        case WIRE_BYTES:
            TRY(proto_varint(proto, &field->value, err));
            field->bytes.length = (size_t)field->value;
            return proto_skip(proto, field->value, &field->bytes.text, err);
        default:
            FAIL("%s: byte %lld: wire type %d is not supported; this is no SentencePiece model", proto->path, offset,
                 (int)(tag & 7));
    }
}

/* A field that is read must have the wire type of its kind. */
typedef struct Wanted {
    uint64_t number;
    Wire wire;
    const char *name;
    size_t offset; /* in SpmModel: int, SpmString */
} Wanted;

#define FLAG(number, name) \
    { number, WIRE_VARINT, #name, offsetof(SpmModel, name) }
#define STRING(number, name) \
    { number, WIRE_BYTES, #name, offsetof(SpmModel, name) }
static const Wanted trainer_fields[] = {
    {3, WIRE_VARINT, "model_type", offsetof(SpmModel, is_unigram)},
    FLAG(35, byte_fallback),
    {24, WIRE_VARINT, "treat_whitespace_as_suffix", offsetof(SpmModel, whitespace_is_suffix)},
    STRING(44, unk_surface),
    {46, WIRE_BYTES, "bos_piece", offsetof(SpmModel, bos)},
    {47, WIRE_BYTES, "eos_piece", offsetof(SpmModel, eos)},
    {48, WIRE_BYTES, "pad_piece", offsetof(SpmModel, pad)},
    {0, WIRE_VARINT, NULL, 0},
};
static const Wanted normalizer_fields[] = {
    {2, WIRE_BYTES, "precompiled_charsmap", offsetof(SpmModel, charsmap)},
    FLAG(3, add_dummy_prefix),
    FLAG(4, remove_extra_whitespaces),
    FLAG(5, escape_whitespaces),
    {0, WIRE_VARINT, NULL, 0},
};

static Status want_wire(const Proto *proto, const Field *field, Wire wire, const char *name, Error *err) {
    if (field->wire != wire)
        FAIL("%s: before byte %lld: %s: want wire type %d, got %d", proto->path, (long long)(proto->at - proto->file), name,
             (int)wire, (int)field->wire);
    return OK;
}

static Status read_model_type(SpmModel *model, uint64_t value, Error *err) {
    static const char *const names[] = {"", "unigram", "bpe", "word", "char"};
    if (value != 1 && value != 2)
        FAIL("%s: trainer_spec.model_type %llu (%s) is not supported; supported: 1 (unigram), 2 (bpe)", model->path,
             (unsigned long long)value, value < 5 ? names[value] : "?");
    model->is_unigram = value == 1;
    return OK;
}

static Status read_spec(SpmModel *model, Proto proto, const Wanted *wanted, Error *err) {
    for (;;) {
        Field field;
        int more;
        TRY(proto_next(&proto, &field, &more, err));
        if (!more) return OK;
        const Wanted *w = wanted;
        while (w->name != NULL && w->number != field.number)
            w++;
        if (w->name == NULL) continue;
        TRY(want_wire(&proto, &field, w->wire, w->name, err));
        char *place = (char *)model + w->offset;
        if (w->offset == offsetof(SpmModel, is_unigram))
            TRY(read_model_type(model, field.value, err));
        else if (w->wire == WIRE_VARINT)
            *(int *)(void *)place = field.value != 0;
        else
            *(SpmString *)(void *)place = field.bytes;
    }
}

static Status read_piece(SpmModel *model, Proto proto, Error *err) {
    SpmPiece piece = {.type = SPM_NORMAL};
    for (;;) {
        Field field;
        int more;
        TRY(proto_next(&proto, &field, &more, err));
        if (!more) break;
        if (field.number == 1) {
            TRY(want_wire(&proto, &field, WIRE_BYTES, "piece", err));
            piece.text = field.bytes;
        } else if (field.number == 2) {
            TRY(want_wire(&proto, &field, WIRE_FIXED32, "score", err));
            uint32_t bits = (uint32_t)field.value;
            memcpy(&piece.score, &bits, sizeof bits);
        } else if (field.number == 3) {
            TRY(want_wire(&proto, &field, WIRE_VARINT, "type", err));
            if (field.value < SPM_NORMAL || field.value > SPM_BYTE)
                FAIL("%s: piece %zu: type %llu is not known", model->path, model->count, (unsigned long long)field.value);
            piece.type = (SpmType)field.value;
        }
    }
    if ((int64_t)model->count == TOKENIZER_ID_LIMIT)
        FAIL("%s: want at most %lld pieces", model->path, (long long)TOKENIZER_ID_LIMIT);
    if (model->count == model->capacity) {
        model->capacity = model->capacity ? model->capacity * 2 : 1024;
        model->pieces = memory_resize(model->pieces, model->capacity * sizeof *model->pieces);
    }
    model->pieces[model->count++] = piece;
    return OK;
}

static Status check_denormalizer(const SpmModel *model, Proto proto, Error *err) {
    for (;;) {
        Field field;
        int more;
        TRY(proto_next(&proto, &field, &more, err));
        if (!more) return OK;
        if (field.number == 2 && field.bytes.length)
            FAIL("%s: a denormalizer_spec with a precompiled_charsmap is not supported", model->path);
    }
}

static Status read_fields(SpmModel *model, Proto proto, Error *err) {
    for (;;) {
        Field field;
        int more;
        TRY(proto_next(&proto, &field, &more, err));
        if (!more) return OK;
        if (field.number < 1 || field.number > 5 || field.number == 4) continue;
        TRY(want_wire(&proto, &field, WIRE_BYTES, "a part of the model", err));
        Proto part = proto;
        part.at = field.bytes.text;
        part.end = part.at + field.bytes.length;
        if (field.number == 1) TRY(read_piece(model, part, err));
        if (field.number == 2) TRY(read_spec(model, part, trainer_fields, err));
        if (field.number == 3) TRY(read_spec(model, part, normalizer_fields, err));
        if (field.number == 5) TRY(check_denormalizer(model, part, err));
    }
}

/* ---- what must hold of the whole ---- */
static int is_byte_name(SpmString s) {
    return s.length == 6 && memcmp(s.text, "<0x", 3) == 0 && s.text[5] == '>' && strchr("0123456789ABCDEF", s.text[3]) &&
           s.text[3] && strchr("0123456789ABCDEF", s.text[4]) && s.text[4];
}

static int is_utf8(SpmString s) {
    Utf8State state = UTF8_WHOLE;
    for (size_t at = 0; at < s.length && state == UTF8_WHOLE;)
        at += utf8_scan(s.text + at, s.length - at, &state);
    return state == UTF8_WHOLE;
}

static Status check_piece(SpmModel *model, size_t index, Error *err) {
    const SpmPiece *piece = &model->pieces[index];
    SpmString s = piece->text;
    if (s.length == 0 || s.length > SPM_PIECE_LIMIT)
        FAIL("%s: piece %zu: want 1 to %d bytes, got %zu", model->path, index, SPM_PIECE_LIMIT, s.length);
    if (!is_utf8(s)) FAIL("%s: piece %zu is not UTF-8", model->path, index);
    if (!isfinite(piece->score)) FAIL("%s: piece %zu: its score is not finite", model->path, index);
    if (piece->type == SPM_BYTE && (!model->byte_fallback || !is_byte_name(s)))
        FAIL("%s: piece %zu '%.*s' is of type BYTE: want byte_fallback and a name like <0x41>", model->path, index,
             (int)(s.length < 40 ? s.length : 40), s.text);
    if (piece->type != SPM_UNKNOWN) return OK;
    if (model->unk >= 0) FAIL("%s: pieces %d and %zu are both of type UNKNOWN; want one", model->path, model->unk, index);
    model->unk = (int32_t)index;
    return OK;
}

Status spm_check(SpmModel *model, Error *err) {
    int bytes = 0;
    for (size_t i = 0; i < model->count; i++) {
        TRY(check_piece(model, i, err));
        bytes += model->pieces[i].type == SPM_BYTE;
    }
    if (model->unk < 0) FAIL("%s: want one piece of type UNKNOWN, got none in %zu pieces", model->path, model->count);
    if (!is_utf8(model->unk_surface)) FAIL("%s: trainer_spec.unk_surface is not UTF-8", model->path);
    if (model->byte_fallback && bytes != 256) FAIL("%s: byte_fallback: want 256 byte pieces, got %d", model->path, bytes);
    return OK;
}

Status spm_read(SpmModel *model, const char *path, const char *bytes, size_t length, Error *err) {
    *model = (SpmModel){.path = path,
                        .is_unigram = 1,
                        .add_dummy_prefix = 1,
                        .remove_extra_whitespaces = 1,
                        .escape_whitespaces = 1,
                        .unk_surface = {" \xE2\x81\x87 ", 5},
                        .bos = {"<s>", 3},
                        .eos = {"</s>", 4},
                        .pad = {"<pad>", 5},
                        .unk = -1};
    Status status = read_fields(model, (Proto){path, bytes, bytes, bytes + length}, err);
    return status == OK ? spm_check(model, err) : status;
}

void spm_free(SpmModel *model) {
    memory_free(model->pieces);
    model->pieces = NULL;
}
