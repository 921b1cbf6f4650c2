/* Post-processors: what is put around a text. ByteLevel only trims offsets in the reference; here they stay whole. */
#include <string.h>

#include "core/memory.h"
#include "data/tokenizer_internal.h"

static Status byte_level_process(const void *state, Surround *around, Error *err) {
    (void)state;
    (void)around;
    (void)err;
    return OK;
}

const ComponentKind post_processor_byte_level = {.type = "ByteLevel", .process = byte_level_process};

/* ---- TemplateProcessing: "single" is a list with the text at one place; "pair" is for two texts and not used ---- */
#define TEMPLATE_IDS 256

static const char what[] = "post_processor: TemplateProcessing";

static void ids_add(int32_t **ids, size_t *count, int32_t id) {
    *ids = memory_resize(*ids, (*count + 1) * sizeof **ids);
    (*ids)[(*count)++] = id;
}

void surround_add(Surround *around, int32_t id, int after) {
    if (after)
        ids_add(&around->after, &around->after_count, id);
    else
        ids_add(&around->before, &around->before_count, id);
}

static void template_close(void *state) {
    Surround *own = state;
    memory_free(own->before);
    memory_free(own->after);
    memory_free(own);
}

static Status add_special(Surround *own, const Tree *json, const Tree *special, int after, Error *err) {
    const Tree *name;
    TRY(tree_string(special, "id", what, &name, err));
    const Tree *ids = tree_get(tree_get(tree_get(json, "special_tokens"), name->text), "ids");
    if (ids == NULL || ids->kind != JSON_ARRAY_BEGIN) FAIL("%s: '%.80s' is not in special_tokens", what, name->text);
    for (const Tree *id = ids->first; id != NULL; id = id->next) {
        if (id->kind != JSON_INTEGER || id->integer < 0 || id->integer >= TOKENIZER_ID_LIMIT)
            FAIL("%s: special_tokens: '%.80s': want ids from 0 to %lld", what, name->text, (long long)TOKENIZER_ID_LIMIT - 1);
        if (own->before_count + own->after_count == TEMPLATE_IDS) FAIL("%s: want at most %d ids", what, TEMPLATE_IDS);
        if (after)
            ids_add(&own->after, &own->after_count, (int32_t)id->integer);
        else
            ids_add(&own->before, &own->before_count, (int32_t)id->integer);
    }
    return OK;
}

static Status template_parse(void **state, const Tree *json, Error *err) {
    Surround *own = *state = memory_calloc(1, sizeof *own);
    const Tree *single = tree_get(json, "single");
    if (single == NULL || single->kind != JSON_ARRAY_BEGIN) FAIL("%s: 'single': want a list", what);
    int seen = 0;
    for (const Tree *item = single->first; item != NULL; item = item->next) {
        const Tree *sequence = tree_get(item, "Sequence"), *special = tree_get(item, "SpecialToken"), *id;
        if (special != NULL) {
            TRY(add_special(own, json, special, seen, err));
            continue;
        }
        TRY(tree_string(sequence, "id", what, &id, err));
        if (strcmp(id->text, "A") != 0 || seen) FAIL("%s: 'single': want the sequence A once", what);
        seen = 1;
    }
    if (!seen) FAIL("%s: 'single': want the sequence A once, got none", what);
    return OK;
}

/* Outside of what earlier post-processors put there. */
static Status template_process(const void *state, Surround *around, Error *err) {
    const Surround *own = state;
    (void)err;
    for (size_t i = 0; i < own->before_count; i++)
        ids_add(&around->before, &around->before_count, 0);
    if (own->before_count) {
        memmove(around->before + own->before_count, around->before,
                (around->before_count - own->before_count) * sizeof *around->before);
        memcpy(around->before, own->before, own->before_count * sizeof *own->before);
    }
    for (size_t i = 0; i < own->after_count; i++)
        ids_add(&around->after, &around->after_count, own->after[i]);
    return OK;
}

const ComponentKind post_processor_template = {
    .type = "TemplateProcessing", .parse = template_parse, .close = template_close, .process = template_process};
