/* Data sets: what is rendered, and exactly which tokens are trained. */
#include "tests/unit/test_dataset.h"

#define ALPACA_PROMPT                                                                                               \
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n" \
    "### Instruction:\nSing.\n\n### Response:"

static void test_alpaca(void **state) {
    (void)state;
    const char *text = "{\"instruction\":\"Sing.\",\"input\":\"\",\"output\":\"La\"}\n";
    Tokenizer *plain = make_tokenizer(0, NULL);
    Dataset d = must_read("a.jsonl", text, defaults(plain));
    assert_int_equal(d.count, 1);
    assert_int_equal(d.layout, LAYOUT_ALPACA);
    assert_string_equal(d.template_name, "alpaca");
    check_spelled(&d, 0, ALPACA_PROMPT "La</s>", "La</s>");
    assert_int_equal(d.ids[d.tokens - 1], ID_EOS);
    assert_int_equal(d.trained_tokens, 3);
    assert_int_equal(d.longest, d.tokens);
    dataset_free(&d);
    tokenizer_close(plain);
    Tokenizer *bos = make_tokenizer(1, NULL);
    d = must_read("a.jsonl", text, defaults(bos));
    check_spelled(&d, 0, "<s>" ALPACA_PROMPT "La</s>", "La</s>");
    DatasetOptions all = defaults(bos);
    all.train_on = TRAIN_ON_ALL;
    Dataset e = must_read("a.jsonl", text, all);
    check_spelled(&e, 0, "<s>" ALPACA_PROMPT "La</s>", ALPACA_PROMPT "La</s>");
    assert_true(d.hash != e.hash);
    dataset_free(&d);
    dataset_free(&e);
    DatasetOptions other_end = defaults(bos);
    other_end.eos_id = ID_END;
    d = must_read("a.jsonl", text, other_end);
    check_spelled(&d, 0, "<s>" ALPACA_PROMPT "La<|im_end|>", "La<|im_end|>");
    dataset_free(&d);
    tokenizer_close(bos);
}

static void test_alpaca_in_a_chat_template(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    Dataset d = must_read("a.jsonl",
                          "{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\",\"system\":\"S\",\"history\":[[\"u\","
                          "\"a\"]]}\n",
                          defaults(tokenizer));
    assert_string_equal(d.template_name, "chatml");
    check_spelled(&d, 0,
                  "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
                  "<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n",
                  "a<|im_end|>3<|im_end|>");
    dataset_free(&d);
    DatasetOptions options = defaults(tokenizer);
    options.template_name = "alpaca";
    must_fail("a.jsonl", "{\"instruction\":\"i\",\"output\":\"o\",\"system\":\"S\"}", options, "system message");
    tokenizer_close(tokenizer);
}

/* A record's random conversation, its chatml text, and what is trained of it. */
static void random_conversation(uint64_t seed, uint64_t record, TrainOn train_on, Text *json, Text *all, Text *trained) {
    static const char *const pieces[] = {"Hi",         " there", "\n",  "bc",     "\xC3\xA9",     "\xF0\x9F\x99\x82",
                                         "<|im_end|>", "</s>",   "<s>", "<tool>", "<|im_start|>", "  ",
                                         "\"q\"",      "\\"};
    static const char *const roles[] = {"user", "assistant", "system"};
    uint32_t r[4];
    uint64_t n = 0;
    random_block(seed, RANDOM_TEST, record, n++, r);
    int count = 1 + (int)(r[0] % 6), last = -1, role[8], flag[8];
    Text content[8] = {{0}};
    for (int m = 0; m < count; m++) {
        random_block(seed, RANDOM_TEST, record, n++, r);
        role[m] = (int)(r[0] % 3);
        flag[m] = r[1] % 4 == 0 ? (int)(r[2] & 1) : -1;
        if (role[m] == 1) last = m;
        text_add(&content[m], "", 0);
        for (uint32_t p = r[3] % 9; p > 0; p--) {
            random_block(seed, RANDOM_TEST, record, n++, r);
            text_adds(&content[m], pieces[r[0] % (sizeof pieces / sizeof pieces[0])]);
        }
    }
    text_adds(json, "{\"messages\":[");
    for (int m = 0; m < count; m++) {
        int is_trained =
            flag[m] >= 0 ? flag[m] : train_on == TRAIN_ON_ALL || (train_on == TRAIN_ON_LAST ? m == last : role[m] == 1);
        int framing = train_on == TRAIN_ON_ALL;
        text_addf(json, "%s{\"role\":\"%s\",\"content\":", m > 0 ? "," : "", roles[role[m]]);
        text_add_json_string(json, content[m].data, content[m].length);
        if (flag[m] >= 0)
            text_addf(json, m & 1 ? ",\"train\":%s" : ",\"weight\":%s",
                      m & 1 ? (flag[m] ? "true" : "false") : (flag[m] ? "1" : "0"));
        text_adds(json, "}");
        text_addf(all, "<|im_start|>%s\n%s<|im_end|>\n", roles[role[m]], content[m].data);
        /* the first token of a sequence is never a target */
        if (framing) text_addf(trained, "%s%s\n", m == 0 ? "" : "<|im_start|>", roles[role[m]]);
        if (is_trained) text_addf(trained, "%s<|im_end|>", content[m].data);
        if (framing) text_adds(trained, "\n");
        text_free(&content[m]);
    }
    text_adds(json, "]}\n");
}

