/* Tokens to nodes: expressions, from the loosest binding to the tightest.
 *
 *   a if b else c | or | and | not | comparisons, in | + - | ~ | * / // % | ** | - + | filters, tests | . [] () | literals
 */
#include <string.h>

#include "data/jinja_internal.h"

static Status parse_unary(Parser *p, int with_filter, Node **out);

static Status refuse(const Parser *p, const char *construct) {
    (void)error_set(p->err, ERR_FAILED, "%s: line %d: %s not supported in a chat template", p->jinja->what, (int)p->at->line,
                    construct);
    return ERR_FAILED;
}

static Status expect(Parser *p, char code, const char *wanted) {
    if (!parser_is_operator(p, code)) return parser_fail(p, wanted);
    p->at++;
    return OK;
}

/* Depth of trees that grow in a loop is bounded too: evaluating recurses along it. */
static Status set_depth(Parser *p, Node *node) {
    const Node *parts[] = {node->a, node->b, node->c};
    for (int i = 0; i < 3; i++) {
        if (parts[i] != NULL && parts[i]->depth >= node->depth) node->depth = parts[i]->depth + 1;
    }
    if (node->depth > 2 * JINJA_PARSE_DEPTH) return parser_fail(p, "a shorter expression (at most 200 operators in a row)");
    return OK;
}

static Status parse_binary(Parser *p, int32_t code, Node *left, Status (*operand)(Parser *, Node **), Node **out) {
    Node *node;
    TRY(parser_node(p, E_BINARY, &node));
    node->code = code;
    node->a = left;
    p->at++;
    TRY(operand(p, &node->b));
    *out = node;
    return set_depth(p, node);
}

/* ---- arguments, postfixes, filters, tests -------------------------------------------------------------------------------- */

static void append(Node **list, Node *node) {
    while (*list != NULL)
        list = &(*list)->next;
    *list = node;
}

/* From "(" to ")"; keywords go to `more`. */
static Status parse_arguments(Parser *p, Node *call) {
    Node **last = &call->items;
    TRY(expect(p, '(', "\"(\""));
    while (!parser_is_operator(p, ')')) {
        if (parser_is_operator(p, '*') || parser_is_operator(p, OPERATOR2('*', '*')))
            return refuse(p, "unpacked arguments (*) are");
        if (p->at->kind == T_NAME && p->at[1].kind == T_OPERATOR && p->at[1].code == '=') {
            Node *keyword;
            TRY(parser_node(p, E_KEYWORD, &keyword));
            append(&call->more, keyword);
            TRY(parser_name(p, &keyword->text));
            p->at++;
            TRY(parse_expression(p, &keyword->a));
        } else {
            if (call->more != NULL) return parser_fail(p, "NAME=VALUE after an argument by name");
            TRY(parse_expression(p, last));
            last = &(*last)->next;
        }
        if (parser_is_operator(p, ')')) break;
        TRY(expect(p, ',', "\",\" or \")\""));
    }
    p->at++;
    return OK;
}

static Status parse_subscript(Parser *p, Node **out) {
    Node *slice = NULL;
    if (!parser_is_operator(p, ':')) TRY(parse_expression(p, out));
    if (!parser_is_operator(p, ':')) return OK;
    TRY(parser_node(p, E_SLICE, &slice));
    slice->a = *out;
    *out = slice;
    p->at++;
    if (!parser_is_operator(p, ':') && !parser_is_operator(p, ']')) TRY(parse_expression(p, &slice->b));
    if (!parser_is_operator(p, ':')) return OK;
    p->at++;
    if (!parser_is_operator(p, ']')) TRY(parse_expression(p, &slice->c));
    return OK;
}

static Status parse_postfix_one(Parser *p, Node *left, Node **out) {
    Node *node;
    TRY(parser_node(p, E_ITEM, &node));
    node->a = left;
    *out = node;
    if (parser_is_operator(p, '(')) {
        node->kind = E_CALL;
        TRY(parse_arguments(p, node));
    } else if (parser_is_operator(p, '[')) {
        p->at++;
        node->b = NULL;
        TRY(parse_subscript(p, &node->b));
        TRY(expect(p, ']', "\"]\" (several subscripts are not supported)"));
    } else {
        p->at++;
        if (p->at->kind == T_INTEGER) {
            TRY(parser_node(p, E_INTEGER, &node->b));
            node->b->integer = p->at++->integer;
        } else {
            node->kind = E_ATTRIBUTE;
            TRY(parser_name(p, &node->text));
        }
    }
    return set_depth(p, node);
}

