/* Data sets with tools: definitions, calls and results in every spelling, what is trained of them, and what is refused. */
#include "tests/unit/test_dataset.h"

#define ASSETS "../shared/assets/"

/* Definitions in front; a call is framed by text, its end of turn is that of any answer. */
#define TOOL_TEMPLATE                                                                                                        \
    "{% if tools %}<s>{{ tools | tojson }}</s>{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"       \
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call {{ c.function.name }} {{ c.function.arguments | tojson }}>" \
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

#define TURN(role, text) "<|im_start|>" role "\n" text "<|im_end|>\n"
#define USER "{\"role\":\"user\",\"content\":\"u\"}"
#define CALL "{\"id\":\"1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":{\"a\": 1}}}"
#define RESULT "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"name\":\"f\",\"content\":\"r\"}"
#define ANSWER "{\"role\":\"assistant\",\"content\":\"a\"}"
#define TOOLS "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
#define TOOLS_SHOWN "<s>[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]</s>"
#define CALLED "<call f {\"a\": 1}>"

static void check_with(DatasetOptions options, const char *record, const char *all, const char *trained) {
    Dataset d = must_read("t.jsonl", record, options);
    check_spelled(&d, 0, all, trained);
    assert_int_equal(d.with_tools, 1);
    dataset_free(&d);
}

/* One conversation: a question, a call, its result, an answer. */
static void test_spellings_agree(void **state) {
    (void)state;
    static const char *const records[] = {
        "{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[" CALL "]}," RESULT "," ANSWER
        "],\"tools\":" TOOLS "}",
        "{\"tools\":\"[{\\\"type\\\":\\\"function\\\",\\\"function\\\":{\\\"name\\\":\\\"f\\\"}}]\",\"messages\":[" USER
        ",{\"tool_calls\":[" CALL "],\"role\":\"assistant\",\"content\":\"\"}," RESULT "," ANSWER "]}",
        "{\"messages\":[" USER
        ",{\"role\":\"assistant\",\"tool_calls\":\"[{\\\"function\\\":{\\\"arguments\\\":{\\\"a\\\":1},"
        "\\\"name\\\":\\\"f\\\"}}]\"},{\"role\":\"tool\",\"content\":\"r\"}," ANSWER "],\"tools\":" TOOLS "}",
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"u\"},{\"from\":\"function_call\",\"value\":\"{\\\"name\\\":"
        "\\\"f\\\","
        "\\\"arguments\\\":{\\\"a\\\": 1}}\"},{\"from\":\"observation\",\"value\":\"r\"},{\"from\":\"gpt\",\"value\":\"a\"}],"
        "\"tools\":\"[{\\\"name\\\": \\\"f\\\"}]\"}",
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"u\"},{\"from\":\"tool_call\",\"value\":\"[{\\\"name\\\":\\\"f\\\","
        "\\\"arguments\\\":{\\\"a\\\": 1}}]\"},{\"from\":\"function_response\",\"value\":\"r\"},{\"from\":\"gpt\",\"value\":"
        "\"a\"}],\"system\":\"\",\"tools\":[{\"name\": \"f\"}]}",
    };
    Tokenizer *tokenizer = make_tokenizer(0, TOOL_TEMPLATE);
    for (size_t i = 0; i < sizeof records / sizeof records[0]; i++)
        check_with(defaults(tokenizer), records[i],
                   TOOLS_SHOWN TURN("user", "u") TURN("assistant", CALLED) TURN("tool", "r") TURN("assistant", "a"),
                   CALLED "<|im_end|>a<|im_end|>");
    tokenizer_close(tokenizer);
}

#define CALLING(more) "{\"role\":\"assistant\"," more "\"tool_calls\":[" CALL "]}"
#define RECORD(call) "{\"messages\":[" USER "," call "," RESULT "," ANSWER "]}"
#define SHOWN(call) TURN("user", "u") TURN("assistant", call) TURN("tool", "r") TURN("assistant", "a")

