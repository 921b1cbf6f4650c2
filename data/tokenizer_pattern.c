/* Patterns: a literal, or a regular expression run by PCRE2.
 *
 * tokenizer.json's expressions are written for Oniguruma with Ruby syntax. pattern_translate copies what both engines
 * read alike, rewrites \s, \w, \v and \p{Script}, and refuses the rest by name: a silent difference would be wrong ids.
 */
#include <ctype.h>
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

/* Unicode's White_Space, and Alphabetic with marks, decimal digits and connectors (Ruby's \w), as members of a class, in categories:
 * PCRE2 knows these properties by name from 10.40 on only. Each ends in a range, so that a '-' after it stands for itself. */
#define SPACES "\\p{Z}\\x{85}\\x{09}-\\x{0D}"
#define NO_SPACES \
    "\\p{L}\\p{M}\\p{N}\\p{P}\\p{S}\\p{Cf}\\p{Cn}\\p{Co}\\p{Cs}\\x{00}-\\x{08}\\x{0E}-\\x{1F}\\x{7F}-\\x{84}\\x{86}-\\x{9F}"
#define WORD \
    "\\p{L}\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"

/* Before 10.40 a script's bare name did not bring its extensions, and there was no prefix. */
#if PCRE2_MAJOR > 10 || PCRE2_MINOR >= 40
#define SCRIPT "sc:"
#else
#define SCRIPT ""
#endif

typedef struct Translation {
    const char *regex, *at, *what;
    Text out;
    int in_class;
} Translation;

static Status refuse(const Translation *t, const char *construct, Error *err) {
    FAIL("%s: regular expression '%.200s': %s is not supported", t->what, t->regex, construct);
}

/* \p{…} and \P{…}: categories as they are; longer names are scripts, where PCRE2 would add the script's extensions. */
static Status translate_property(Translation *t, Error *err) {
    char letter = t->at[1];
    if (t->at[2] != '{') return refuse(t, "\\p without braces", err);
    const char *name = t->at + 3, *close = strchr(name, '}');
    if (close == NULL) return refuse(t, "\\p without an end", err);
    int negated = *name == '^';
    size_t length = (size_t)(close - name) - (size_t)negated;
    int script = length > 2 && !(length == 3 && strncmp(name + negated, "Any", 3) == 0);
    text_addf(&t->out, "\\%c{%s%s%.*s}", letter, negated ? "^" : "", script ? SCRIPT : "", (int)length, name + negated);
    t->at = close + 1;
    return OK;
}

static Status translate_escape(Translation *t, Error *err) {
    char c = t->at[1];
    switch (c) {
        case 'p':
        case 'P': return translate_property(t, err);
        case 's': text_adds(&t->out, t->in_class ? SPACES : "[" SPACES "]"); break;
        case 'S': text_adds(&t->out, t->in_class ? NO_SPACES : "[^" SPACES "]"); break;
        case 'w': text_adds(&t->out, t->in_class ? WORD : "[" WORD "]"); break;
        case 'W':
            if (t->in_class) return refuse(t, "\\W inside of brackets", err);
            text_adds(&t->out, "[^" WORD "]");
            break;
        case 'v': text_adds(&t->out, "\\x0B"); break;
        default:
            if (c == 0) return refuse(t, "a backslash at the end", err);
            if (isalnum((unsigned char)c) && strchr("dDrntfAzx", c) == NULL) {
                char name[3] = {'\\', c, 0};
                return refuse(t, name, err);
            }
            text_add(&t->out, t->at, 2);
    }
    t->at += 2;
    return OK;
}

static Status translate_group(Translation *t, Error *err) {
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (t->at[1] == '*') return refuse(t, "(*", err);
    if (t->at[1] != '?') {
        text_add(&t->out, t->at++, 1);
        return OK;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t length = strlen(known[i]);
        if (strncmp(t->at, known[i], length) != 0) continue;
        text_add(&t->out, t->at, length);
        t->at += length;
        return OK;
    }
    /* In the middle Ruby gives (?i) a group of its own up to the closing parenthesis; at the start both agree. */
    if (t->at != t->regex || strncmp(t->at, "(?i)", 4) != 0) return refuse(t, "this kind of group", err);
    text_add(&t->out, t->at, 4);
    t->at += 4;
    return OK;
}

static Status translate_quantifier(Translation *t, Error *err) {
    const char *p = t->at + 1;
    if (!isdigit((unsigned char)*p)) return refuse(t, "'{' without a number", err);
    while (isdigit((unsigned char)*p) || *p == ',')
        p++;
    if (*p != '}') return refuse(t, "this '{'", err);
    if (p[1] == '+') return refuse(t, "'}+', which Ruby does not read as possessive,", err);
    text_add(&t->out, t->at, (size_t)(p + 1 - t->at));
    t->at = p + 1;
    return OK;
}

static Status translate_class_open(Translation *t, Error *err) {
    size_t length = t->at[1] == '^' ? 2 : 1;
    if (t->at[length] == ']') return refuse(t, "an empty class", err);
    text_add(&t->out, t->at, length);
    t->at += length;
    t->in_class = 1;
    return OK;
}

static Status pattern_translate(Translation *t, Error *err) {
    while (*t->at) {
        char c = *t->at;
        if (c == '\\')
            TRY(translate_escape(t, err));
        else if (t->in_class && c == '[')
            return refuse(t, "'[' inside of brackets", err);
        else if (t->in_class && c == '&' && t->at[1] == '&')
            return refuse(t, "'&&'", err);
        else if (!t->in_class && c == '[')
            TRY(translate_class_open(t, err));
        else if (!t->in_class && c == '(')
            TRY(translate_group(t, err));
        else if (!t->in_class && c == '{')
            TRY(translate_quantifier(t, err));
        else {
            if (c == ']') t->in_class = 0;
            text_add(&t->out, t->at++, 1);
        }
    }
    return OK;
}

