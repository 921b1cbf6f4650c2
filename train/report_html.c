/* The page, from top to bottom: what came of it, how it went, what the model says now, what was trained on what. */
#include "train/report_html.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/report_chart.h"
#include "train/report_style.h"

void html_escape(Text *out, const char *text) {
    size_t length = strlen(text);
    for (size_t i = 0; i < length;) {
        uint32_t code;
        int n = utf8_decode(text + i, length - i, &code);
        int is_control = (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7F && code < 0xA0);
        if (n == 0 || is_control)
            text_adds(out, "\xEF\xBF\xBD");
        else if (code == '<')
            text_adds(out, "&lt;");
        else if (code == '>')
            text_adds(out, "&gt;");
        else if (code == '&')
            text_adds(out, "&amp;");
        else if (code == '"')
            text_adds(out, "&quot;");
        else if (code == '\'')
            text_adds(out, "&#39;");
        else
            text_add(out, text + i, (size_t)n);
        i += n > 0 ? (size_t)n : 1;
    }
}

/* 1234567 as 1,234,567 */
static void add_count(Text *out, int64_t value) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)value);
    for (int i = 0; i < length; i++) {
        text_add(out, &digits[i], 1);
        if (i + 1 < length && digits[i] != '-' && (length - 1 - i) % 3 == 0) text_adds(out, ",");
    }
}

/* ---- what came of it -------------------------------------------------------------------------------------------------------- */

static int is_finished(const History *h) {
    return h->last.step > 0 && h->last.step == h->last.steps;
}

static void add_sentence(const History *h, Text *out) {
    char duration[32];
    text_adds(out, "<p class=\"lead\">");
    if (isfinite(h->first_eval.loss)) {
        double drop = 100.0 * (1.0 - h->best_eval.loss / h->first_eval.loss);
        text_addf(out, "Held-out loss was <b>%.4f</b> before training", h->first_eval.loss);
        if (h->last_eval.step > h->first_eval.step) {
            text_addf(out, ", <b>%.4f</b> at its best (step %lld", h->best_eval.loss, (long long)h->best_eval.step);
            if (isfinite(drop) && drop > 0.0) text_addf(out, ", %.1f&nbsp;%% lower", drop);
            text_addf(out, ") and <b>%.4f</b> at the %s", h->last_eval.loss, is_finished(h) ? "end" : "newest evaluation");
        }
        text_adds(out, ". ");
    } else if (isfinite(h->first_loss)) {
        text_addf(out,
                  "Training loss was <b>%.4f</b> at the first step and <b>%.4f</b> at the newest; there is no held-out data. ",
                  h->first_loss, h->last_loss);
    }
    if (h->last.step == 0) {
        text_adds(out, "No optimizer step is done yet.");
    } else {
        add_count(out, h->last.step);
        text_adds(out, " of ");
        add_count(out, h->last.steps);
        text_addf(out, " steps are done, in %s, over ", format_duration(h->seconds, duration, sizeof duration));
        add_count(out, h->tokens);
        text_adds(out, " tokens, of which ");
        add_count(out, h->trained_tokens);
        text_adds(out, " were trained on.");
    }
    if (h->skipped > 0)
        text_addf(out, " Skipped because of NaN or Inf: %lld step%s.", (long long)h->skipped, h->skipped == 1 ? "" : "s");
    text_adds(out, "</p>\n");
}

static void add_tile(Text *out, const char *name, const char *value, const char *note) {
    text_addf(out, "<div class=\"tile\"><span>%s</span><b>%s</b><small>%s</small></div>\n", name, value, note);
}