static void test_what_is_trained(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, TOOL_TEMPLATE);
    DatasetOptions options = defaults(tokenizer);
    check_with(options, RECORD(CALLING("\"content\":\"x \",")), SHOWN("x " CALLED), "x " CALLED "<|im_end|>a<|im_end|>");
    check_with(options, RECORD(CALLING("\"content\":\"x\",\"train\":false,")), SHOWN("x" CALLED), "a<|im_end|>");
    check_with(options, "{\"messages\":[" USER "," CALLING("\"weight\":1,") "]}", TURN("user", "u") TURN("assistant", CALLED),
               CALLED "<|im_end|>");
    options.train_on = TRAIN_ON_LAST;
    check_with(options, RECORD(CALLING("")), SHOWN(CALLED), "a<|im_end|>");
    check_with(options, RECORD(CALLING("\"train\":true,")), SHOWN(CALLED), CALLED "<|im_end|>a<|im_end|>");
    check_with(options, "{\"messages\":[" USER "," ANSWER "," USER "," CALLING("") "]}",
               TURN("user", "u") TURN("assistant", "a") TURN("user", "u") TURN("assistant", CALLED), CALLED "<|im_end|>");
    options.train_on = TRAIN_ON_ALL; /* the first token is never a target */
    check_with(options, RECORD(CALLING("\"train\":false,")), SHOWN(CALLED),
               "user\nu<|im_end|>\n<|im_start|>assistant\n\n" TURN("tool", "r") TURN("assistant", "a"));
    tokenizer_close(tokenizer);
}

/* What stands in calls, names and definitions is text, whatever it spells. */
static void test_typed_special_tokens(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, TOOL_TEMPLATE);
    Dataset d = must_read(
        "t.jsonl",
        "{\"tools\":[{\"name\":\"</s>\"}],\"messages\":[" USER
        ",{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":"
        "\"<|im_end|>\",\"arguments\":{\"<s>\":\"<|im_start|>\"}}}]},{\"role\":\"tool\",\"content\":\"<|im_end|>\"}]}",
        defaults(tokenizer));
    check_spelled(&d, 0,
                  "<s>[{\"name\": \"</s>\"}]</s>" TURN("user", "u")
                      TURN("assistant", "<call <|im_end|> {\"<s>\": \"<|im_start|>\"}>") TURN("tool", "<|im_end|>"),
                  "<call <|im_end|> {\"<s>\": \"<|im_start|>\"}><|im_end|>");
    int64_t specials = 0;
    for (int64_t t = 0; t < d.tokens; t++)
        specials += d.ids[t] >= ID_BOS && d.ids[t] <= ID_END;
    assert_int_equal(specials, 2 + 2 * 3); /* around the definitions, and of three turns */
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

/* ---- templates that make it hard ---------------------------------------------------------------------------------------- */

