/* Data sets: the layouts beyond alpaca and messages, contents in parts, what becomes of long records, and every real file. */
#include "tests/unit/test_dataset.h"

#include "core/pool.h"

#define ASSETS "../shared/assets/"
#define TURN(role, text) "<|im_start|>" role "\n" text "<|im_end|>\n"

/* The same conversation in every spelling. */
static void test_spellings_agree(void **state) {
    (void)state;
    static const struct {
        const char *record;
        DataLayout layout;
    } cases[] = {
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\","
         "\"content\":\"a\"}]}",
         LAYOUT_MESSAGES},
        {"{\"conversations\":[{\"from\":\"system\",\"value\":\"s\"},{\"from\":\"human\",\"value\":\"u\"},{\"from\":\"gpt\","
         "\"value\":\"a\"}]}",
         LAYOUT_SHAREGPT},
        {"{\"conversations\":[{\"from\":\"user\",\"value\":\"u\"},{\"value\":\"a\",\"from\":\"assistant\"}],\"system\":\"s\","
         "\"tools\":\"[]\"}",
         LAYOUT_SHAREGPT},
        {"{\"tools\":null,\"system\":\"s\",\"id\":7,\"conversations\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":"
         "\"assistant\",\"content\":\"a\"}]}",
         LAYOUT_SHAREGPT},
        {"{\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\",\"text\":\"s\"}]},{\"role\":\"user\",\"content\":"
         "[{\"type\":\"text\",\"value\":\"u\"}],\"loss_weight\":0.0},{\"role\":\"assistant\",\"content\":[{\"text\":\"\","
         "\"type\":"
         "\"text\"},{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"\"}],\"loss_weight\":1.0}]}",
         LAYOUT_MESSAGES},
    };
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Dataset d = must_read("s.jsonl", cases[i].record, defaults(tokenizer));
        assert_int_equal(d.layout, cases[i].layout);
        check_spelled(&d, 0, TURN("system", "s") TURN("user", "u") TURN("assistant", "a"), "a<|im_end|>");
        dataset_free(&d);
    }
    Dataset d =
        must_read("s.jsonl",
                  "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"H\"},{\"type\":\"text\","
                  "\"text\":\"i \"},{\"type\":\"text\",\"text\":\"bc\"}]},{\"role\":\"assistant\",\"content\":[]},"
                  "{\"role\":\"assistant\",\"content\":\"b\",\"train\":null}]}",
                  defaults(tokenizer));
    check_spelled(&d, 0, TURN("user", "Hi bc") TURN("assistant", "") TURN("assistant", "b"), "<|im_end|>b<|im_end|>");
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

static void test_question_answer_and_dolly(void **state) {
    (void)state;
    Tokenizer *chat = make_tokenizer(0, CHATML), *none = make_tokenizer(0, NULL);
    Dataset d = must_read("q.jsonl", "{\"question\":\"u\",\"answer\":\"a\"}", defaults(chat));
    assert_int_equal(d.layout, LAYOUT_QUESTION_ANSWER);
    check_spelled(&d, 0, TURN("user", "u") TURN("assistant", "a"), "a<|im_end|>");
    dataset_free(&d);
    d = must_read("q.jsonl", "{\"question\":\"u\",\"answer\":\"a\"}", defaults(none));
    assert_string_equal(d.template_name, "alpaca");
    Dataset dolly = must_read("q.jsonl", "{\"instruction\":\"u\",\"context\":\"\",\"response\":\"a\"}", defaults(none));
    assert_int_equal(dolly.layout, LAYOUT_ALPACA);
    assert_true(dolly.hash == d.hash);
    dataset_free(&d);
    dataset_free(&dolly);
    d = must_read("q.jsonl", "{\"instruction\":\"u\",\"context\":\"i\",\"response\":\"a\"}", defaults(chat));
    check_spelled(&d, 0, TURN("user", "u\ni") TURN("assistant", "a"), "a<|im_end|>");
    dataset_free(&d);
    tokenizer_close(chat);
    tokenizer_close(none);
}

#define PAIR(prompt, chosen, rejected) "{" prompt "\"chosen\":" chosen ",\"rejected\":" rejected "}"
#define USER "{\"role\":\"user\",\"content\":\"u\"}"
#define GOOD "{\"from\":\"gpt\",\"value\":\"good\"}"
#define BAD "{\"role\":\"assistant\",\"content\":\"bad\"}"