static int64_t count_id(const Dataset *d, int64_t i, int32_t id) {
    int64_t n = 0;
    for (int64_t t = d->start[i]; t < d->start[i + 1]; t++)
        n += d->ids[t] == id;
    return n;
}

static int64_t count_text(const char *text, const char *what) {
    int64_t n = 0;
    while ((text = strstr(text, what)) != NULL) {
        n++;
        text++;
    }
    return n;
}

/* The masks cover exactly the answers and their ends; what a user types never becomes a control token. */
static void test_random_conversations(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    static const TrainOn modes[] = {TRAIN_ON_ASSISTANT, TRAIN_ON_ALL, TRAIN_ON_LAST};
    int64_t sequences = 0;
    for (int mode = 0; mode < 3; mode++) {
        for (uint64_t record = 0; record < 300; record++) {
            Text json = {0}, all = {0}, trained = {0};
            text_add(&trained, "", 0);
            random_conversation(77, record, modes[mode], &json, &all, &trained);
            DatasetOptions options = defaults(tokenizer);
            options.train_on = modes[mode];
            if (trained.length == 0) {
                must_fail("r.jsonl", json.data, options, "nothing in it is trained");
            } else {
                Dataset d = must_read("r.jsonl", json.data, options);
                assert_int_equal(d.count, 1);
                assert_int_equal(d.train[0], 0);
                check_spelled(&d, 0, all.data, trained.data);
                assert_int_equal(count_id(&d, 0, ID_END), count_text(json.data, "\"role\""));
                assert_int_equal(count_id(&d, 0, ID_START), count_text(json.data, "\"role\""));
                assert_int_equal(count_id(&d, 0, ID_BOS) + count_id(&d, 0, ID_EOS), 0);
                dataset_free(&d);
                sequences++;
            }
            text_free(&json);
            text_free(&all);
            text_free(&trained);
        }
    }
    assert_true(sequences > 600);
    tokenizer_close(tokenizer);
}

/* A token over the border of prompt and answer is not trained; one over the end of an answer would be. */
static void test_straddling_token(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, CHATML);
    Dataset d = must_read("p.jsonl", "{\"prompt\":\"ab\",\"completion\":\"cd\"}\n", defaults(tokenizer));
    assert_string_equal(d.template_name, "plain");
    assert_int_equal(d.layout, LAYOUT_PROMPT_COMPLETION);
    static const int32_t ids[] = {ID_BOS, 'a', ID_BC, 'd', ID_EOS};
    static const uint8_t train[] = {0, 0, 0, 1, 1};
    assert_int_equal(d.tokens, 5);
    assert_memory_equal(d.ids, ids, sizeof ids);
    assert_memory_equal(d.train, train, sizeof train);
    dataset_free(&d);
    /* the text brings its own BOS and EOS: neither comes twice */
    d = must_read("p.jsonl", "{\"prompt\":\"<s>a<|im_end|>\",\"completion\":\"Hi</s>\"}\n", defaults(tokenizer));
    static const int32_t own[] = {ID_BOS, 'a', ID_END, ID_HI, ID_EOS};
    assert_int_equal(d.tokens, 5);
    assert_memory_equal(d.ids, own, sizeof own);
    assert_memory_equal(d.train, train, sizeof train);
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