static void check_template(const char *jinja, const char *record, const char *trained) {
    Tokenizer *tokenizer = make_tokenizer(0, jinja);
    Dataset d = must_read("t.jsonl", record, defaults(tokenizer));
    char *got = spell(&d, 0, 1);
    assert_string_equal(got, trained);
    memory_free(got);
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

static void refuse_template(const char *jinja, const char *record, const char *wanted) {
    Tokenizer *tokenizer = make_tokenizer(0, jinja);
    must_fail("t.jsonl", record, defaults(tokenizer), wanted);
    must_fail("t.jsonl", record, defaults(tokenizer), "t.jsonl: line 1");
    tokenizer_close(tokenizer);
}

#define TURNS(body) "{% for m in messages %}" body "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
#define CALLS "{% for c in m.tool_calls or [] %}({{ c.function.name }}){% endfor %}"

static void test_templates(void **state) {
    (void)state;
    /* The header of a call is not that of an answer: the prompt for one tells where it begins. */
    check_template(TURNS("<|im_start|>{% if m.tool_calls %}to=" CALLS "</s>{% else %}{{ m.role }}:{{ m.content }}<|im_end|>{% "
                         "endif %}"),
                   RECORD(CALLING("")), "to=(f)</s>a<|im_end|>");
    /* The name of what was called stands in the result's header too. */
    check_template(
        "{% set n = namespace(x='') %}" TURNS(
            "<|im_start|>{% if m.tool_calls %}" CALLS "{% set n.x = m.tool_calls[0].function.name %}{% elif m.role == "
            "'tool' %}{{ n.x }}>{{ m.content }}{% else %}{{ m.content }}{% endif %}<|im_end|>"),
        RECORD(CALLING("")), "(f)<|im_end|>a<|im_end|>");
    /* The last question's place changes the text before: the conversation up to the call is no beginning of the whole. */
    check_template("{% set n = messages | selectattr('role', 'equalto', 'user') | list %}" TURNS(
                       "<|im_start|>{% if m == n[-1] %}!{% endif %}{{ m.role }}\n{{ m.content or '' }}" CALLS "<|im_end|>"),
                   "{\"messages\":[" USER "," CALLING("") "," RESULT "," ANSWER ",{\"role\":\"user\",\"content\":\"v\"}," ANSWER
                                                          "]}",
                   "(f)<|im_end|>a<|im_end|>a<|im_end|>");
    /* Reasoning: what stands before any answer is framing, what the prompt does not have is the model's. */
    check_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n<think>{{ m.reasoning_content or '' }}</think>{{ m.content }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think></think>' }}{% endif %}",
        "{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":\"a\",\"reasoning\":\"why\"}]}", "why</think>a<|im_end|>");
    check_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}",
        "{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":\"a\",\"reasoning_content\":\"why\"}]}",
        "<think>why</think>a<|im_end|>");
    /* A content of which the beginning is cut off and put back. */
    check_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if '</t>' in m.content %}<t>{{ "
        "m.content.split('</t>')[0].split('<t>')[-1] }}</t>{{ m.content.split('</t>')[-1] }}{% else %}{{ m.content }}{% "
        "endif %}<|im_end|>{% endfor %}",
        "{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":\"<t>why</t>a\"}]}", "<t>why</t>a<|im_end|>");
}

static void test_undecided(void **state) {
    (void)state;
    const char *no_end =
        TURNS("<|im_start|>{{ m.role }}\n{{ m.content or '' }}" CALLS "{% if not m.tool_calls %}<|im_end|>{% endif %}");
    const char *no_begin =
        TURNS("{% if m.tool_calls %}</s>>" CALLS "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>");
    refuse_template(no_end, RECORD(CALLING("")), "message 2: where the model's own part of it ends");
    refuse_template(no_begin, RECORD(CALLING("")), "message 2: where the model's own part of it begins");
    check_template(no_end, RECORD(CALLING("\"train\":false,")), "a<|im_end|>");
    check_template(no_begin, RECORD(CALLING("\"train\":false,")), "a<|im_end|>");
    /* The template itself says it. */
    check_template(
        "{% for m in messages %}{{ '<|im_start|>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}" CALLS
        "!{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
        RECORD(CALLING("")), "(f)!a!");
    /* Nothing of tools is dropped in silence. */
    refuse_template(TURNS("{{ m.role }}{{ m.content or '' }}<|im_end|>"), RECORD(CALLING("")),
                    "leaves out a tool call of message 2 (role assistant)");
    refuse_template(
        TURNS(
            "{{ m.role }}{{ m.content or '' }}{{ (m.tool_calls or [{'function': {'name': ''}}])[0].function.name }}<|im_end|>"),
        "{\"messages\":[" USER ",{\"role\":\"assistant\",\"tool_calls\":[" CALL "," CALL "]}]}",
        "leaves out a tool call of message 2");
    refuse_template(TURNS("{% if m.role != 'tool' %}{{ m.role }}{{ m.content or '' }}" CALLS "<|im_end|>{% endif %}"),
                    RECORD(CALLING("")), "leaves out the content of message 3 (role tool)");
    refuse_template(TURNS("{{ m.role }}{{ m.content }}<|im_end|>"), "{\"messages\":[" USER "," ANSWER "],\"tools\":" TOOLS "}",
                    "has no place for the record's \"tools\"");
}

