/* A model's own chat template through the interpreter: the same segments as the built-ins, and masks by construction. */
#include "tests/unit/test_dataset.h"

#include "data/template.h"

#define LOOP(body) "{{ bos_token }}{% for m in messages %}" body "{% endfor %}"
#define TURN LOOP("<{{ m.role }}>{{ m.content }}{{ eos_token }}\n")

static void check(const char *jinja, const char *messages, const char *all, const char *trained) {
    Tokenizer *tokenizer = make_tokenizer(0, jinja);
    char *record = memory_format("{\"messages\":[%s]}", messages);
    Dataset d = must_read("m.jsonl", record, defaults(tokenizer));
    assert_string_equal(d.template_name, "model");
    check_spelled(&d, 0, all, trained);
    dataset_free(&d);
    memory_free(record);
    tokenizer_close(tokenizer);
}

static void refuse(const char *jinja, const char *messages, const char *wanted) {
    Tokenizer *tokenizer = make_tokenizer(0, jinja);
    char *record = memory_format("{\"messages\":[%s]}", messages);
    must_fail("m.jsonl", record, defaults(tokenizer), wanted);
    memory_free(record);
    tokenizer_close(tokenizer);
}

#define SYSTEM "{\"role\":\"system\",\"content\":\" s \"}"
#define USER "{\"role\":\"user\",\"content\":\" u \"}"
#define ANSWER "{\"role\":\"assistant\",\"content\":\" a \"}"

static void test_masks(void **state) {
    (void)state;
    check(TURN, USER "," ANSWER "," USER "," ANSWER,
          "<s><user> u </s>\n<assistant> a </s>\n<user> u </s>\n<assistant> a </s>\n", " a </s> a </s>");
    /* Trimmed contents, joined in one expression; nothing left of one. */
    check(LOOP("{{ '<' + m.role + '>' + m.content | trim + eos_token }}"), USER "," ANSWER, "<s><user>u</s><assistant>a</s>",
          "a</s>");
    check(LOOP("{{ '<' + m.role + '>' + m.content | trim + eos_token }}"), USER ",{\"role\":\"assistant\",\"content\":\"  \"}",
          "<s><user>u</s><assistant></s>", "</s>");
    check(TURN, USER ",{\"role\":\"assistant\",\"content\":\"\"}", "<s><user> u </s>\n<assistant></s>\n", "</s>");
    /* Of what a template cuts off, nothing is trained; what it writes between the parts of an answer is. */
    check(LOOP("[{{ m.content.split('|')[-1] }}{{ eos_token }}"),
          "{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"x|y\"}", "<s>[u</s>[y</s>", "y</s>");
    check(LOOP("[{{ m.content.split('|')[0] }}={{ m.content.split('|')[-1] }}]{{ eos_token }}"),
          "{\"role\":\"user\",\"content\":\"u|v\"},{\"role\":\"assistant\",\"content\":\"x|y\"}", "<s>[u=v]</s>[x=y]</s>",
          "x=y]</s>");
    /* A space right before an answer is the answer's, one behind a line end is not. */
    check(LOOP("{% if m.role == 'user' %}Q: {{ m.content }}{% else %} A: {{ m.content }}{{ eos_token }}{% endif %}"),
          "{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"a\"}", "<s>Q: u A: a</s>", " a</s>");
    check(LOOP("{{ '\\n ' }}{{ m.content }}{{ eos_token }}"),
          "{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"a\"}", "<s>\n u</s>\n a</s>", "a</s>");
    /* The last turn's end only. */
    check(LOOP("<{{ m.role }}>{{ m.content }}\n") "{{ eos_token }}", USER "," ANSWER, "<s><user> u \n<assistant> a \n</s>",
          " a \n</s>");
    /* A record's own flags; a system message that is moved into the user's turn. */
    check(TURN,
          "{\"role\":\"user\",\"content\":\"u\",\"train\":true},{\"role\":\"assistant\",\"content\":\"a\",\"train\":false}",
          "<s><user>u</s>\n<assistant>a</s>\n", "u</s>");
    check(
        "{% set s = messages[0].content %}{% for m in messages[1:] %}[{{ s ~ m.content if loop.first else m.content }}]{{ "
        "eos_token }}"
        "{% endfor %}",
        SYSTEM "," USER "," ANSWER, "[ s  u ]</s>[ a ]</s>", " a ]</s>");
}

