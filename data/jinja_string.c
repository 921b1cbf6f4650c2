/* Strings that remember where their bytes came from: building, slicing, stripping, splitting, replacing, joining.
 *
 * Everything is put together from slices of what it came from, so marks survive by construction. A slice that is empty
 * keeps an empty mark: so the place of an empty content is known too.
 */
#include <string.h>

#include "core/text.h"
#include "data/jinja_internal.h"

/* ---- building ------------------------------------------------------------------------------------------------------------ */

static Status build_room(JinjaRun *run, Builder *b, size_t more) {
    size_t capacity = b->capacity < 64 ? 64 : b->capacity;
    char *data;
    TRY(run_steps(run, more));
    if (more <= b->capacity - b->length) return OK;
    if (more > run->memory.limit) REFUSE(run, "the template needs more than %zu MiB of memory", run->memory.limit >> 20);
    while (capacity < b->length + more)
        capacity *= 2;
    TRY(run_take(run, capacity, &data));
    if (b->length > 0) memcpy(data, b->data, b->length);
    b->data = data;
    b->capacity = capacity;
    return OK;
}

Status build_bytes(JinjaRun *run, Builder *b, const char *bytes, size_t length) {
    TRY(build_room(run, b, length));
    if (length > 0) memcpy(b->data + b->length, bytes, length);
    b->length += length;
    return OK;
}

Status build_text(JinjaRun *run, Builder *b, const char *text) {
    return build_bytes(run, b, text, strlen(text));
}

static Status add_mark(JinjaRun *run, Builder *b, JinjaMark mark) {
    JinjaMark *last = b->mark_count > 0 ? &b->marks[b->mark_count - 1] : NULL;
    if (last != NULL && last->end == mark.begin && last->origin == mark.origin && last->generated == mark.generated) {
        last->end = mark.end;
        return OK;
    }
    if (b->mark_count == b->mark_capacity) {
        size_t capacity = b->mark_capacity < 4 ? 4 : b->mark_capacity * 2;
        JinjaMark *marks;
        TRY(run_take(run, capacity * sizeof *marks, &marks));
        if (b->mark_count > 0) memcpy(marks, b->marks, b->mark_count * sizeof *marks);
        b->marks = marks;
        b->mark_capacity = capacity;
    }
    b->marks[b->mark_count++] = mark;
    return OK;
}

Status build_slice(JinjaRun *run, Builder *b, const String *s, size_t begin, size_t end) {
    size_t base = b->length;
    for (size_t i = 0; i < s->mark_count; i++) {
        JinjaMark mark = s->marks[i];
        int is_empty = mark.begin == mark.end;
        if (mark.begin < begin) mark.begin = begin;
        if (mark.end > end) mark.end = end;
        if (mark.begin > mark.end) continue;
        if (mark.begin == mark.end && !is_empty && begin != end) continue;
        mark.begin += base - begin;
        mark.end += base - begin;
        TRY(add_mark(run, b, mark));
    }
    return build_bytes(run, b, s->data + begin, end - begin);
}

Status build_string(JinjaRun *run, Builder *b, const String *s) {
    return build_slice(run, b, s, 0, s->length);
}

Status build_code(JinjaRun *run, Builder *b, uint32_t code, const String *s, size_t at) {
    char bytes[4];
    int n = utf8_encode(code, bytes);
    for (size_t i = 0; i < s->mark_count; i++) {
        const JinjaMark *mark = &s->marks[i];
        if (mark->begin <= at && at < mark->end)
            TRY(add_mark(run, b, (JinjaMark){b->length, b->length + (size_t)n, mark->origin, mark->generated}));
    }
    return build_bytes(run, b, bytes, (size_t)n);
}

Status build_done(JinjaRun *run, const Builder *b, JinjaValue *out) {
    String *s;
    TRY(run_take(run, sizeof *s, &s));
    *s = (String){.data = b->data != NULL ? b->data : "", .length = b->length, .marks = b->marks, .mark_count = b->mark_count};
    *out = value_pointer(V_STRING, 0, s);
    return OK;
}

