/* The built-in templates against what the models' own Jinja sources render, and what belongs to an assistant's turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/json.h"
#include "data/template.h"

/* Made by tests/peers/template_renders.py; how to remake it stands there. */
#define GOLDEN "tests/golden/template_renders.json"
#define MAX_MESSAGES 8

typedef struct Case {
    char *name, *text; /* text NULL: the template refuses */
    int generation;
    ChatMessage messages[MAX_MESSAGES];
    int64_t count;
} Case;

static char *take_string(JsonReader *reader) {
    char *text = NULL;
    assert_int_equal(json_get_string(reader, "string", &text, NULL, NULL), OK);
    return text;
}

static void read_messages(JsonReader *reader, Case *c) {
    JsonToken token;
    assert_int_equal(json_expect(reader, JSON_ARRAY_BEGIN, "messages", &token, NULL), OK);
    while (json_next(reader, &token, NULL) == OK && token.kind == JSON_OBJECT_BEGIN) {
        assert_true(c->count < MAX_MESSAGES);
        assert_int_equal(json_expect(reader, JSON_KEY, "role", &token, NULL), OK);
        char *role = take_string(reader);
        assert_int_equal(json_expect(reader, JSON_KEY, "content", &token, NULL), OK);
        char *content = take_string(reader);
        c->messages[c->count++] = (ChatMessage){role, content, strlen(content), -1, NULL};
        assert_int_equal(json_expect(reader, JSON_OBJECT_END, "message", &token, NULL), OK);
    }
}

static void read_case(JsonReader *reader, Case *c) {
    JsonToken token;
    *c = (Case){0};
    while (json_next(reader, &token, NULL) == OK && token.kind == JSON_KEY) {
        if (json_key_is(&token, "template")) {
            c->name = take_string(reader);
        } else if (json_key_is(&token, "generation")) {
            assert_int_equal(json_get_bool(reader, "generation", &c->generation, NULL), OK);
        } else if (json_key_is(&token, "messages")) {
            read_messages(reader, c);
        } else {
            assert_true(json_key_is(&token, "text"));
            assert_int_equal(json_next(reader, &token, NULL), OK);
            if (token.kind == JSON_STRING) {
                c->text = memory_alloc(token.length + 1);
                memcpy(c->text, token.text, token.length);
                c->text[token.length] = 0;
            }
        }
    }
}

static void free_case(Case *c) {
    for (int64_t i = 0; i < c->count; i++) {
        memory_free((char *)c->messages[i].role);
        memory_free((char *)c->messages[i].content);
    }
    memory_free(c->name);
    memory_free(c->text);
}

static char *join(const SegmentList *list) {
    Text text = {0};
    text_add(&text, "", 0);
    for (int64_t i = 0; i < list->count; i++)
        text_add(&text, list->items[i].text, list->items[i].length);
    return text.data;
}

static void check_case(const Case *c) {
    SegmentList list = {0};
    Error error = {0};
    Status status = template_render(c->name, c->messages, c->count, c->generation, "<s>", "</s>", &list, &error);
    if (c->text == NULL) {
        assert_int_equal(status, ERR_FAILED);
        assert_non_null(strstr(error.text, "message"));
    } else if (c->text[0] == 0) {
        assert_int_equal(status, ERR_FAILED); /* llama2 drops a lone system message without a word; we say so */
    } else {
        assert_int_equal(status, OK);
        char *text = join(&list);
        assert_string_equal(text, c->text);
        memory_free(text);
    }
    segments_free(&list);
}

static void test_renders_like_jinja(void **state) {
    (void)state;
    char *json = NULL;
    size_t length = 0;
    Error error = {0};
    JsonReader reader;
    JsonToken token;
    int cases = 0;
    assert_int_equal(file_read(GOLDEN, 1 << 24, &json, &length, &error), OK);
    json_open(&reader, GOLDEN, json, length, 1, (JsonLimits){8, 1 << 20});
    assert_int_equal(json_expect(&reader, JSON_ARRAY_BEGIN, "cases", &token, &error), OK);
    while (json_next(&reader, &token, &error) == OK && token.kind == JSON_OBJECT_BEGIN) {
        Case c;
        read_case(&reader, &c);
        check_case(&c);
        free_case(&c);
        cases++;
    }
    assert_int_equal(cases, 9 * 10 * 2); /* templates, conversations, with and without generation prompt */
    json_close(&reader);
    memory_free(json);
}

static ChatMessage message(const char *role, const char *content) {
    return (ChatMessage){role, content, strlen(content), -1, NULL};
}

static void check_text(const char *name, const ChatMessage *messages, int64_t count, const char *want) {
    SegmentList list = {0};
    Error error = {0};
    assert_int_equal(template_render(name, messages, count, 0, "<s>", "</s>", &list, &error), OK);
    char *text = join(&list);
    assert_string_equal(text, want);
    memory_free(text);
    segments_free(&list);
}