static Status parse_postfix(Parser *p, Node **out) {
    while (parser_is_operator(p, '.') || parser_is_operator(p, '[') || parser_is_operator(p, '('))
        TRY(parse_postfix_one(p, *out, out));
    return OK;
}

Status parse_filter(Parser *p, Node *operand, Node **out) {
    Node *node;
    TRY(parser_node(p, E_FILTER, &node));
    node->a = operand;
    TRY(parser_name(p, &node->text));
    if (!filter_exists(node->text)) {
        return error_set(p->err, ERR_FAILED, "%s: line %d: the filter \"%.60s\" is not supported in a chat template",
                         p->jinja->what, (int)node->line, node->text);
    }
    if (parser_is_operator(p, '(')) TRY(parse_arguments(p, node));
    *out = node;
    return set_depth(p, node);
}

/* `x is divisibleby 3`: an argument without brackets. */
static Status parse_test_argument(Parser *p, Node *node) {
    int begins = p->at->kind == T_NAME || p->at->kind == T_STRING || p->at->kind == T_INTEGER || p->at->kind == T_FLOAT ||
                 parser_is_operator(p, '[') || parser_is_operator(p, '{');
    if (parser_is_operator(p, '(')) return parse_arguments(p, node);
    if (!begins || parser_is_name(p, "else") || parser_is_name(p, "or") || parser_is_name(p, "and")) return OK;
    if (parser_is_name(p, "is")) return parser_fail(p, "one test (tests cannot be chained)");
    const JinjaToken *at = p->at;
    /* "x is defined if y": jinja2 would take "if" for a name, and fail behind it. */
    TRY(parse_unary(p, -1, &node->items));
    return p->at == at ? parser_fail(p, "an argument") : OK;
}

static Status parse_test(Parser *p, Node **out) {
    Node *node, *negation;
    p->at++;
    TRY(parser_node(p, E_TEST, &node));
    node->a = *out;
    if (parser_is_name(p, "not")) {
        p->at++;
        TRY(parser_node(p, E_NOT, &negation));
        negation->a = node;
        *out = negation;
    } else {
        *out = node;
    }
    TRY(parser_name(p, &node->text));
    if (!test_exists(node->text)) {
        return error_set(p->err, ERR_FAILED, "%s: line %d: the test \"%.60s\" is not supported in a chat template",
                         p->jinja->what, (int)node->line, node->text);
    }
    TRY(parse_test_argument(p, node));
    TRY(set_depth(p, node));
    return *out == node ? OK : set_depth(p, *out);
}

static Status parse_filters(Parser *p, Node **out) {
    for (;;) {
        if (parser_is_operator(p, '|')) {
            p->at++;
            TRY(parse_filter(p, *out, out));
        } else if (parser_is_name(p, "is")) {
            TRY(parse_test(p, out));
        } else if (parser_is_operator(p, '(')) {
            TRY(parse_postfix_one(p, *out, out));
        } else {
            return OK;
        }
    }
}

/* ---- literals ------------------------------------------------------------------------------------------------------------ */

static Status parse_list(Parser *p, Node **out) {
    Node *node, **last;
    TRY(parser_node(p, E_LIST, &node));
    *out = node;
    last = &node->items;
    p->at++;
    while (!parser_is_operator(p, ']')) {
        TRY(parse_expression(p, last));
        last = &(*last)->next;
        if (parser_is_operator(p, ']')) break;
        TRY(expect(p, ',', "\",\" or \"]\""));
    }
    p->at++;
    return OK;
}

static Status parse_dict(Parser *p, Node **out) {
    Node *node, **last;
    TRY(parser_node(p, E_DICT, &node));
    *out = node;
    last = &node->items;
    p->at++;
    while (!parser_is_operator(p, '}')) {
        TRY(parse_expression(p, last));
        last = &(*last)->next;
        TRY(expect(p, ':', "\":\""));
        TRY(parse_expression(p, last));
        last = &(*last)->next;
        if (parser_is_operator(p, '}')) break;
        TRY(expect(p, ',', "\",\" or \"}\""));
    }
    p->at++;
    return OK;
}

/* Neighbouring strings are one. */
static Status parse_string(Parser *p, Node *node) {
    size_t length = 0;
    const JinjaToken *end = p->at;
    for (; end->kind == T_STRING; end++)
        length += end->length;
    char *text = jinja_take(&p->jinja->memory, length + 1);
    if (text == NULL) return parser_fail(p, "a template that takes less memory");
    node->kind = E_STRING;
    node->text = text;
    node->length = length;
    for (; p->at != end; p->at++) {
        memcpy(text, p->at->text, p->at->length);
        text += p->at->length;
    }
    return OK;
}

