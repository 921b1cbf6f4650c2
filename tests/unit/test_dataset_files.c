/* Data sets: files and their forms, bad records, templates that are chosen, threads, the split, and real data. */
#include "tests/unit/test_dataset.h"

#include "core/pool.h"

#define ASSETS "../shared/assets/"

static void test_forms_agree(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, NULL);
    static const char *const forms[] = {
        "{\"prompt\":\"a,]}\\\"\",\"completion\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\\n\"}\n",
        "\xEF\xBB\xBF\r\n{\"prompt\":\"a,]}\\\"\",\"completion\":\"b\"}\r\n\r\n {\"prompt\":\"c\",\"completion\":\"d\\n\"}",
        "[{\"prompt\":\"a,]}\\\"\",\"completion\":\"b\"},{\"prompt\":\"c\",\"completion\":\"d\\n\"}]",
        "[\n{\"completion\":\"b\",\n\"prompt\":\"a,]}\\\"\",\"x\":[\"]\"]} ,\n{\"prompt\":\"c\",\"completion\":\"d\\n\"}]\n",
    };
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        Dataset d = must_read("f.json", forms[i], defaults(tokenizer));
        assert_int_equal(d.count, 2);
        check_spelled(&d, 0, "<s>a,]}\"b</s>", "b</s>");
        check_spelled(&d, 1, "<s>cd\n</s>", "d\n</s>");
        if (i == 0) hash = d.hash;
        assert_true(d.hash == hash);
        dataset_free(&d);
    }
    tokenizer_close(tokenizer);
}

/* Each alone in a file, and each as line 2 between good ones. */
static void test_malformed_records(void **state) {
    (void)state;
    static const struct {
        const char *record, *wanted;
    } cases[] = {
        {"{\"messages\":[{\"role\":\"user\"}]}", "\"content\""},
        {"{\"messages\":[{\"content\":\"x\"}]}", "\"role\""},
        {"{\"messages\":[{\"role\":\"bing\",\"content\":\"x\"}]}", "\"bing\" is not supported"},
        {"{\"messages\":[{\"role\":1,\"content\":\"x\"}]}", "role: want a string"},
        {"{\"messages\":[{\"role\":\"user\",\"role\":\"user\",\"content\":\"x\"}]}", "two roles"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"content\":\"y\"}]}", "twice"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", "content: want parts"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "no \"content\""},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":1}]}]}", "got one without a name"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"\",\"function_call\":{}}]}",
         "\"function_call\" is not supported"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{}]}", "got one without a name"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"weight\":0.5}]}", "weight: want true, false, 0 or 1"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"train\":\"yes\"}]}", "train: want true"},
        {"{\"messages\":[]}", "no messages"},
        {"{\"messages\":{}}", "messages: want an array"},
        {"{\"messages\":[\"hi\"]}", "messages: want objects"},
        {"{\"messages\":null}", "messages: want an array"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]} {}", "line"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],}", "line"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}", "line"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}", "surrogate"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"\xFF\"}]}", "UTF-8"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x}]}", "quote"},
        {"{\"text\":\"x\"}", "no messages"},
        {"[1]", "a record: want an object"},
        {"\"text\"", "a record: want an object"},
        {"{} {}", "line"},
        {"nonsense", "line"},
    };
    static const char good[] = "{\"messages\":[{\"role\":\"assistant\",\"content\":\"Hi\"}]}\n";
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Text text = {0};
        DatasetOptions options = defaults(tokenizer);
        options.layout = LAYOUT_MESSAGES;
        text_addf(&text, "%s%s\n%s", good, cases[i].record, good);
        must_fail("m.jsonl", text.data, options, cases[i].wanted);
        must_fail("m.jsonl", text.data, options, "m.jsonl: line 2");
        options.on_error = ON_ERROR_SKIP;
        options.layout = LAYOUT_AUTO;
        Dataset d = must_read("m.jsonl", text.data, options);
        assert_int_equal(d.count, 2);
        assert_int_equal(d.records, 3);
        assert_int_equal(d.skipped_bad, 1);
        assert_non_null(d.skip_reasons);
        if (strstr(d.skip_reasons, cases[i].wanted) == NULL) fail_msg("\"%s\" is not in: %s", cases[i].wanted, d.skip_reasons);
        assert_int_equal(d.record[1], 3);
        dataset_free(&d);
        text_clear(&text);
        text_addf(&text, "%s\n%s", cases[i].record, good); /* a bad first record does not hide the layout */
        if (cases[i].record[0] == '{' && strncmp(cases[i].record, "{\"text", 6) != 0) {
            d = must_read("m.jsonl", text.data, options);
            assert_int_equal(d.count, 1);
            assert_int_equal(d.skipped_bad, 1);
            dataset_free(&d);
        }
        text_free(&text);
    }
    tokenizer_close(tokenizer);
}

