#include "train/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/json.h"

typedef enum FieldKind { FIELD_COUNT, FIELD_BYTES, FIELD_REAL, FIELD_FLAG } FieldKind;

#define IN_STEP (1u << METRICS_STEP)
#define IN_EVAL (1u << METRICS_EVAL)
#define IN_SAMPLE (1u << METRICS_SAMPLE)
#define IN_ALL (IN_STEP | IN_EVAL | IN_SAMPLE | 1u << METRICS_EVENT)

typedef struct Field {
    const char *name;
    FieldKind kind;
    size_t offset;
    unsigned kinds; /* of records that have it */
} Field;

#define AT(member) offsetof(MetricsRecord, member)
static const Field fields[] = {
    {"step", FIELD_COUNT, AT(step.step), IN_ALL},
    {"steps", FIELD_COUNT, AT(step.steps), IN_STEP},
    {"loss", FIELD_REAL, AT(step.loss), IN_STEP | IN_EVAL},
    {"grad_norm", FIELD_REAL, AT(step.grad_norm), IN_STEP},
    {"lr", FIELD_REAL, AT(step.lr), IN_STEP},
    {"tokens", FIELD_COUNT, AT(step.tokens), IN_STEP | IN_EVAL},
    {"trained_tokens", FIELD_COUNT, AT(step.trained_tokens), IN_STEP},
    {"seconds", FIELD_REAL, AT(step.seconds), IN_STEP | IN_EVAL},
    {"tokens_per_second", FIELD_REAL, AT(step.tokens_per_second), IN_STEP},
    {"peak_fraction", FIELD_REAL, AT(step.peak_fraction), IN_STEP},
    {"gflops", FIELD_REAL, AT(step.gflops), IN_STEP},
    {"resident_bytes", FIELD_BYTES, AT(step.resident), IN_STEP},
    {"eta_seconds", FIELD_REAL, AT(step.eta_seconds), IN_STEP},
    {"epoch", FIELD_REAL, AT(step.epoch), IN_STEP},
    {"skipped", FIELD_FLAG, AT(step.skipped), IN_STEP},
    {"best", FIELD_FLAG, AT(is_best), IN_EVAL},
    {"after", FIELD_FLAG, AT(after), IN_SAMPLE},
};
#define FIELDS (sizeof fields / sizeof fields[0])

static const char *const kind_names[] = {"step", "eval", "event", "sample"};
#define KINDS (sizeof kind_names / sizeof kind_names[0])

static const struct {
    const char *name;
    size_t offset;
    unsigned kinds;
} strings_of[] = {{"text", AT(text), 1u << METRICS_EVENT},
                  {"prompt", AT(prompt), IN_SAMPLE},
                  {"written", AT(written), IN_SAMPLE},
                  {"wanted", AT(wanted), IN_SAMPLE}};
#define STRINGS (sizeof strings_of / sizeof strings_of[0])

/* ---- printing -------------------------------------------------------------------------------------------------------------- */

static void print_real(Text *out, double value) {
    if (!isfinite(value)) {
        text_adds(out, "null");
        return;
    }
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    text_adds(out, text);
}

static void print_field(const MetricsRecord *record, const Field *field, Text *out) {
    const char *at = (const char *)record + field->offset;
    int64_t count;
    uint64_t bytes;
    double real;
    int flag;
    switch (field->kind) {
        case FIELD_COUNT:
            memcpy(&count, at, sizeof count);
            text_addf(out, "%" PRId64, count);
            break;
        case FIELD_BYTES:
            memcpy(&bytes, at, sizeof bytes);
            text_addf(out, "%" PRIu64, bytes);
            break;
        case FIELD_REAL:
            memcpy(&real, at, sizeof real);
            print_real(out, real);
            break;
        case FIELD_FLAG:
            memcpy(&flag, at, sizeof flag);
            text_adds(out, flag ? "true" : "false");
            break;
    }
}

