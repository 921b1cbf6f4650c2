/* Records out of a file: JSONL, the elements of one JSON array, the rows of a table (dataset_table.c), or the documents of a
 * plain text file; compressed or not (byte_source.c).
 *
 * Only the borders of records are found here; an element is checked by the JSON reader afterwards. The documents of a
 * .txt file are separated by lines that are "<|endoftext|>" and nothing else (as TinyStories is published); the line end
 * before such a line, or before the end of the file, belongs to the separator. Without such lines the file is one
 * document.
 */
#include <string.h>
#include <strings.h>

#include "core/memory.h"
#include "data/dataset_internal.h"

#define READ_BYTES ((size_t)1 << 20)
#define SEPARATOR "<|endoftext|>"

/* Files that are not read: by what their names end in, .gz and .zst taken off, or by their first bytes, whatever their names. */
static const struct {
    const char *extension, *magic, *advice;
} refused[] = {
    {".xz",
     "\xFD"
     "7zXZ",
     "xz -dk"},
    {".bz2", "BZh9", "bunzip2 -k"},
    {".zip", "PK\x03\x04", "unzip"},
    {".tar", NULL, "tar -xvf"},
    {".tgz", NULL, "tar -xvf"},
    {".parquet", "PAR1",
     "python3 -c \"import pandas,sys; pandas.read_parquet(sys.argv[1]).to_json(sys.stdout, orient='records', lines=True)\""},
    {".arrow", "ARROW1", "python3 -c \"import datasets,sys; datasets.Dataset.from_file(sys.argv[1]).to_json('data.jsonl')\""},
};

static int has_extension(const char *path, const char *extension) {
    size_t n = strlen(path), m = strlen(extension);
    return n >= m && strcasecmp(path + n - m, extension) == 0;
}

static Status refuse(const char *path, size_t i, Error *err) {
    const char *extension = refused[i].extension, *advice = refused[i].advice;
    FAIL("%s: %s files are not read: convert it to JSONL, CSV or text with\n  %s %s%s", path, extension, advice, path,
         strcmp(extension, ".parquet") == 0 ? " > data.jsonl" : "");
}

static Status refuse_by_name(const RecordFile *file, Error *err) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (has_extension(file->name, refused[i].extension)) return refuse(file->path, i, err);
    return OK;
}

static int begins_with(RecordFile *file, const char *magic) {
    size_t n = magic == NULL ? SIZE_MAX : strlen(magic);
    return n <= file->end - file->begin && memcmp(file->buffer + file->begin, magic, n) == 0;
}

/* No text in UTF-8 begins so. */
static Status refuse_packed(RecordFile *file, Error *err) {
    int is_gzip = begins_with(file, "\x1F\x8B\x08");
    if (!is_gzip && !begins_with(file, "\x28\xB5\x2F\xFD")) return OK;
    FAIL("%s: its first bytes are those of %s data; let its name end in %s", file->path, is_gzip ? "gzip" : "zstd",
         is_gzip ? ".gz" : ".zst");
}

/* Where JSON was expected. */
static Status refuse_by_content(RecordFile *file, Error *err) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (begins_with(file, refused[i].magic)) return refuse(file->path, i, err);
    return OK;
}

Status record_file_reach(RecordFile *file, size_t at, int *have, Error *err) {
    while (file->end - file->begin <= at) {
        *have = 0;
        if (file->ended) return OK;
        if (at >= RECORD_MAX_BYTES) {
            FAIL("%s: the record that starts at line %lld is longer than %zu MiB; cut it into several (%s)", file->path,
                 (long long)file->line, RECORD_MAX_BYTES >> 20,
                 file->form == FORM_DOCUMENTS ? "with lines that are " SEPARATOR : "one JSON object each");
        }
        if (file->begin > 0) {
            memmove(file->buffer, file->buffer + file->begin, file->end - file->begin);
            file->end -= file->begin;
            file->begin = 0;
        }
        if (file->capacity - file->end < READ_BYTES) {
            file->capacity = file->capacity * 2 + READ_BYTES;
            file->buffer = memory_resize(file->buffer, file->capacity);
        }
        size_t got = 0;
        TRY(byte_source_read(&file->source, file->buffer + file->end, READ_BYTES, &got, err));
        file->ended = got == 0;
        file->end += got;
    }
    *have = 1;
    return OK;
}