static Status parse_name(Parser *p, Node *node) {
    static const struct {
        const char *name;
        NodeKind kind;
    } constants[] = {{"true", E_TRUE},   {"True", E_TRUE}, {"false", E_FALSE},
                     {"False", E_FALSE}, {"none", E_NONE}, {"None", E_NONE}};
    TRY(parser_name(p, &node->text));
    node->kind = E_NAME;
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (strcmp(node->text, constants[i].name) == 0) node->kind = constants[i].kind;
    }
    return OK;
}

static Status parse_brackets(Parser *p, Node **out) {
    p->at++;
    if (parser_is_operator(p, ')')) {
        p->at++;
        return parser_node(p, E_TUPLE, out);
    }
    TRY(parse_tuple(p, 1, out));
    return expect(p, ')', "\")\"");
}

static Status parse_primary(Parser *p, Node **out) {
    if (parser_is_operator(p, '(')) return parse_brackets(p, out);
    if (parser_is_operator(p, '[')) return parse_list(p, out);
    if (parser_is_operator(p, '{')) return parse_dict(p, out);
    TRY(parser_node(p, E_INTEGER, out));
    switch (p->at->kind) {
        case T_NAME: return parse_name(p, *out);
        case T_STRING: return parse_string(p, *out);
        case T_INTEGER: (*out)->integer = p->at++->integer; return OK;
        case T_FLOAT:
            (*out)->kind = E_FLOAT;
            (*out)->number = p->at++->number;
            return OK;
        default: return parser_fail(p, "an expression");
    }
}

/* ---- operators ----------------------------------------------------------------------------------------------------------- */

/* with_filter -1: a literal with its postfixes, without sign (the argument of a test). */
static Status parse_unary(Parser *p, int with_filter, Node **out) {
    TRY(parser_enter(p));
    int is_minus = parser_is_operator(p, '-');
    if (with_filter >= 0 && (is_minus || parser_is_operator(p, '+'))) {
        Node *node;
        TRY(parser_node(p, is_minus ? E_NEGATE : E_PLUS, &node));
        p->at++;
        TRY(parse_unary(p, 0, &node->a));
        *out = node;
        TRY(set_depth(p, node));
    } else {
        TRY(parse_primary(p, out));
    }
    TRY(parse_postfix(p, out));
    if (with_filter > 0) TRY(parse_filters(p, out));
    p->depth--;
    return OK;
}

static Status parse_operand(Parser *p, Node **out) {
    return parse_unary(p, 1, out);
}

static Status parse_power(Parser *p, Node **out) {
    TRY(parse_operand(p, out));
    while (parser_is_operator(p, OPERATOR2('*', '*')))
        TRY(parse_binary(p, p->at->code, *out, parse_operand, out));
    return OK;
}

static Status parse_product(Parser *p, Node **out) {
    TRY(parse_power(p, out));
    while (parser_is_operator(p, '*') || parser_is_operator(p, '/') || parser_is_operator(p, '%') ||
           parser_is_operator(p, OPERATOR2('/', '/')))
        TRY(parse_binary(p, p->at->code, *out, parse_power, out));
    return OK;
}

static Status parse_concat(Parser *p, Node **out) {
    TRY(parse_product(p, out));
    if (!parser_is_operator(p, '~')) return OK;
    Node *node, **last;
    TRY(parser_node(p, E_CONCAT, &node));
    node->items = *out;
    *out = node;
    last = &node->items->next;
    while (parser_is_operator(p, '~')) {
        p->at++;
        TRY(parse_product(p, last));
        last = &(*last)->next;
    }
    return OK;
}

static Status parse_sum(Parser *p, Node **out) {
    TRY(parse_concat(p, out));
    while (parser_is_operator(p, '+') || parser_is_operator(p, '-'))
        TRY(parse_binary(p, p->at->code, *out, parse_concat, out));
    return OK;
}

/* The comparison that stands here, or 0. */
static int32_t comparison(const Parser *p, int *tokens) {
    static const int32_t codes[] = {
        '<', '>', OPERATOR2('=', '='), OPERATOR2('!', '='), OPERATOR2('<', '='), OPERATOR2('>', '=')};
    *tokens = 1;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        if (parser_is_operator(p, codes[i])) return codes[i];
    }
    if (parser_is_name(p, "in")) return 'i';
    if (!parser_is_name(p, "not")) return 0;
    Parser next = *p;
    next.at++;
    *tokens = 2;
    return parser_is_name(&next, "in") ? 'n' : 0;
}

