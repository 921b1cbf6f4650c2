/* Inside of the interpreter: nodes, values, and the seams between data/jinja_*.c. */
#ifndef NIBBLE_DATA_JINJA_INTERNAL_H
#define NIBBLE_DATA_JINJA_INTERNAL_H

#include "data/jinja.h"

/* ---- memory: blocks that go at once ------------------------------------------------------------------------------------ */
typedef struct JinjaBlock JinjaBlock;
typedef struct JinjaMemory {
    JinjaBlock *blocks;
    size_t used, limit;
} JinjaMemory;
/* NULL when over the limit; zeroed. */
void *jinja_take(JinjaMemory *memory, size_t bytes);
void jinja_memory_clear(JinjaMemory *memory); /* keeps one block */
void jinja_memory_free(JinjaMemory *memory);

/* ---- tokens ------------------------------------------------------------------------------------------------------------- */
typedef enum TokenKind {
    T_DATA,
    T_OUTPUT_BEGIN,
    T_OUTPUT_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_INTEGER,
    T_FLOAT,
    T_OPERATOR,
    T_END
} TokenKind;

typedef struct JinjaToken {
    TokenKind kind;
    int32_t line;
    int32_t code; /* T_OPERATOR: its characters, the first in the low byte */
    const char *text;
    size_t length;
    int64_t integer;
    double number;
} JinjaToken;
#define OPERATOR1(a) ((int32_t)(a))
#define OPERATOR2(a, b) ((int32_t)(a) | (int32_t)(b) << 8)

/* ---- nodes -------------------------------------------------------------------------------------------------------------- */
typedef enum NodeKind {
    E_STRING,
    E_INTEGER,
    E_FLOAT,
    E_TRUE,
    E_FALSE,
    E_NONE,
    E_NAME,
    E_LIST,
    E_TUPLE,
    E_DICT,      /* items: key, value, key, value */
    E_ATTRIBUTE, /* a.text */
    E_ITEM,      /* a[b] */
    E_SLICE,     /* as b of an item: a:b:c, each may be NULL */
    E_CALL,      /* a(items, more) */
    E_FILTER,    /* a | text(items, more); a NULL in a set block's filter */
    E_TEST,      /* a is text(items, more) */
    E_KEYWORD,   /* text = a */
    E_NEGATE,
    E_PLUS,
    E_BINARY,  /* a code b */
    E_COMPARE, /* a, then items: operands */
    E_OPERAND, /* code a; code 'i' in, 'n' not in */
    E_CONCAT,  /* items */
    E_AND,
    E_OR,
    E_NOT,
    E_CONDITION, /* b if a else c */
    S_TEXT,
    S_OUTPUT,
    S_IF,        /* a: body, else more */
    S_FOR,       /* a in b if c: body, else more */
    S_SET,       /* a = b */
    S_SET_BLOCK, /* a = body through filter b */
    S_MACRO,     /* text(items: E_NAME, a: default): body */
    S_WITH,      /* items: S_SET; body */
    S_GENERATION,
    S_BREAK,
    S_CONTINUE
} NodeKind;

typedef struct Node {
    NodeKind kind;
    int32_t line, code, depth;
    struct Node *next; /* in the list it stands in */
    struct Node *a, *b, *c;
    struct Node *items, *more, *body;
    const char *text; /* names are interned: equal names have equal pointers; zero-terminated */
    size_t length;
    int64_t integer;
    double number;
} Node;

typedef struct Name {
    struct Name *next;
    const char *text;
} Name;

struct Jinja {
    char *what;
    JinjaMemory memory;
    Name *names;
    int name_count;
    Node *body;
    int has_generation;
};

/* jinja_lex.c: all tokens of the source, T_END last; memory_free. */
Status jinja_lex(JinjaMemory *memory, const char *what, const char *source, size_t length, JinjaToken **tokens, Error *err);

typedef struct Parser {
    Jinja *jinja;
    const JinjaToken *at;
    int depth, loops;
    Error *err;
} Parser;
#define JINJA_PARSE_DEPTH 100
#define JINJA_NAMES_MAX 2000
/* jinja_parse.c */
Status parser_fail(const Parser *p, const char *wanted); /* "line N: want ..., got ..." */
Status parser_node(Parser *p, NodeKind kind, Node **out);
Status parser_name(Parser *p, const char **name);
Status parser_enter(Parser *p);
int parser_is_operator(const Parser *p, int32_t code);
int parser_is_name(const Parser *p, const char *name);
/* jinja_parse_expression.c */
Status parse_expression(Parser *p, Node **out);
Status parse_tuple(Parser *p, int with_condition, Node **out); /* one expression, or several with commas */
Status parse_target(Parser *p, int with_namespace, Node **out);
Status parse_filter(Parser *p, Node *operand, Node **out); /* stands behind the '|' */

