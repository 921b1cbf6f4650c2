/* Data sets: where records come from: compressed files, tables, several files, patterns and weights. */
#include <zlib.h>
#include <zstd.h>

#include "tests/unit/test_dataset.h"

#include "data/byte_source.h"
#include "data/data_files.h"
#include "data/packing.h"

/* ---- compressed files ---------------------------------------------------------------------------------------------------- */

/* One gzip member or zstd frame, appended to `out`. */
static void compress_text(Compression kind, const char *text, size_t length, Text *out) {
    size_t capacity = length + length / 8 + 1024;
    char *bytes = memory_alloc(capacity);
    size_t got;
    if (kind == COMPRESSION_ZSTD) {
        ZSTD_CCtx *context = ZSTD_createCCtx();
        ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
        got = ZSTD_compress2(context, bytes, capacity, text, length);
        ZSTD_freeCCtx(context);
        assert_false(ZSTD_isError(got));
    } else {
        z_stream z = {0};
        assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
        z.next_in = (Bytef *)(uintptr_t)text;
        z.avail_in = (uInt)length;
        z.next_out = (Bytef *)bytes;
        z.avail_out = (uInt)capacity;
        assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
        got = z.total_out;
        deflateEnd(&z);
    }
    text_add(out, bytes, got);
    memory_free(bytes);
}

static Status read_bytes(const char *name, const Text *bytes, DatasetOptions options, Dataset *d, Error *error) {
    scratch_write(name, bytes->data, bytes->length);
    char *path = scratch_path(name);
    options.path = path;
    Status status = dataset_read(&options, d, error);
    memory_free(path);
    return status;
}

static const struct {
    Compression kind;
    const char *name, *csv, *text, *tool;
} kinds[] = {{COMPRESSION_GZIP, "c.jsonl.gz", "c.csv.GZ", "c.txt.gz", "gzip"},
             {COMPRESSION_ZSTD, "c.jsonl.zst", "c.csv.ZST", "c.txt.zst", "zstd"}};

/* The same records as from the plain file, in one frame and in many, over more bytes than any buffer. */
static void test_compressed_equals_plain(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(1, NULL);
    Text plain = {0};
    for (int i = 0; plain.length < (size_t)3 << 20; i++)
        text_addf(&plain, "{\"prompt\":\"%d %u\",\"completion\":\"%.*s\"}\n", i, (unsigned)i * 2654435761u, i % 60,
                  "HiHiHiHiHi bc HiHiHiHiHi bc HiHiHiHiHi bc HiHiHiHiHi bc HiHi");
    Dataset want = must_read("c.jsonl", plain.data, defaults(tokenizer));
    for (size_t k = 0; k < 2; k++) {
        for (size_t frames = 1; frames <= 5; frames += 4) {
            Text packed = {0};
            Dataset d;
            Error error = {0};
            for (size_t f = 0; f < frames; f++) {
                size_t begin = plain.length * f / frames, end = plain.length * (f + 1) / frames;
                compress_text(kinds[k].kind, plain.data + begin, end - begin, &packed);
            }
            if (read_bytes(kinds[k].name, &packed, defaults(tokenizer), &d, &error) != OK) fail_msg("%s", error.text);
            assert_true(d.hash == want.hash);
            assert_int_equal(d.records, want.records);
            dataset_free(&d);
            text_free(&packed);
        }
    }
    dataset_free(&want);
    text_free(&plain);
    tokenizer_close(tokenizer);
}

static void test_compressed_tables_and_text(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    for (size_t k = 0; k < 2; k++) {
        static const char table[] = "prompt,completion\na,b\n", document[] = "Hi\n<|endoftext|>\nbc\n";
        Text packed = {0};
        Dataset d;
        Error error = {0};
        compress_text(kinds[k].kind, table, strlen(table), &packed);
        if (read_bytes(kinds[k].csv, &packed, defaults(tokenizer), &d, &error) != OK) fail_msg("%s", error.text);
        check_spelled(&d, 0, "ab</s>", "b</s>");
        dataset_free(&d);
        text_clear(&packed);
        compress_text(kinds[k].kind, document, strlen(document), &packed);
        if (read_bytes(kinds[k].text, &packed, defaults(tokenizer), &d, &error) != OK) fail_msg("%s", error.text);
        assert_int_equal(d.layout, LAYOUT_TEXT);
        assert_int_equal(d.count, 2);
        dataset_free(&d);
        text_free(&packed);
    }
    tokenizer_close(tokenizer);
}

