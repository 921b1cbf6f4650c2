/* Tokens to nodes: statements. Expressions are in jinja_parse_expression.c. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "data/jinja_internal.h"

#define TEMPLATE_MAX_MEMORY ((size_t)64 << 20)

static void describe(const JinjaToken *token, char *out, size_t capacity) {
    switch (token->kind) {
        case T_NAME:
            (void)snprintf(out, capacity, "\"%.*s\"", (int)(token->length < 60 ? token->length : 60), token->text);
            break;
        case T_STRING: (void)snprintf(out, capacity, "a string"); break;
        case T_INTEGER:
        case T_FLOAT: (void)snprintf(out, capacity, "a number"); break;
        case T_OPERATOR:
            (void)snprintf(out, capacity, "\"%c%s\"", (char)(token->code & 0xFF),
                           token->code > 0xFF ? (char[]){(char)(token->code >> 8), 0} : "");
            break;
        case T_END: (void)snprintf(out, capacity, "the template's end"); break;
        default: (void)snprintf(out, capacity, "the tag's end"); break;
    }
}

Status parser_fail(const Parser *p, const char *wanted) {
    char got[80];
    describe(p->at, got, sizeof got);
    (void)error_set(p->err, ERR_FAILED, "%s: line %d: want %s, got %s", p->jinja->what, (int)p->at->line, wanted, got);
    return ERR_FAILED;
}

static Status refuse(const Parser *p, const char *construct) {
    (void)error_set(p->err, ERR_FAILED, "%s: line %d: %s is not supported in a chat template", p->jinja->what, (int)p->at->line,
                    construct);
    return ERR_FAILED;
}

Status parser_node(Parser *p, NodeKind kind, Node **out) {
    Node *node = jinja_take(&p->jinja->memory, sizeof *node);
    *out = node;
    if (node == NULL) return parser_fail(p, "a template that takes less memory");
    node->kind = kind;
    node->line = p->at->line;
    return OK;
}

Status parser_enter(Parser *p) {
    if (++p->depth > JINJA_PARSE_DEPTH) return parser_fail(p, "less nesting (at most 100 levels)");
    return OK;
}

int parser_is_operator(const Parser *p, int32_t code) {
    return p->at->kind == T_OPERATOR && p->at->code == code;
}

int parser_is_name(const Parser *p, const char *name) {
    return p->at->kind == T_NAME && p->at->length == strlen(name) && memcmp(p->at->text, name, p->at->length) == 0;
}

/* Equal names are one pointer. */
static Status intern(Parser *p, const char *text_in, size_t length, const char **name) {
    for (Name *n = p->jinja->names; n != NULL; n = n->next) {
        *name = n->text;
        if (strlen(n->text) == length && memcmp(n->text, text_in, length) == 0) return OK;
    }
    if (++p->jinja->name_count > JINJA_NAMES_MAX) return parser_fail(p, "at most 2000 different names");
    Name *made = jinja_take(&p->jinja->memory, sizeof *made);
    char *text = jinja_take(&p->jinja->memory, length + 1);
    if (made == NULL || text == NULL) return parser_fail(p, "a template that takes less memory");
    memcpy(text, text_in, length);
    *made = (Name){p->jinja->names, text};
    p->jinja->names = made;
    *name = text;
    return OK;
}

Status parser_name(Parser *p, const char **name) {
    if (p->at->kind != T_NAME) return parser_fail(p, "a name");
    const JinjaToken *token = p->at++;
    return intern(p, token->text, token->length, name);
}

static Status parse_body(Parser *p, const char *const *ends, Node **out);
static const char *const ends_if[] = {"elif", "else", "endif", NULL}, *const ends_else[] = {"endif", NULL},
                         *const ends_for[] = {"else", "endfor", NULL}, *const ends_for_else[] = {"endfor", NULL},
                         *const ends_set[] = {"endset", NULL}, *const ends_macro[] = {"endmacro", NULL},
                         *const ends_with[] = {"endwith", NULL}, *const ends_generation[] = {"endgeneration", NULL};

static Status block_end(Parser *p) {
    if (p->at->kind != T_BLOCK_END) return parser_fail(p, "%}");
    p->at++;
    return OK;
}

