/* Statements: nodes to text. A scope opens with every pass of a loop, with a macro, a block set, with and generation. */
#include <string.h>

#include "data/jinja_internal.h"

typedef enum Jump { JUMP_NONE, JUMP_BREAK, JUMP_CONTINUE } Jump;

static Status execute_all(JinjaRun *run, const Node *body, Frame *frame, Builder *out, Jump *jump);

Status frame_set(JinjaRun *run, Frame *frame, const char *name, JinjaValue value) {
    Variable *variable;
    for (Variable *v = frame->variables; v != NULL; v = v->next) {
        if (v->name != name) continue;
        v->value = value;
        return OK;
    }
    TRY(run_take(run, sizeof *variable, &variable));
    *variable = (Variable){frame->variables, name, value};
    frame->variables = variable;
    return OK;
}

static Status frame_new(JinjaRun *run, const Frame *parent, Frame **out) {
    TRY(run_take(run, sizeof **out, out));
    (*out)->parent = parent;
    return OK;
}

static Status set_attribute(JinjaRun *run, const Node *target, Frame *frame, JinjaValue value) {
    JinjaValue space, name;
    TRY(jinja_evaluate(run, target->a, frame, &space));
    if (space.kind != V_NAMESPACE) REFUSE(run, "only attributes of a namespace can be set, got a %s", value_type(space));
    if (target->text[0] == '_') REFUSE(run, "a namespace takes no attribute that begins with _");
    TRY(value_string(run, target->text, &name));
    return dict_put(run, dict_of(space), name, value);
}

static Status assign(JinjaRun *run, const Node *target, Frame *frame, JinjaValue value) {
    const List *items;
    int64_t i = 0;
    if (target->kind == E_ATTRIBUTE) return set_attribute(run, target, frame, value);
    if (target->kind == E_NAME) return frame_set(run, frame, target->text, value);
    TRY(value_items(run, value, &items));
    for (const Node *n = target->items; n != NULL; n = n->next, i++) {
        if (i >= items->count) REFUSE(run, "too few values to unpack: got %lld", (long long)items->count);
        TRY(frame_set(run, frame, n->text, items->items[i]));
    }
    if (i != items->count) REFUSE(run, "too many values to unpack: want %lld, got %lld", (long long)i, (long long)items->count);
    return OK;
}

static Status execute_if(JinjaRun *run, const Node *node, Frame *frame, Builder *out, Jump *jump) {
    JinjaValue value;
    int truth;
    TRY(jinja_evaluate(run, node->a, frame, &value));
    TRY(value_truth(run, value, &truth));
    return execute_all(run, truth ? node->body : node->more, frame, out, jump);
}

/* The items that a loop's own `if` leaves. */
static Status filter_items(JinjaRun *run, const Node *node, const Frame *frame, const List *all, const List **out) {
    List *kept;
    Frame *scope;
    JinjaValue value;
    int truth;
    TRY(list_new(run, 0, &kept));
    for (int64_t i = 0; i < all->count; i++) {
        TRY(frame_new(run, frame, &scope));
        TRY(assign(run, node->a, scope, all->items[i]));
        TRY(jinja_evaluate(run, node->c, scope, &value));
        TRY(value_truth(run, value, &truth));
        if (truth) TRY(list_push(run, kept, all->items[i]));
    }
    *out = kept;
    return OK;
}

static Status execute_loop(JinjaRun *run, const Node *node, const List *items, Frame *frame, Builder *out) {
    Loop *loop;
    Frame *scope;
    TRY(run_take(run, sizeof *loop, &loop));
    *loop = (Loop){.list = items};
    for (; loop->index < items->count; loop->index++) {
        Jump jump = JUMP_NONE;
        TRY(frame_new(run, frame, &scope));
        TRY(frame_set(run, scope, node->text, value_pointer(V_LOOP, 0, loop)));
        TRY(assign(run, node->a, scope, items->items[loop->index]));
        TRY(execute_all(run, node->body, scope, out, &jump));
        if (jump == JUMP_BREAK) break;
    }
    return OK;
}

static Status execute_for(JinjaRun *run, const Node *node, Frame *frame, Builder *out) {
    JinjaValue value;
    const List *items;
    Frame *scope;
    Jump unused = JUMP_NONE;
    TRY(jinja_evaluate(run, node->b, frame, &value));
    TRY(value_items(run, value, &items));
    if (node->c != NULL) TRY(filter_items(run, node, frame, items, &items));
    if (items->count > 0) return execute_loop(run, node, items, frame, out);
    TRY(frame_new(run, frame, &scope));
    return execute_all(run, node->more, scope, out, &unused);
}

/* The body in a scope of its own, into a builder of its own. */
static Status execute_apart(JinjaRun *run, const Node *body, const Frame *frame, Builder *out) {
    Frame *scope;
    Jump unused = JUMP_NONE;
    TRY(frame_new(run, frame, &scope));
    return execute_all(run, body, scope, out, &unused);
}

static Status apply_filters(JinjaRun *run, const Node *node, const Frame *frame, JinjaValue *value) {
    Arguments arguments;
    if (node == NULL) return OK;
    TRY(apply_filters(run, node->a, frame, value));
    TRY(evaluate_arguments(run, node, frame, &arguments));
    return filter_apply(run, node->text, *value, arguments, value);
}