/* Cut anywhere, a bit flipped in the checksum, followed by rubbish, no compressed data at all: refused, never less data. */
static void test_damaged_compression(void **state) {
    (void)state;
    static const char text[] = "{\"text\":\"Hi bc Hi bc\"}\n{\"text\":\"and more of it\"}\n";
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    DatasetOptions options = defaults(tokenizer);
    options.on_error = ON_ERROR_SKIP; /* damage is no bad record */
    for (size_t k = 0; k < 2; k++) {
        Text packed = {0}, part = {0};
        Dataset d;
        Error error = {0};
        compress_text(kinds[k].kind, text, strlen(text), &packed);
        for (size_t cut = 1; cut < packed.length; cut++) {
            text_clear(&part);
            text_add(&part, packed.data, cut);
            if (read_bytes(kinds[k].name, &part, options, &d, &error) == OK) fail_msg("cut at %zu was read", cut);
            assert_non_null(strstr(error.text, kinds[k].tool));
            assert_null(d.ids);
        }
        assert_non_null(strstr(error.text, "ends too early"));
        text_clear(&part);
        text_add(&part, packed.data, packed.length);
        part.data[kinds[k].kind == COMPRESSION_ZSTD ? part.length - 1 : part.length - 5] ^= 1; /* in the checksum */
        assert_int_equal(read_bytes(kinds[k].name, &part, options, &d, &error), ERR_FAILED);
        text_clear(&part);
        text_add(&part, packed.data, packed.length);
        text_adds(&part, "rubbish behind it");
        assert_int_equal(read_bytes(kinds[k].name, &part, options, &d, &error), ERR_FAILED);
        must_fail(kinds[k].name, text, options, "not whole");
        must_fail(kinds[k].name, "", options, "empty");
        text_free(&packed);
        text_free(&part);
    }
    tokenizer_close(tokenizer);
}

/* 100 MiB of spaces in a few kilobytes: stopped at the cap, on memory that does not grow. */
static void test_bombs(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    size_t length = (size_t)100 << 20;
    char *spaces = memory_alloc(length);
    memset(spaces, ' ', length);
    for (size_t k = 0; k < 2; k++) {
        Text packed = {0};
        Dataset d;
        Error error = {0};
        compress_text(kinds[k].kind, spaces, length, &packed);
        assert_true(packed.length < length / BYTE_SOURCE_BOMB_RATIO);
        assert_int_equal(read_bytes(kinds[k].name, &packed, defaults(tokenizer), &d, &error), ERR_FAILED);
        if (strstr(error.text, "expand to more than") == NULL) fail_msg("%s", error.text);
        text_free(&packed);
    }
    memory_free(spaces);
    tokenizer_close(tokenizer);
}

/* A frame that asks for a window of 256 MiB is refused, not allocated. */
static void test_window_cap(void **state) {
    (void)state;
    /* magic; descriptor: no single segment, no checksum, no content size; window descriptor: exponent 18, 2^(10+18); then a
     * raw block of 1 byte, the last one (RFC 8878, 3.1.1) */
    static const char frame[] = {'\x28', '\xB5', '\x2F', '\xFD', '\x00', (char)(18 << 3), '\x09', '\x00', '\x00', 'x'};
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    Text packed = {0};
    Dataset d;
    Error error = {0};
    text_add(&packed, frame, sizeof frame);
    assert_int_equal(read_bytes("w.txt.zst", &packed, defaults(tokenizer), &d, &error), ERR_FAILED);
    assert_non_null(strstr(error.text, "memory")); /* zstd: "Frame requires too much memory for decoding" */
    packed.data[5] = (char)(17 << 3);              /* 128 MiB is taken */
    if (read_bytes("w.txt.zst", &packed, defaults(tokenizer), &d, &error) != OK) fail_msg("%s", error.text);
    check_spelled(&d, 0, "x</s>", "</s>");
    dataset_free(&d);
    text_free(&packed);
    tokenizer_close(tokenizer);
}

/* ---- tables -------------------------------------------------------------------------------------------------------------- */

