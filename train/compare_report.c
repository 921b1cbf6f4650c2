/* An experiment's results: a table, JSON, and a page with a plot. Every seed is shown. */
#include <math.h>

#include "train/compare.h"
#include "train/report_html.h"
#include "train/report_style.h"

static double mean_loss(const Compare *c, const CompareArm *arm) {
    double sum = 0.0;
    for (int s = 0; s < c->seed_count; s++)
        sum += arm->loss[s][arm->best];
    return sum / (double)c->seed_count;
}

static double mean_recovery(const Compare *c, const CompareArm *arm) {
    double sum = 0.0;
    for (int s = 0; s < c->seed_count; s++)
        sum += compare_recovery(c, arm, s);
    return sum / (double)c->seed_count;
}

void compare_table(const Compare *c, Text *out) {
    text_addf(out, "%-24s %6s %9s %9s %9s %9s  %s\n", "arm", "bits", "lr", "loss", "ppl", "recovery",
              "loss (recovery) of each seed");
    for (int a = 0; a < c->arm_count; a++) {
        const CompareArm *arm = &c->arms[a];
        double loss = mean_loss(c, arm), recovery = mean_recovery(c, arm);
        text_addf(out, "%-24s %6.3f ", arm->name, arm->bits);
        if (arm->rounds >= 0)
            text_addf(out, "%9s ", "-");
        else
            text_addf(out, "%9g ", c->rates[arm->best]);
        text_addf(out, "%9.5f %9.4f ", loss, exp(loss));
        if (isfinite(recovery))
            text_addf(out, "%8.1f%% ", 100.0 * recovery);
        else
            text_addf(out, "%9s ", "-");
        for (int s = 0; s < c->seed_count; s++) {
            text_addf(out, " %.5f", arm->loss[s][arm->best]);
            if (arm->against >= 0) text_addf(out, " (%.1f%%)", 100.0 * compare_recovery(c, arm, s));
        }
        text_adds(out, "\n");
    }
}

static void add_number(Text *out, double value) {
    if (isfinite(value))
        text_addf(out, "%.17g", value);
    else
        text_adds(out, "null");
}

void compare_json(const Compare *c, Text *out) {
    text_adds(out, "{\n  \"seeds\": [");
    for (int s = 0; s < c->seed_count; s++)
        text_addf(out, "%s%lld", s ? ", " : "", (long long)c->seeds[s]);
    text_adds(out, "],\n  \"arms\": [\n");
    for (int a = 0; a < c->arm_count; a++) {
        const CompareArm *arm = &c->arms[a];
        int rates = arm->rounds >= 0 ? 1 : c->rate_count;
        text_addf(out, "    {\"name\": \"%s\", \"bits\": %.17g, \"runs\": [", arm->name, arm->bits);
        for (int r = 0; r < rates; r++) {
            text_adds(out, r ? ", {\"lr\": " : "{\"lr\": ");
            add_number(out, arm->rounds >= 0 ? NAN : c->rates[r]);
            text_adds(out, ", \"loss\": [");
            for (int s = 0; s < c->seed_count; s++) {
                if (s) text_adds(out, ", ");
                add_number(out, arm->loss[s][r]);
            }
            text_adds(out, "]}");
        }
        text_addf(out, "], \"best\": %d, \"recovery\": [", arm->best);
        for (int s = 0; s < c->seed_count; s++) {
            if (s) text_adds(out, ", ");
            add_number(out, compare_recovery(c, arm, s));
        }
        text_adds(out, a + 1 < c->arm_count ? "]},\n" : "]}\n");
    }
    text_adds(out, "  ]\n}\n");
}

/* ---- the page -------------------------------------------------------------------------------------------------------------- */

enum { WIDTH = 720, HEIGHT = 360, MARGIN = 56 };

/* Perplexity of every seed against bits a weight. */
static void plot(const Compare *c, Text *out) {
    double low = INFINITY, high = -INFINITY, most = 0.0;
    for (int a = 0; a < c->arm_count; a++) {
        const CompareArm *arm = &c->arms[a];
        most = fmax(most, arm->bits);
        for (int s = 0; s < c->seed_count; s++) {
            low = fmin(low, arm->loss[s][arm->best]);
            high = fmax(high, arm->loss[s][arm->best]);
        }
    }
    if (!(high > low)) high = low + 1.0;
    text_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Perplexity against bits a weight\">", WIDTH, HEIGHT);
    text_addf(out, "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"currentColor\"/>", MARGIN, HEIGHT - MARGIN, WIDTH,
              HEIGHT - MARGIN);
    text_addf(out, "<line x1=\"%d\" y1=\"0\" x2=\"%d\" y2=\"%d\" stroke=\"currentColor\"/>", MARGIN, MARGIN, HEIGHT - MARGIN);
    for (int i = 0; i <= 4; i++) {
        double loss = low + (high - low) * i / 4.0, bits = most * i / 4.0;
        text_addf(out, "<text class=\"tick\" x=\"4\" y=\"%.1f\">%.3f</text>", (HEIGHT - MARGIN - 10) * (1.0 - i / 4.0) + 10.0,
                  exp(loss));
        text_addf(out, "<text class=\"tick\" x=\"%.1f\" y=\"%d\">%.1f</text>", MARGIN + (WIDTH - MARGIN - 40) * i / 4.0,
                  HEIGHT - MARGIN + 18, bits);
    }
    text_addf(out, "<text class=\"tick\" x=\"%d\" y=\"%d\">bits a weight; perplexity upwards (log)</text>", MARGIN,
              HEIGHT - 12);
    for (int a = 0; a < c->arm_count; a++) {
        const CompareArm *arm = &c->arms[a];
        double x = MARGIN + (WIDTH - MARGIN - 40) * arm->bits / most;
        for (int s = 0; s < c->seed_count; s++) {
            double y = (HEIGHT - MARGIN - 10) * (1.0 - (arm->loss[s][arm->best] - low) / (high - low)) + 10.0;
            text_addf(out,
                      "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" stroke=\"currentColor\"><title>%s, seed %lld: "
                      "%.4f</title></circle>",
                      x, y, arm->rounds >= 0 ? "none" : "currentColor", arm->name, (long long)c->seeds[s],
                      exp(arm->loss[s][arm->best]));
        }
    }
    text_adds(out, "</svg>");
}

void compare_html(const Compare *c, Text *out) {
    Text table = {0};
    text_adds(out, "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>nibble compare</title><style>");
    text_adds(out, report_style);
    text_adds(out,
              "</style></head><body><main><h1>nibble compare</h1><p>Held-out loss in nats a token; every seed is shown. "
              "Rings: rounded after training. Recovery: (L of the rounded - L) / (L of the rounded - L of its "
              "16-bit run).</p>");
    plot(c, out);
    compare_table(c, &table);
    text_adds(out, "<pre>");
    html_escape(out, table.data);
    text_adds(out, "</pre></main></body></html>\n");
    text_free(&table);
}
