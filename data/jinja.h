/* Chat templates as models publish them: Jinja, interpreted in a closed room.
 *
 * The subset that chat templates use, with the semantics of jinja2 3.1 in the
 * environment of transformers' apply_chat_template: trim_blocks, lstrip_blocks,
 * loop controls, {% generation %}, tojson without HTML escapes, immutable
 * values. What is outside of the subset is refused, naming construct and line.
 *
 *   source ── jinja_lex.c ──> tokens ── jinja_parse*.c ──> nodes ── jinja_execute.c, jinja_evaluate*.c ──> text with marks
 *
 * A template can reach only the values it is given: no files, no clock (the date
 * is pinned), no addresses. Memory, steps and depth of a rendering are bounded.
 * Bytes that come from a marked string keep its mark through whatever string
 * operation: so it is known, not guessed, where a message's content stands.
 */
#ifndef NIBBLE_DATA_JINJA_H
#define NIBBLE_DATA_JINJA_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

#define JINJA_ORIGIN_NONE (-1)
#define JINJA_DATE "26 Jul 2024" /* what strftime_now and templates take for today, so that a run can be repeated */

typedef struct Jinja Jinja;       /* a parsed template: immutable, may be used from many threads */
typedef struct JinjaRun JinjaRun; /* one rendering's values and memory */

/* Bytes [begin, end) of a string came from origin, or stood inside of {% generation %}. Empty marks say where an empty
 * text was put. In order, apart. */
typedef struct JinjaMark {
    size_t begin, end;
    int32_t origin;
    int32_t generated;
} JinjaMark;

typedef struct JinjaText {
    const char *data;
    size_t length;
    const JinjaMark *marks;
    size_t mark_count;
} JinjaText;

typedef struct JinjaLimits {
    size_t memory; /* bytes of values, output included; nothing is given back before the end */
    int64_t steps; /* nodes evaluated, and 64-byte pieces of text handled */
} JinjaLimits;
#define JINJA_LIMITS_DEFAULT ((JinjaLimits){.memory = (size_t)256 << 20, .steps = 20000000})

typedef struct JinjaValue {
    uint8_t kind;
    uint8_t form; /* what kind of list a list is */
    union {
        int64_t integer;
        double number;
        const char *name; /* of what is undefined */
        const void *pointer;
    };
} JinjaValue;

/* `what` names the source in messages. Fails on what is no template and on constructs that are not interpreted. */
Status jinja_open(Jinja **out, const char *what, const char *source, size_t length, Error *err);
void jinja_close(Jinja *jinja);
/* Whether a {% generation %} block stands in it. */
int jinja_has_generation(const Jinja *jinja);

JinjaRun *jinja_run_create(JinjaLimits limits);
void jinja_run_clear(JinjaRun *run); /* forgets all values, keeps a little memory */
void jinja_run_free(JinjaRun *run);
int64_t jinja_run_steps(const JinjaRun *run); /* that the last rendering took */

/* Values live until the run is cleared. Texts are copied; every byte gets the origin. */
JinjaValue jinja_none(void);
JinjaValue jinja_bool(int value);
Status jinja_text(JinjaRun *run, const char *text, size_t length, int32_t origin, JinjaValue *out, Error *err);
Status jinja_list(JinjaRun *run, int64_t capacity, JinjaValue *out, Error *err);
Status jinja_list_add(JinjaRun *run, JinjaValue list, JinjaValue item, Error *err);
Status jinja_dict(JinjaRun *run, JinjaValue *out, Error *err);
Status jinja_dict_set(JinjaRun *run, JinjaValue dict, const char *key, JinjaValue value, Error *err);
/* JSON text to a value; every string in it gets the origin. */
Status jinja_json(JinjaRun *run, const char *what, const char *text, size_t length, int32_t origin, JinjaValue *out,
                  Error *err);

/* The same for a list: strings in its item i get the origin `origin` + i. */
Status jinja_json_items(JinjaRun *run, const char *what, const char *text, size_t length, int32_t origin, JinjaValue *out,
                        Error *err);

/* Renders with the dict `variables`. *out lives until the run is cleared. */
Status jinja_render(const Jinja *jinja, JinjaRun *run, JinjaValue variables, JinjaText *out, Error *err);

#endif
