/* One pass over a config's text before cJSON sees it: cJSON knows no comments and no lines, and lets pass what must not
 * (control characters in strings, escaped zero bytes that would cut a string short). */
#include <string.h>

#include "core/memory.h"
#include "train/config_table.h"

typedef struct Scan {
    const char *path;
    char *text;
    size_t length, at;
    int64_t line;
    int depth;
    int64_t *lines;
    int64_t count, capacity;
} Scan;

static void record_key(Scan *scan, int64_t line) {
    if (scan->count == scan->capacity) {
        scan->capacity = scan->capacity == 0 ? 64 : scan->capacity * 2;
        scan->lines = memory_resize(scan->lines, (size_t)scan->capacity * sizeof *scan->lines);
    }
    scan->lines[scan->count++] = line;
}

/* At the first slash of a comment. */
static Status blank_comment(Scan *scan, Error *err) {
    char *text = scan->text;
    int64_t first_line = scan->line;
    char second = scan->at + 1 < scan->length ? text[scan->at + 1] : 0;
    if (second != '/' && second != '*')
        FAIL_USAGE("%s:%lld: a lone / is not JSON; comments are // to the end of the line, or /* */", scan->path,
                   (long long)scan->line);
    text[scan->at++] = ' ';
    text[scan->at++] = ' ';
    while (scan->at < scan->length) {
        char c = text[scan->at];
        if (c == '\n') {
            if (second == '/') return OK;
            scan->line++;
        } else {
            text[scan->at] = ' ';
        }
        scan->at++;
        if (second == '*' && c == '*' && scan->at < scan->length && text[scan->at] == '/') {
            text[scan->at++] = ' ';
            return OK;
        }
    }
    if (second == '*') FAIL_USAGE("%s:%lld: the comment that begins here has no end (*/)", scan->path, (long long)first_line);
    return OK;
}

/* At the opening quote; leaves `at` after the closing one. */
static Status skip_string(Scan *scan, Error *err) {
    const char *text = scan->text;
    long long line = (long long)scan->line;
    scan->at++;
    while (scan->at < scan->length && text[scan->at] != '"') {
        uint32_t code;
        int n = utf8_decode(text + scan->at, scan->length - scan->at, &code);
        if (n == 0) FAIL_USAGE("%s:%lld: a string is not valid UTF-8", scan->path, line);
        if (code == '\n') FAIL_USAGE("%s:%lld: a string has no closing quote on its line", scan->path, line);
        if (code < 0x20)
            FAIL_USAGE("%s:%lld: a string contains the control character %u; write it as an escape such as \\t", scan->path,
                       line, (unsigned)code);
        if (code == '\\') {
            if (scan->length - scan->at >= 6 && memcmp(text + scan->at, "\\u0000", 6) == 0)
                FAIL_USAGE("%s:%lld: a string contains a zero byte (\\u0000)", scan->path, line);
            n = scan->length - scan->at >= 2 && text[scan->at + 1] != '\n' ? 2 : 1;
        }
        scan->at += (size_t)n;
    }
    if (scan->at >= scan->length) FAIL_USAGE("%s:%lld: a string has no closing quote", scan->path, line);
    scan->at++;
    return OK;
}

static Status scan_token(Scan *scan, int64_t *string_line, Error *err) {
    char c = scan->text[scan->at];
    switch (c) {
        case '/': return blank_comment(scan, err);
        case '"': *string_line = scan->line; return skip_string(scan, err);
        case ':': /* what stands before a colon is a key */
            if (*string_line != 0) record_key(scan, *string_line);
            break;
        case '{':
        case '[':
            if (++scan->depth > CONFIG_MAX_DEPTH)
                FAIL_USAGE("%s:%lld: objects and lists are nested more than %d deep", scan->path, (long long)scan->line,
                           CONFIG_MAX_DEPTH);
            break;
        case '}':
        case ']': scan->depth--; break;
        case '\n': scan->line++; break;
        default:
            if ((unsigned char)c < 0x20 && c != '\t' && c != '\r')
                FAIL_USAGE("%s:%lld: the byte %u is not text; is this a JSON file?", scan->path, (long long)scan->line,
                           (unsigned)(unsigned char)c);
    }
    scan->at++;
    return OK;
}

Status config_scan(const char *path, char *text, size_t length, int64_t **lines, int64_t *count, Error *err) {
    Scan scan = {.path = path, .text = text, .length = length, .line = 1};
    Status status = OK;
    int64_t string_line = 0; /* of the string that was just read; 0 once something else follows it */
    while (scan.at < length && status == OK) {
        char c = text[scan.at];
        int is_space = c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '/';
        if (!is_space && c != ':') string_line = 0;
        status = scan_token(&scan, &string_line, err);
        if (c == ':') string_line = 0;
    }
    if (status != OK) {
        memory_free(scan.lines);
        scan.lines = NULL;
        scan.count = 0;
    }
    *lines = scan.lines;
    *count = scan.count;
    return status;
}