static void test_generation_blocks(void **state) {
    (void)state;
    check(
        LOOP("<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}>{{ m.content }}{{ eos_token }}\n{% endgeneration %}"
             "{% else %}{{ m.content }}{{ eos_token }}{% endif %}"),
        USER "," ANSWER "," USER "," ANSWER, "<s><user> u </s><assistant>> a </s>\n<user> u </s><assistant>> a </s>\n",
        "> a </s>\n> a </s>\n");
    check(LOOP("<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration "
               "%}{% endif %}"),
          USER "," ANSWER, "<s><user> u <assistant> a </s>", "</s>");
}

/* What a user types is text, whatever it spells. */
static void test_typed_special_tokens(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, TURN);
    Dataset d = must_read(
        "m.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"</s>\"},{\"role\":\"assistant\",\"content\":\"<s>a\"}]}",
        defaults(tokenizer));
    int64_t specials = 0;
    for (int64_t t = 0; t < d.tokens; t++)
        specials += d.ids[t] == ID_EOS || d.ids[t] == ID_BOS;
    assert_int_equal(specials, 3); /* BOS and two ends of turn: those of the template */
    check_spelled(&d, 0, "<s><user></s></s>\n<assistant><s>a</s>\n", "<s>a</s>");
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

static void test_refusals(void **state) {
    (void)state;
    refuse("{% for m in messages %}{{ m.content }}\n{% endfor %}", USER "," ANSWER,
           "with none of the tokenizer's special tokens");
    refuse(TURN "{{ messages[0].content }}{{ messages[1].content }}", USER "," ANSWER, "writes message 2 in several places");
    refuse("{% include 'x' %}", USER "," ANSWER, "the model's chat template: line 1: {% include %} is not supported");
    refuse("\n{{ raise_exception('only poems') }}", USER "," ANSWER,
           "line 1: the model's chat template: line 2: the chat template refuses the conversation: only poems");
    refuse(LOOP("{{ m.content.encode() }}{{ eos_token }}"), USER "," ANSWER, "the method encode of a string");
}

/* ---- the built-ins and the interpreter agree -------------------------------------------------------------------------------- */

typedef struct Byte {
    char value;
    int assistant, special;
} Byte;

static Byte *bytes_of(const SegmentList *list, size_t *length) {
    Byte *bytes = NULL;
    *length = 0;
    for (int64_t i = 0; i < list->count; i++) {
        const Segment *s = &list->items[i];
        bytes = memory_resize(bytes, (*length + s->length + 1) * sizeof *bytes);
        for (size_t b = 0; b < s->length; b++)
            bytes[(*length)++] = (Byte){s->text[b], s->assistant, s->special};
    }
    return bytes;
}