/* Reasons that differ in numbers alone are of one kind; kinds are shown by their first. */
static void test_reasons(void **state) {
    (void)state;
    static const char good[] = "{\"text\":\"Hi\"}\n";
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    DatasetOptions options = defaults(tokenizer);
    Text text = {0};
    options.on_error = ON_ERROR_SKIP;
    for (int i = 0; i < 40; i++) /* three kinds: 19, 10, 1 */
        text_addf(&text, "%s%s", i == 39 ? "Nonsense\n" : i % 2 ? "{\"text\":7}\n" : i % 4 ? "[1]\n" : "", good);
    Dataset d = must_read("r.jsonl", text.data, options);
    assert_int_equal(d.count, 40);
    assert_int_equal(d.skipped_bad, 30);
    int lines = 1;
    for (const char *c = d.skip_reasons; *c != 0; c++)
        lines += *c == '\n';
    assert_int_equal(lines, 3);
    assert_non_null(strstr(d.skip_reasons, "line 2: text: want a string"));
    assert_non_null(strstr(d.skip_reasons, "(and 18 more like it)\n"));
    assert_non_null(strstr(d.skip_reasons, "(and 9 more like it)\n"));
    assert_non_null(strstr(d.skip_reasons, "want a value, got 'N'"));
    dataset_free(&d);
    text_clear(&text);
    for (int i = 0; i < 9; i++) /* more kinds than are kept */
        text_addf(&text, "{\"text\":%c}\n%s", 'a' + i, good);
    d = must_read("r.jsonl", text.data, options);
    assert_int_equal(d.skipped_bad, 9);
    assert_non_null(strstr(d.skip_reasons, "\nand 3 more, for other reasons"));
    dataset_free(&d);
    text_free(&text);
    tokenizer_close(tokenizer);
}