static Status parse_comparison(Parser *p, Node **out) {
    int tokens;
    TRY(parse_sum(p, out));
    if (comparison(p, &tokens) == 0) return OK;
    Node *node, **last;
    TRY(parser_node(p, E_COMPARE, &node));
    node->a = *out;
    *out = node;
    last = &node->items;
    for (int32_t code; (code = comparison(p, &tokens)) != 0; last = &(*last)->next) {
        p->at += tokens;
        TRY(parser_node(p, E_OPERAND, last));
        (*last)->code = code;
        TRY(parse_sum(p, &(*last)->a));
    }
    return OK;
}

static Status parse_not(Parser *p, Node **out) {
    if (!parser_is_name(p, "not")) return parse_comparison(p, out);
    TRY(parser_enter(p));
    TRY(parser_node(p, E_NOT, out));
    p->at++;
    TRY(parse_not(p, &(*out)->a));
    p->depth--;
    return OK;
}

static Status parse_logic(Parser *p, const char *word, NodeKind kind, Status (*operand)(Parser *, Node **), Node **out) {
    TRY(operand(p, out));
    while (parser_is_name(p, word)) {
        Node *node;
        TRY(parser_node(p, kind, &node));
        p->at++;
        node->a = *out;
        TRY(operand(p, &node->b));
        *out = node;
        TRY(set_depth(p, node));
    }
    return OK;
}

static Status parse_and(Parser *p, Node **out) {
    return parse_logic(p, "and", E_AND, parse_not, out);
}

static Status parse_or(Parser *p, Node **out) {
    return parse_logic(p, "or", E_OR, parse_and, out);
}

static Status parse_any(Parser *p, int with_condition, Node **out) {
    TRY(parser_enter(p));
    TRY(parse_or(p, out));
    if (with_condition && parser_is_name(p, "if")) {
        Node *node;
        TRY(parser_node(p, E_CONDITION, &node));
        p->at++;
        node->b = *out;
        *out = node;
        TRY(parse_or(p, &node->a));
        if (parser_is_name(p, "else")) {
            p->at++;
            TRY(parse_expression(p, &node->c));
        }
        TRY(set_depth(p, node));
    }
    p->depth--;
    return OK;
}

Status parse_expression(Parser *p, Node **out) {
    return parse_any(p, 1, out);
}

static int ends_tuple(const Parser *p) {
    return p->at->kind == T_OUTPUT_END || p->at->kind == T_BLOCK_END || parser_is_operator(p, ')') || parser_is_name(p, "in") ||
           parser_is_name(p, "recursive");
}

static Status parse_items(Parser *p, Status (*item)(Parser *, Node **), Node **out) {
    TRY(item(p, out));
    if (!parser_is_operator(p, ',')) return OK;
    Node *node, **last;
    TRY(parser_node(p, E_TUPLE, &node));
    node->items = *out;
    *out = node;
    last = &node->items->next;
    while (parser_is_operator(p, ',')) {
        p->at++;
        if (ends_tuple(p)) break;
        TRY(item(p, last));
        last = &(*last)->next;
    }
    return OK;
}

Status parse_tuple(Parser *p, int with_condition, Node **out) {
    return parse_items(p, with_condition ? parse_expression : parse_or, out);
}

static Status parse_target_item(Parser *p, Node **out) {
    if (parser_is_operator(p, '(') || parser_is_operator(p, '[')) return refuse(p, "a nested assignment is");
    TRY(parser_node(p, E_NAME, out));
    if (p->at->kind != T_NAME) return parser_fail(p, "a name to assign to");
    return parse_name(p, *out);
}

Status parse_target(Parser *p, int with_namespace, Node **out) {
    TRY(parse_items(p, parse_target_item, out));
    for (const Node *n = (*out)->kind == E_TUPLE ? (*out)->items : *out; n != NULL; n = n->next) {
        if (n->kind != E_NAME) return parser_fail(p, "a name to assign to, not a constant");
    }
    if (with_namespace && (*out)->kind == E_NAME && parser_is_operator(p, '.')) {
        Node *node;
        TRY(parser_node(p, E_ATTRIBUTE, &node));
        p->at++;
        node->a = *out;
        *out = node;
        return parser_name(p, &node->text);
    }
    return OK;
}
