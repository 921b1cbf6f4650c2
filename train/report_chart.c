#include "train/report_chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

#define LEFT 56
#define RIGHT 18
#define TOP 12
#define BOTTOM 46

typedef struct Frame { /* data to pixels */
    double x0, x1, y0, y1;
    double left, top, width, height;
} Frame;

static double px(const Frame *f, double x) {
    return f->left + (x - f->x0) / (f->x1 - f->x0) * f->width;
}

static double py(const Frame *f, double y) {
    return f->top + f->height - (y - f->y0) / (f->y1 - f->y0) * f->height;
}

/* ---- ticks ------------------------------------------------------------------------------------------------------------------ */

/* 1, 2 or 5 times a power of ten, so that at most `most` steps fit. */
static double nice_step(double range, int most) {
    double raw = range / most, power = pow(10.0, floor(log10(raw)));
    double digit = raw / power;
    return power * (digit <= 1.0 ? 1.0 : digit <= 2.0 ? 2.0 : digit <= 5.0 ? 5.0 : 10.0);
}

void chart_number(Text *out, double value, double step) {
    double size = fabs(value) > step ? fabs(value) : step;
    if (!isfinite(value)) {
        text_adds(out, "-");
    } else if (fabs(value) < step * 1e-6) {
        text_adds(out, "0");
    } else if (size >= 1e15 || (size < 1e-2 && step < 1e-3)) {
        int exponent = (int)floor(log10(fabs(value)) + 1e-9);
        double mantissa = value / pow(10.0, exponent);
        int digits = fabs(mantissa - round(mantissa)) < 1e-9 ? 0 : exponent - (int)floor(log10(step) + 1e-9);
        text_addf(out, "%.*fe%d", digits > 0 && digits < 17 ? digits : 0, mantissa, exponent);
    } else {
        static const char *const units[] = {"", "k", "M", "G", "T"};
        size_t unit = 0;
        while (unit + 1 < sizeof units / sizeof units[0] && size >= (unit == 0 ? 1e4 : 1e3)) {
            size /= 1000.0;
            value /= 1000.0;
            step /= 1000.0;
            unit++;
        }
        int digits = step >= 1.0 ? 0 : (int)ceil(-log10(step) - 1e-9);
        text_addf(out, "%.*f%s", digits, value, units[unit]);
    }
}

/* ---- range ------------------------------------------------------------------------------------------------------------------ */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void widen(double *low, double *high, const ChartPoint *points, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(points[i].y)) continue;
        if (!(points[i].y >= *low)) *low = points[i].y;
        if (!(points[i].y <= *high)) *high = points[i].y;
    }
}

/* The raw curve counts without its outermost half per cent, so that one spike does not flatten the rest. */
static void raw_range(const Chart *chart, double *low, double *high) {
    double *values = memory_alloc((chart->raw_count + 1) * sizeof *values);
    size_t count = 0;
    for (size_t i = 0; i < chart->raw_count; i++)
        if (isfinite(chart->raw[i].y)) values[count++] = chart->raw[i].y;
    if (count > 0) {
        qsort(values, count, sizeof *values, ascending);
        size_t cut = count / 200;
        *low = values[cut];
        *high = values[count - 1 - cut];
    }
    memory_free(values);
}