/* ---- values ------------------------------------------------------------------------------------------------------------- */
enum ValueKind {
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INTEGER,
    V_FLOAT,
    V_STRING,
    V_LIST,
    V_DICT,
    V_NAMESPACE,
    V_GENERATOR,
    V_MACRO,
    V_METHOD,
    V_FUNCTION,
    V_LOOP
};
enum ListForm { FORM_LIST, FORM_TUPLE, FORM_RANGE, FORM_KEYS, FORM_VALUES, FORM_ITEMS };

typedef struct String {
    const char *data;
    size_t length;
    const JinjaMark *marks;
    size_t mark_count;
    int is_safe; /* came out of the filter safe or escape: text that is joined to it would be escaped */
} String;

typedef struct List {
    JinjaValue *items;
    int64_t count, capacity;
} List;

typedef struct Dict { /* in order of insertion; a namespace is one */
    JinjaValue *keys, *values;
    int64_t count, capacity;
} Dict;

typedef struct Generator { /* is read once */
    const List *list;
    int64_t at;
} Generator;

typedef struct Loop {
    const List *list;
    int64_t index;
} Loop;

typedef struct Variable {
    struct Variable *next;
    const char *name;
    JinjaValue value;
} Variable;

typedef struct Frame {
    const struct Frame *parent;
    Variable *variables;
} Frame;

typedef struct Macro {
    const Node *node;
    const Frame *closure;
} Macro;

typedef struct Method {
    JinjaValue self;
    const char *name;
} Method;

struct JinjaRun {
    JinjaMemory memory;
    JinjaLimits limits;
    int64_t steps;
    int depth;
    int32_t line;
    Error *err;
};
#define JINJA_RUN_DEPTH 600
#define JINJA_RANGE_MAX 100000 /* the sandbox's MAX_RANGE */

/* Fails with the run's own Error; jinja_render puts template and line in front. */
#define REFUSE(run, ...) return (void)error_set((run)->err, ERR_FAILED, __VA_ARGS__), ERR_FAILED

/* jinja_value.c */
Status run_take(JinjaRun *run, size_t bytes, void *out); /* out: a pointer's address */
Status run_steps(JinjaRun *run, size_t bytes);           /* counts work on so many bytes */
Status run_enter(JinjaRun *run);
const String *string_of(JinjaValue value);
const List *list_of(JinjaValue value);
Dict *dict_of(JinjaValue value);
JinjaValue value_undefined(const char *name);
JinjaValue value_integer(int64_t integer);
JinjaValue value_float(double number);
JinjaValue value_pointer(int kind, int form, const void *pointer);
Status value_string(JinjaRun *run, const char *text, JinjaValue *out); /* a literal, not copied */
const char *value_type(JinjaValue value);
int value_is_string(JinjaValue value, const char *text);
Status value_truth(JinjaRun *run, JinjaValue value, int *out);
Status value_equal(JinjaRun *run, JinjaValue a, JinjaValue b, int *out);
Status value_order(JinjaRun *run, JinjaValue a, JinjaValue b, int *out); /* -1, 0, 1 */
int value_number(JinjaValue value, double *out);                         /* bool, int, float */
int value_integral(JinjaValue value, int64_t *out);                      /* bool, int */
/* What iterating gives: a list's items, a dict's keys, a string's characters; consumes a generator. */
Status value_items(JinjaRun *run, JinjaValue value, const List **out);
Status list_new(JinjaRun *run, int64_t capacity, List **out);
Status list_push(JinjaRun *run, List *list, JinjaValue item);
Status dict_new(JinjaRun *run, Dict **out);
Status dict_put(JinjaRun *run, Dict *dict, JinjaValue key, JinjaValue value);
Status dict_find(JinjaRun *run, const Dict *dict, JinjaValue key, JinjaValue *out, int *found);
Status generator_new(JinjaRun *run, const List *list, JinjaValue *out);

