/* Source to tokens, white space control included.
 *
 * Outside of tags everything is data. trim_blocks: one line end after a block or comment goes. lstrip_blocks: blanks
 * between a line's start and a block or comment go. '-' at a tag's edge takes all white space on that side, '+' keeps it.
 * Rules: jinja2 3.1 lexer.py, tokeniter.
 */
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/text.h"
#include "data/jinja_internal.h"

#define SOURCE_MAX_BYTES ((size_t)1 << 20)
#define BRACKETS_MAX 128

typedef struct Lexer {
    JinjaMemory *memory;
    const char *what;
    char *text; /* with line ends as \n */
    size_t length, at;
    int32_t line;
    int starts_line; /* whether what was read last ended a line */
    JinjaToken *tokens;
    size_t count, capacity;
    char brackets[BRACKETS_MAX];
    int open;
    Error *err;
} Lexer;

#define LEX_FAIL(lexer, ...)                                                          \
    do {                                                                              \
        (void)error_set((lexer)->err, ERR_FAILED, __VA_ARGS__);                       \
        error_prefix((lexer)->err, "%s: line %d", (lexer)->what, (int)(lexer)->line); \
        return ERR_FAILED;                                                            \
    } while (0)

static JinjaToken *push(Lexer *l, TokenKind kind) {
    if (l->count == l->capacity) {
        l->capacity = l->capacity < 64 ? 64 : l->capacity * 2;
        l->tokens = memory_resize(l->tokens, l->capacity * sizeof *l->tokens);
    }
    l->tokens[l->count] = (JinjaToken){.kind = kind, .line = l->line};
    return &l->tokens[l->count++];
}

static int is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
}

static void advance(Lexer *l, size_t to) {
    if (to > l->at) l->starts_line = l->text[to - 1] == '\n';
    for (; l->at < to; l->at++)
        l->line += l->text[l->at] == '\n';
}

static int looks_at(const Lexer *l, size_t at, const char *text) {
    size_t n = strlen(text);
    return at + n <= l->length && memcmp(l->text + at, text, n) == 0;
}

static size_t skip_blanks(const Lexer *l, size_t at) {
    while (at < l->length && is_blank(l->text[at]))
        at++;
    return at;
}

/* Data before a tag that begins at `end` with the sign `sign`. */
static void push_data(Lexer *l, size_t end, char sign, int is_output) {
    size_t begin = l->at, stop = end;
    if (sign == '-') {
        while (stop > begin && is_blank(l->text[stop - 1]))
            stop--;
    } else if (sign != '+' && !is_output) {
        size_t start = stop;
        while (start > begin && is_blank(l->text[start - 1]) && l->text[start - 1] != '\n')
            start--;
        if (start > begin ? l->text[start - 1] == '\n' : l->starts_line) stop = start;
    }
    if (stop > begin) {
        JinjaToken *token = push(l, T_DATA);
        token->text = l->text + begin;
        token->length = stop - begin;
    }
    advance(l, end);
}

/* Where a tag's end that begins at `at` is over, or 0 when none begins there. */
static size_t tag_end(const Lexer *l, size_t at, const char *mark, int trims) {
    if (l->text[at] == '-' && looks_at(l, at + 1, mark)) return skip_blanks(l, at + 3);
    if (trims && l->text[at] == '+' && looks_at(l, at + 1, mark)) return at + 3;
    if (!looks_at(l, at, mark)) return 0;
    return at + 2 + (trims && at + 2 < l->length && l->text[at + 2] == '\n');
}

static Status read_comment(Lexer *l, size_t from) {
    for (size_t at = from; at < l->length; at++) {
        size_t end = tag_end(l, at, "#}", 1);
        if (end > 0) {
            advance(l, end);
            return OK;
        }
    }
    LEX_FAIL(l, "a comment {# has no end #}");
}

/* "{% raw %}" at `at`: where it ends, or 0. */
static size_t raw_begin(const Lexer *l, size_t at) {
    at += 2;
    if (at < l->length && (l->text[at] == '-' || l->text[at] == '+')) at++;
    at = skip_blanks(l, at);
    if (!looks_at(l, at, "raw")) return 0;
    at = skip_blanks(l, at + 3);
    if (at >= l->length) return 0;
    if (looks_at(l, at, "-%}")) return skip_blanks(l, at + 3);
    return looks_at(l, at, "%}") ? at + 2 : 0;
}