void metrics_print(const MetricsRecord *record, Text *out) {
    text_addf(out, "{\"kind\":\"%s\"", kind_names[record->kind]);
    for (size_t i = 0; i < FIELDS; i++) {
        if (!(fields[i].kinds >> record->kind & 1u)) continue;
        text_addf(out, ",\"%s\":", fields[i].name);
        print_field(record, &fields[i], out);
    }
    for (size_t i = 0; i < STRINGS; i++) {
        const char *string;
        memcpy(&string, (const char *)record + strings_of[i].offset, sizeof string);
        if (!(strings_of[i].kinds >> record->kind & 1u) || string == NULL) continue;
        text_addf(out, ",\"%s\":", strings_of[i].name);
        text_add_json_string(out, string, strlen(string));
    }
    text_adds(out, "}\n");
}

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

void metrics_strings_free(MetricsStrings *strings) {
    for (size_t i = 0; i < STRINGS; i++)
        text_free(&strings->text[i]);
}

static Status parse_field(JsonReader *reader, const Field *field, MetricsRecord *record, Error *err) {
    char *at = (char *)record + field->offset;
    JsonToken token;
    int64_t count;
    int flag;
    switch (field->kind) {
        case FIELD_COUNT:
            TRY(json_get_integer(reader, field->name, 0, INT64_MAX, &count, err));
            memcpy(at, &count, sizeof count);
            return OK;
        case FIELD_BYTES:
            TRY(json_get_integer(reader, field->name, 0, INT64_MAX, &count, err));
            memcpy(at, &(uint64_t){(uint64_t)count}, sizeof(uint64_t));
            return OK;
        case FIELD_REAL:
            TRY(json_next(reader, &token, err));
            if (token.kind != JSON_NULL && token.kind != JSON_INTEGER && token.kind != JSON_NUMBER)
                FAIL("%s: %s: want a number or null", reader->what, field->name);
            memcpy(at, &(double){token.kind == JSON_NULL ? NAN : token.number}, sizeof(double));
            return OK;
        case FIELD_FLAG:
            TRY(json_get_bool(reader, field->name, &flag, err));
            memcpy(at, &flag, sizeof flag);
            return OK;
    }
    FAIL("internal error: field %s has no kind", field->name);
}

static Status parse_string(JsonReader *reader, size_t index, MetricsStrings *strings, MetricsRecord *record, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, strings_of[index].name, &token, err));
    Text *text = &strings->text[index];
    text_clear(text);
    text_add(text, token.text, token.length);
    memcpy((char *)record + strings_of[index].offset, &(const char *){text->data}, sizeof(const char *));
    return OK;
}

static Status parse_kind(JsonReader *reader, MetricsRecord *record, int *known, Error *err) {
    JsonToken token;
    TRY(json_expect(reader, JSON_STRING, "kind", &token, err));
    for (size_t i = 0; i < KINDS; i++)
        if (json_key_is(&token, kind_names[i])) {
            record->kind = (MetricsKind)i;
            *known = 1;
            return OK;
        }
    FAIL("%s: kind: \"%.*s\" is not known", reader->what, token.length < 32 ? (int)token.length : 32, token.text);
}

static Status parse_value(JsonReader *reader, const JsonToken *key, MetricsStrings *strings, MetricsRecord *record,
                          Error *err) {
    for (size_t i = 0; i < FIELDS; i++)
        if (json_key_is(key, fields[i].name)) return parse_field(reader, &fields[i], record, err);
    for (size_t i = 0; i < STRINGS; i++)
        if (json_key_is(key, strings_of[i].name)) return parse_string(reader, i, strings, record, err);
    return json_skip(reader, key, err);
}