static int find_frame(const Chart *chart, Frame *frame) {
    double low = NAN, high = NAN, last = 0.0;
    raw_range(chart, &low, &high);
    widen(&low, &high, chart->smooth, chart->smooth_count);
    widen(&low, &high, chart->marks, chart->mark_count);
    if (isnan(low)) return 0;
    for (size_t i = 0; i < chart->raw_count; i++)
        if (chart->raw[i].x > last) last = chart->raw[i].x;
    if (chart->mark_count > 0 && chart->marks[chart->mark_count - 1].x > last) last = chart->marks[chart->mark_count - 1].x;
    if (chart->from_zero && low > 0.0) low = 0.0;
    double pad = high > low ? 0.06 * (high - low) : fabs(high) > 0.0 ? 0.1 * fabs(high) : 1.0;
    *frame = (Frame){.x0 = 0.0,
                     .x1 = last > 1.0 ? last : 1.0,
                     .y0 = chart->from_zero && low >= 0.0 ? 0.0 : low - pad,
                     .y1 = high + pad,
                     .left = LEFT,
                     .top = TOP,
                     .width = chart->width - LEFT - RIGHT,
                     .height = chart->height - TOP - BOTTOM};
    if (!isfinite(frame->y0)) frame->y0 = -1e308;
    if (!isfinite(frame->y1 - frame->y0)) frame->y1 = 1e308, frame->y0 = 0.0;
    return 1;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------------------- */

static void draw_axes(const Chart *chart, const Frame *f, Text *out) {
    double bottom = f->top + f->height, right = f->left + f->width;
    double step = nice_step(f->y1 - f->y0, chart->height > 300 ? 7 : 4);
    for (double k = ceil(f->y0 / step - 1e-9); k * step <= f->y1 + 1e-9 * step; k += 1.0) {
        double y = py(f, k * step);
        text_addf(out, "<line class=\"grid\" x1=\"%.0f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", f->left, right, y, y);
        text_addf(out, "<text class=\"tick\" text-anchor=\"end\" x=\"%.0f\" y=\"%.1f\">", f->left - 8, y + 4);
        chart_number(out, k * step, step);
        text_adds(out, "</text>\n");
    }
    step = nice_step(f->x1 - f->x0, chart->width > 600 ? 10 : 5);
    if (step < 1.0) step = 1.0;
    for (double k = 0.0; k * step <= f->x1 + 1e-9 * step; k += 1.0) {
        double x = px(f, k * step);
        text_addf(out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", x, x, bottom, bottom + 5);
        text_addf(out, "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">", x, bottom + 18);
        chart_number(out, k * step, step);
        text_adds(out, "</text>\n");
    }
    text_addf(out, "<line class=\"axis\" x1=\"%.0f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", f->left, right, bottom, bottom);
}

static void draw_line(const Frame *f, const char *class_name, const ChartPoint *points, size_t count, Text *out) {
    text_addf(out, "<path class=\"%s\" d=\"", class_name);
    for (size_t i = 0; i < count; i++)
        if (isfinite(points[i].y))
            text_addf(out, "%c%.1f %.1f", i > 0 && isfinite(points[i - 1].y) ? 'L' : 'M', px(f, points[i].x),
                      py(f, points[i].y));
    text_adds(out, "\"/>\n");
}

/* Points between gaps, which a line would not show. */
static void draw_lone_points(const Frame *f, const ChartPoint *points, size_t count, Text *out) {
    for (size_t i = 0; i < count; i++) {
        int joined = (i > 0 && isfinite(points[i - 1].y)) || (i + 1 < count && isfinite(points[i + 1].y));
        if (isfinite(points[i].y) && !joined)
            text_addf(out, "<circle class=\"lone\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>\n", px(f, points[i].x),
                      py(f, points[i].y));
    }
}

static void draw_band(const Frame *f, const ChartPoint *points, size_t count, Text *out) {
    text_adds(out, "<path class=\"band\" d=\"");
    for (size_t i = 0; i < count; i++)
        text_addf(out, "%c%.1f %.1f", i > 0 ? 'L' : 'M', px(f, points[i].x), py(f, points[i].y));
    text_adds(out, "Z\"/>\n");
}

static void draw_marks(const Chart *chart, const Frame *f, Text *out) {
    if (chart->mark_count == 0) return;
    draw_line(f, "mark-line", chart->marks, chart->mark_count, out);
    for (size_t i = 0; i < chart->mark_count; i++)
        text_addf(out, "<circle class=\"mark\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"><title>step %.0f: %.4f</title></circle>\n",
                  px(f, chart->marks[i].x), py(f, chart->marks[i].y), chart->mark_count > 60 ? "2.2" : "4", chart->marks[i].x,
                  chart->marks[i].y);
}

static void draw_best(const Chart *chart, const Frame *f, Text *out) {
    if (!isfinite(chart->best.y)) return;
    double x = px(f, chart->best.x), y = py(f, chart->best.y);
    const char *anchor = x > f->left + f->width - 60 ? "end" : x < f->left + 60 ? "start" : "middle";
    text_addf(out, "<circle class=\"best\" cx=\"%.1f\" cy=\"%.1f\" r=\"7.5\"/>", x, y);
    text_addf(out, "<text class=\"best-label\" text-anchor=\"%s\" x=\"%.1f\" y=\"%.1f\">best %.4f</text>\n", anchor, x,
              y - 15 > f->top + 12 ? y - 15 : y + 25, chart->best.y);
}

void chart_svg(const Chart *chart, Text *out) {
    Frame frame;
    text_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", chart->width, chart->height, chart->label);
    if (!find_frame(chart, &frame)) {
        text_addf(out, "<text class=\"tick\" text-anchor=\"middle\" x=\"%d\" y=\"%d\">nothing recorded yet</text></svg>\n",
                  chart->width / 2, chart->height / 2);
        return;
    }
    draw_axes(chart, &frame, out);
    text_addf(out, "<clipPath id=\"clip-%s\"><rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\"/></clipPath>\n",
              chart->id, frame.left - 2, frame.top - 2, frame.width + 4, frame.height + 4);
    text_addf(out, "<g clip-path=\"url(#clip-%s)\">\n", chart->id);
    if (chart->is_band)
        draw_band(&frame, chart->raw, chart->raw_count, out);
    else
        draw_line(&frame, "raw", chart->raw, chart->raw_count, out);
    draw_line(&frame, "smooth", chart->smooth, chart->smooth_count, out);
    text_adds(out, "</g>\n");
    if (!chart->is_band) draw_lone_points(&frame, chart->raw, chart->raw_count, out);
    draw_marks(chart, &frame, out);
    draw_best(chart, &frame, out);
    text_addf(out, "<text class=\"tick\" text-anchor=\"end\" x=\"%d\" y=\"%d\">optimizer step</text></svg>\n",
              chart->width - RIGHT, chart->height - 6);
}