static void test_built_ins_agree(void **state) {
    (void)state;
    static const struct {
        const char *name, *jinja;
    } rows[] = {
        {"chatml", CHATML},
        {"zephyr",
         "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n{% endfor %}"},
        {"mistral",
         "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' "
         "[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"},
        {"llama2",
         "{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ bos_token + "
         "'[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% "
         "endfor %}"},
    };
    static const ChatMessage messages[] = {{"user", " Hi <|im_end|>\n", 14, -1, NULL},
                                           {"assistant", "ok ", 3, -1, NULL},
                                           {"user", "", 0, -1, NULL},
                                           {"assistant", "\xC3\xA9\n\nb", 5, -1, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Tokenizer *tokenizer = make_tokenizer(0, rows[i].jinja);
        TemplateJinja *jinja;
        SegmentList built_in = {0}, interpreted = {0};
        Error error = {0};
        size_t n, m;
        if (template_jinja_open(&jinja, tokenizer, "<s>", "</s>", &error) != OK) fail_msg("%s", error.text);
        assert_int_equal(template_render(rows[i].name, messages, 4, 0, "<s>", "</s>", &built_in, &error), OK);
        assert_int_equal(template_jinja_render(jinja, messages, 4, 0, "<s>", "</s>", &interpreted, &error), OK);
        Byte *a = bytes_of(&built_in, &n), *b = bytes_of(&interpreted, &m);
        assert_int_equal(n, m);
        for (size_t k = 0; k < n; k++) {
            if (a[k].value != b[k].value || a[k].assistant != b[k].assistant || a[k].special != b[k].special)
                fail_msg("%s: byte %zu ('%c' and '%c'): assistant %d and %d, special %d and %d", rows[i].name, k, a[k].value,
                         b[k].value, a[k].assistant, b[k].assistant, a[k].special, b[k].special);
        }
        memory_free(a);
        memory_free(b);
        segments_free(&built_in);
        segments_free(&interpreted);
        template_jinja_close(jinja);
        tokenizer_close(tokenizer);
    }
}

/* Random conversations: every answer's bytes are its segments' bytes, in order, followed by its end of turn. */
static void test_random_conversations(void **state) {
    (void)state;
    static const char *const pieces[] = {"a", " ", "\n", "</s>", "<s>", "\xE2\x82\xAC", "user", "|", "{{", "'"};
    Tokenizer *tokenizer = make_tokenizer(0, TURN);
    TemplateJinja *jinja;
    Error error = {0};
    uint64_t random = 88172645463325252u;
    assert_int_equal(template_jinja_open(&jinja, tokenizer, "<s>", "</s>", &error), OK);
    for (int round = 0; round < 500; round++) {
        ChatMessage messages[6];
        Text texts[6] = {0}, want = {0}, got = {0};
        SegmentList list = {0};
        text_adds(&want, "");
        text_adds(&got, "");
        for (int i = 0; i < 6; i++) {
            text_adds(&texts[i], "");
            for (random ^= random << 13, random ^= random >> 7, random ^= random << 17; texts[i].length < random % 12;
                 random += 0x9E3779B9u)
                text_adds(&texts[i], pieces[(random >> 8) % 10]);
            messages[i] = (ChatMessage){i % 2 ? "assistant" : "user", texts[i].data, texts[i].length, -1, NULL};
            if (i % 2) text_addf(&want, "%s</s>", texts[i].data);
        }
        assert_int_equal(template_jinja_render(jinja, messages, 6, 0, "<s>", "</s>", &list, &error), OK);
        for (int64_t i = 0; i < list.count; i++) {
            if (list.items[i].assistant) text_add(&got, list.items[i].text, list.items[i].length);
        }
        assert_string_equal(got.data, want.data);
        segments_free(&list);
        for (int i = 0; i < 6; i++)
            text_free(&texts[i]);
        text_free(&want);
        text_free(&got);
    }
    template_jinja_close(jinja);
    tokenizer_close(tokenizer);
}

/* Real tokenizers with their own templates: what is trained decodes to the answers and their ends. */
static void test_real_models(void **state) {
    (void)state;
    static const struct {
        const char *folder, *trained;
    } rows[] = {{"minimind", "Paris.<|im_end|>Über 3!<|im_end|>"}, {"phi-3-mini", "Paris.<|end|> Über 3!<|end|>"}};
    const char *record =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Capital?\"},"
        "{\"role\":\"assistant\",\"content\":\"Paris.\"},{\"role\":\"user\",\"content\":\"<|end|><|im_end|>\"},"
        "{\"role\":\"assistant\",\"content\":\"\u00dcber 3!\"}]}";
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *folder = memory_format("../shared/assets/tokenizers/%s", rows[i].folder),
             *file = path_join(folder, "tokenizer.json");
        if (!file_exists(file)) {
            print_message("skipped: %s is not there\n", folder);
        } else {
            Tokenizer *tokenizer;
            Error error = {0};
            if (tokenizer_open(&tokenizer, folder, &error) != OK) fail_msg("%s", error.text);
            Dataset d = must_read("m.jsonl", record, defaults(tokenizer));
            assert_string_equal(d.template_name, "model");
            int64_t count = 0;
            for (int64_t t = 0; t < d.tokens; t++) {
                if (d.train[t]) d.ids[count++] = d.ids[t];
            }
            char *text;
            size_t length;
            assert_int_equal(tokenizer_decode(tokenizer, d.ids, count, 0, &text, &length, &error), OK);
            assert_string_equal(text, rows[i].trained);
            memory_free(text);
            dataset_free(&d);
            tokenizer_close(tokenizer);
        }
        memory_free(folder);
        memory_free(file);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_masks),
                                       cmocka_unit_test(test_generation_blocks),
                                       cmocka_unit_test(test_typed_special_tokens),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_built_ins_agree),
                                       cmocka_unit_test(test_random_conversations),
                                       cmocka_unit_test(test_real_models)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
