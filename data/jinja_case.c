/* Upper, lower and title case. Letters whose case changes their number (ß aside) are refused rather than got wrong. */
#include <utf8proc.h>

#include "data/jinja_internal.h"

static Status build_upper(JinjaRun *run, Builder *b, uint32_t code, const String *s, size_t at) {
    if (code == 0xDF) {
        TRY(build_code(run, b, 'S', s, at));
        return build_code(run, b, 'S', s, at);
    }
    if (code == 0x149 || code == 0x1F0 || code == 0x390 || code == 0x3B0 || code == 0x587 ||
        (code >= 0x1E96 && code <= 0x1E9A) || (code >= 0x1F50 && code <= 0x1FFF) || (code >= 0xFB00 && code <= 0xFB17))
        REFUSE(run, "upper case of U+%04X is not supported", (unsigned)code);
    return build_code(run, b, (uint32_t)utf8proc_toupper((utf8proc_int32_t)code), s, at);
}

static Status build_lower(JinjaRun *run, Builder *b, uint32_t code, const String *s, size_t at) {
    if (code == 0x130 || code == 0x3A3) REFUSE(run, "lower case of U+%04X is not supported", (unsigned)code);
    return build_code(run, b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)code), s, at);
}

static int is_cased(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

/* What jinja2's title filter begins words behind. */
static int begins_word(uint32_t code) {
    return code == '-' || code == '(' || code == '{' || code == '[' || code == '<' || is_python_space(code);
}

Status string_case(JinjaRun *run, const String *s, LetterCase to, JinjaValue *out) {
    Builder b = {0};
    uint32_t code, before = ' ';
    TRY(run_steps(run, s->length * 8));
    for (size_t at = 0; at < s->length; before = code) {
        size_t n = string_next(s, at, &code);
        int upper = to == CASE_UPPER || (to == CASE_CAPITALIZE && at == 0) || (to == CASE_TITLE_METHOD && !is_cased(before)) ||
                    (to == CASE_TITLE_FILTER && begins_word(before));
        if (upper && to != CASE_UPPER && code == 0xDF) REFUSE(run, "title case of U+00DF is not supported");
        TRY(upper ? build_upper(run, &b, code, s, at) : build_lower(run, &b, code, s, at));
        at += n;
    }
    if (s->length == 0) TRY(build_string(run, &b, s));
    return build_done(run, &b, out);
}