static char byte_at(const RecordFile *file, size_t at) {
    return file->buffer[file->begin + at];
}

void record_file_consume(RecordFile *file, size_t bytes) {
    const char *p = file->buffer + file->begin, *stop = p + bytes;
    while (p < stop && (p = memchr(p, '\n', (size_t)(stop - p))) != NULL) {
        file->line++;
        p++;
    }
    file->begin += bytes;
}

static int is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Consumes white space; *have says whether a byte follows. */
static Status skip_space(RecordFile *file, int *have, Error *err) {
    for (;;) {
        TRY(record_file_reach(file, 0, have, err));
        if (!*have || !is_space(byte_at(file, 0))) return OK;
        record_file_consume(file, 1);
    }
}

/* Position of the next '\n' from `at` on, or of the end of the file. */
static Status find_line_end(RecordFile *file, size_t at, size_t *out, int *have, Error *err) {
    for (;;) {
        TRY(record_file_reach(file, at, have, err));
        if (!*have) break;
        const char *from = file->buffer + file->begin + at;
        const char *found = memchr(from, '\n', file->end - file->begin - at);
        if (found != NULL) {
            *out = (size_t)(found - (file->buffer + file->begin));
            return OK;
        }
        at = file->end - file->begin;
    }
    *out = at;
    return OK;
}

static Status next_line(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    int have = 0;
    size_t length = 0;
    TRY(skip_space(file, found, err)); /* blank lines, and indentation, which JSON ignores too */
    if (!*found) return OK;
    TRY(find_line_end(file, 0, &length, &have, err));
    *bytes = (RecordBytes){file->buffer + file->begin, length, file->line, file->line, NULL};
    record_file_consume(file, length);
    return OK;
}