static void test_malformed_files(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, CHATML);
    DatasetOptions options = defaults(tokenizer);
    must_fail("f.jsonl", "", options, "empty");
    must_fail("f.jsonl", " \n\n", options, "empty");
    must_fail("f.data", "hello", options, "JSONL");
    must_fail("f.json", "[]", options, "no records");
    must_fail("f.json", "[", options, "ends inside an array");
    must_fail("f.json", "[{\"text\":\"x\"}", options, "ends inside");
    must_fail("f.json", "[{\"text\":\"x\"},", options, "ends inside");
    must_fail("f.json", "[{\"text\":\"x\"},]", options, "line 1");
    must_fail("f.json", "[{\"text\":\"x\"}] x", options, "nothing after the array");
    must_fail("f.json", "[{\"text\":\"x", options, "ends inside");
    must_fail("f.json", "[\n\n{\"text\":1}]", options, "line 3");
    must_fail("f.jsonl", "{\"a\":1,\"b\":2}", options, "\"a\", \"b\"");
    must_fail("f.jsonl", "{\"conversations\":[]}", options, "no conversations");
    must_fail("f.jsonl", "{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"x\"]]}", options, "history");
    must_fail("f.jsonl", "{\"instruction\":\"a\",\"output\":\"b\",\"history\":{}}", options, "history");
    must_fail("f.jsonl", "{\"instruction\":\"a\",\"output\":1}", options, "output: want a string");
    must_fail("f.jsonl", "{\"prompt\":\"a\",\"completion\":null}", options, "no \"completion\"");
    must_fail("f.jsonl.xz", "x", options, "xz -dk");
    must_fail("f.parquet.gz", "x", options, "to_json");
    must_fail("f.parquet", "PAR1", options, "to_json");
    must_fail("f.jsonl", "PAR1\x15\x04", options, "to_json");
    must_fail("f.tar.gz", "x", options, "tar -xvf");
    must_fail("f.jsonl", "PK\x03\x04 and so on", options, "unzip");
    must_fail("f.csv", "\x1F\x8B\x08 and so on", options, "let its name end in .gz");
    must_fail("f.txt", "\x28\xB5\x2F\xFD", options, "let its name end in .zst");
    must_fail("f.txt", "", options, "no records");
    must_fail("f.txt", "\n", options, "nothing in it is trained");
    options.layout = LAYOUT_ALPACA;
    must_fail("f.txt", "hello", options, "plain text file");
    Dataset d;
    Error error = {0};
    options.path = "/nonexistent/data.jsonl";
    assert_int_equal(dataset_read(&options, &d, &error), ERR_FAILED);
    assert_non_null(strstr(error.text, "/nonexistent/data.jsonl"));
    options.path = scratch_folder();
    assert_int_equal(dataset_read(&options, &d, &error), ERR_FAILED);
    assert_non_null(strstr(error.text, "got a folder; name them, or all of a kind: "));
    tokenizer_close(tokenizer);
}

static void test_templates_are_chosen(void **state) {
    (void)state;
    const char *messages = "{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":\"a\"}]}";
    const char *alpaca = "{\"instruction\":\"u\",\"output\":\"a\"}";
    Tokenizer *none = make_tokenizer(0, NULL);
    DatasetOptions options = defaults(none);
    Dataset d = must_read("c.jsonl", messages, options); /* no template, but its marks are tokens */
    assert_string_equal(d.template_name, "chatml");
    dataset_free(&d);
    options.template_name = "chatnl";
    must_fail("c.jsonl", messages, options, "no such built-in template");
    options.template_name = "zephyr";
    d = must_read("c.jsonl", messages, options);
    check_spelled(&d, 0, "<|user|>\nu</s>\n<|assistant|>\na</s>\n", "a</s>");
    dataset_free(&d);
    must_fail("c.jsonl", "{\"text\":\"x\"}", options, "nothing to render");
    tokenizer_close(none);
    Tokenizer *unknown = make_tokenizer(0, "{% for m in messages %}{{ m }}{% endfor %}");
    must_fail("c.jsonl", messages, defaults(unknown), "ends an answer with none of the tokenizer's special tokens");
    must_fail("c.jsonl", alpaca, defaults(unknown), "ends an answer with none of the tokenizer's special tokens");
    d = must_read("c.jsonl", "{\"prompt\":\"u\",\"completion\":\"a\"}", defaults(unknown));
    assert_string_equal(d.template_name, "plain");
    dataset_free(&d);
    tokenizer_close(unknown);
    Tokenizer *known = make_tokenizer(0, CHATML);
    d = must_read("c.jsonl", messages, defaults(known));
    assert_string_equal(d.template_name, "chatml");
    assert_string_equal(layout_name(d.layout), "messages");
    dataset_free(&d);
    tokenizer_close(known);
}