static void add_tiles(const History *h, Text *out) {
    char value[64], note[96], duration[32];
    text_adds(out, "<div class=\"tiles\">\n");
    if (isfinite(h->best_eval.loss)) {
        (void)snprintf(value, sizeof value, "%.4f", h->best_eval.loss);
        (void)snprintf(note, sizeof note, "step %lld; before training %.4f", (long long)h->best_eval.step, h->first_eval.loss);
        add_tile(out, "Best held-out loss", value, note);
    }
    if (h->last.step > 0) {
        if (isfinite(h->first_loss)) {
            (void)snprintf(value, sizeof value, "%.4f", h->last_loss);
            (void)snprintf(note, sizeof note, "at the first step %.4f", h->first_loss);
            add_tile(out, "Newest training loss", value, note);
        }
        (void)snprintf(note, sizeof note, "%lld of %lld steps", (long long)h->last.step, (long long)h->last.steps);
        add_tile(out, "Time in steps", format_duration(h->seconds, duration, sizeof duration), note);
        if (h->seconds > 0.0) {
            (void)snprintf(value, sizeof value, "%.*f", (double)h->tokens / h->seconds < 100.0 ? 1 : 0,
                           (double)h->tokens / h->seconds);
            if (isfinite(h->last.peak_fraction))
                (void)snprintf(note, sizeof note, "%.0f %% of the measured GEMM peak", 100.0 * h->last.peak_fraction);
            else
                (void)snprintf(note, sizeof note, "mean over all steps");
            add_tile(out, "Tokens per second", value, note);
        }
        add_tile(out, "Memory", format_bytes((double)h->last.resident, value, sizeof value), "resident at the newest step");
    }
    text_adds(out, "</div>\n");
}

/* ---- how it went ------------------------------------------------------------------------------------------------------------- */

typedef struct Curve {
    ChartPoint *raw, *smooth;
    size_t raw_count, smooth_count;
    int is_band;
} Curve;

static double bucket_mean(const HistoryBucket *bucket, HistoryChannel channel) {
    const HistoryRange *range = &bucket->range[channel];
    return range->count > 0 ? range->sum / (double)range->count : NAN;
}

static double bucket_middle(const HistoryBucket *bucket) {
    return 0.5 * ((double)bucket->first + (double)bucket->last);
}

/* One step a bucket: the line through them; a bucket without a finite value is a gap. */
static void raw_line(const History *h, HistoryChannel channel, Curve *curve) {
    for (size_t i = 0; i < h->buckets; i++)
        if (h->bucket[i].last >= h->bucket[i].first)
            curve->raw[curve->raw_count++] = (ChartPoint){(double)h->bucket[i].first, bucket_mean(&h->bucket[i], channel)};
}

/* More: the outline of what lies between each bucket's extremes. */
static void raw_band(const History *h, HistoryChannel channel, Curve *curve) {
    for (size_t i = 0; i < h->buckets; i++)
        if (h->bucket[i].range[channel].count > 0)
            curve->raw[curve->raw_count++] = (ChartPoint){bucket_middle(&h->bucket[i]), h->bucket[i].range[channel].most};
    for (size_t i = h->buckets; i-- > 0;)
        if (h->bucket[i].range[channel].count > 0)
            curve->raw[curve->raw_count++] = (ChartPoint){bucket_middle(&h->bucket[i]), h->bucket[i].range[channel].least};
}

/* A Gaussian mean over sigma buckets, weighted by the steps in each. */
static void smooth_curve(const History *h, HistoryChannel channel, double sigma, Curve *curve) {
    int64_t reach = (int64_t)ceil(3.0 * sigma), buckets = (int64_t)h->buckets;
    for (int64_t i = 0; i < buckets; i++) {
        if (h->bucket[i].range[channel].count == 0) continue;
        double sum = 0.0, weight = 0.0;
        for (int64_t j = i > reach ? i - reach : 0; j < buckets && j <= i + reach; j++) {
            int64_t count = h->bucket[j].range[channel].count;
            double distance = (double)(j - i) / sigma, w = (double)count * exp(-0.5 * distance * distance);
            if (count == 0) continue;
            sum += w * bucket_mean(&h->bucket[j], channel);
            weight += w;
        }
        curve->smooth[curve->smooth_count++] = (ChartPoint){bucket_middle(&h->bucket[i]), sum / weight};
    }
}