static void test_never_a_second_bos(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, NULL);
    static const char *const names[] = {"chatml", "llama2", "mistral", "zephyr", "alpaca", "plain"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (int typed = 0; typed < 2; typed++) { /* with and without a special token in a content */
            DatasetOptions options = defaults(tokenizer);
            options.template_name = names[i];
            Dataset d = must_read("b.jsonl",
                                  typed && i < 5
                                      ? "{\"messages\":[{\"role\":\"user\",\"content\":\"<s>u</s>\"},{\"role\":\"assistant\","
                                        "\"content\":\"Hi\"}]}"
                                      : "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\","
                                        "\"content\":\"Hi\"}]}",
                                  options);
            assert_int_equal(d.ids[0], ID_BOS);
            assert_int_equal(count_id(&d, 0, ID_BOS), 1);
            assert_int_equal(d.train[0], 0);
            assert_int_equal(d.trained_tokens, strcmp(names[i], "llama2") == 0 ? 4 : 2);
            dataset_free(&d);
        }
    }
    tokenizer_close(tokenizer);
}

static void test_text(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, NULL);
    Dataset d =
        must_read("t.jsonl", "{\"text\":\"one\"}\n\n  {\"id\":[1,{\"a\":2}],\"text\":\"<s>two</s>\"}\r\n", defaults(tokenizer));
    assert_int_equal(d.layout, LAYOUT_TEXT);
    assert_int_equal(d.count, 2);
    check_spelled(&d, 0, "<s>one</s>", "one</s>");
    check_spelled(&d, 1, "<s>two</s>", "two</s>");
    assert_int_equal(d.record[0], 1);
    assert_int_equal(d.record[1], 3);
    dataset_free(&d);
    d = must_read("t.txt", "one\nmore\n<|endoftext|>\n\ntwo <|endoftext|>\n<|endoftext|>\n<|endoftext|>\nthree\n",
                  defaults(tokenizer));
    assert_int_equal(d.count, 3);
    assert_int_equal(d.records, 4);
    assert_int_equal(d.skipped_untrained, 1); /* the empty document */
    check_spelled(&d, 0, "<s>one\nmore</s>", "one\nmore</s>");
    check_spelled(&d, 1, "<s>\ntwo <|endoftext|></s>", "\ntwo <|endoftext|></s>");
    check_spelled(&d, 2, "<s>three</s>", "three</s>");
    dataset_free(&d);
    d = must_read("t.txt", "a\n\nb", defaults(tokenizer));
    check_spelled(&d, 0, "<s>a\n\nb</s>", "a\n\nb</s>");
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

/* Pieces overlap by one token, so that each token but the first is a target exactly once. */
static void test_long_text_is_split(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, NULL);
    for (int length = 1; length < 40; length++) {
        for (int64_t longest = 2; longest < 12; longest++) {
            Text text = {0};
            for (int i = 0; i < length; i++)
                text_addf(&text, "%c", '0' + i);
            DatasetOptions options = defaults(tokenizer);
            options.max_length = longest;
            Dataset d = must_read("t.txt", text.data, options);
            int64_t total = length + 2; /* BOS, text, EOS */
            assert_int_equal(d.trained_tokens, total - 1);
            assert_int_equal(d.count, (total - 1 + longest - 2) / (longest - 1));
            assert_int_equal(d.split, total > longest);
            int32_t previous = ID_BOS;
            for (int64_t i = 0; i < d.count; i++) {
                assert_true(d.start[i + 1] - d.start[i] <= longest);
                assert_int_equal(d.ids[d.start[i]], previous);
                assert_int_equal(d.train[d.start[i]], 0);
                assert_int_equal(d.record[i], 1);
                for (int64_t t = d.start[i] + 1; t < d.start[i + 1]; t++)
                    assert_int_equal(d.train[t], 1);
                previous = d.ids[d.start[i + 1] - 1];
            }
            char *trained = NULL;
            Text targets = {0};
            for (int64_t i = 0; i < d.count; i++) {
                trained = spell(&d, i, 1);
                text_adds(&targets, trained);
                memory_free(trained);
            }
            text_adds(&text, "</s>");
            assert_string_equal(targets.data, text.data);
            text_free(&targets);
            text_free(&text);
            dataset_free(&d);
        }
    }
    tokenizer_close(tokenizer);
}