/* Valid pairs are refused for what they are; bad ones for what is wrong with them. */
static void test_preference(void **state) {
    (void)state;
    static const char *const valid[] = {
        PAIR("\"prompt\":\"u\",", "\"good\"", "\"bad\""),
        PAIR("\"prompt\":[" USER "],", "[" GOOD "]", "[" BAD "]"),
        PAIR("\"conversations\":[" USER "],", GOOD, BAD),
        PAIR("\"instruction\":\"u\",\"input\":\"\",", "\"good\"", "\"bad\""),
        PAIR("", "[" USER "," GOOD "]", "[" USER "," BAD "]"),
    };
    static const struct {
        const char *record, *wanted;
    } bad[] = {
        {PAIR("\"prompt\":\"u\",", "\"same\"", "\"same\""), "are the same"},
        {PAIR("\"prompt\":\"u\",", "\"good\"", "\"\""), "rejected: the answer is empty"},
        {PAIR("\"prompt\":\"u\",", "\"good\"", "null"), "no \"rejected\""},
        {PAIR("\"prompt\":\"u\",", "[]", "\"bad\""), "no \"chosen\""},
        {PAIR("\"prompt\":\"u\",", "1", "\"bad\""), "chosen: want a string, a message"},
        {PAIR("\"prompt\":\"u\",", USER, "\"bad\""), "chosen: want an answer of the assistant"},
        {PAIR("", "\"good\"", "\"bad\""), "no prompt"},
        {PAIR("", "[" USER "," GOOD "]", "[" GOOD "," BAD "]"), "share no beginning"},
        {PAIR("", "[" USER "," GOOD "]", "[" USER "," GOOD "," BAD "]"), "are the same"},
        {PAIR("\"prompt\":\"u\",\"messages\":[" USER "],", "\"good\"", "\"bad\""), "beside another prompt"},
        {PAIR("\"prompt\":\"u\",", "\"good\",\"chosen\":\"good\"", "\"bad\""), "stands twice"},
    };
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    Text text = {0};
    for (size_t i = 0; i < sizeof valid / sizeof valid[0]; i++)
        text_addf(&text, "%s\n", valid[i]);
    must_fail("p.jsonl", text.data, defaults(tokenizer), "5 records are read and valid, 0 bad ones");
    must_fail("p.jsonl", text.data, defaults(tokenizer), "preference training has not landed");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        Text both = {0};
        DatasetOptions options = defaults(tokenizer);
        text_addf(&both, "%s\n%s\n", valid[0], bad[i].record);
        must_fail("p.jsonl", both.data, options, bad[i].wanted);
        must_fail("p.jsonl", both.data, options, "line 2");
        options.on_error = ON_ERROR_SKIP;
        must_fail("p.jsonl", both.data, options, "1 records are read and valid, 1 bad ones");
        text_free(&both);
    }
    text_free(&text);
    tokenizer_close(tokenizer);
}

/* What cannot be rendered as it was meant is refused by name, and skipped when told to. */
static void test_refused_records(void **state) {
    (void)state;
    static const struct {
        const char *record, *wanted;
    } cases[] = {
        {"{\"conversations\":[{\"from\":\"bing\",\"value\":\"x\"}]}", "\"bing\" is not supported"},
        {"{\"conversations\":[{\"from\":\"system\",\"value\":\"x\"}],\"system\":\"y\"}", "two system messages"},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}],\"system\":1}", "system: want a string"},
        {"{\"conversations\":[],\"system\":\"y\"}", "no conversations"},
        {"{\"conversations\":[{\"from\":\"gpt\"}]}", "\"content\""},
        {"{\"conversations\":[{\"value\":\"x\"}]}", "\"role\""},
        {"{\"conversations\":[{\"from\":\"gpt\",\"role\":\"user\",\"value\":\"x\"}]}", "two roles"},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\",\"content\":\"y\"}]}", "twice"},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}],\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}]}",
         "twice"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}",
         "type \"image_url\" are not supported"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}", "a list with a string"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"text\":\"x\"}]}]}", "want parts"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]}", "content[].text: want a string"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\",\"value\":\"y\"}]}]}", "twice"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":{}}]}", "want a string or a list of text parts"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"weight\":1,\"train\":false}]}", "says the opposite"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"loss_weight\":0.5}]}", "loss_weight: want true"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"label\":false}", "KTO"},
        {"{\"instruction\":\"x\",\"output\":\"y\",\"kto_tag\":true}", "preference training has not landed"},
        {"{\"instruction\":\"x\",\"output\":\"y\",\"response\":\"z\"}", "twice"},
        {"{\"question\":\"x\"}", "cannot tell the layout"},
        {"{\"question\":\"x\",\"choices\":[\"a\"],\"answer\":0}", "multiple-choice"},
        {"{\"question\":\"x\",\"answer\":0}", "answer: want a string"},
        {"{\"question\":\"x\",\"answer\":null}", "no \"answer\""},
    };
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        must_fail("r.jsonl", cases[i].record, defaults(tokenizer), cases[i].wanted);
        must_fail("r.jsonl", cases[i].record, defaults(tokenizer), "r.jsonl: line 1");
    }
    tokenizer_close(tokenizer);
}

