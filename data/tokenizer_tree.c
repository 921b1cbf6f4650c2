/* A JSON value in memory, for the small sections of tokenizer.json whose keys may come in any order.
 * Bounded by a number of nodes; built without recursion. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

#define TREE_NODES 65536

static Tree *tree_node(const JsonToken *token, char *key) {
    Tree *node = memory_calloc(1, sizeof *node);
    node->kind = token->kind;
    node->key = key;
    if (token->kind == JSON_STRING) {
        node->text = memory_alloc(token->length + 1);
        memcpy(node->text, token->text, token->length);
        node->text[token->length] = 0;
        node->length = token->length;
    }
    node->integer = token->integer;
    node->number = token->number;
    return node;
}

static char *tree_key(const JsonToken *token) {
    char *key = memory_alloc(token->length + 1);
    memcpy(key, token->text, token->length);
    key[token->length] = 0;
    return key;
}

Status tree_read(JsonReader *reader, Tree **out, Error *err) {
    Tree *root = NULL, *parents[JSON_MAX_DEPTH + 1] = {0}, *last[JSON_MAX_DEPTH + 1] = {0};
    char *key = NULL;
    int depth = 0, nodes = 0;
    Status status = OK;
    do {
        JsonToken token;
        TRY_GOTO(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END || token.kind == JSON_ARRAY_END) {
            depth--;
            continue;
        }
        if (token.kind == JSON_KEY) {
            key = tree_key(&token);
            continue;
        }
        if (token.kind == JSON_END || ++nodes > TREE_NODES || depth >= JSON_MAX_DEPTH) {
            status = error_set(err, ERR_FAILED, "%s: line %lld: a section has more than %d values or is cut off", reader->what,
                               (long long)token.line, TREE_NODES);
            goto done;
        }
        Tree *node = tree_node(&token, key);
        key = NULL;
        if (root == NULL)
            root = node;
        else if (last[depth] == NULL)
            parents[depth]->first = node;
        else
            last[depth]->next = node;
        last[depth] = node;
        if (token.kind == JSON_OBJECT_BEGIN || token.kind == JSON_ARRAY_BEGIN) {
            depth++;
            parents[depth] = node;
            last[depth] = NULL;
        }
    } while (depth > 0);
done:
    memory_free(key);
    if (status != OK)
        tree_free(root);
    else
        *out = root;
    return status;
}

void tree_free(Tree *tree) {
    /* Children are put in front of the siblings that remain, so the walk needs no stack. */
    while (tree != NULL) {
        Tree *next = tree->next;
        if (tree->first != NULL) {
            Tree *tail = tree->first;
            while (tail->next != NULL)
                tail = tail->next;
            tail->next = next;
            next = tree->first;
        }
        memory_free(tree->key);
        memory_free(tree->text);
        memory_free(tree);
        tree = next;
    }
}

const Tree *tree_get(const Tree *object, const char *key) {
    if (object == NULL || object->kind != JSON_OBJECT_BEGIN) return NULL;
    for (const Tree *child = object->first; child != NULL; child = child->next)
        if (strcmp(child->key, key) == 0) return child;
    return NULL;
}

Status tree_string(const Tree *object, const char *key, const char *what, const Tree **out, Error *err) {
    const Tree *child = tree_get(object, key);
    if (child == NULL || child->kind != JSON_STRING)
        FAIL("%s: '%s': want a string, got %s", what, key, child ? json_kind_name(child->kind) : "nothing");
    if (child->length > TOKENIZER_CONTENT_LIMIT)
        FAIL("%s: '%s': want at most %d bytes, got %zu", what, key, TOKENIZER_CONTENT_LIMIT, child->length);
    *out = child;
    return OK;
}

Status tree_flag(const Tree *object, const char *key, int fallback, const char *what, int *out, Error *err) {
    const Tree *child = tree_get(object, key);
    *out = fallback;
    if (child == NULL || child->kind == JSON_NULL) return OK;
    if (child->kind != JSON_TRUE && child->kind != JSON_FALSE)
        FAIL("%s: '%s': want true or false, got %s", what, key, json_kind_name(child->kind));
    *out = child->kind == JSON_TRUE;
    return OK;
}

Status tree_count(const Tree *object, const char *key, int64_t maximum, const char *what, int64_t *out, Error *err) {
    const Tree *child = tree_get(object, key);
    if (child == NULL || child->kind != JSON_INTEGER || child->integer < 0 || child->integer > maximum)
        FAIL("%s: '%s': want an integer from 0 to %lld", what, key, (long long)maximum);
    *out = child->integer;
    return OK;
}
