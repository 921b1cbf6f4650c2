/* Names of the built-in templates, segment lists, what messages are, and the recognition of published Jinja sources. */
#include "data/template.h"

#include <string.h>

#include "core/memory.h"

const char *const template_names[] = {"chatml", "qwen2.5", "qwen2",  "smollm2", "llama3", "llama3.1",
                                      "llama2", "mistral", "zephyr", "alpaca",  "plain",  NULL};

const char *const chat_field_names[CHAT_FIELDS] = {"name",     "tool_call_id", "tool_calls", "reasoning_content",
                                                   "thinking", "reasoning"};

int chat_is_result(const ChatMessage *message) {
    return strcmp(message->role, "tool") == 0 || strcmp(message->role, "function") == 0 ||
           strcmp(message->role, "ipython") == 0;
}

int chat_has_calls(const ChatMessage *message) {
    return message->extra != NULL && message->extra->fields[CHAT_CALLS].text != NULL;
}

int chat_uses_tools(const Conversation *conversation) {
    if (conversation->tools.text != NULL) return 1;
    for (int64_t i = 0; i < conversation->count; i++) {
        if (chat_is_result(&conversation->messages[i]) || chat_has_calls(&conversation->messages[i])) return 1;
    }
    return 0;
}

void segments_clear(SegmentList *list) {
    for (int64_t i = 0; i < list->count; i++)
        memory_free(list->items[i].text);
    list->count = 0;
}

void segments_free(SegmentList *list) {
    segments_clear(list);
    memory_free(list->items);
    *list = (SegmentList){0};
}

int template_exists(const char *name) {
    for (int i = 0; template_names[i] != NULL; i++) {
        if (strcmp(name, template_names[i]) == 0) return 1;
    }
    return 0;
}

int template_appends_eos(const char *name) {
    return strcmp(name, "alpaca") == 0 || strcmp(name, "plain") == 0;
}

int template_needs_eos(const char *name) {
    return template_appends_eos(name) || strcmp(name, "llama2") == 0 || strcmp(name, "mistral") == 0 ||
           strcmp(name, "zephyr") == 0;
}

const char *template_end_token(const char *name) {
    if (!template_exists(name) || template_needs_eos(name)) return NULL;
    return strncmp(name, "llama3", 6) == 0 ? "<|eot_id|>" : "<|im_end|>";
}

/* FNV-1a, 64 bits, over the source with CRLF as LF and without the one line end that Jinja drops at the end of a file. */
typedef struct SourceKey {
    uint64_t hash, length;
} SourceKey;

static SourceKey source_key(const char *jinja) {
    size_t length = strlen(jinja);
    if (length > 0 && jinja[length - 1] == '\n') length--;
    if (length > 0 && jinja[length - 1] == '\r') length--;
    SourceKey key = {UINT64_C(0xcbf29ce484222325), 0};
    for (size_t i = 0; i < length; i++) {
        if (jinja[i] == '\r' && i + 1 < length && jinja[i + 1] == '\n') continue;
        key.hash = (key.hash ^ (uint8_t)jinja[i]) * UINT64_C(0x100000001b3);
        key.length++;
    }
    return key;
}

/* Made by tests/peers/template_keys.py from the chat_template of: OpenHermes-2.5 and other ChatML models; Llama-2-chat;
 * Meta-Llama-3 and 3.1 Instruct; Mistral-7B-Instruct-v0.2; Qwen2 and Qwen2.5 Instruct; SmolLM2 Instruct; Zephyr and
 * TinyLlama chat. Most exist twice: with a line end, or with its escape, inside their string literals. */
static const struct {
    SourceKey key;
    const char *name;
} known_sources[] = {
    {{UINT64_C(0x773d13e188afc917), 291}, "chatml"},    {{UINT64_C(0x17fde6ecda9c7c01), 294}, "chatml"},
    {{UINT64_C(0x88bf4138d5c826f0), 196}, "chatml"},    {{UINT64_C(0xa41d6bae9b9141bc), 199}, "chatml"},
    {{UINT64_C(0x4d1512049817743d), 811}, "llama2"},    {{UINT64_C(0xf344eecf1bd3a427), 815}, "llama2"},
    {{UINT64_C(0x0e60067a5537498e), 389}, "llama3"},    {{UINT64_C(0x32844fd43eab01d2), 393}, "llama3"},
    {{UINT64_C(0xcc0368e1ffb6b958), 4613}, "llama3.1"}, {{UINT64_C(0x8c734b90b4f8d84d), 470}, "mistral"},
    {{UINT64_C(0x8a87094e0e1e24c5), 328}, "qwen2"},     {{UINT64_C(0x75e88977b2787cd7), 333}, "qwen2"},
    {{UINT64_C(0xe642ce246d7f2e3d), 2506}, "qwen2.5"},  {{UINT64_C(0x45ec583d4d25bc3a), 368}, "smollm2"},
    {{UINT64_C(0x09b5156a5cf6abfc), 373}, "smollm2"},   {{UINT64_C(0xcd8b49000db02c2c), 410}, "zephyr"},
    {{UINT64_C(0x0af6ea9cf9896e56), 413}, "zephyr"},
};

const char *template_recognise(const char *jinja) {
    if (jinja == NULL) return NULL;
    SourceKey key = source_key(jinja);
    for (size_t i = 0; i < sizeof known_sources / sizeof known_sources[0]; i++) {
        if (known_sources[i].key.hash == key.hash && known_sources[i].key.length == key.length) return known_sources[i].name;
    }
    return NULL;
}