/* Smoothed over a fiftieth of the run where `smooth` says so; a band needs a line through it in any case. */
static Curve curve_create(const History *h, HistoryChannel channel, int smooth) {
    Curve curve = {.raw = memory_alloc(2 * HISTORY_BUCKETS * sizeof(ChartPoint)),
                   .smooth = memory_alloc(HISTORY_BUCKETS * sizeof(ChartPoint)),
                   .is_band = h->width > 1};
    double sigma = (double)h->buckets / 50.0;
    if (curve.is_band)
        raw_band(h, channel, &curve);
    else
        raw_line(h, channel, &curve);
    if (smooth && h->recorded >= 10) /* fewer steps are their own best picture */
        smooth_curve(h, channel, sigma > 1.0 ? sigma : 1.0, &curve);
    else if (curve.is_band)
        smooth_curve(h, channel, 0.1, &curve); /* no neighbour counts: the mean of each bucket */
    return curve;
}

static void curve_free(Curve *curve) {
    memory_free(curve->raw);
    memory_free(curve->smooth);
}

static void add_loss_chart(const History *h, Text *out) {
    Curve curve = curve_create(h, HISTORY_LOSS, 1);
    ChartPoint marks[HISTORY_EVALS + 1];
    size_t count = 0;
    for (size_t i = 0; i < h->evals; i++)
        marks[count++] = (ChartPoint){(double)h->eval[i].step, h->eval[i].loss};
    if (count > 0 && isfinite(h->last_eval.loss) && h->last_eval.step > h->eval[h->evals - 1].step)
        marks[count++] = (ChartPoint){(double)h->last_eval.step, h->last_eval.loss};
    Chart chart = {.id = "loss",
                   .label = "Training and held-out loss by optimizer step",
                   .width = 1040,
                   .height = 400,
                   .raw = curve.raw,
                   .raw_count = curve.raw_count,
                   .is_band = curve.is_band,
                   .smooth = curve.smooth,
                   .smooth_count = curve.smooth_count,
                   .marks = marks,
                   .mark_count = count,
                   .best = {(double)h->best_eval.step, h->best_eval.loss}};
    text_adds(out, "<section class=\"card\"><h2>Loss</h2>\n<p class=\"legend\"><span><i class=\"key raw-key\"></i>");
    if (curve.is_band)
        text_addf(out, "training, least to greatest of %lld steps</span>", (long long)h->width);
    else
        text_adds(out, "training, each step</span>");
    if (curve.smooth_count > 0) text_adds(out, "<span><i class=\"key smooth-key\"></i>training, smoothed</span>");
    if (count > 0) text_adds(out, "<span><i class=\"key mark-key\"></i>held-out</span>");
    text_adds(out, "<em>nats per token; lower is better</em></p>\n");
    chart_svg(&chart, out);
    text_adds(out, "</section>\n");
    curve_free(&curve);
}

static void add_small_chart(const History *h, HistoryChannel channel, int smooth, const char *id, const char *title,
                            const char *note, Text *out) {
    Curve curve = curve_create(h, channel, smooth);
    Chart chart = {.id = id,
                   .label = title,
                   .width = 330,
                   .height = 220,
                   .raw = curve.raw,
                   .raw_count = curve.raw_count,
                   .is_band = curve.is_band,
                   .smooth = curve.smooth,
                   .smooth_count = curve.smooth_count,
                   .best = {0.0, NAN},
                   .from_zero = 1};
    text_addf(out, "<section class=\"card%s\"><h3>%s</h3><p class=\"note\">%s</p>\n", smooth ? "" : " plain", title, note);
    chart_svg(&chart, out);
    text_adds(out, "</section>\n");
    curve_free(&curve);
}

/* ---- what the model says ------------------------------------------------------------------------------------------------------ */

static void add_answer(Text *out, const char *class_name, const char *name, const char *text) {
    if (text == NULL) return;
    text_addf(out, "<div class=\"answer %s\"><span>%s</span><p dir=\"auto\">", class_name, name);
    if (text[0] == 0)
        text_adds(out, "<em>nothing</em>");
    else
        html_escape(out, text);
    text_adds(out, "</p></div>\n");
}

