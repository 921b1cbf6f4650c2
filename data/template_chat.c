/* The built-in templates, as text.
 *
 *   chatml    <|im_start|>ROLE\n CONTENT <|im_end|>\n                  for every message
 *   qwen2.5, qwen2, smollm2   chatml, with the model's own system message in front when there is none
 *   llama3    BOS, then <|start_header_id|>ROLE<|end_header_id|>\n\n TRIMMED <|eot_id|>   for every message
 *   llama3.1  llama3, but always a system block that opens with two dates (today's pinned to "26 Jul 2024", the
 *             template's own default, so that a run can be repeated)
 *   llama2    BOS [INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nUSER [/INST] ANSWER EOS, BOS before every user turn
 *   mistral   BOS, then [INST] USER [/INST]ANSWER EOS   (v0.1 and v0.2; no system message)
 *   zephyr    <|ROLE|>\n CONTENT EOS \n                  for every message
 *   alpaca    Stanford's two prompts; the answer follows "### Response:" directly
 *   plain     the contents one after another
 *
 * What a model has to produce, its end of turn included, belongs to the message; the header that opens a turn and the
 * line end after it are framing. llama2's space before an answer belongs to the answer: a SentencePiece tokenizer makes
 * it part of the answer's first token.
 * Sources: formats of the models' published chat templates; stanford_alpaca train.py for alpaca.
 */
#include <string.h>

#include "core/memory.h"
#include "core/text.h"
#include "data/template.h"

#define FRAMING (-1)

typedef struct Render {
    SegmentList *out;
    const ChatMessage *messages;
    int64_t count;
    int generation;
    const char *bos, *eos;
    const char *detail; /* the family's parameter: a default system message */
} Render;

static void add(Render *r, const char *text, size_t length, int64_t message, int special) {
    if (length == 0) return;
    SegmentList *list = r->out;
    if (list->count == list->capacity) {
        list->capacity = list->capacity < 16 ? 16 : list->capacity * 2;
        list->items = memory_resize(list->items, (size_t)list->capacity * sizeof *list->items);
    }
    char *copy = memory_alloc(length);
    memcpy(copy, text, length);
    int assistant = message >= 0 && strcmp(r->messages[message].role, "assistant") == 0;
    list->items[list->count++] =
        (Segment){.text = copy, .length = length, .assistant = assistant, .message = (int)message, .special = special};
}

static void control(Render *r, int64_t message, const char *text) {
    add(r, text, strlen(text), message, 1);
}

static void content(Render *r, int64_t i) {
    add(r, r->messages[i].content, r->messages[i].content_length, i, 0);
}

static int role_is(const Render *r, int64_t i, const char *role) {
    return strcmp(r->messages[i].role, role) == 0;
}

static int python_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* Python's str.strip (Jinja's trim): Unicode white space off both ends. */
static void strip(const char **text, size_t *length) {
    const char *p = *text;
    size_t n = *length;
    uint32_t code = 0;
    for (int size; n > 0 && (size = utf8_decode(p, n, &code)) > 0 && python_space(code);) {
        p += size;
        n -= (size_t)size;
    }
    while (n > 0) {
        size_t back = 1;
        while (back < 4 && back < n && ((uint8_t)p[n - back] & 0xC0) == 0x80)
            back++;
        if (utf8_decode(p + n - back, back, &code) != (int)back || !python_space(code)) break;
        n -= back;
    }
    *text = p;
    *length = n;
}

static void stripped_content(Render *r, int64_t i) {
    const char *text = r->messages[i].content;
    size_t length = r->messages[i].content_length;
    strip(&text, &length);
    add(r, text, length, i, 0);
}

static Status want_chat_roles(const Render *r, const char *name, Error *err) {
    for (int64_t i = 0; i < r->count; i++) {
        if (!role_is(r, i, "system") && !role_is(r, i, "user") && !role_is(r, i, "assistant")) {
            FAIL("message %lld has the role \"%s\": the template \"%s\" knows system, user and assistant", (long long)i + 1,
                 r->messages[i].role, name);
        }
    }
    return OK;
}