/* The prompts of stanford_alpaca's train.py, with the answer directly behind "### Response:". */
static void test_alpaca(void **state) {
    (void)state;
    ChatMessage with[] = {message("user", "Add."), message("input", "1 2"), message("assistant", "3")};
    ChatMessage without[] = {message("user", "Sing."), message("assistant", "La")};
    ChatMessage empty[] = {message("user", "Sing."), message("input", ""), message("assistant", "La")};
    const char *plain =
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing.\n\n### Response:La";
    check_text(
        "alpaca", with, 3,
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:3");
    check_text("alpaca", without, 2, plain);
    check_text("alpaca", empty, 3, plain);
    check_text("plain", without, 2, "Sing.La");
}

static void refuse(const char *name, const ChatMessage *messages, int64_t count, const char *wanted) {
    SegmentList list = {0};
    Error error = {0};
    assert_int_equal(template_render(name, messages, count, 0, "", "", &list, &error), ERR_FAILED);
    if (strstr(error.text, wanted) == NULL) fail_msg("\"%s\" is not in: %s", wanted, error.text);
    segments_free(&list);
}

static void test_refusals(void **state) {
    (void)state;
    ChatMessage longer[] = {message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d")};
    ChatMessage system[] = {message("system", "s"), message("user", "u"), message("assistant", "a")};
    refuse("alpaca", longer, 4, "got 4 messages");
    refuse("alpaca", system, 3, "system message");
    refuse("alpaca", longer + 1, 1, "one user message");
    refuse("mistral", system, 3, "first user message");
    refuse("llama2", longer + 1, 3, "want \"user\"");
    refuse("chatty", longer, 2, "chatty");
    ChatMessage tool[] = {message("tool", "t")};
    refuse("chatml", tool, 1, "message 1 is a tool's result: the built-in template \"chatml\" has no form for tools");
    refuse("plain", tool, 1, "has no form for tools");
    refuse("llama3", tool, 1, "has no form for tools");
}

static void test_ends(void **state) {
    (void)state;
    ChatMessage pair[] = {message("user", "a"), message("assistant", "b")};
    for (int i = 0; template_names[i] != NULL; i++) {
        const char *name = template_names[i], *end = template_end_token(name);
        SegmentList list = {0};
        assert_int_equal(template_render(name, pair, 2, 0, "", "</s>", &list, NULL), OK);
        int found = 0;
        for (int64_t s = 0; s < list.count && end != NULL; s++)
            found += list.items[s].message == 1 && list.items[s].special &&
                     memmem(list.items[s].text, list.items[s].length, end, strlen(end)) != NULL;
        assert_int_equal(found, end != NULL);
        assert_int_equal(end == NULL, template_needs_eos(name));
        segments_free(&list);
    }
    assert_null(template_end_token("model"));
}

/* For every template: the assistant's segments are exactly the answer and its end of turn, content is never special
 * (but in "plain"), framing never belongs to a message. */
static void test_segments(void **state) {
    (void)state;
    static const struct {
        const char *name, *answer;
    } want[] = {{"chatml", "yes<|im_end|>"},
                {"qwen2.5", "yes<|im_end|>"},
                {"qwen2", "yes<|im_end|>"},
                {"smollm2", "yes<|im_end|>"},
                {"llama3", "yes<|eot_id|>"},
                {"llama3.1", "yes<|eot_id|>"},
                {"llama2", " yes </s>"},
                {"mistral", "yes</s>"},
                {"zephyr", "yes</s>"},
                {"alpaca", "yes"},
                {"plain", "yes"}};
    ChatMessage messages[] = {message("user", "no?"), message("assistant", "yes")};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        assert_string_equal(template_names[i], want[i].name);
        SegmentList list = {0};
        Text answer = {0};
        assert_int_equal(template_render(want[i].name, messages, 2, 0, "<s>", "</s>", &list, NULL), OK);
        for (int64_t s = 0; s < list.count; s++) {
            const Segment *g = &list.items[s];
            assert_int_equal(g->assistant, g->message == 1);
            assert_true(g->length > 0);
            if (g->assistant) text_add(&answer, g->text, g->length);
            int is_content = (g->length == 3 && (memcmp(g->text, "no?", 3) == 0 || memcmp(g->text, "yes", 3) == 0));
            if (is_content) assert_int_equal(g->special, strcmp(want[i].name, "plain") == 0);
            if (!g->special) assert_true(is_content && g->message >= 0);
        }
        assert_string_equal(answer.data, want[i].answer);
        assert_int_equal(template_appends_eos(want[i].name), i >= 9);
        text_free(&answer);
        segments_free(&list);
    }
    assert_null(template_names[sizeof want / sizeof want[0]]);
}

static void test_recognition(void **state) {
    (void)state;
    /* A published source, with its literals' line ends as escapes, as line ends, and in a file with CRLF. */
    const char *escaped =
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    Text lines = {0}, crlf = {0}, changed = {0};
    for (const char *p = escaped; *p != 0; p++) {
        int is_escape = p[0] == '\\' && p[1] == 'n';
        text_add(&lines, is_escape ? "\n" : p, 1);
        text_add(&crlf, is_escape ? "\r\n" : p, is_escape ? 2 : 1);
        text_add(&changed, *p == 'm' ? "n" : p, 1);
        p += is_escape;
    }
    text_adds(&crlf, "\r\n");
    assert_string_equal(template_recognise(escaped), "chatml");
    assert_string_equal(template_recognise(lines.data), "chatml");
    assert_string_equal(template_recognise(crlf.data), "chatml");
    assert_null(template_recognise(changed.data));
    assert_null(template_recognise(""));
    assert_null(template_recognise(NULL));
    assert_null(template_recognise("{{ bos_token }}{% for m in messages %}<|im_start|>{% endfor %}"));
    text_free(&lines);
    text_free(&crlf);
    text_free(&changed);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_renders_like_jinja), cmocka_unit_test(test_alpaca),
                                       cmocka_unit_test(test_refusals),           cmocka_unit_test(test_ends),
                                       cmocka_unit_test(test_segments),           cmocka_unit_test(test_recognition)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