static Status parse_record(JsonReader *reader, MetricsStrings *strings, MetricsRecord *record, Error *err) {
    JsonToken token;
    int known = 0;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "a record", &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind != JSON_KEY) break;
        if (json_key_is(&token, "kind"))
            TRY(parse_kind(reader, record, &known, err));
        else
            TRY(parse_value(reader, &token, strings, record, err));
    }
    TRY(json_expect(reader, JSON_END, "the end of the line", &token, err));
    if (!known || record->step.step < 0) FAIL("%s: a record needs \"kind\" and \"step\"", reader->what);
    if (record->kind == METRICS_EVENT && record->text == NULL) FAIL("%s: an event needs \"text\"", reader->what);
    if (record->kind == METRICS_SAMPLE && (record->prompt == NULL || record->written == NULL))
        FAIL("%s: a sample needs \"prompt\" and \"written\"", reader->what);
    return OK;
}

Status metrics_parse(const char *line, size_t length, MetricsStrings *strings, MetricsRecord *record, Error *err) {
    *record = (MetricsRecord){.step = {.step = -1,
                                       .loss = NAN,
                                       .grad_norm = NAN,
                                       .lr = NAN,
                                       .tokens_per_second = NAN,
                                       .peak_fraction = NAN,
                                       .gflops = NAN,
                                       .eta_seconds = NAN,
                                       .epoch = NAN}};
    JsonReader reader;
    json_open(&reader, METRICS_NAME, line, length, 1, (JsonLimits){.depth = 4, .string_bytes = 0});
    Status status = parse_record(&reader, strings, record, err);
    json_close(&reader);
    return status;
}

/* ---- cutting --------------------------------------------------------------------------------------------------------------- */

typedef struct Cut {
    int64_t resume_step;
    MetricsVisit *visit;
    void *context;
    int64_t dropped;
    MetricsStrings strings;
    AtomicFile *out;
} Cut;

static Status keep_or_drop(Cut *cut, const Text *line, Error *err) {
    MetricsRecord record;
    Error reason;
    if (metrics_parse(line->data, line->length, &cut->strings, &record, &reason) != OK) {
        cut->dropped++;
        return OK;
    }
    if (record.step.step > cut->resume_step) return OK;
    TRY(atomic_write(cut->out, line->data, line->length, err));
    TRY(atomic_write(cut->out, "\n", 1, err));
    cut->visit(cut->context, &record);
    return OK;
}

/* Lines of any length come in; only the first METRICS_LINE_LIMIT bytes of one are held, which then is no record. */
static Status cut_lines(Cut *cut, int fd, const char *path, uint64_t size, Error *err) {
    enum { PIECE = 64 << 10 };
    char *piece = memory_alloc(PIECE);
    Text line = {0};
    text_adds(&line, "");
    Status status = OK;
    for (uint64_t at = 0; status == OK && at < size;) {
        size_t length = size - at < PIECE ? (size_t)(size - at) : PIECE;
        status = file_read_at(fd, path, at, piece, length, err);
        for (size_t begin = 0; status == OK && begin < length;) {
            const char *end = memchr(piece + begin, '\n', length - begin);
            size_t part = end != NULL ? (size_t)(end - piece) - begin : length - begin;
            if (line.length < METRICS_LINE_LIMIT) text_add(&line, piece + begin, part);
            begin += part + (end != NULL);
            if (end == NULL) continue;
            status = keep_or_drop(cut, &line, err);
            text_clear(&line);
        }
        at += length;
    }
    if (line.length > 0) cut->dropped++; /* its end was never written */
    text_free(&line);
    memory_free(piece);
    return status;
}

Status metrics_cut(const char *path, int64_t resume_step, MetricsVisit *visit, void *context, int64_t *dropped, Error *err) {
    *dropped = 0;
    if (!file_exists(path)) return OK;
    Cut cut = {.resume_step = resume_step, .visit = visit, .context = context};
    int fd;
    uint64_t size;
    TRY(file_open(path, &fd, &size, err));
    Status status = atomic_open(&cut.out, path, err);
    if (status == OK) {
        status = cut_lines(&cut, fd, path, size, err);
        if (status == OK)
            status = atomic_commit(cut.out, err);
        else
            atomic_abandon(cut.out);
    }
    close(fd);
    metrics_strings_free(&cut.strings);
    *dropped = cut.dropped;
    return status;
}
