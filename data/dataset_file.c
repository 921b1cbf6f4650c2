/* Records out of a file: JSONL, the elements of one JSON array, or the documents of a plain text file.
 *
 * Only the borders of records are found here; an element is checked by the JSON reader afterwards. The documents of a
 * .txt file are separated by lines that are "<|endoftext|>" and nothing else (as TinyStories is published); the line end
 * before such a line, or before the end of the file, belongs to the separator. Without such lines the file is one
 * document.
 */
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/dataset_internal.h"

#define READ_BYTES ((size_t)1 << 20)
#define SEPARATOR "<|endoftext|>"

static const struct {
    const char *extension, *advice;
} refused[] = {
    {".gz", "gunzip -k"},
    {".zst", "zstd -dk"},
    {".xz", "xz -dk"},
    {".bz2", "bunzip2 -k"},
    {".zip", "unzip"},
    {".csv", "python3 -c \"import csv,json,sys; [print(json.dumps(r)) for r in csv.DictReader(open(sys.argv[1]))]\""},
    {".tsv",
     "python3 -c \"import csv,json,sys; [print(json.dumps(r)) for r in csv.DictReader(open(sys.argv[1]), delimiter='\\t')]\""},
    {".parquet",
     "python3 -c \"import pandas,sys; pandas.read_parquet(sys.argv[1]).to_json(sys.stdout, orient='records', lines=True)\""},
    {".arrow", "python3 -c \"import datasets,sys; datasets.Dataset.from_file(sys.argv[1]).to_json('data.jsonl')\""},
};

static int has_extension(const char *path, const char *extension) {
    size_t n = strlen(path), m = strlen(extension);
    return n >= m && strcasecmp(path + n - m, extension) == 0;
}

static Status refuse_by_name(const char *path, Error *err) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (!has_extension(path, refused[i].extension)) continue;
        FAIL("%s: %s files are not read: convert it to JSONL or text with\n  %s %s%s", path, refused[i].extension,
             refused[i].advice, path, refused[i].advice[0] == 'p' ? " > data.jsonl" : "");
    }
    return OK;
}

/* Makes byte begin + at available; *have = 0 when the file ends before it. */
static Status reach(RecordFile *file, size_t at, int *have, Error *err) {
    while (file->end - file->begin <= at) {
        *have = 0;
        if (file->offset == file->size) return OK;
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
        uint64_t left = file->size - file->offset;
        size_t bytes = left < READ_BYTES ? (size_t)left : READ_BYTES;
        TRY(file_read_at(file->fd, file->path, file->offset, file->buffer + file->end, bytes, err));
        file->offset += bytes;
        file->end += bytes;
    }
    *have = 1;
    return OK;
}

static char byte_at(const RecordFile *file, size_t at) {
    return file->buffer[file->begin + at];
}

/* Moves the start of what is unread, counting lines. */
static void consume(RecordFile *file, size_t bytes) {
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
        TRY(reach(file, 0, have, err));
        if (!*have || !is_space(byte_at(file, 0))) return OK;
        consume(file, 1);
    }
}

/* Position of the next '\n' from `at` on, or of the end of the file. */
static Status find_line_end(RecordFile *file, size_t at, size_t *out, int *have, Error *err) {
    for (;;) {
        TRY(reach(file, at, have, err));
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
    *bytes = (RecordBytes){file->buffer + file->begin, length, file->line, file->line};
    consume(file, length);
    return OK;
}

/* Length of the value that begins here: up to the ',' or ']' that stands outside of it. */
static Status element_length(RecordFile *file, size_t *length, Error *err) {
    int have = 0, in_string = 0;
    int64_t depth = 0;
    for (size_t at = 0;; at++) {
        TRY(reach(file, at, &have, err));
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
        consume(file, 1); /* '[': record_file_open looked */
    } else if (c == ',') {
        consume(file, 1);
    }
    TRY(skip_space(file, &have, err));
    if (!have) FAIL("%s: line %lld: the file ends inside an array; want ']'", file->path, (long long)file->line);
    if (byte_at(file, 0) == ']' && c != ',') {
        consume(file, 1);
        file->closed = 1;
        return next_element(file, bytes, found, err); /* once: looks at what follows */
    }
    TRY(element_length(file, &length, err));
    *bytes = (RecordBytes){file->buffer + file->begin, length, file->line, ++file->record};
    *found = 1;
    consume(file, length);
    return OK;
}

static int is_separator(const char *line, size_t length) {
    if (length > 0 && line[length - 1] == '\r') length--;
    return length == strlen(SEPARATOR) && memcmp(line, SEPARATOR, length) == 0;
}

static Status next_document(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    size_t line_begin = 0, line_end = 0, length;
    int have = 0;
    TRY(reach(file, 0, found, err));
    if (!*found) return OK;
    for (;;) {
        TRY(find_line_end(file, line_begin, &line_end, &have, err));
        if (is_separator(file->buffer + file->begin + line_begin, line_end - line_begin)) {
            length = line_begin;
            line_end += (size_t)have;
            break;
        }
        line_begin = line_end + 1;
        if (have) TRY(reach(file, line_begin, &have, err));
        if (!have) {
            line_end = length = file->end - file->begin;
            break;
        }
    }
    const char *text = file->buffer + file->begin;
    int64_t line = file->line;
    if (length > 0 && text[length - 1] == '\n') length--;
    if (length > 0 && text[length - 1] == '\r') length--;
    consume(file, line_end);
    *bytes = (RecordBytes){text, length, line, ++file->record};
    return OK;
}

Status record_file_next(RecordFile *file, RecordBytes *bytes, int *found, Error *err) {
    if (file->form == FORM_LINES) return next_line(file, bytes, found, err);
    if (file->form == FORM_ARRAY) return next_element(file, bytes, found, err);
    return next_document(file, bytes, found, err);
}

static Status find_form(RecordFile *file, Error *err) {
    static const char *const text_extensions[] = {".txt", ".text", ".md"};
    int have = 0;
    TRY(reach(file, 2, &have, err));
    if (have && memcmp(file->buffer, "\xEF\xBB\xBF", 3) == 0) file->begin = 3; /* a byte order mark is no text */
    for (size_t i = 0; i < sizeof text_extensions / sizeof text_extensions[0]; i++) {
        if (has_extension(file->path, text_extensions[i])) {
            file->form = FORM_DOCUMENTS;
            return OK;
        }
    }
    TRY(skip_space(file, &have, err));
    if (!have) FAIL("%s: the file is empty", file->path);
    char c = byte_at(file, 0);
    if (c == '[') {
        file->form = FORM_ARRAY;
    } else if (c != '{' && !has_extension(file->path, ".jsonl") && !has_extension(file->path, ".json")) {
        FAIL(
            "%s: want JSONL (a line begins with '{'), a JSON array ('['), or a plain text file named .txt; the file begins "
            "with "
            "byte 0x%02X",
            file->path, (unsigned)(uint8_t)c);
    }
    return OK;
}

Status record_file_open(RecordFile *file, const char *path, Error *err) {
    *file = (RecordFile){.path = path, .fd = -1, .line = 1, .form = FORM_LINES};
    TRY(refuse_by_name(path, err));
    TRY(file_open(path, &file->fd, &file->size, err));
    Status status = find_form(file, err);
    if (status != OK) record_file_close(file);
    return status;
}

void record_file_close(RecordFile *file) {
    if (file->fd >= 0) close(file->fd);
    memory_free(file->buffer);
    *file = (RecordFile){.fd = -1};
}