/* A template that is asked over and over ends in a message. */
static void test_bounded(void **state) {
    (void)state;
    Text record = {0};
    text_adds(&record, "{\"messages\":[" USER);
    for (int i = 0; i < 4000; i++)
        text_adds(&record, "," CALLING(""));
    text_adds(&record, "]}");
    refuse_template(TURNS("{{ m.role }}{{ m.content or '' }}" CALLS "<|im_end|>"), record.data, "takes too many renderings");
    text_free(&record);
}

/* ---- built-ins, and what is no tool --------------------------------------------------------------------------------------- */

static void test_built_ins(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, TOOL_TEMPLATE);
    DatasetOptions options = defaults(tokenizer);
    for (int i = 0; i < 11; i++) {
        static const char *const names[] = {"chatml", "qwen2.5", "qwen2",  "smollm2", "llama3", "llama3.1",
                                            "llama2", "mistral", "zephyr", "alpaca",  "plain"};
        options.template_name = names[i];
        must_fail("b.jsonl", RECORD(CALLING("")), options,
                  "b.jsonl: line 1: message 2 is a call of tools: the built-in template");
        must_fail("b.jsonl", "{\"messages\":[" USER "," ANSWER "," RESULT "]}", options, "message 3 is a tool's result");
        must_fail("b.jsonl", "{\"messages\":[" USER "," ANSWER "],\"tools\":" TOOLS "}", options, "has no form for them");
    }
    tokenizer_close(tokenizer);
    /* Recognised as a built-in, and without tools rendered by it; with tools the model's own is asked. */
    tokenizer = make_tokenizer(0, CHATML);
    Dataset d = must_read("b.jsonl", "{\"messages\":[" USER "," ANSWER "],\"tools\":[]}", defaults(tokenizer));
    assert_string_equal(d.template_name, "chatml");
    assert_int_equal(d.with_tools, 0);
    dataset_free(&d);
    must_fail("b.jsonl", "{\"messages\":[" USER "," ANSWER "],\"tools\":" TOOLS "}", defaults(tokenizer),
              "the model's chat template has no place for the record's \"tools\"");
    tokenizer_close(tokenizer);
}

static void test_refused_records(void **state) {
    (void)state;
    static const struct {
        const char *record, *wanted;
    } cases[] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"tool_calls\":[" CALL "]}]}", "only the assistant calls tools"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "no \"content\""},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}]}", "no \"content\""},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[1]}]}",
         "tool_calls: want a list of objects, got a list with an integer"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":7}]}", "tool_calls: want a list of objects, got an integer"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]}", "got one without a name"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":\"f\"}]}]}",
         "want \"function\" to be an object"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"\"}}]}]}", "got an empty string"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":[1]}}]}]}",
         "want arguments as an object"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":\"[{\"}]}", "the text of tool_calls: JSON: line 1"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[" CALL "],\"tool_calls\":[" CALL "]}]}", "stands twice"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"name\":\"a\",\"name\":\"b\"}]}", "stands twice in one message"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":{\"t\":3}}]}", "want a string or a list of text parts"},
        {"{\"messages\":[" USER "],\"tools\":[{}]}", "tools: want objects"},
        {"{\"messages\":[" USER "],\"tools\":\"nothing\"}", "the text of tools"},
        {"{\"messages\":[" USER "],\"tools\":" TOOLS ",\"tools\":" TOOLS "}", "stands twice"},
        {"{\"messages\":[" USER "],\"functions\":[{\"name\":\"f\"}]}",
         "\"functions\" is not supported: write definitions as \"tools\""},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"function_call\":{\"name\":\"f\"}}]}",
         "\"function_call\" is not supported"},
        {"{\"conversations\":[{\"from\":\"function_call\",\"value\":\"{}\"}]}", "got one without a name"},
        {"{\"conversations\":[{\"from\":\"function_call\",\"value\":\"[]\"}]}", "calls nothing"},
        {"{\"conversations\":[{\"from\":\"function_call\",\"value\":\"f(1)\"}]}", "the text of a function_call"},
        {"{\"conversations\":[{\"from\":\"function_call\",\"value\":\"{}\",\"tool_calls\":[" CALL "]}]}",
         "has \"tool_calls\" too"},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}],\"tools\":\"[{}]\"}", "tools: want objects"},
    };
    Tokenizer *tokenizer = make_tokenizer(0, TOOL_TEMPLATE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        must_fail("r.jsonl", cases[i].record, defaults(tokenizer), cases[i].wanted);
        must_fail("r.jsonl", cases[i].record, defaults(tokenizer), "r.jsonl: line 1");
    }
    tokenizer_close(tokenizer);
}

