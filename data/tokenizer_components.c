/* The sections of tokenizer.json and what each may contain. */
#include <string.h>

#include "data/tokenizer_internal.h"

static const ComponentKind *const normalizers[] = {&normalizer_prepend,   &normalizer_replace, &normalizer_strip,
                                                   &normalizer_lowercase, &normalizer_nfc,     &normalizer_nfd,
                                                   &normalizer_nfkc,      &normalizer_nfkd,    NULL};
static const ComponentKind *const pre_tokenizers[] = {&pre_tokenizer_split,       &pre_tokenizer_digits,
                                                      &pre_tokenizer_punctuation, &pre_tokenizer_metaspace,
                                                      &pre_tokenizer_byte_level,  NULL};
static const ComponentKind *const post_processors[] = {&post_processor_byte_level, &post_processor_template, NULL};
static const ComponentKind *const decoders[] = {
    &decoder_byte_level, &decoder_replace, &decoder_byte_fallback, &decoder_fuse, &decoder_strip, &decoder_metaspace, NULL};

const Section section_normalizer = {"normalizer", "normalizers", normalizers};
const Section section_pre_tokenizer = {"pre_tokenizer", "pretokenizers", pre_tokenizers};
const Section section_post_processor = {"post_processor", "processors", post_processors};
const Section section_decoder = {"decoder", "decoders", decoders};

static Status parse_one(Components *components, const Section *section, const Tree *json, const char *type, Error *err) {
    for (size_t i = 0; section->kinds[i] != NULL; i++) {
        const ComponentKind *kind = section->kinds[i];
        if (strcmp(kind->type, type) != 0) continue;
        if (components->count == TOKENIZER_STEPS)
            FAIL("%s: want at most %d components, got more", section->name, TOKENIZER_STEPS);
        Component *component = &components->list[components->count++];
        *component = (Component){.kind = kind};
        return kind->parse ? kind->parse(&component->state, json, err) : OK;
    }
    Text known = {0};
    for (size_t i = 0; section->kinds[i] != NULL; i++)
        text_addf(&known, ", %s", section->kinds[i]->type);
    error_set(err, ERR_FAILED, "%s: the type '%.80s' is not supported; supported: Sequence%s", section->name, type, known.data);
    text_free(&known);
    return ERR_FAILED;
}

/* Recursion is bounded by the JSON reader's depth. */
Status components_parse(Components *components, const Section *section, const Tree *json, Error *err) {
    if (json == NULL || json->kind == JSON_NULL) return OK;
    if (json->kind != JSON_OBJECT_BEGIN) FAIL("%s: want an object or null, got %s", section->name, json_kind_name(json->kind));
    const Tree *type;
    TRY(tree_string(json, "type", section->name, &type, err));
    if (strcmp(type->text, "Sequence") != 0) return parse_one(components, section, json, type->text, err);
    const Tree *children = tree_get(json, section->children);
    if (children == NULL || children->kind != JSON_ARRAY_BEGIN)
        FAIL("%s: Sequence: '%s': want a list", section->name, section->children);
    for (const Tree *child = children->first; child != NULL; child = child->next) {
        if (child->kind != JSON_OBJECT_BEGIN)
            FAIL("%s: Sequence: want objects, got %s", section->name, json_kind_name(child->kind));
        TRY(components_parse(components, section, child, err));
    }
    return OK;
}

void components_free(Components *components) {
    for (size_t i = 0; i < components->count; i++)
        if (components->list[i].kind->close && components->list[i].state)
            components->list[i].kind->close(components->list[i].state);
    components->count = 0;
}