/* Behind "if" or "elif". */
static Status parse_if(Parser *p, Node **out) {
    Node *node;
    TRY(parser_enter(p));
    TRY(parser_node(p, S_IF, &node));
    *out = node;
    TRY(parse_tuple(p, 0, &node->a));
    TRY(block_end(p));
    TRY(parse_body(p, ends_if, &node->body));
    if (parser_is_name(p, "elif")) {
        p->at++;
        TRY(parse_if(p, &node->more));
    } else if (parser_is_name(p, "else")) {
        p->at++;
        TRY(block_end(p));
        TRY(parse_body(p, ends_else, &node->more));
        p->at++;
    } else {
        p->at++;
    }
    p->depth--;
    return OK;
}

static Status parse_for(Parser *p, Node **out) {
    Node *node;
    TRY(parser_node(p, S_FOR, &node));
    *out = node;
    TRY(parse_target(p, 0, &node->a));
    if (!parser_is_name(p, "in")) return parser_fail(p, "\"in\"");
    p->at++;
    TRY(intern(p, "loop", 4, &node->text));
    TRY(parse_tuple(p, 0, &node->b));
    if (parser_is_name(p, "if")) {
        p->at++;
        TRY(parse_expression(p, &node->c));
    }
    if (parser_is_name(p, "recursive")) return refuse(p, "a recursive loop");
    TRY(block_end(p));
    p->loops++;
    TRY(parse_body(p, ends_for, &node->body));
    p->loops--;
    if (parser_is_name(p, "else")) {
        p->at++;
        TRY(block_end(p));
        TRY(parse_body(p, ends_for_else, &node->more));
    }
    p->at++;
    return OK;
}

static Status parse_set(Parser *p, Node **out) {
    Node *node;
    TRY(parser_node(p, S_SET, &node));
    *out = node;
    TRY(parse_target(p, 1, &node->a));
    if (parser_is_operator(p, '=')) {
        p->at++;
        return parse_tuple(p, 1, &node->b);
    }
    node->kind = S_SET_BLOCK;
    while (parser_is_operator(p, '|')) {
        p->at++;
        TRY(parse_filter(p, node->b, &node->b));
    }
    TRY(block_end(p));
    TRY(parse_body(p, ends_set, &node->body));
    p->at++;
    return OK;
}

static Status parse_macro(Parser *p, Node **out) {
    Node *node, **last;
    TRY(parser_node(p, S_MACRO, &node));
    *out = node;
    TRY(parser_name(p, &node->text));
    if (!parser_is_operator(p, '(')) return parser_fail(p, "\"(\"");
    p->at++;
    last = &node->items;
    while (!parser_is_operator(p, ')')) {
        if (node->items != NULL) {
            if (!parser_is_operator(p, ',')) return parser_fail(p, "\",\" or \")\"");
            p->at++;
        }
        TRY(parser_node(p, E_NAME, last));
        TRY(parser_name(p, &(*last)->text));
        if (strcmp((*last)->text, "caller") == 0) return refuse(p, "a macro's caller");
        if (parser_is_operator(p, '=')) {
            p->at++;
            TRY(parse_expression(p, &(*last)->a));
        } else if (node->length > 0) {
            return parser_fail(p, "a default, as the parameter before has one");
        }
        node->length += (*last)->a != NULL;
        last = &(*last)->next;
    }
    p->at++;
    TRY(block_end(p));
    int loops = p->loops;
    p->loops = 0;
    TRY(parse_body(p, ends_macro, &node->body));
    p->loops = loops;
    p->at++;
    return OK;
}

static Status parse_with(Parser *p, Node **out) {
    Node *node, **last;
    TRY(parser_node(p, S_WITH, &node));
    *out = node;
    last = &node->items;
    while (p->at->kind != T_BLOCK_END) {
        if (node->items != NULL) {
            if (!parser_is_operator(p, ',')) return parser_fail(p, "\",\"");
            p->at++;
        }
        TRY(parser_node(p, S_SET, last));
        TRY(parse_target(p, 0, &(*last)->a));
        if (!parser_is_operator(p, '=')) return parser_fail(p, "\"=\"");
        p->at++;
        TRY(parse_expression(p, &(*last)->b));
        last = &(*last)->next;
    }
    TRY(block_end(p));
    TRY(parse_body(p, ends_with, &node->body));
    p->at++;
    return OK;
}

static Status parse_generation(Parser *p, Node **out) {
    p->jinja->has_generation = 1;
    TRY(parser_node(p, S_GENERATION, out));
    TRY(block_end(p));
    int loops = p->loops;
    p->loops = 0; /* jinja2 makes a function of it */
    TRY(parse_body(p, ends_generation, &(*out)->body));
    p->loops = loops;
    p->at++;
    return OK;
}