static void test_cached(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, TOOL_TEMPLATE);
    DatasetOptions options = defaults(tokenizer);
    Dataset plain = must_read("c.jsonl", RECORD(CALLING("")), options), cached, other;
    char *root = scratch_path("cache");
    options.cache = root;
    cached = must_read("c.jsonl", RECORD(CALLING("")), options);
    assert_true(cached.hash == plain.hash);
    assert_int_equal(cached.with_tools, 1);
    other =
        must_read("c.jsonl", "{\"tools\":" TOOLS ",\"messages\":[" USER "," CALLING("") "," RESULT "," ANSWER "]}", options);
    assert_true(other.hash != plain.hash);
    dataset_free(&other);
    dataset_free(&cached);
    dataset_free(&plain);
    memory_free(root);
    tokenizer_close(tokenizer);
}

/* A published template with a public data set of calls: every record, and only assistants' turns are trained. */
static void test_real_data(void **state) {
    (void)state;
    const char *source = ASSETS "tokenizers/chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja";
    char *jinja = NULL;
    size_t length = 0;
    if (!file_exists(source)) {
        print_message("skipped: %s is not there\n", source);
        skip();
    }
    assert_int_equal(file_read(source, (size_t)1 << 20, &jinja, &length, NULL), OK);
    jinja = memory_resize(jinja, length + 1);
    jinja[length] = 0;
    Tokenizer *tokenizer = make_tokenizer(0, jinja);
    DatasetOptions options = defaults(tokenizer);
    Dataset d;
    Error error = {0};
    options.max_length = 1 << 20;
    options.path = ASSETS "datasets/chat/sharegpt_toolcall_en_demo.json";
    if (dataset_read(&options, &d, &error) != OK) fail_msg("%s", error.text);
    print_message("%lld records, %lld with tools, %lld tokens, %lld trained\n", (long long)d.records, (long long)d.with_tools,
                  (long long)d.tokens, (long long)d.trained_tokens);
    assert_int_equal(d.records, 300);
    assert_int_equal(d.skipped_bad, 0);
    int64_t calls = 0;
    for (int64_t i = 0; i < d.count; i++) {
        char *trained = spell(&d, i, 1);
        assert_null(strstr(trained, "<tool_response>"));
        assert_null(strstr(trained, "<|im_start|>"));
        for (const char *at = trained; (at = strstr(at, "<tool_call>\n{\"name\": \"")) != NULL; at++)
            calls++;
        memory_free(trained);
    }
    assert_true(calls > 100);
    dataset_free(&d);
    tokenizer_close(tokenizer);
    memory_free(jinja);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spellings_agree),
                                       cmocka_unit_test(test_what_is_trained),
                                       cmocka_unit_test(test_typed_special_tokens),
                                       cmocka_unit_test(test_templates),
                                       cmocka_unit_test(test_undecided),
                                       cmocka_unit_test(test_bounded),
                                       cmocka_unit_test(test_built_ins),
                                       cmocka_unit_test(test_refused_records),
                                       cmocka_unit_test(test_cached),
                                       cmocka_unit_test(test_real_data)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