static Status read_raw(Lexer *l, size_t from) {
    advance(l, from);
    for (size_t at = from; at + 1 < l->length; at++) {
        if (!looks_at(l, at, "{%")) continue;
        char sign = at + 2 < l->length ? l->text[at + 2] : 0;
        size_t name = skip_blanks(l, at + 2 + (sign == '-' || sign == '+'));
        if (!looks_at(l, name, "endraw")) continue;
        name = skip_blanks(l, name + 6);
        size_t end = name < l->length ? tag_end(l, name, "%}", 1) : 0;
        if (end == 0) continue;
        push_data(l, at, sign, 0);
        advance(l, end);
        return OK;
    }
    LEX_FAIL(l, "{%% raw %%} has no {%% endraw %%}");
}

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* \xhh, \uhhhh, \Uhhhhhhhh, behind the letter; advances *p. */
static Status read_hex(Lexer *l, const char **p, const char *end, int digits, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < digits; i++, (*p)++) {
        int value = *p < end ? hex_value(**p) : -1;
        if (value < 0) LEX_FAIL(l, "an escape in a string wants %d hexadecimal digits", digits);
        *code = *code << 4 | (uint32_t)value;
    }
    return OK;
}

static Status read_escape(Lexer *l, const char **p, const char *end, char *out, size_t *n) {
    static const char letters[] = "\\'\"abfnrtv", values[] = "\\'\"\a\b\f\n\r\t\v";
    char c = *(*p)++;
    const char *simple = c != 0 ? strchr(letters, c) : NULL;
    uint32_t code = 0;
    if (simple != NULL) {
        out[(*n)++] = values[simple - letters];
        return OK;
    }
    if (c == '\n') return OK;
    if (c >= '0' && c <= '7') {
        code = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *p < end && **p >= '0' && **p <= '7'; i++)
            code = code * 8 + (uint32_t)(*(*p)++ - '0');
    } else if (c == 'x' || c == 'u' || c == 'U') {
        TRY(read_hex(l, p, end, c == 'x' ? 2 : c == 'u' ? 4 : 8, &code));
    } else if (c == 'N') {
        LEX_FAIL(l, "the escape \\N{...} in a string is not supported");
    } else {
        out[(*n)++] = '\\';
        out[(*n)++] = c;
        return OK;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
        LEX_FAIL(l, "an escape in a string gives U+%X, which is no character", (unsigned)code);
    *n += (size_t)utf8_encode(code, out + *n);
    return OK;
}

static Status read_string(Lexer *l) {
    char quote = l->text[l->at];
    size_t end = l->at + 1;
    while (end < l->length && l->text[end] != quote)
        end += l->text[end] == '\\' ? 2 : 1;
    if (end >= l->length) LEX_FAIL(l, "a string has no end");
    const char *p = l->text + l->at + 1, *stop = l->text + end;
    char *out = jinja_take(l->memory, 2 * (size_t)(stop - p) + 1);
    if (out == NULL) LEX_FAIL(l, "the template needs too much memory");
    JinjaToken *token = push(l, T_STRING);
    token->text = out;
    size_t n = 0;
    while (p < stop) {
        if (*p != '\\') {
            out[n++] = *p++;
            continue;
        }
        p++;
        TRY(read_escape(l, &p, stop, out, &n));
    }
    l->tokens[l->count - 1].length = n;
    advance(l, end + 1);
    return OK;
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

static Status read_number(Lexer *l) {
    char digits[64];
    size_t n = 0, at = l->at;
    int is_float = 0;
    if (l->text[at] == '0' && at + 1 < l->length && strchr("xXbBoO", l->text[at + 1]) != NULL && l->text[at + 1] != 0)
        LEX_FAIL(l, "numbers with a base are not supported");
    for (; at < l->length && n + 1 < sizeof digits; at++) {
        char c = l->text[at];
        int after = at + 1 < l->length && is_digit(l->text[at + 1]);
        if (c == '_' && after) continue;
        if (c == '.' && after && !is_float && !(l->at > 0 && l->text[l->at - 1] == '.')) {
            is_float = 1;
        } else if ((c == 'e' || c == 'E') && is_float < 2 &&
                   (after ||
                    (at + 2 < l->length && (l->text[at + 1] == '-' || l->text[at + 1] == '+') && is_digit(l->text[at + 2])))) {
            is_float = 2;
            digits[n++] = c;
            c = l->text[++at];
        } else if (!is_digit(c)) {
            break;
        }
        if (n + 1 < sizeof digits) digits[n++] = c;
    }
    if (n + 1 >= sizeof digits) LEX_FAIL(l, "a number is too long");
    digits[n] = 0;
    JinjaToken *token = push(l, is_float ? T_FLOAT : T_INTEGER);
    if (is_float) {
        token->number = strtod(digits, NULL);
    } else {
        if (n > 1 && digits[0] == '0' && strspn(digits, "0") != n) LEX_FAIL(l, "a number begins with 0");
        for (size_t i = 0; i < n; i++) {
            if (__builtin_mul_overflow(token->integer, (int64_t)10, &token->integer) ||
                __builtin_add_overflow(token->integer, (int64_t)(digits[i] - '0'), &token->integer))
                LEX_FAIL(l, "the number %s does not fit 64 bits", digits);
        }
    }
    advance(l, at);
    return OK;
}

static Status read_operator(Lexer *l) {
    static const char *const pairs[] = {"**", "//", "==", "!=", "<=", ">="};
    char c = l->text[l->at];
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        if (!looks_at(l, l->at, pairs[i])) continue;
        push(l, T_OPERATOR)->code = OPERATOR2(pairs[i][0], pairs[i][1]);
        advance(l, l->at + 2);
        return OK;
    }
    if (c == 0 || strchr("+-*/%~()[]{}<>=.:|,", c) == NULL) {
        LEX_FAIL(l, "the character \"%c\" (byte 0x%02X) is not supported in a tag", c >= ' ' && c < 0x7F ? c : '?',
                 (unsigned)(uint8_t)c);
    }
    if (strchr("([{", c) != NULL) {
        if (l->open == BRACKETS_MAX) LEX_FAIL(l, "more than %d brackets inside of each other", BRACKETS_MAX);
        l->brackets[l->open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c) != NULL && (l->open == 0 || l->brackets[--l->open] != c)) {
        LEX_FAIL(l, "\"%c\" closes no bracket", c);
    }
    push(l, T_OPERATOR)->code = OPERATOR1(c);
    advance(l, l->at + 1);
    return OK;
}