static void test_table_forms_agree(void **state) {
    (void)state;
    static const struct {
        const char *name, *text;
    } forms[] = {
        {"t.csv", "prompt,completion\n\"a,\"\"\nq\",b\nc,\"d\t\"\n"},
        {"t.csv", "\xEF\xBB\xBFprompt,completion\r\n\"a,\"\"\nq\",\"b\"\r\n\r\nc,d\t\r\n"},
        {"t.csv", "id,\"completion\",\"prompt\"\n1,b,\"a,\"\"\nq\"\n2,d\t,c"},
        {"t.csv", "\n\ncompletion,,prompt\nb,x,\"a,\"\"\nq\"\nd\t,\"\",c\n\n"},
        {"t.tsv", "prompt\tcompletion\n\"a,\"\"\nq\"\tb\nc\t\"d\t\"\n"},
        {"t.jsonl", "{\"prompt\":\"a,\\\"\\nq\",\"completion\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\\t\"}"},
    };
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        Dataset d = must_read(forms[i].name, forms[i].text, defaults(tokenizer));
        assert_int_equal(d.layout, LAYOUT_PROMPT_COMPLETION);
        assert_int_equal(d.count, 2);
        check_spelled(&d, 0, "a,\"\nqb</s>", "b</s>");
        check_spelled(&d, 1, "cd\t</s>", "d\t</s>");
        dataset_free(&d);
    }
    Dataset d = must_read("t.csv", "instruction,input,output\nadd,,3\nadd,1 2,3\n", defaults(tokenizer));
    assert_int_equal(d.layout, LAYOUT_ALPACA);
    char *first = spell(&d, 0, 0), *second = spell(&d, 1, 0);
    assert_null(strstr(first, "### Input:"));
    assert_non_null(strstr(second, "### Input:\n1 2\n"));
    memory_free(first);
    memory_free(second);
    dataset_free(&d);
    d = must_read("t.csv", "text\n\"Hi \\n \\\\ \x01\"\nbc\n", defaults(tokenizer)); /* backslashes mean nothing in CSV */
    assert_int_equal(d.layout, LAYOUT_TEXT);
    check_spelled(&d, 0, "Hi \\n \\\\ \x01</s>", " \\n \\\\ \x01</s>");
    dataset_free(&d);
    tokenizer_close(tokenizer);
}

/* A bad row is a bad record: named with its line, skipped when told to. What hides the rows' borders ends the reading. */
static void test_malformed_tables(void **state) {
    (void)state;
    static const struct {
        const char *row, *wanted;
    } rows[] = {{"a", "1 fields, and the first row names 2"},
                {"a,b,c", "3 fields"},
                {"a,", NULL},
                {"a,b\"c", "a quote stands in a field"},
                {"a,\"b\"c", "follows a quoted field's closing quote"},
                {"\"a\" ,b", "follows a quoted field's closing quote"},
                {"a\rb,c", "carriage return"},
                {"a,\xFF", "UTF-8"},
                {"a,\xC0\x80", "UTF-8"},
                {"\"a\nb\",c,d", "3 fields"}};
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Text text = {0};
        DatasetOptions options = defaults(tokenizer);
        options.on_error = ON_ERROR_SKIP;
        text_addf(&text, "prompt,completion\nHi,bc\n%s\nlast,one\n", rows[i].row);
        Dataset d = must_read("t.csv", text.data, options);
        assert_int_equal(d.records, 3);
        assert_int_equal(d.count, rows[i].wanted == NULL ? 3 : 2);
        if (rows[i].wanted != NULL) {
            assert_int_equal(d.skipped_bad, 1);
            if (strstr(d.skip_reasons, rows[i].wanted) == NULL) fail_msg("%s: %s", rows[i].wanted, d.skip_reasons);
            options.on_error = ON_ERROR_FAIL;
            must_fail("t.csv", text.data, options, rows[i].wanted);
            must_fail("t.csv", text.data, options, "t.csv: line 3");
        }
        dataset_free(&d);
        text_free(&text);
    }
    DatasetOptions options = defaults(tokenizer);
    options.on_error = ON_ERROR_SKIP;
    must_fail("t.csv", "prompt,completion\na,b\n\"c,d\n", options,
              "line 3: a quoted field in the row that starts here never ends");
    must_fail("t.csv", "prompt,completion\n", options, "no records");
    must_fail("t.csv", "", options, "empty");
    must_fail("t.csv", "\n\r\n", options, "empty");
    must_fail("t.csv", "prompt,prompt\na,b\n", options, "\"prompt\" twice");
    must_fail("t.csv", "pro\"mpt,completion\na,b\n", options, "line 1");
    must_fail("t.csv", "a,b\n1,2\n", options, "\"a\", \"b\"");
    must_fail("t.csv", "question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,0\n", options, "multiple-choice");
    options.template_name = "chatml";
    must_fail("t.csv", "messages\n[]\n", options, "messages: want an array");
    Text wide = {0};
    for (int i = 0; i < 1100; i++)
        text_addf(&wide, "%sf%d", i > 0 ? "," : "", i);
    must_fail("t.csv", wide.data, options, "more than 1024 fields");
    text_free(&wide);
    tokenizer_close(tokenizer);
}

