/* The page: well-formed, self-contained, escaped, and small for any number of steps. */
#include "tests/unit/test_reporter.h"

#include "train/report_chart.h"

/* Every element that is opened is closed, in order; <br>-like ones and SVG's <x/> do not count. */
static void assert_balanced(const char *page) {
    char stack[32][16];
    int depth = 0;
    for (const char *at = strchr(page, '<'); at != NULL; at = strchr(at + 1, '<')) {
        const char *end = strchr(at, '>');
        assert_non_null(end);
        int closes = at[1] == '/';
        char name[16] = {0};
        for (int i = 0;
             i < 15 && ((at[1 + closes + i] >= 'a' && at[1 + closes + i] <= 'z') || strchr("123P", at[1 + closes + i])); i++)
            name[i] = at[1 + closes + i];
        if (at[1] == '!' || end[-1] == '/' || strcmp(name, "meta") == 0) continue;
        if (!closes) {
            assert_true(depth < 32);
            memcpy(stack[depth++], name, sizeof name);
        } else {
            assert_true(depth > 0);
            assert_string_equal(stack[--depth], name);
        }
    }
    assert_int_equal(depth, 0);
}

static void assert_has(const Text *page, const char *part) {
    if (strstr(page->data, part) == NULL) fail_msg("the page has no \"%s\"", part);
}

static void assert_has_not(const Text *page, const char *part) {
    const char *at = strstr(page->data, part);
    if (at != NULL) fail_msg("the page has \"%s\": %.60s", part, at);
}

/* Nothing from elsewhere, nothing that runs, no number that is none. */
static void assert_sound(const Text *page) {
    static const char *const never[] = {"<script", "http:", "https:", "//", "url(h", "src=", "href=", "@import", "nan", "inf "};
    assert_balanced(page->data);
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++)
        assert_has_not(page, never[i]);
    for (size_t i = 0; i < page->length;) {
        uint32_t code;
        int n = utf8_decode(page->data + i, page->length - i, &code);
        assert_true(n > 0);
        i += (size_t)n;
    }
    assert_int_equal(strlen(page->data), page->length);
}

static int most_points(const char *page) {
    int most = 0;
    for (const char *at = page; (at = strstr(at, " d=\"")) != NULL;) {
        int points = 0;
        for (at += 4; *at != '"'; at++)
            points += *at == 'M' || *at == 'L';
        if (points > most) most = points;
    }
    return most;
}

static History *example_history(int64_t steps, int evaluated) {
    History *history = history_create();
    for (int64_t step = 0; step <= steps; step++) {
        MetricsRecord record = {.kind = METRICS_STEP, .step = example_step(step > 0 ? step : 1, steps > 0 ? steps : 1)};
        if (step > 0) history_add(history, &record);
        if (evaluated && (step % 10 == 0 || step == steps)) {
            record = (MetricsRecord){.kind = METRICS_EVAL, .step = {.step = step, .loss = 3.0 - (double)step / 100.0 / 1000.0}};
            history_add(history, &record);
        }
    }
    return history;
}

static void any_number_of_steps(void **state) {
    (void)state;
    static const int64_t counts[] = {0, 1, 2, 9, 10, 97, 750, 751, 100000};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        for (int evaluated = 0; evaluated < 2; evaluated++) {
            History *history = example_history(counts[i], evaluated);
            ReporterFacts facts = example_facts();
            Text page = {0};
            report_html(&facts, history, &page);
            assert_sound(&page);
            assert_true(most_points(page.data) <= 1500);
            assert_true(page.length < 200000);
            if (counts[i] == 0 && !evaluated) assert_has(&page, "nothing recorded yet");
            if (evaluated) assert_has(&page, "Held-out loss was <b>3.0000</b> before training");
            if (counts[i] == 100000) {
                assert_has(&page, "100,000 of 100,000 steps are done, in 9h15m, over 409,600,000 tokens");
                assert_has(&page, "Skipped because of NaN or Inf: 1030 steps");
            }
            text_free(&page);
            history_free(history);
        }
}

static void nothing_but_nan(void **state) {
    (void)state;
    History *history = history_create();
    for (int64_t step = 1; step <= 5; step++) {
        MetricsRecord record = {.kind = METRICS_STEP, .step = {.step = step, .steps = 5, .loss = NAN, .grad_norm = INFINITY}};
        record.step.lr = record.step.tokens_per_second = record.step.seconds = record.step.peak_fraction = NAN;
        history_add(history, &record);
    }
    MetricsRecord eval = {.kind = METRICS_EVAL, .step = {.step = 5, .loss = NAN}};
    history_add(history, &eval);
    Text page = {0};
    ReporterFacts facts = {.title = "t", .config_json = ""};
    report_html(&facts, history, &page);
    assert_sound(&page);
    text_free(&page);
    history_free(history);
}

static void extreme_numbers(void **state) {
    (void)state;
    static const double values[] = {1e308, -1e308, 1e-308, 0.0, 5e-324, 1e308};
    History *history = history_create();
    for (int64_t step = 1; step <= 6; step++) {
        double v = values[step - 1];
        StepRecord r = {.step = step, .steps = INT64_MAX, .loss = v, .grad_norm = v, .lr = v, .tokens_per_second = v};
        r.tokens = INT64_MAX;
        history_add(history, &(MetricsRecord){.kind = METRICS_STEP, .step = r});
    }
    StepRecord last = {.step = INT64_MAX, .steps = INT64_MAX, .loss = 1.0, .grad_norm = 1.0, .lr = 1.0};
    history_add(history, &(MetricsRecord){.kind = METRICS_STEP, .step = last});
    Text page = {0};
    ReporterFacts facts = example_facts();
    report_html(&facts, history, &page);
    assert_balanced(page.data);
    assert_has_not(&page, "nan");
    assert_true(page.length < 200000);
    text_free(&page);
    history_free(history);
}