Status string_slice(JinjaRun *run, const String *s, size_t begin, size_t end, JinjaValue *out) {
    Builder b = {0};
    if (s->mark_count > 0) {
        TRY(build_slice(run, &b, s, begin, end));
        return build_done(run, &b, out);
    }
    String *slice;
    TRY(run_take(run, sizeof *slice, &slice));
    *slice = (String){.data = s->data + begin, .length = end - begin};
    *out = value_pointer(V_STRING, 0, slice);
    return OK;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

size_t string_next(const String *s, size_t at, uint32_t *code) {
    int n = utf8_decode(s->data + at, s->length - at, code);
    if (n > 0) return (size_t)n;
    *code = 0xFFFD;
    return 1;
}

size_t string_before(const String *s, size_t end, uint32_t *code) {
    size_t n = 1;
    while (n < 4 && n < end && ((uint8_t)s->data[end - n] & 0xC0) == 0x80)
        n++;
    if (utf8_decode(s->data + end - n, n, code) == (int)n) return n;
    *code = 0xFFFD;
    return 1;
}

int64_t string_count(const String *s) {
    int64_t count = 0;
    uint32_t code;
    for (size_t at = 0; at < s->length; count++)
        at += string_next(s, at, &code);
    return count;
}

int64_t string_find(const String *s, const String *part, size_t from) {
    if (part->length == 0) return (int64_t)from;
    if (from > s->length || part->length > s->length - from) return -1;
    const char *at = memmem(s->data + from, s->length - from, part->data, part->length);
    return at == NULL ? -1 : (int64_t)(at - s->data);
}

int is_python_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static int has_code(const String *chars, uint32_t wanted) {
    uint32_t code;
    for (size_t at = 0; at < chars->length;) {
        at += string_next(chars, at, &code);
        if (code == wanted) return 1;
    }
    return 0;
}

Status string_strip(JinjaRun *run, const String *s, const String *chars, int sides, JinjaValue *out) {
    size_t begin = 0, end = s->length;
    uint32_t code;
    TRY(run_steps(run, s->length));
    while ((sides & 1) && begin < end) {
        size_t n = string_next(s, begin, &code);
        if (chars == NULL ? !is_python_space(code) : !has_code(chars, code)) break;
        TRY(run_steps(run, chars == NULL ? 0 : chars->length));
        begin += n;
    }
    while ((sides & 2) && begin < end) {
        size_t n = string_before(s, end, &code);
        if (chars == NULL ? !is_python_space(code) : !has_code(chars, code)) break;
        TRY(run_steps(run, chars == NULL ? 0 : chars->length));
        end -= n;
    }
    return string_slice(run, s, begin, end, out);
}

/* ---- replacing, splitting, joining ---------------------------------------------------------------------------------------- */

/* An empty `old` stands before every character and at the end. */
static Status replace_empty(JinjaRun *run, const String *s, const String *by, int64_t most, JinjaValue *out) {
    Builder b = {0};
    uint32_t code;
    for (size_t at = 0; at <= s->length;) {
        if (most-- != 0) TRY(build_string(run, &b, by));
        if (at == s->length) break;
        size_t n = string_next(s, at, &code);
        TRY(build_slice(run, &b, s, at, at + n));
        at += n;
    }
    return build_done(run, &b, out);
}

Status string_replace(JinjaRun *run, const String *s, const String *old, const String *by, int64_t most, JinjaValue *out) {
    Builder b = {0};
    size_t at = 0;
    TRY(run_steps(run, s->length));
    if (old->length == 0) return replace_empty(run, s, by, most, out);
    for (int64_t found; most-- != 0 && (found = string_find(s, old, at)) >= 0; at = (size_t)found + old->length) {
        if ((size_t)found > at) TRY(build_slice(run, &b, s, at, (size_t)found));
        TRY(build_string(run, &b, by));
    }
    if (at < s->length || at == 0) TRY(build_slice(run, &b, s, at, s->length));
    return build_done(run, &b, out);
}

static Status push_slice(JinjaRun *run, List *list, const String *s, size_t begin, size_t end) {
    JinjaValue piece;
    TRY(string_slice(run, s, begin, end, &piece));
    return list_push(run, list, piece);
}

static Status split_blanks(JinjaRun *run, const String *s, int64_t most, List *list) {
    uint32_t code;
    for (size_t at = 0, n; at < s->length;) {
        n = string_next(s, at, &code);
        if (is_python_space(code)) {
            at += n;
            continue;
        }
        size_t begin = at;
        if (most-- == 0) return push_slice(run, list, s, begin, s->length);
        while (at < s->length && (n = string_next(s, at, &code), !is_python_space(code)))
            at += n;
        TRY(push_slice(run, list, s, begin, at));
    }
    return OK;
}

static int64_t find_last(const String *s, const String *part, size_t end) {
    for (size_t at = end; at >= part->length; at--) {
        if (memcmp(s->data + at - part->length, part->data, part->length) == 0) return (int64_t)(at - part->length);
        if (at == part->length) break;
    }
    return -1;
}

static Status split_right(JinjaRun *run, const String *s, const String *separator, int64_t most, List *list) {
    size_t end = s->length;
    for (int64_t found; most-- != 0 && (found = find_last(s, separator, end)) >= 0; end = (size_t)found)
        TRY(push_slice(run, list, s, (size_t)found + separator->length, end));
    TRY(push_slice(run, list, s, 0, end));
    for (int64_t i = 0, j = list->count - 1; i < j; i++, j--) {
        JinjaValue swapped = list->items[i];
        list->items[i] = list->items[j];
        list->items[j] = swapped;
    }
    return OK;
}

Status string_split(JinjaRun *run, const String *s, const String *separator, int64_t most, int from_right, JinjaValue *out) {
    List *list;
    size_t at = 0;
    TRY(run_steps(run, s->length));
    TRY(list_new(run, 0, &list));
    *out = value_pointer(V_LIST, FORM_LIST, list);
    if (separator == NULL) {
        if (from_right && most >= 0) REFUSE(run, "rsplit at white space with a limit is not supported");
        return split_blanks(run, s, most, list);
    }
    if (separator->length == 0) REFUSE(run, "split: the separator is empty");
    if (from_right) return split_right(run, s, separator, most, list);
    for (int64_t found; most-- != 0 && (found = string_find(s, separator, at)) >= 0; at = (size_t)found + separator->length)
        TRY(push_slice(run, list, s, at, (size_t)found));
    return push_slice(run, list, s, at, s->length);
}

static int ends_line(uint32_t c) {
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

Status string_lines(JinjaRun *run, const String *s, List **out) {
    size_t begin = 0;
    uint32_t code;
    TRY(run_steps(run, s->length));
    TRY(list_new(run, 0, out));
    for (size_t at = 0; at < s->length;) {
        size_t n = string_next(s, at, &code);
        if (ends_line(code)) {
            TRY(push_slice(run, *out, s, begin, at));
            if (code == '\r' && at + 1 < s->length && s->data[at + 1] == '\n') n++;
            begin = at + n;
        }
        at += n;
    }
    return begin < s->length ? push_slice(run, *out, s, begin, s->length) : OK;
}

Status string_join(JinjaRun *run, const String *separator, const List *items, int converts, JinjaValue *out) {
    Builder b = {0};
    for (int64_t i = 0; i < items->count; i++) {
        if (i > 0) TRY(build_string(run, &b, separator));
        if (!converts && items->items[i].kind != V_STRING)
            REFUSE(run, "join wants strings, got a %s", value_type(items->items[i]));
        TRY(build_value(run, &b, items->items[i]));
    }
    return build_done(run, &b, out);
}

Status build_mark_generated(JinjaRun *run, Builder *b) {
    Builder covered = {0};
    size_t at = 0;
    for (size_t i = 0; i <= b->mark_count; i++) {
        size_t begin = i < b->mark_count ? b->marks[i].begin : b->length;
        if (begin > at || b->mark_count == 0) TRY(add_mark(run, &covered, (JinjaMark){at, begin, JINJA_ORIGIN_NONE, 1}));
        if (i == b->mark_count) break;
        TRY(add_mark(run, &covered, (JinjaMark){begin, b->marks[i].end, b->marks[i].origin, 1}));
        at = b->marks[i].end;
    }
    b->marks = covered.marks;
    b->mark_count = covered.mark_count;
    b->mark_capacity = covered.mark_capacity;
    return OK;
}