/* ---- several files ------------------------------------------------------------------------------------------------------- */

static void write_named(const char *name, const char *text) {
    scratch_write(name, text, strlen(text));
}

static Dataset read_sources(const Tokenizer *tokenizer, const char *const *names, const double *weights, int64_t count) {
    DatasetSource sources[8];
    DatasetOptions options = defaults(tokenizer);
    Dataset d;
    Error error = {0};
    for (int64_t i = 0; i < count; i++)
        sources[i] = (DatasetSource){scratch_path(names[i]), weights == NULL ? 1 : weights[i]};
    options.sources = sources;
    options.source_count = count;
    if (dataset_read(&options, &d, &error) != OK) fail_msg("%s", error.text);
    for (int64_t i = 0; i < count; i++)
        memory_free((char *)(uintptr_t)sources[i].path);
    return d;
}

/* Patterns give files in the order of their bytes, each with its own layout and numbers of its own. */
static void test_patterns(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    write_named("g-b.jsonl", "{\"text\":\"third\"}\n");
    write_named("g-B.csv", "prompt,completion\nfir,st\n");
    write_named("g-a.txt", "second");
    write_named("g-[x].txt", "literal");
    static const char *const all[] = {"g-[aBb].*"}, *const literal[] = {"g-[x].txt"},
                             *const listed[] = {"g-b.jsonl", "g-a.txt"};
    Dataset d = read_sources(tokenizer, all, NULL, 1);
    assert_int_equal(d.file_count, 3);
    assert_int_equal(d.count, 3);
    check_spelled(&d, 0, "first</s>", "st</s>");
    check_spelled(&d, 1, "second</s>", "econd</s>");
    check_spelled(&d, 2, "third</s>", "hird</s>");
    assert_int_equal(d.layout, LAYOUT_MIXED);
    assert_string_equal(layout_name(d.layout), "mixed");
    assert_int_equal(d.files[0].layout, LAYOUT_PROMPT_COMPLETION);
    assert_int_equal(d.files[2].layout, LAYOUT_TEXT);
    assert_true(d.record[0] < d.record[1] && d.record[1] < d.record[2]); /* the split takes them for different records */
    uint64_t hash = d.hash;
    dataset_free(&d);
    d = read_sources(tokenizer, all, NULL, 1);
    assert_true(d.hash == hash);
    dataset_free(&d);
    d = read_sources(tokenizer, literal, NULL, 1);
    check_spelled(&d, 0, "literal</s>", "iteral</s>");
    dataset_free(&d);
    d = read_sources(tokenizer, listed, NULL, 2); /* a list keeps its order */
    check_spelled(&d, 0, "third</s>", "hird</s>");
    check_spelled(&d, 1, "second</s>", "econd</s>");
    assert_int_equal(d.layout, LAYOUT_TEXT);
    dataset_free(&d);
    write_named("g-a.txt", "Second"); /* content counts */
    d = read_sources(tokenizer, all, NULL, 1);
    assert_true(d.hash != hash);
    dataset_free(&d);

    DatasetOptions options = defaults(tokenizer);
    Error error = {0};
    char *none = scratch_path("nothing-*.jsonl"), *one = scratch_path("g-b.jsonl"), *many = scratch_path("g-*.jsonl");
    options.path = none;
    assert_int_equal(dataset_read(&options, &d, &error), ERR_FAILED);
    assert_non_null(strstr(error.text, "no file matches"));
    const DatasetSource twice[] = {{one, 1}, {many, 1}}, weightless[] = {{one, 0}}, heavy[] = {{one, 1001}};
    const DatasetSource *const bad[] = {twice, weightless, heavy};
    static const char *const wanted[] = {"named twice", "weight", "weight"};
    for (int i = 0; i < 3; i++) {
        options.sources = bad[i];
        options.source_count = i == 0 ? 2 : 1;
        assert_int_equal(dataset_read(&options, &d, &error), ERR_USAGE);
        assert_non_null(strstr(error.text, wanted[i]));
    }
    memory_free(none);
    memory_free(one);
    memory_free(many);
    tokenizer_close(tokenizer);
}