Status pattern_compile(Pattern *pattern, const char *regex, const char *what, Error *err) {
    Translation t = {.regex = regex, .at = regex, .what = what};
    Status status = pattern_translate(&t, err);
    if (status == OK && t.out.length == 0) status = refuse(&t, "an empty expression", err);
    if (status == OK) {
        int code = 0;
        size_t offset = 0;
        /* Multiline: Ruby's ^ and $ match at every line. */
        pattern->code = pcre2_compile((PCRE2_SPTR)t.out.data, t.out.length,
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
        if (pattern->code == NULL) {
            char message[160] = "";
            pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
            status = error_set(err, ERR_FAILED, "%s: regular expression '%.200s': %s", what, regex, message);
        } else {
            pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE); /* where there is no JIT, the interpreter gives the same */
        }
    }
    text_free(&t.out);
    return status;
}

Status pattern_parse(Pattern *pattern, const Tree *component, const char *what, Error *err) {
    const Tree *value = tree_get(component, "pattern"), *text;
    if (tree_get(value, "Regex") != NULL) {
        TRY(tree_string(value, "Regex", what, &text, err));
        if (strlen(text->text) != text->length) FAIL("%s: a zero byte in the regular expression is not supported", what);
        return pattern_compile(pattern, text->text, what, err);
    }
    TRY(tree_string(value, "String", what, &text, err));
    if (text->length == 0) FAIL("%s: want a pattern, got an empty string", what);
    pattern->literal = memory_alloc(text->length);
    memcpy(pattern->literal, text->text, text->length);
    pattern->length = text->length;
    return OK;
}

void pattern_free(Pattern *pattern) {
    pcre2_code_free(pattern->code);
    memory_free(pattern->literal);
    *pattern = (Pattern){0};
}

void matches_add(Matches *matches, size_t begin, size_t end, int is_match) {
    if (matches->count == matches->capacity) {
        matches->capacity = matches->capacity ? matches->capacity * 2 : 64;
        matches->data = memory_resize(matches->data, matches->capacity * sizeof *matches->data);
    }
    matches->data[matches->count++] = (Match){.begin = begin, .end = end, .is_match = is_match};
}

static void matcher_prepare(Matcher *matcher, size_t length) {
    if (matcher->data == NULL) {
        matcher->data = pcre2_match_data_create(1, NULL);
        matcher->context = pcre2_match_context_create(NULL);
        matcher->stack = pcre2_jit_stack_create((size_t)32 << 10, (size_t)4 << 20, NULL);
        pcre2_jit_stack_assign(matcher->context, NULL, matcher->stack);
        pcre2_set_heap_limit(matcher->context, 256u << 10); /* KiB */
    }
    /* Enough for one pass over the text per alternative; a pattern that backtracks without end is stopped. */
    pcre2_set_match_limit(matcher->context, (uint32_t)(1000000 + 4 * length));
}

/* The next match at or after *at; *found 0 when there is none. Empty matches right after a match are stepped over, as
 * Oniguruma's iterator does. */
static Status regex_next(const Pattern *pattern, Matcher *matcher, const char *text, size_t length, size_t *at, size_t last,
                         size_t *begin, int *found, Error *err) {
    *found = 0;
    while (*at <= length) {
        int rc = pcre2_match(pattern->code, (PCRE2_SPTR)text, length, *at, PCRE2_NO_UTF_CHECK, matcher->data, matcher->context);
        if (rc == PCRE2_ERROR_NOMATCH) return OK;
        if (rc < 0) {
            char message[160] = "";
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
            FAIL("tokenizer: its regular expression fails on this text of %zu bytes: %s", length, message);
        }
        const PCRE2_SIZE *ovector = pcre2_get_ovector_pointer(matcher->data);
        *begin = ovector[0];
        if (ovector[1] == ovector[0] && ovector[1] == last) {
            do
                (*at)++;
            while (*at < length && ((uint8_t)text[*at] & 0xC0) == 0x80);
            continue;
        }
        *at = ovector[1];
        *found = 1;
        return OK;
    }
    return OK;
}

Status pattern_find(const Pattern *pattern, Matcher *matcher, const char *text, size_t length, Error *err) {
    Matches *found = &matcher->found;
    found->count = 0;
    size_t done = 0;
    if (pattern->code == NULL) {
        const char *hit;
        while (done < length && (hit = memmem(text + done, length - done, pattern->literal, pattern->length)) != NULL) {
            size_t begin = (size_t)(hit - text);
            if (begin > done) matches_add(found, done, begin, 0);
            matches_add(found, begin, begin + pattern->length, 1);
            done = begin + pattern->length;
        }
    } else {
        matcher_prepare(matcher, length);
        size_t at = 0, last = SIZE_MAX, begin = 0;
        for (;;) {
            int hit;
            TRY(regex_next(pattern, matcher, text, length, &at, last, &begin, &hit, err));
            if (!hit) break;
            if (begin > done) matches_add(found, done, begin, 0);
            matches_add(found, begin, at, 1);
            done = last = at;
        }
    }
    if (done < length) matches_add(found, done, length, 0);
    return OK;
}

void matcher_free(Matcher *matcher) {
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->context);
    pcre2_jit_stack_free(matcher->stack);
    memory_free(matcher->found.data);
    *matcher = (Matcher){0};
}