/* More records than a batch, some bad, some split: the same on any number of threads. */
static void test_threads_agree(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, NULL);
    Text text = {0};
    for (int i = 0; i < 5000; i++) {
        if (i % 97 == 3)
            text_addf(&text, "{\"text\":%d}\n", i);
        else
            text_addf(&text, "{\"text\":\"number %d %.*s\"}\n", i, i % 50,
                      "HiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHiHi");
    }
    Dataset results[3];
    static const int threads[] = {0, 1, 5};
    for (int i = 0; i < 3; i++) {
        DatasetOptions options = defaults(tokenizer);
        Pool *pool = NULL;
        options.on_error = ON_ERROR_SKIP;
        options.max_length = 24;
        if (threads[i] > 0) assert_int_equal(pool_create(&pool, threads[i], NULL), OK);
        options.pool = pool;
        results[i] = must_read("n.jsonl", text.data, options);
        pool_free(pool);
        const Dataset *a = &results[0], *b = &results[i];
        assert_int_equal(b->records, 5000);
        assert_int_equal(b->skipped_bad, 52);
        assert_true(b->split > 0);
        assert_true(b->hash == a->hash);
        assert_int_equal(b->count, a->count);
        assert_memory_equal(b->ids, a->ids, (size_t)a->tokens * sizeof *a->ids);
        assert_memory_equal(b->record, a->record, (size_t)a->count * sizeof *a->record);
        assert_string_equal(b->skip_reasons, a->skip_reasons);
        assert_non_null(strstr(b->skip_reasons, "line 4"));
    }
    for (int i = 0; i < 3; i++)
        dataset_free(&results[i]);
    text_free(&text);
    tokenizer_close(tokenizer);
}

static void check_split(const Dataset *all, double fraction, uint64_t seed, int64_t want) {
    Dataset train = {0}, held = {0}, again[2] = {0};
    assert_int_equal(dataset_split(all, fraction, seed, &train, &held, NULL), OK);
    assert_int_equal(dataset_split(all, fraction, seed, &again[0], &again[1], NULL), OK);
    assert_true(train.hash == again[0].hash && held.hash == again[1].hash);
    assert_int_equal(held.count, want);
    assert_int_equal(train.count + held.count, all->count);
    assert_int_equal(train.trained_tokens + held.trained_tokens, all->trained_tokens);
    const Dataset *parts[2] = {&train, &held};
    int64_t at[2] = {0, 0};
    for (int64_t i = 0; i < all->count; i++) { /* both are in file order: together they are the whole */
        int64_t length = all->start[i + 1] - all->start[i];
        int p = 0;
        while (p < 2) {
            const Dataset *d = parts[p];
            if (at[p] < d->count && d->record[at[p]] == all->record[i] && d->start[at[p] + 1] - d->start[at[p]] == length &&
                memcmp(d->ids + d->start[at[p]], all->ids + all->start[i], (size_t)length * sizeof *d->ids) == 0 &&
                memcmp(d->train + d->start[at[p]], all->train + all->start[i], (size_t)length) == 0) {
                break;
            }
            p++;
        }
        if (p == 2) {
            fail_msg("sequence %lld is in neither part", (long long)i);
            return;
        }
        at[p]++;
    }
    dataset_free(&train);
    dataset_free(&held);
    dataset_free(&again[0]);
    dataset_free(&again[1]);
}