/* user, assistant, user, ... from message `first` on. */
static Status want_alternation(const Render *r, const char *name, int64_t first, Error *err) {
    for (int64_t i = first; i < r->count; i++) {
        const char *want = (i - first) % 2 == 0 ? "user" : "assistant";
        if (!role_is(r, i, want)) {
            FAIL(
                "message %lld has the role \"%s\", but the template \"%s\" takes user and assistant in turn (want \"%s\" "
                "here%s)",
                (long long)i + 1, r->messages[i].role, name, want,
                role_is(r, i, "system") ? "; put the system text into the first user message" : "");
        }
    }
    return OK;
}

static Status render_chatml(Render *r, const char *name, Error *err) {
    TRY(want_chat_roles(r, name, err));
    if (r->detail != NULL && (r->count == 0 || !role_is(r, 0, "system"))) {
        control(r, FRAMING, "<|im_start|>system\n");
        control(r, FRAMING, r->detail);
        control(r, FRAMING, "<|im_end|>\n");
    }
    for (int64_t i = 0; i < r->count; i++) {
        control(r, FRAMING, "<|im_start|>");
        control(r, FRAMING, r->messages[i].role);
        control(r, FRAMING, "\n");
        content(r, i);
        control(r, i, "<|im_end|>");
        control(r, FRAMING, "\n");
    }
    if (r->generation) control(r, FRAMING, "<|im_start|>assistant\n");
    return OK;
}

static void llama3_header(Render *r, const char *role) {
    control(r, FRAMING, "<|start_header_id|>");
    control(r, FRAMING, role);
    control(r, FRAMING, "<|end_header_id|>\n\n");
}

static Status render_llama3(Render *r, const char *name, Error *err) {
    TRY(want_chat_roles(r, name, err));
    control(r, FRAMING, r->bos);
    int64_t first = 0;
    if (r->detail != NULL) {
        llama3_header(r, "system");
        control(r, FRAMING, r->detail);
        if (r->count > 0 && role_is(r, 0, "system")) stripped_content(r, first++);
        control(r, first > 0 ? 0 : FRAMING, "<|eot_id|>");
    }
    for (int64_t i = first; i < r->count; i++) {
        llama3_header(r, r->messages[i].role);
        stripped_content(r, i);
        control(r, i, "<|eot_id|>");
    }
    if (r->generation) llama3_header(r, "assistant");
    return OK;
}

/* The template strips system block and user text as one string, so after a system block only the right end is stripped. */
static void llama2_first_user(Render *r, int64_t i) {
    const char *text = r->messages[i].content, *end;
    size_t length = r->messages[i].content_length, rest;
    strip(&text, &length);
    end = text + length;
    text = r->messages[i].content;
    rest = length == 0 ? 0 : (size_t)(end - text);
    control(r, FRAMING, "<<SYS>>\n");
    content(r, 0);
    control(r, FRAMING, rest == 0 ? "\n<</SYS>>" : "\n<</SYS>>\n\n");
    add(r, text, rest, i, 0);
}

static Status render_llama2(Render *r, const char *name, Error *err) {
    int64_t first = r->count > 0 && role_is(r, 0, "system") ? 1 : 0;
    TRY(want_alternation(r, name, first, err));
    if (first == 1 && r->count == 1)
        FAIL("the conversation has only a system message; the template \"%s\" wants a user message", name);
    for (int64_t i = first; i < r->count; i++) {
        if (role_is(r, i, "user")) {
            control(r, FRAMING, r->bos);
            control(r, FRAMING, "[INST] ");
            if (first == 1 && i == 1) {
                llama2_first_user(r, i);
            } else {
                stripped_content(r, i);
            }
            control(r, FRAMING, " [/INST]");
        } else {
            control(r, i, " ");
            stripped_content(r, i);
            control(r, i, " ");
            control(r, i, r->eos);
        }
    }
    return OK;
}

static Status render_mistral(Render *r, const char *name, Error *err) {
    TRY(want_alternation(r, name, 0, err));
    control(r, FRAMING, r->bos);
    for (int64_t i = 0; i < r->count; i++) {
        if (role_is(r, i, "user")) {
            control(r, FRAMING, "[INST] ");
            content(r, i);
            control(r, FRAMING, " [/INST]");
        } else {
            content(r, i);
            control(r, i, r->eos);
        }
    }
    return OK;
}