static Status parse_jump(Parser *p, NodeKind kind, Node **out) {
    if (p->loops == 0) return refuse(p, "break or continue outside of a loop");
    return parser_node(p, kind, out);
}

/* Behind "{%"; leaves the parser behind what stands before its "%}". */
static Status parse_statement(Parser *p, Node **out) {
    static const char *const others[] = {"include", "import",     "from", "extends", "block", "call",
                                         "filter",  "autoescape", "do",   "trans",   "debug", NULL};
    for (int i = 0; others[i] != NULL; i++) {
        char construct[40];
        (void)snprintf(construct, sizeof construct, "{%% %s %%}", others[i]);
        if (parser_is_name(p, others[i])) return refuse(p, construct);
    }
    const JinjaToken *name = p->at;
    if (name->kind != T_NAME) return parser_fail(p, "a statement");
    p->at++;
    Parser before = *p;
    before.at = name;
    if (parser_is_name(&before, "if")) return parse_if(p, out);
    if (parser_is_name(&before, "for")) return parse_for(p, out);
    if (parser_is_name(&before, "set")) return parse_set(p, out);
    if (parser_is_name(&before, "macro")) return parse_macro(p, out);
    if (parser_is_name(&before, "with")) return parse_with(p, out);
    if (parser_is_name(&before, "generation")) return parse_generation(p, out);
    if (parser_is_name(&before, "break")) return parse_jump(p, S_BREAK, out);
    if (parser_is_name(&before, "continue")) return parse_jump(p, S_CONTINUE, out);
    p->at = name;
    return parser_fail(p, "a statement (if, for, set, macro, with, generation, break, continue)");
}

static int stands_in(const Parser *p, const char *const *names) {
    for (; *names != NULL; names++) {
        if (parser_is_name(p, *names)) return 1;
    }
    return 0;
}

static Status parse_output(Parser *p, Node **out) {
    TRY(parser_node(p, S_OUTPUT, out));
    TRY(parse_tuple(p, 1, &(*out)->a));
    if (p->at->kind != T_OUTPUT_END) return parser_fail(p, "}}");
    p->at++;
    return OK;
}

/* Up to a block that begins with one of `ends` (stands on its name then), or to the template's end when `ends` is NULL. */
static Status parse_body(Parser *p, const char *const *ends, Node **out) {
    TRY(parser_enter(p));
    for (Node **last = out; p->at->kind != T_END; last = &(*last)->next) {
        if (p->at->kind == T_DATA) {
            TRY(parser_node(p, S_TEXT, last));
            (*last)->text = p->at->text;
            (*last)->length = p->at->length;
            p->at++;
        } else if (p->at->kind == T_OUTPUT_BEGIN) {
            p->at++;
            TRY(parse_output(p, last));
        } else {
            p->at++;
            if (ends != NULL && stands_in(p, ends)) {
                p->depth--;
                return OK;
            }
            TRY(parse_statement(p, last));
            TRY(block_end(p));
        }
    }
    if (ends != NULL) return parser_fail(p, ends[1] == NULL ? ends[0] : ends[2] == NULL ? ends[1] : ends[2]);
    p->depth--;
    return OK;
}

Status jinja_open(Jinja **out, const char *what, const char *source, size_t length, Error *err) {
    Jinja *jinja = memory_calloc(1, sizeof *jinja);
    JinjaToken *tokens = NULL;
    jinja->what = memory_strdup(what);
    jinja->memory.limit = TEMPLATE_MAX_MEMORY;
    Status status = jinja_lex(&jinja->memory, jinja->what, source, length, &tokens, err);
    if (status == OK) {
        Parser parser = {.jinja = jinja, .at = tokens, .err = err};
        status = parse_body(&parser, NULL, &jinja->body);
    }
    memory_free(tokens);
    if (status != OK) {
        jinja_close(jinja);
        jinja = NULL;
    }
    *out = jinja;
    return status;
}

void jinja_close(Jinja *jinja) {
    if (jinja == NULL) return;
    jinja_memory_free(&jinja->memory);
    memory_free(jinja->what);
    memory_free(jinja);
}

int jinja_has_generation(const Jinja *jinja) {
    return jinja->has_generation;
}