/* jinja_string.c: strings with their marks */
typedef struct Builder {
    char *data;
    size_t length, capacity;
    JinjaMark *marks;
    size_t mark_count, mark_capacity;
} Builder;
Status build_bytes(JinjaRun *run, Builder *b, const char *bytes, size_t length);
Status build_text(JinjaRun *run, Builder *b, const char *text);
Status build_slice(JinjaRun *run, Builder *b, const String *s, size_t begin, size_t end);
Status build_string(JinjaRun *run, Builder *b, const String *s);
Status build_code(JinjaRun *run, Builder *b, uint32_t code, const String *s, size_t at); /* with the mark that s has at `at` */
Status build_done(JinjaRun *run, const Builder *b, JinjaValue *out);
Status build_mark_generated(JinjaRun *run, Builder *b); /* all of it */
Status string_slice(JinjaRun *run, const String *s, size_t begin, size_t end, JinjaValue *out);
int64_t string_count(const String *s); /* characters */
/* Bytes and code of the character at `at`; an ill-formed byte is a character. */
size_t string_next(const String *s, size_t at, uint32_t *code);
size_t string_before(const String *s, size_t end, uint32_t *code);     /* bytes of the character that ends at `end` */
int64_t string_find(const String *s, const String *part, size_t from); /* byte offset or -1 */
int is_python_space(uint32_t code);
/* sides: 1 left, 2 right; chars NULL: white space */
Status string_strip(JinjaRun *run, const String *s, const String *chars, int sides, JinjaValue *out);
Status string_replace(JinjaRun *run, const String *s, const String *old, const String *by, int64_t most, JinjaValue *out);
Status string_split(JinjaRun *run, const String *s, const String *separator, int64_t most, int from_right, JinjaValue *out);
Status string_lines(JinjaRun *run, const String *s, List **out);
Status string_join(JinjaRun *run, const String *separator, const List *items, int converts, JinjaValue *out);
typedef enum LetterCase { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE_METHOD, CASE_TITLE_FILTER } LetterCase;
Status string_case(JinjaRun *run, const String *s, LetterCase to, JinjaValue *out); /* jinja_case.c */

/* jinja_print.c */
Status build_value(JinjaRun *run, Builder *b, JinjaValue value); /* str() */
Status build_repr(JinjaRun *run, Builder *b, JinjaValue value);
typedef struct JsonStyle {
    int ascii, sorts;
    const String *indent; /* of one level; NULL: one line */
    const String *between, *colon;
} JsonStyle;
Status build_json(JinjaRun *run, Builder *b, JinjaValue value, const JsonStyle *style, int64_t level);
Status value_text(JinjaRun *run, JinjaValue value, JinjaValue *out); /* str() as a string */

/* ---- evaluating --------------------------------------------------------------------------------------------------------- */
typedef struct Arguments {
    const List *given; /* positional */
    const Dict *named;
} Arguments;
/* Puts the arguments into out[0..count) by position or by the names in `names` (space-separated); absent ones are undefined.
 * Fails on too many, on unknown names, and on fewer than `least`. */
Status arguments_bind(JinjaRun *run, const char *what, Arguments arguments, const char *names, int least, JinjaValue *out);

Status jinja_evaluate(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *out);
Status evaluate_arguments(JinjaRun *run, const Node *node, const Frame *frame, Arguments *out);
Status evaluate_binary(JinjaRun *run, int32_t code, JinjaValue a, JinjaValue b, JinjaValue *out);
Status evaluate_contains(JinjaRun *run, JinjaValue item, JinjaValue container, int *out);
Status value_attribute(JinjaRun *run, JinjaValue value, const char *name, JinjaValue *out);
Status value_item(JinjaRun *run, JinjaValue value, JinjaValue key, JinjaValue *out);
Status value_slice(JinjaRun *run, JinjaValue value, const JinjaValue bounds[3], JinjaValue *out);
Status value_call(JinjaRun *run, JinjaValue value, Arguments arguments, JinjaValue *out);
Status macro_call(JinjaRun *run, const Macro *macro, Arguments arguments, JinjaValue *out); /* jinja_execute.c */
Status method_call(JinjaRun *run, const Method *method, Arguments arguments, JinjaValue *out);
/* Whether Python's type has such a method, so that `.name` is not undefined. */
int method_exists(JinjaValue value, const char *name);
int global_find(const char *name, JinjaValue *out);
Status global_call(JinjaRun *run, const char *name, Arguments arguments, JinjaValue *out);
Status filter_apply(JinjaRun *run, const char *name, JinjaValue value, Arguments arguments, JinjaValue *out);
int filter_exists(const char *name);
Status test_apply(JinjaRun *run, const char *name, JinjaValue value, Arguments arguments, int *out);
int test_exists(const char *name);
/* jinja_filter_list.c: filters over lists; *known = 0 when `name` is none of them. */
Status filter_list_apply(JinjaRun *run, const char *name, JinjaValue value, Arguments arguments, JinjaValue *out, int *known);
int filter_list_exists(const char *name);
/* Whether `word` stands in `words`, which begin, end and are parted with one space. */
int is_word(const char *words, const char *word);

Status frame_set(JinjaRun *run, Frame *frame, const char *name, JinjaValue value);

#endif