static void test_truncation(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    DatasetOptions options = defaults(tokenizer);
    options.max_length = 6;
    Dataset d = must_read("p.jsonl",
                          "{\"prompt\":\"12345\",\"completion\":\"ok\"}\n{\"prompt\":\"123456\",\"completion\":\"ok\"}\n"
                          "{\"prompt\":\"123\",\"completion\":\"ok\"}\n",
                          options);
    assert_int_equal(d.records, 3);
    assert_int_equal(d.count, 2);
    assert_int_equal(d.truncated, 2);
    assert_int_equal(d.skipped_untrained, 1);
    check_spelled(&d, 0, "12345o", "o");
    check_spelled(&d, 1, "123ok</s>", "ok</s>");
    dataset_free(&d);
    must_fail("p.jsonl", "{\"prompt\":\"123456789\",\"completion\":\"ok\"}\n", options, "raise it if answers come late");
    options.max_length = 1;
    must_fail("p.jsonl", "{\"prompt\":\"1\",\"completion\":\"ok\"}\n", options, "data.max_length");
    tokenizer_close(tokenizer);
}

static int32_t some_special(const Tokenizer *tokenizer) {
    for (int32_t id = 0; id < tokenizer_vocab_size(tokenizer); id++) {
        if (tokenizer_is_special(tokenizer, id) && tokenizer_token(tokenizer, id)[0] == '<' && id != tokenizer_bos(tokenizer))
            return id;
    }
    fail_msg("the tokenizer has no special token");
    return -1;
}

/* Guarding everything is parsing nothing, guarding nothing is parsing everything, and a guarded token changes no other. */
static void test_guarded_encoding(void **state) {
    (void)state;
    static const char *const styles[] = {"llama2", "llama3", "qwen2", "gemma", "metaspace", "digits"};
    for (size_t i = 0; i < sizeof styles / sizeof styles[0]; i++) {
        char path[128];
        Tokenizer *tokenizer = NULL;
        Error error = {0};
        Text text = {0};
        TokenBuffer want = {0}, got = {0}, head = {0};
        snprintf(path, sizeof path, "tests/golden/tokenizer_%s_style.json", styles[i]);
        if (tokenizer_open(&tokenizer, path, &error) != OK) fail_msg("%s", error.text);
        int32_t id = some_special(tokenizer);
        text_addf(&text, "one%stwo ", tokenizer_token(tokenizer, id));
        size_t half = text.length;
        text_addf(&text, "%s three", tokenizer_token(tokenizer, id));
        TokenRange all = {0, text.length}, first = {0, half};
        for (int parse = 0; parse < 2; parse++) {
            want.count = got.count = 0;
            assert_int_equal(tokenizer_encode(tokenizer, text.data, text.length, 0, parse, &want, NULL), OK);
            assert_int_equal(tokenizer_encode_guarded(tokenizer, text.data, text.length, 0, &all, parse ? 0 : 1, &got, NULL),
                             OK);
            assert_int_equal(got.count, want.count);
            assert_memory_equal(got.ids, want.ids, (size_t)want.count * sizeof *want.ids);
            assert_memory_equal(got.begin, want.begin, (size_t)want.count * sizeof *want.begin);
        }
        /* want: everything parsed; its tail from the second special token on must be ours */
        got.count = 0;
        assert_int_equal(tokenizer_encode_guarded(tokenizer, text.data, text.length, 0, &first, 1, &got, NULL), OK);
        assert_int_equal(tokenizer_encode(tokenizer, text.data, half, 0, 0, &head, NULL), OK);
        assert_true(got.count > head.count);
        assert_memory_equal(got.ids, head.ids, (size_t)head.count * sizeof *head.ids);
        int64_t tail = got.count - head.count;
        assert_int_equal(got.ids[head.count], id);
        assert_memory_equal(got.ids + head.count, want.ids + want.count - tail, (size_t)tail * sizeof *got.ids);
        for (int64_t t = 0; t < head.count; t++)
            assert_int_not_equal(got.ids[t], id);
        token_buffer_free(&want);
        token_buffer_free(&got);
        token_buffer_free(&head);
        text_free(&text);
        tokenizer_close(tokenizer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_alpaca),
                                       cmocka_unit_test(test_alpaca_in_a_chat_template),
                                       cmocka_unit_test(test_random_conversations),
                                       cmocka_unit_test(test_straddling_token),
                                       cmocka_unit_test(test_never_a_second_bos),
                                       cmocka_unit_test(test_guarded_encoding),
                                       cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_long_text_is_split),
                                       cmocka_unit_test(test_truncation)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
