/* Rows of a CSV (RFC 4180) or TSV file as JSON objects: the first row names the fields, every value is a string.
 *
 * So every layout reads tables as well, and what is checked of a JSONL record is checked of a row. A quote opens a quoted
 * field only at its start and is doubled inside of it. A row with a stray quote, a lone carriage return, or another number
 * of fields than the first row is a bad record. Bytes are passed on as they are: the JSON reader refuses ill-formed UTF-8.
 */
#include <string.h>

#include "core/memory.h"
#include "data/dataset_internal.h"

#define COLUMNS_MAX 1024

typedef enum FieldState { FIELD_START, FIELD_PLAIN, FIELD_QUOTED, FIELD_QUOTE } FieldState; /* QUOTE: a quote in a quoted one */

/* The state after byte c, which is no line end outside of quotes. *kept: it belongs to the value; *bad: it may not stand
 * here. A delimiter leads to FIELD_START. */
static FieldState field_step(FieldState state, char c, char delimiter, int *kept, const char **bad) {
    *kept = 1;
    if (state == FIELD_QUOTED) {
        if (c != '"') return FIELD_QUOTED;
        *kept = 0;
        return FIELD_QUOTE;
    }
    if (state == FIELD_QUOTE && c == '"') return FIELD_QUOTED;
    if (c == delimiter) {
        *kept = 0;
        return FIELD_START;
    }
    if (state == FIELD_START && c == '"') {
        *kept = 0;
        return FIELD_QUOTED;
    }
    if (state == FIELD_QUOTE)
        *bad = "text follows a quoted field's closing quote (a quote inside of it is doubled)";
    else if (c == '"')
        *bad = "a quote stands in a field that does not begin with one (quote the whole field, and double the quote)";
    else if (c == '\r')
        *bad = "a carriage return stands outside of quotes and ends no line";
    return FIELD_PLAIN;
}

/* Makes a whole row available: *length without its line end, *whole with it. */
static Status find_row(RecordFile *file, size_t *length, size_t *whole, Error *err) {
    FieldState state = FIELD_START;
    const char *bad = NULL;
    int have = 0, kept;
    size_t at = 0;
    for (;; at++) {
        TRY(record_file_reach(file, at, &have, err));
        if (!have) break;
        char c = file->buffer[file->begin + at];
        if (c == '\n' && state != FIELD_QUOTED) break;
        state = field_step(state, c, file->delimiter, &kept, &bad);
    }
    if (state == FIELD_QUOTED) {
        FAIL("%s: line %lld: a quoted field in the row that starts here never ends; look for a quote that is not doubled",
             file->path, (long long)file->line);
    }
    *whole = at + (size_t)have;
    if (at > 0 && file->buffer[file->begin + at - 1] == '\r') at--;
    *length = at;
    return OK;
}

static void add_escaped(Text *out, char c) {
    if (c == '"' || c == '\\')
        text_addf(out, "\\%c", c);
    else if ((unsigned char)c < 0x20)
        text_addf(out, "\\u%04x", (unsigned)c);
    else
        text_add(out, &c, 1);
}

/* The next field of row [*at, length) into `out`, escaped; *at moves behind its delimiter, to length + 1 after the last. */
static void take_field(const RecordFile *file, size_t length, size_t *at, Text *out, const char **bad) {
    const char *row = file->buffer + file->begin;
    FieldState state = FIELD_START;
    while (*at < length) {
        int kept;
        char c = row[(*at)++];
        state = field_step(state, c, file->delimiter, &kept, bad);
        if (state == FIELD_START) return;
        if (kept) add_escaped(out, c);
    }
    *at = length + 1;
}

/* Consumes rows without any byte. *found: one with some follows, and is available. */
static Status skip_empty_rows(RecordFile *file, size_t *length, size_t *whole, int *found, Error *err) {
    for (;;) {
        TRY(record_file_reach(file, 0, found, err));
        if (!*found) return OK;
        TRY(find_row(file, length, whole, err));
        if (*length > 0) return OK;
        record_file_consume(file, *whole);
    }
}

static Status add_column(RecordFile *file, const Text *name, Error *err) {
    if (file->column_count == COLUMNS_MAX) FAIL("%s: the first row names more than %d fields", file->path, COLUMNS_MAX);
    for (int64_t i = 0; i < file->column_count; i++) {
        if (strcmp(file->columns[i], name->data) == 0)
            FAIL("%s: line %lld: the first row names the field \"%.60s\" twice", file->path, (long long)file->line, name->data);
    }
    file->columns = memory_resize(file->columns, (size_t)(file->column_count + 1) * sizeof *file->columns);
    file->columns[file->column_count++] = memory_strdup(name->data);
    return OK;
}

Status table_open(RecordFile *file, Error *err) {
    size_t length = 0, whole = 0, at = 0;
    const char *bad = NULL;
    int found = 0;
    Text name = {0};
    Status status = OK;
    TRY(skip_empty_rows(file, &length, &whole, &found, err));
    if (!found) FAIL("%s: the file is empty", file->path);
    while (at <= length) {
        text_clear(&name);
        text_add(&name, "", 0);
        take_field(file, length, &at, &name, &bad);
        TRY_GOTO(add_column(file, &name, err));
    }
    if (bad != NULL) status = error_set(err, ERR_FAILED, "%s: line %lld: %s", file->path, (long long)file->line, bad);
    record_file_consume(file, whole);
done:
    text_free(&name);
    return status;
}

Status table_next(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    size_t length = 0, whole = 0, at = 0;
    const char *bad = NULL;
    int64_t fields = 0;
    TRY(skip_empty_rows(file, &length, &whole, found, err));
    if (!*found) return OK;
    text_clear(&file->row);
    text_adds(&file->row, "{");
    for (; at <= length && file->row.length <= RECORD_MAX_BYTES; fields++) {
        if (fields < file->column_count) text_addf(&file->row, "%s\"%s\":", fields > 0 ? "," : "", file->columns[fields]);
        text_adds(&file->row, "\"");
        take_field(file, length, &at, &file->row, &bad);
        text_adds(&file->row, "\"");
    }
    text_adds(&file->row, "}");
    *bytes = (RecordBytes){file->row.data, file->row.length, file->line, file->line, NULL};
    if (file->row.length > RECORD_MAX_BYTES) {
        FAIL("%s: the row at line %lld is longer than %zu MiB", file->path, (long long)file->line, RECORD_MAX_BYTES >> 20);
    }
    text_clear(&file->bad);
    if (bad != NULL)
        text_adds(&file->bad, bad);
    else if (fields != file->column_count)
        text_addf(&file->bad, "the row has %lld fields, and the first row names %lld", (long long)fields,
                  (long long)file->column_count);
    if (file->bad.length > 0) bytes->bad = file->bad.data;
    record_file_consume(file, whole);
    return OK;
}