static Status render_zephyr(Render *r, const char *name, Error *err) {
    TRY(want_chat_roles(r, name, err));
    for (int64_t i = 0; i < r->count; i++) {
        control(r, FRAMING, "<|");
        control(r, FRAMING, r->messages[i].role);
        control(r, FRAMING, "|>\n");
        content(r, i);
        control(r, i, r->eos);
        control(r, FRAMING, "\n");
    }
    if (r->generation) control(r, FRAMING, "<|assistant|>\n");
    return OK;
}

static Status render_alpaca(Render *r, const char *name, Error *err) {
    int64_t i = 0;
    int has_user = i < r->count && role_is(r, i, "user");
    if (has_user) i++;
    int has_input = has_user && i < r->count && role_is(r, i, "input");
    if (has_input) i++;
    int has_answer = has_user && i < r->count && role_is(r, i, "assistant");
    if (has_answer) i++;
    if (!has_user || i != r->count) {
        FAIL(
            "the template \"%s\" is one user message and one answer, got %lld messages%s; choose a chat template such as "
            "\"chatml\" in data.template for system messages and longer conversations",
            name, (long long)r->count, r->count > 0 && role_is(r, 0, "system") ? " that begin with a system message" : "");
    }
    if (has_input && r->messages[1].content_length == 0) has_input = 0;
    control(r, FRAMING,
            has_input
                ? "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
                  "response that appropriately completes the request.\n\n### Instruction:\n"
                : "Below is an instruction that describes a task. Write a response that appropriately completes the request."
                  "\n\n### Instruction:\n");
    content(r, 0);
    if (has_input) {
        control(r, FRAMING, "\n\n### Input:\n");
        content(r, 1);
    }
    control(r, FRAMING, "\n\n### Response:");
    if (has_answer) content(r, r->count - 1);
    return OK;
}

/* No framing of its own: whatever special tokens stand in the contents were put there by who wrote the data. */
static Status render_plain(Render *r, const char *name, Error *err) {
    (void)name;
    (void)err;
    for (int64_t i = 0; i < r->count; i++)
        add(r, r->messages[i].content, r->messages[i].content_length, i, 1);
    return OK;
}

static const struct {
    const char *name;
    Status (*render)(Render *r, const char *name, Error *err);
    const char *detail;
} templates[] = {
    {"chatml", render_chatml, NULL},
    {"qwen2.5", render_chatml, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {"qwen2", render_chatml, "You are a helpful assistant."},
    {"smollm2", render_chatml, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {"llama3", render_llama3, NULL},
    {"llama3.1", render_llama3, "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"},
    {"llama2", render_llama2, NULL},
    {"mistral", render_mistral, NULL},
    {"zephyr", render_zephyr, NULL},
    {"alpaca", render_alpaca, NULL},
    {"plain", render_plain, NULL},
};

static Status refuse_tools(const char *name, const ChatMessage *messages, int64_t count, Error *err) {
    for (int64_t i = 0; i < count; i++) {
        int calls = chat_has_calls(&messages[i]);
        if (!calls && !chat_is_result(&messages[i])) continue;
        FAIL(
            "message %lld is %s: the built-in template \"%s\" has no form for tools; set data.template to \"auto\" with a "
            "model "
            "whose own chat template has one",
            (long long)i + 1, calls ? "a call of tools" : "a tool's result", name);
    }
    return OK;
}

Status template_render(const char *name, const ChatMessage *messages, int64_t count, int add_generation_prompt, const char *bos,
                       const char *eos, SegmentList *out, Error *err) {
    for (size_t i = 0; i < sizeof templates / sizeof templates[0]; i++) {
        if (strcmp(templates[i].name, name) != 0) continue;
        TRY(refuse_tools(name, messages, count, err));
        Render render = {.out = out,
                         .messages = messages,
                         .count = count,
                         .generation = add_generation_prompt,
                         .bos = bos,
                         .eos = eos,
                         .detail = templates[i].detail};
        return templates[i].render(&render, name, err);
    }
    FAIL("there is no built-in template \"%s\"", name);
}