static Status execute_set(JinjaRun *run, const Node *node, Frame *frame) {
    Builder b = {0};
    JinjaValue value;
    if (node->kind == S_SET) {
        TRY(jinja_evaluate(run, node->b, frame, &value));
    } else {
        TRY(execute_apart(run, node->body, frame, &b));
        TRY(build_done(run, &b, &value));
        TRY(apply_filters(run, node->b, frame, &value));
    }
    return assign(run, node->a, frame, value);
}

static Status execute_macro(JinjaRun *run, const Node *node, Frame *frame) {
    Macro *macro;
    TRY(run_take(run, sizeof *macro, &macro));
    *macro = (Macro){node, frame};
    return frame_set(run, frame, node->text, value_pointer(V_MACRO, 0, macro));
}

static Status bind_parameter(JinjaRun *run, const Node *parameter, int64_t index, Arguments arguments, Frame *scope,
                             int64_t *named) {
    JinjaValue name, value = value_undefined(parameter->text);
    int found;
    TRY(value_string(run, parameter->text, &name));
    TRY(dict_find(run, arguments.named, name, &value, &found));
    *named += found;
    if (found && index < arguments.given->count) REFUSE(run, "the macro's argument %s is given twice", parameter->text);
    if (index < arguments.given->count) {
        value = arguments.given->items[index];
    } else if (!found && parameter->a != NULL) {
        TRY(jinja_evaluate(run, parameter->a, scope, &value));
    }
    return frame_set(run, scope, parameter->text, value);
}

Status macro_call(JinjaRun *run, const Macro *macro, Arguments arguments, JinjaValue *out) {
    Builder b = {0};
    Frame *scope;
    Jump unused = JUMP_NONE;
    int64_t index = 0, named = 0;
    TRY(run_enter(run));
    TRY(frame_new(run, macro->closure, &scope));
    for (const Node *n = macro->node->items; n != NULL; n = n->next)
        TRY(bind_parameter(run, n, index++, arguments, scope, &named));
    if (arguments.given->count > index || named != arguments.named->count)
        REFUSE(run, "the macro %s takes no more than %lld arguments of its own names", macro->node->text, (long long)index);
    TRY(execute_all(run, macro->node->body, scope, &b, &unused));
    run->depth--;
    return build_done(run, &b, out);
}

static Status execute_with(JinjaRun *run, const Node *node, Frame *frame, Builder *out, Jump *jump) {
    Frame *scope;
    JinjaValue value;
    TRY(frame_new(run, frame, &scope));
    for (const Node *n = node->items; n != NULL; n = n->next) {
        TRY(jinja_evaluate(run, n->b, frame, &value));
        TRY(assign(run, n->a, scope, value));
    }
    return execute_all(run, node->body, scope, out, jump);
}

static Status execute_generation(JinjaRun *run, const Node *node, const Frame *frame, Builder *out) {
    Builder b = {0};
    JinjaValue text;
    TRY(execute_apart(run, node->body, frame, &b));
    TRY(build_mark_generated(run, &b));
    TRY(build_done(run, &b, &text));
    return build_string(run, out, string_of(text));
}

static Status execute(JinjaRun *run, const Node *node, Frame *frame, Builder *out, Jump *jump) {
    JinjaValue value;
    switch (node->kind) {
        case S_TEXT: return build_bytes(run, out, node->text, node->length);
        case S_OUTPUT: TRY(jinja_evaluate(run, node->a, frame, &value)); return build_value(run, out, value);
        case S_IF: return execute_if(run, node, frame, out, jump);
        case S_FOR: return execute_for(run, node, frame, out);
        case S_SET:
        case S_SET_BLOCK: return execute_set(run, node, frame);
        case S_MACRO: return execute_macro(run, node, frame);
        case S_WITH: return execute_with(run, node, frame, out, jump);
        case S_GENERATION: return execute_generation(run, node, frame, out);
        case S_BREAK: *jump = JUMP_BREAK; return OK;
        default: *jump = JUMP_CONTINUE; return OK;
    }
}

static Status execute_all(JinjaRun *run, const Node *body, Frame *frame, Builder *out, Jump *jump) {
    TRY(run_enter(run));
    for (const Node *n = body; n != NULL && *jump == JUMP_NONE; n = n->next) {
        run->line = n->line;
        TRY(run_steps(run, 0));
        TRY(execute(run, n, frame, out, jump));
    }
    run->depth--;
    return OK;
}

/* Variables by the template's own name pointers; those that the template never names are left out. */
static Status bind_variables(const Jinja *jinja, JinjaRun *run, const Dict *variables, Frame *frame) {
    for (int64_t i = 0; i < variables->count; i++) {
        for (const Name *name = jinja->names; name != NULL; name = name->next) {
            if (value_is_string(variables->keys[i], name->text)) TRY(frame_set(run, frame, name->text, variables->values[i]));
        }
    }
    return OK;
}

Status jinja_render(const Jinja *jinja, JinjaRun *run, JinjaValue variables, JinjaText *out, Error *err) {
    Builder b = {0};
    Frame root = {0};
    Jump unused = JUMP_NONE;
    run->err = err;
    run->steps = 0;
    run->depth = 0;
    run->line = 1;
    Status status = bind_variables(jinja, run, dict_of(variables), &root);
    if (status == OK) status = execute_all(run, jinja->body, &root, &b, &unused);
    if (status != OK) {
        error_prefix(err, "%s: line %d", jinja->what, (int)run->line);
        return status;
    }
    *out = (JinjaText){b.data != NULL ? b.data : "", b.length, b.marks, b.mark_count};
    return OK;
}