static void add_samples(const History *h, Text *out) {
    if (h->samples == 0) return;
    text_adds(out,
              "<h2>Samples</h2>\n<p class=\"note\">What the model wrote to prompts from the data, always taking the most "
              "likely token.</p>\n");
    for (size_t i = 0; i < h->samples; i++) {
        const HistorySample *sample = &h->sample[i];
        text_adds(out, "<section class=\"card sample\">\n");
        add_answer(out, "prompt", "Prompt", sample->prompt);
        text_adds(out, "<div class=\"answers\">\n");
        add_answer(out, "before", "Before training", sample->before);
        add_answer(out, "after", "After training", sample->after);
        add_answer(out, "wanted", "Wanted", sample->wanted);
        text_adds(out, "</div></section>\n");
    }
}

/* ---- facts -------------------------------------------------------------------------------------------------------------------- */

static void add_facts(Text *out, const char *title, const char *const *pairs) {
    if (pairs == NULL || pairs[0] == NULL) return;
    text_addf(out, "<section class=\"card\"><h3>%s</h3><table>\n", title);
    for (size_t i = 0; pairs[i] != NULL && pairs[i + 1] != NULL; i += 2) {
        text_adds(out, "<tr><th>");
        html_escape(out, pairs[i]);
        text_adds(out, "</th><td>");
        html_escape(out, pairs[i + 1]);
        text_adds(out, "</td></tr>\n");
    }
    text_adds(out, "</table></section>\n");
}

static void add_events(const History *h, Text *out) {
    if (h->events == 0) return;
    text_adds(out, "<section class=\"card\"><h3>Events</h3><table>\n");
    for (size_t k = 0; k < history_events(h); k++) {
        int64_t skipped;
        const HistoryEvent *event = history_event(h, k, &skipped);
        if (skipped > 0) text_addf(out, "<tr><th></th><td>… %lld more, all in metrics.jsonl …</td></tr>\n", (long long)skipped);
        text_adds(out, "<tr><th>step ");
        add_count(out, event->step);
        text_adds(out, "</th><td>");
        html_escape(out, event->text);
        text_adds(out, "</td></tr>\n");
    }
    text_adds(out, "</table></section>\n");
}

void report_html(const ReporterFacts *facts, const History *history, Text *out) {
    text_adds(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
        "<meta name=\"color-scheme\" content=\"light dark\">\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>");
    html_escape(out, facts->title);
    text_adds(out, " – nibble</title>\n<style>\n");
    text_adds(out, report_style);
    text_adds(out, "</style></head>\n<body><main>\n<header><p class=\"kind\">nibble training report</p><h1>");
    html_escape(out, facts->title);
    text_adds(out, "</h1>\n");
    add_sentence(history, out);
    text_adds(out, "</header>\n");
    add_tiles(history, out);
    add_loss_chart(history, out);
    text_adds(out, "<div class=\"three\">\n");
    add_small_chart(history, HISTORY_GRAD_NORM, 1, "grad", "Gradient norm", "before clipping", out);
    add_small_chart(history, HISTORY_LR, 0, "lr", "Learning rate", "the schedule as it was run", out);
    add_small_chart(history, HISTORY_RATE, 0, "rate", "Tokens per second", "averaged over recent steps", out);
    text_adds(out, "</div>\n");
    add_samples(history, out);
    text_adds(out, "<h2>What was trained, on what</h2>\n<div class=\"three\">\n");
    add_facts(out, "Model", facts->model);
    add_facts(out, "Data", facts->data);
    add_facts(out, "Machine", facts->machine);
    text_adds(out, "</div>\n");
    add_events(history, out);
    if (facts->config_json[0] != 0) {
        text_adds(out, "<details class=\"card\"><summary>Config, every key</summary><pre>");
        html_escape(out, facts->config_json);
        text_adds(out, "</pre></details>\n");
    }
    text_adds(out,
              "<footer>Every number behind the curves is in metrics.jsonl beside this page.</footer>\n</main></body></html>\n");
}