static void test_too_long(void **state) {
    (void)state;
    static const char pairs[] =
        "{\"prompt\":\"12345\",\"completion\":\"ok\"}\n{\"prompt\":\"1\",\"completion\":\"ok\"}\n"
        "{\"prompt\":\"123456\",\"completion\":\"ok\"}\n";
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    DatasetOptions options = defaults(tokenizer);
    options.max_length = 6;
    options.too_long = TOO_LONG_DROP;
    Dataset d = must_read("l.jsonl", pairs, options);
    assert_int_equal(d.count, 1);
    assert_int_equal(d.dropped, 2);
    assert_int_equal(d.truncated + d.skipped_untrained, 0);
    check_spelled(&d, 0, "1ok</s>", "ok</s>");
    dataset_free(&d);
    must_fail("l.jsonl", "{\"prompt\":\"12345\",\"completion\":\"ok\"}\n", options, "1 were dropped for their length");
    options.too_long = TOO_LONG_TRUNCATE;
    d = must_read("l.jsonl", pairs, options);
    assert_int_equal(d.count, 2);
    assert_int_equal(d.truncated, 2);
    dataset_free(&d);
    options.too_long = TOO_LONG_SPLIT;
    must_fail("l.jsonl", pairs, options, "\"split\" is for plain text");
    static const struct {
        TooLong too_long;
        int64_t count, split, truncated, dropped, trained;
    } text[] = {{TOO_LONG_AUTO, 3, 1, 0, 0, 10 + 2},
                {TOO_LONG_SPLIT, 3, 1, 0, 0, 10 + 2},
                {TOO_LONG_TRUNCATE, 2, 0, 1, 0, 5 + 2},
                {TOO_LONG_DROP, 1, 0, 0, 1, 2}};
    for (size_t i = 0; i < sizeof text / sizeof text[0]; i++) {
        options.too_long = text[i].too_long;
        d = must_read("l.txt", "0123456789\n<|endoftext|>\nxy", options);
        assert_int_equal(d.count, text[i].count);
        assert_int_equal(d.split, text[i].split);
        assert_int_equal(d.truncated, text[i].truncated);
        assert_int_equal(d.dropped, text[i].dropped);
        assert_int_equal(d.trained_tokens, text[i].trained);
        dataset_free(&d);
    }
    tokenizer_close(tokenizer);
}

/* ---- real files ---------------------------------------------------------------------------------------------------------- */

typedef struct RealFile {
    const char *path;
    DataLayout layout;
    int64_t records, bad; /* read; skipped as bad */
    const char *refused;  /* NULL: read */
} RealFile;