/* Length of the value that begins here: up to the ',' or ']' that stands outside of it. */
static Status element_length(RecordFile *file, size_t *length, Error *err) {
    int have = 0, in_string = 0;
    int64_t depth = 0;
    for (size_t at = 0;; at++) {
        TRY(record_file_reach(file, at, &have, err));
        if (!have)
            FAIL("%s: the file ends inside the array's element that starts at line %lld", file->path, (long long)file->line);
        char c = byte_at(file, at);
        if (in_string) {
            if (c == '\\') at++;
            if (c == '"') in_string = 0;
        } else if (c == '"') {
            in_string = 1;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (depth == 0 && (c == ',' || c == ']')) {
            *length = at;
            return OK;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
}

static Status next_element(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    int have = 0;
    size_t length = 0;
    TRY(skip_space(file, &have, err));
    char c = have ? byte_at(file, 0) : 0;
    if (file->closed) {
        if (have) FAIL("%s: line %lld: want nothing after the array, got '%c'", file->path, (long long)file->line, c);
        *found = 0;
        return OK;
    }
    if (!file->started) {
        file->started = 1;
        record_file_consume(file, 1); /* '[': record_file_open looked */
    } else if (c == ',') {
        record_file_consume(file, 1);
    }
    TRY(skip_space(file, &have, err));
    if (!have) FAIL("%s: line %lld: the file ends inside an array; want ']'", file->path, (long long)file->line);
    if (byte_at(file, 0) == ']' && c != ',') {
        record_file_consume(file, 1);
        file->closed = 1;
        return next_element(file, bytes, found, err); /* once: looks at what follows */
    }
    TRY(element_length(file, &length, err));
    *bytes = (RecordBytes){file->buffer + file->begin, length, file->line, ++file->record, NULL};
    *found = 1;
    record_file_consume(file, length);
    return OK;
}

static int is_separator(const char *line, size_t length) {
    if (length > 0 && line[length - 1] == '\r') length--;
    return length == strlen(SEPARATOR) && memcmp(line, SEPARATOR, length) == 0;
}

static Status next_document(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    size_t line_begin = 0, line_end = 0, length;
    int have = 0;
    TRY(record_file_reach(file, 0, found, err));
    if (!*found) return OK;
    for (;;) {
        TRY(find_line_end(file, line_begin, &line_end, &have, err));
        if (is_separator(file->buffer + file->begin + line_begin, line_end - line_begin)) {
            length = line_begin;
            line_end += (size_t)have;
            break;
        }
        line_begin = line_end + 1;
        if (have) TRY(record_file_reach(file, line_begin, &have, err));
        if (!have) {
            line_end = length = file->end - file->begin;
            break;
        }
    }
    const char *text = file->buffer + file->begin;
    int64_t line = file->line;
    if (length > 0 && text[length - 1] == '\n') length--;
    if (length > 0 && text[length - 1] == '\r') length--;
    record_file_consume(file, line_end);
    *bytes = (RecordBytes){text, length, line, ++file->record, NULL};
    return OK;
}

Status record_file_next(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    if (file->form == FORM_LINES) return next_line(file, bytes, found, err);
    if (file->form == FORM_TABLE) return table_next(file, bytes, found, err);
    if (file->form == FORM_ARRAY) return next_element(file, bytes, found, err);
    return next_document(file, bytes, found, err);
}

static Status find_form(RecordFile *file, Error *err) {
    static const char *const text_extensions[] = {".txt", ".text", ".md"};
    int have = 0;
    TRY(record_file_reach(file, 7, &have, err));             /* the first bytes, however few */
    if (begins_with(file, "\xEF\xBB\xBF")) file->begin += 3; /* a byte order mark is no text */
    TRY(refuse_packed(file, err));
    for (size_t i = 0; i < sizeof text_extensions / sizeof text_extensions[0]; i++) {
        if (has_extension(file->name, text_extensions[i])) {
            file->form = FORM_DOCUMENTS;
            return OK;
        }
    }
    if (has_extension(file->name, ".csv") || has_extension(file->name, ".tsv")) {
        file->form = FORM_TABLE;
        file->delimiter = has_extension(file->name, ".csv") ? ',' : '\t';
        return table_open(file, err);
    }
    TRY(skip_space(file, &have, err));
    if (!have) FAIL("%s: the file is empty", file->path);
    char c = byte_at(file, 0);
    if (c != '[' && c != '{') TRY(refuse_by_content(file, err));
    if (c == '[') {
        file->form = FORM_ARRAY;
    } else if (c != '{' && !has_extension(file->name, ".jsonl") && !has_extension(file->name, ".json")) {
        FAIL(
            "%s: want JSONL (a line begins with '{'), a JSON array ('['), a table named .csv or .tsv, or a plain text file "
            "named "
            ".txt; the file begins with byte 0x%02X",
            file->path, (unsigned)(uint8_t)c);
    }
    return OK;
}

Status record_file_open(RecordFile *file, const char *path, Error *err) {
    size_t length;
    *file = (RecordFile){.path = path, .source.fd = -1, .line = 1, .form = FORM_LINES};
    (void)compression_of(path, &length);
    file->name = memory_format("%.*s", (int)length, path);
    Status status = refuse_by_name(file, err);
    if (status == OK) status = byte_source_open(&file->source, path, err);
    if (status == OK) status = find_form(file, err);
    if (status != OK) record_file_close(file);
    return status;
}

void record_file_close(RecordFile *file) {
    byte_source_close(&file->source);
    for (int64_t i = 0; i < file->column_count; i++)
        memory_free(file->columns[i]);
    memory_free(file->columns);
    text_free(&file->row);
    text_free(&file->bad);
    memory_free(file->name);
    memory_free(file->buffer);
    *file = (RecordFile){.source.fd = -1};
}