static int is_name_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_';
}

/* The tokens of a tag, its end included. */
static Status read_tag(Lexer *l, int is_output) {
    int32_t begin = l->line;
    l->open = 0;
    while ((void)advance(l, skip_blanks(l, l->at)), l->at < l->length) {
        size_t end = l->open > 0 ? 0 : tag_end(l, l->at, is_output ? "}}" : "%}", !is_output);
        char c = l->text[l->at];
        if (end > 0) {
            push(l, is_output ? T_OUTPUT_END : T_BLOCK_END);
            advance(l, end);
            return OK;
        }
        if (c == '\'' || c == '"') {
            TRY(read_string(l));
        } else if (is_digit(c)) {
            TRY(read_number(l));
        } else if (is_name_character(c)) {
            size_t at = l->at;
            while (at < l->length && is_name_character(l->text[at]))
                at++;
            JinjaToken *token = push(l, T_NAME);
            token->text = l->text + l->at;
            token->length = at - l->at;
            advance(l, at);
        } else {
            TRY(read_operator(l));
        }
    }
    l->line = begin;
    LEX_FAIL(l, is_output ? "{{ has no end }}" : "{%% has no end %%}");
}

static Status read_all(Lexer *l) {
    for (;;) {
        size_t at = l->at;
        while (at < l->length && !looks_at(l, at, "{{") && !looks_at(l, at, "{%") && !looks_at(l, at, "{#"))
            at++;
        if (at >= l->length) {
            push_data(l, l->length, '+', 1);
            push(l, T_END);
            return OK;
        }
        char kind = l->text[at + 1], sign = at + 2 < l->length ? l->text[at + 2] : 0;
        size_t raw = kind == '%' ? raw_begin(l, at) : 0;
        push_data(l, at, sign, kind == '{');
        if (raw > 0) {
            TRY(read_raw(l, raw));
            continue;
        }
        advance(l, at + 2 + (sign == '-' || sign == '+'));
        if (kind == '#') {
            TRY(read_comment(l, l->at));
            continue;
        }
        push(l, kind == '{' ? T_OUTPUT_BEGIN : T_BLOCK_BEGIN);
        TRY(read_tag(l, kind == '{'));
    }
}

static Status copy_source(Lexer *l, const char *source, size_t length) {
    uint32_t code;
    if (length > SOURCE_MAX_BYTES) LEX_FAIL(l, "the template is longer than %zu MiB", SOURCE_MAX_BYTES >> 20);
    for (size_t i = 0; i < length;) {
        int n = utf8_decode(source + i, length - i, &code);
        if (n <= 0) LEX_FAIL(l, "the template is not UTF-8 at byte %zu", i);
        i += (size_t)n;
    }
    l->text = jinja_take(l->memory, length + 1);
    if (l->text == NULL) LEX_FAIL(l, "the template needs too much memory");
    for (size_t i = 0; i < length; i++) {
        char c = source[i];
        if (c == '\r' && i + 1 < length && source[i + 1] == '\n') continue;
        l->text[l->length++] = c == '\r' ? '\n' : c;
    }
    if (l->length > 0 && l->text[l->length - 1] == '\n') l->length--;
    l->text[l->length] = 0;
    return OK;
}

Status jinja_lex(JinjaMemory *memory, const char *what, const char *source, size_t length, JinjaToken **tokens, Error *err) {
    Lexer lexer = {.memory = memory, .what = what, .line = 1, .starts_line = 1, .err = err};
    Status status = copy_source(&lexer, source, length);
    if (status == OK) status = read_all(&lexer);
    if (status != OK) {
        memory_free(lexer.tokens);
        lexer.tokens = NULL;
    }
    *tokens = lexer.tokens;
    return status;
}