/* How often an epoch has each sequence. */
static void count_members(const Dataset *d, uint64_t seed, int64_t epoch, Packing packing, int64_t *times) {
    PackPlan *plan = NULL;
    assert_int_equal(pack_epoch(&plan, d, packing, 64, seed, epoch, 1, NULL), OK);
    memset(times, 0, (size_t)d->count * sizeof *times);
    for (int64_t w = 0; w < pack_count(plan); w++) {
        const int64_t *sequences;
        int64_t count, tokens = 0;
        pack_get(plan, w, &sequences, &count);
        for (int64_t i = 0; i < count; i++) {
            times[sequences[i]]++;
            tokens += d->start[sequences[i] + 1] - d->start[sequences[i]];
        }
        assert_true(tokens <= 64);
    }
    assert_true(pack_fill(plan) > 0 && pack_fill(plan) <= 1);
    pack_free(plan);
}

/* Weight 2.5 of 200: 500 an epoch, each twice or three times, and which is drawn anew; 0.25: 50, each at most once. Over 40
 * epochs every sequence comes about as often as its weight says. */
static void test_weights(void **state) {
    (void)state;
    Tokenizer *tokenizer = make_tokenizer(0, NULL);
    Text text = {0};
    for (int i = 0; i < 200; i++)
        text_addf(&text, "{\"text\":\"%d %.*s\"}\n", i, i % 40, "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz");
    static const char *const names[] = {"w1.jsonl", "w2.jsonl", "w3.jsonl"};
    static const double weights[] = {2.5, 0.25, 1};
    for (int f = 0; f < 3; f++)
        write_named(names[f], text.data);
    Dataset d = read_sources(tokenizer, names, weights, 3), plain = read_sources(tokenizer, names, NULL, 3);
    assert_int_equal(d.count, 600);
    assert_true(d.hash != plain.hash);
    assert_true(dataset_is_weighted(&d) && !dataset_is_weighted(&plain));
    int64_t times[600], again[600], sums[600] = {0};
    for (int64_t epoch = 0; epoch < 40; epoch++) {
        int64_t total[3] = {0};
        count_members(&d, 7, epoch, epoch % 2 ? PACKING_NONE : PACKING_BEST_FIT, times);
        count_members(&d, 7, epoch, epoch % 2 ? PACKING_BEST_FIT : PACKING_NONE, again);
        assert_memory_equal(times, again, sizeof times);
        for (int64_t i = 0; i < 600; i++) {
            static const int64_t least[] = {2, 0, 1}, most[] = {3, 1, 1};
            total[i / 200] += times[i];
            sums[i] += times[i];
            assert_in_range(times[i], least[i / 200], most[i / 200]);
        }
        assert_int_equal(total[0], 500);
        assert_int_equal(total[1], 50);
        assert_int_equal(total[2], 200);
    }
    for (int64_t i = 0; i < 600; i++) {
        /* 40 draws of probability 1/2 or 1/4: 20 +- 3.2 or 10 +- 2.7; five deviations, for 400 sequences */
        double want = 40 * weights[i / 200], near = i < 200 ? 16 : i < 400 ? 14 : 0;
        assert_true((double)sums[i] >= want - near && (double)sums[i] <= want + near);
    }
    count_members(&d, 7, 0, PACKING_BEST_FIT, times);
    count_members(&d, 8, 0, PACKING_BEST_FIT, again);
    assert_memory_not_equal(times, again, sizeof times);
    Dataset train, held;
    assert_int_equal(dataset_split(&d, 0.1, 3, &train, &held, NULL), OK);
    assert_int_equal(held.count, 60);
    assert_true(dataset_is_weighted(&train) && !dataset_is_weighted(&held));
    assert_int_equal(train.files[0].count + train.files[1].count + train.files[2].count, 540);
    for (int64_t i = 0, f = 0, left = train.files[0].count; i < train.count; i++) { /* sequences are in their file's range */
        while (left == 0)
            left = train.files[++f].count;
        left--;
        assert_in_range(train.record[i], f * 200 + 1, (f + 1) * 200);
    }
    dataset_free(&train);
    dataset_free(&held);
    dataset_free(&d);
    dataset_free(&plain);
    text_free(&text);
    tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_compressed_equals_plain),
                                       cmocka_unit_test(test_compressed_tables_and_text),
                                       cmocka_unit_test(test_damaged_compression),
                                       cmocka_unit_test(test_bombs),
                                       cmocka_unit_test(test_window_cap),
                                       cmocka_unit_test(test_table_forms_agree),
                                       cmocka_unit_test(test_malformed_tables),
                                       cmocka_unit_test(test_patterns),
                                       cmocka_unit_test(test_weights)};
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