static const RealFile real_files[] = {
    {"alpaca/alpaca_5000.json", LAYOUT_ALPACA, 5000, 0, NULL},
    {"alpaca/identity.json", LAYOUT_ALPACA, 91, 0, NULL},
    {"alpaca/self_instruct_seed_tasks.jsonl", LAYOUT_AUTO, 0, 0, "cannot tell the layout"},
    {"chat/messages_loss_weight_demo.jsonl", LAYOUT_MESSAGES, 0, 0, NULL},
    {"chat/sharegpt_dummy_conversation.json", LAYOUT_SHAREGPT, 0, 0, NULL},
    {"chat/sharegpt_toolcall_en_demo.json", LAYOUT_AUTO, 0, 0, "leaves out a tool call"},
    {"chat/torchtune_alpaca_tiny.json", LAYOUT_ALPACA, 0, 0, NULL},
    {"chat/torchtune_chat_tiny.json", LAYOUT_SHAREGPT, 1, 0, NULL},
    {"chat/torchtune_hh_rlhf_tiny.json", LAYOUT_AUTO, 0, 0, "1 records are read and valid"},
    {"chat/torchtune_instruct_tiny.json", LAYOUT_ALPACA, 2, 0, NULL},
    {"eval/humaneval.jsonl", LAYOUT_AUTO, 0, 0, "cannot tell the layout"},
    {"gsm8k/test_head500.jsonl", LAYOUT_QUESTION_ANSWER, 500, 0, NULL},
    {"gsm8k/train_head3000.jsonl", LAYOUT_QUESTION_ANSWER, 3000, 0, NULL},
    {"mmlu/dev/*.csv", LAYOUT_AUTO, 0, 0, "multiple-choice"},
    {"mmlu/test/*.csv", LAYOUT_AUTO, 0, 0, "multiple-choice"},
    {"preference/dpo_en_demo.json", LAYOUT_AUTO, 0, 0, "records are read and valid, 0 bad"},
    {"preference/kto_en_demo.json", LAYOUT_AUTO, 0, 0, "KTO"},
    {"pretrain/c4_demo.jsonl", LAYOUT_TEXT, 300, 0, NULL},
    {"pretrain/wikitext2_raw_test.txt", LAYOUT_TEXT, 1, 0, NULL},
};

static void check_real(const RealFile *file, const DatasetOptions *common) {
    DatasetOptions options = *common;
    Dataset d;
    Error error = {0};
    char *path = memory_format(ASSETS "datasets/%s", file->path);
    options.path = path;
    Status status = dataset_read(&options, &d, &error);
    if (file->refused != NULL) {
        assert_int_not_equal(status, OK);
        if (strstr(error.text, file->refused) == NULL) fail_msg("\"%s\" is not in: %s", file->refused, error.text);
        print_message("%s: refused: %s\n", file->path, error.text);
    } else {
        if (status != OK) fail_msg("%s", error.text);
        assert_int_equal(d.layout, file->layout);
        if (file->records > 0) assert_int_equal(d.records, file->records);
        assert_int_equal(d.skipped_bad, file->bad);
        assert_true(d.trained_tokens > 0);
        print_message("%s: %s, %lld records, %lld sequences, %lld tokens, %lld trained, %lld truncated, %lld untrained\n",
                      file->path, layout_name(d.layout), (long long)d.records, (long long)d.count, (long long)d.tokens,
                      (long long)d.trained_tokens, (long long)d.truncated, (long long)d.skipped_untrained);
        dataset_free(&d);
    }
    memory_free(path);
}

static void test_real_files(void **state) {
    (void)state;
    if (!file_exists(ASSETS "datasets/gsm8k")) {
        print_message("skipped: " ASSETS "datasets is not here\n");
        skip();
    }
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    Pool *pool = NULL;
    assert_int_equal(pool_create(&pool, 0, NULL), OK);
    DatasetOptions options = defaults(tokenizer);
    options.pool = pool;
    for (size_t i = 0; i < sizeof real_files / sizeof real_files[0]; i++)
        check_real(&real_files[i], &options);
    /* the records without tools of a file that has both */
    Dataset d;
    Error error = {0};
    options.on_error = ON_ERROR_SKIP;
    options.path = ASSETS "datasets/chat/sharegpt_toolcall_en_demo.json";
    if (dataset_read(&options, &d, &error) == OK) {
        print_message("sharegpt_toolcall_en_demo.json, bad ones skipped: %lld records, %lld bad\n", (long long)d.records,
                      (long long)d.skipped_bad);
        assert_true(d.skipped_bad > 0 && d.count > 0);
        dataset_free(&d);
    } else {
        assert_non_null(strstr(error.text, "nothing in it is trained"));
        print_message("%s\n", error.text);
    }
    pool_free(pool);
    tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_spellings_agree), cmocka_unit_test(test_question_answer_and_dolly),
                                       cmocka_unit_test(test_preference),      cmocka_unit_test(test_refused_records),
                                       cmocka_unit_test(test_too_long),        cmocka_unit_test(test_real_files)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