static void test_split(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    Text text = {0};
    for (int i = 0; i < 200; i++)
        text_addf(&text, "{\"prompt\":\"%d\",\"completion\":\"x\"}\n", i);
    Dataset d = must_read("s.jsonl", text.data, defaults(tokenizer));
    check_split(&d, 0, 1, 0);
    check_split(&d, 0.1, 1, 20);
    check_split(&d, 0.001, 1, 1);
    check_split(&d, 0.999, 1, 199);
    Dataset a, b, unused;
    assert_int_equal(dataset_split(&d, 0.1, 1, &unused, &a, NULL), OK);
    dataset_free(&unused);
    assert_int_equal(dataset_split(&d, 0.1, 2, &unused, &b, NULL), OK);
    dataset_free(&unused);
    assert_true(a.hash != b.hash);
    dataset_free(&a);
    dataset_free(&b);
    assert_int_equal(dataset_split(&d, 1, 1, &a, &b, NULL), ERR_USAGE);
    assert_int_equal(dataset_split(&d, -0.5, 1, &a, &b, NULL), ERR_USAGE);
    dataset_free(&d);
    /* pieces of a record stay together; a single document gives its end */
    text_clear(&text);
    for (int i = 0; i < 60; i++)
        text_addf(&text, "{\"text\":\"%.*s\"}\n", 1 + i % 21, "abcdefghijklmnopqrstuvwxyz");
    DatasetOptions options = defaults(tokenizer);
    options.max_length = 8;
    d = must_read("s.jsonl", text.data, options);
    Dataset train, held;
    assert_int_equal(dataset_split(&d, 0.3, 5, &train, &held, NULL), OK);
    assert_true(held.count > 0);
    for (int64_t i = 0; i < held.count; i++) {
        for (int64_t j = 0; j < train.count; j++)
            assert_true(held.record[i] != train.record[j]);
    }
    dataset_free(&train);
    dataset_free(&held);
    dataset_free(&d);
    d = must_read("s.txt", text.data, options);
    check_split(&d, 0.1, 3, (int64_t)((double)d.count * 0.1 + 0.5));
    dataset_free(&d);
    text_free(&text);
    tokenizer_close(tokenizer);
}

/* Real files: counts, and text that comes back whole. */
static void test_real_data(void **state) {
    (void)state;
    Tokenizer *tokenizer = NULL;
    Error error = {0};
    if (!file_exists(ASSETS "models/stories260K/hf/tokenizer.json")) {
        print_message("skipped: " ASSETS " is not here\n");
        skip();
    }
    assert_int_equal(tokenizer_open(&tokenizer, ASSETS "models/stories260K/hf", &error), OK);
    static const struct {
        const char *path;
        DataLayout layout;
        int64_t records;
    } files[] = {{ASSETS "datasets/alpaca/alpaca_5000.json", LAYOUT_ALPACA, 5000},
                 {ASSETS "datasets/alpaca/alpaca_en_demo.json", LAYOUT_ALPACA, 0},
                 {ASSETS "datasets/pretrain/c4_demo.jsonl", LAYOUT_TEXT, 300},
                 {ASSETS "datasets/pretrain/tinystories_1500.txt", LAYOUT_TEXT, 1500},
                 {ASSETS "datasets/pretrain/tiny_shakespeare.txt", LAYOUT_TEXT, 1}};
    Pool *pool = NULL;
    assert_int_equal(pool_create(&pool, 0, &error), OK);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        DatasetOptions options = defaults(tokenizer);
        Dataset d;
        options.path = files[i].path;
        options.max_length = 512;
        options.pool = pool;
        if (dataset_read(&options, &d, &error) != OK) fail_msg("%s", error.text);
        assert_int_equal(d.layout, files[i].layout);
        if (files[i].records > 0) assert_int_equal(d.records, files[i].records);
        assert_int_equal(d.skipped_bad, 0);
        for (int64_t s = 0; s < d.count; s++)
            assert_int_equal(d.train[d.start[s]], 0);
        if (files[i].layout == LAYOUT_TEXT)
            assert_int_equal(d.trained_tokens, d.tokens - d.count);
        else
            assert_int_equal(d.ids[0], tokenizer_bos(tokenizer));
        print_message(
            "%s: %lld records, %lld sequences, %lld tokens, %lld trained, %lld truncated, %lld split, %lld untrained\n",
            files[i].path, (long long)d.records, (long long)d.count, (long long)d.tokens, (long long)d.trained_tokens,
            (long long)d.truncated, (long long)d.split, (long long)d.skipped_untrained);
        dataset_free(&d);
    }
    pool_free(pool);
    tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms_agree),
                                       cmocka_unit_test(test_malformed_records),
                                       cmocka_unit_test(test_malformed_files),
                                       cmocka_unit_test(test_reasons),
                                       cmocka_unit_test(test_templates_are_chosen),
                                       cmocka_unit_test(test_threads_agree),
                                       cmocka_unit_test(test_split),
                                       cmocka_unit_test(test_real_data)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