static void everything_is_escaped(void **state) {
    (void)state;
    History *history = example_history(3, 1);
    MetricsRecord sample = {.kind = METRICS_SAMPLE,
                            .prompt = "<script>alert('1')</script> & \"q\"",
                            .written = "\xff\xc0\x80<b>\x1b[31m",
                            .wanted = ""};
    history_add(history, &sample);
    sample.after = 1;
    sample.written = "</p></div>";
    history_add(history, &sample);
    sample.written = "</section>"; /* said again after a resume: the newer answer stands */
    history_add(history, &sample);
    history_add(history, &(MetricsRecord){.kind = METRICS_EVENT, .step = {.step = 3}, .text = "saved <step> 3"});
    assert_int_equal(history->samples, 1);
    Text page = {0};
    ReporterFacts facts = example_facts();
    report_html(&facts, history, &page);
    assert_sound(&page);
    assert_has(&page, "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;q&quot;");
    assert_has(&page, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD&lt;b&gt;\xEF\xBF\xBD[31m");
    assert_has(&page, "<p dir=\"auto\">&lt;/section&gt;</p>");
    assert_has_not(&page, "&lt;/p&gt;");
    assert_has(&page, "<em>nothing</em>");
    assert_has(&page, "<title>runs/&lt;first&gt; – nibble</title>");
    assert_has(&page, "models/&lt;tiny&gt; &amp; &quot;small&quot;");
    assert_has(&page, "{&quot;a&quot;: &quot;&lt;/pre&gt;&lt;script&gt;&quot;}");
    assert_has(&page, "saved &lt;step&gt; 3");
    text_free(&page);
    history_free(history);
}

static void history_stays_small_and_keeps_extremes(void **state) {
    (void)state;
    History *history = history_create();
    for (int64_t step = 1; step <= 100000; step++) {
        StepRecord record = {.step = step, .steps = 100000, .loss = step == 54321 ? 9.0 : 1.0, .lr = (double)step};
        history_add(history, &(MetricsRecord){.kind = METRICS_STEP, .step = record});
        history_add(history, &(MetricsRecord){.kind = METRICS_EVAL, .step = {.step = step, .loss = step == 777 ? 0.5 : 2.0}});
        history_add(history, &(MetricsRecord){.kind = METRICS_EVENT, .step = {.step = step}, .text = "event"});
    }
    assert_int_equal(history->width, 256); /* 100000 / 128 is more than 750 */
    assert_true(history->buckets <= HISTORY_BUCKETS && history->evals <= HISTORY_EVALS);
    double most = 0.0, sum = 0.0;
    int64_t count = 0;
    for (size_t i = 0; i < history->buckets; i++) {
        const HistoryBucket *bucket = &history->bucket[i];
        if (bucket->range[HISTORY_LOSS].most > most) most = bucket->range[HISTORY_LOSS].most;
        sum += bucket->range[HISTORY_LR].sum;
        count += bucket->range[HISTORY_LR].count;
        assert_int_equal(bucket->first, 256 * (int64_t)i + 1);
    }
    assert_true(most == 9.0);
    assert_int_equal(count, 100000);
    assert_true(sum == 5000050000.0); /* integers: exact */
    assert_int_equal(history->best_eval.step, 777);
    assert_int_equal(history->last_eval.step, 100000);
    int64_t skipped, lost = 0;
    for (size_t k = 0; k < history_events(history); k++) {
        const HistoryEvent *event = history_event(history, k, &skipped);
        lost += skipped;
        assert_int_equal(event->step, (int64_t)k + 1 + lost);
    }
    assert_int_equal(lost, 100000 - HISTORY_FIRST_EVENTS - HISTORY_LAST_EVENTS);
    history_free(history);
}

static void ticks_read_well(void **state) {
    (void)state;
    static const struct {
        double value, step;
        const char *want;
    } cases[] = {{0, 0.5, "0"},           {0.5, 0.5, "0.5"},    {2, 0.5, "2.0"},      {-1.5, 0.5, "-1.5"},
                 {300, 50, "300"},        {9000, 1000, "9000"}, {10000, 5000, "10k"}, {15000, 5000, "15k"},
                 {2e6, 5e5, "2.0M"},      {2e-4, 5e-5, "2e-4"}, {1e-3, 5e-4, "1e-3"}, {1.5e-4, 5e-5, "1.5e-4"},
                 {0.002, 0.001, "0.002"}, {1e20, 1e19, "1e20"}, {1e-17, 0.5, "0"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Text text = {0};
        chart_number(&text, cases[i].value, cases[i].step);
        assert_string_equal(text.data, cases[i].want);
        text_free(&text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_steps),
        cmocka_unit_test(nothing_but_nan),
        cmocka_unit_test(extreme_numbers),
        cmocka_unit_test(everything_is_escaped),
        cmocka_unit_test(history_stays_small_and_keeps_extremes),
        cmocka_unit_test(ticks_read_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
