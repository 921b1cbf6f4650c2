/* One curve with axes, as inline SVG. Colours come from the page's style sheet (classes raw, band, smooth, mark, best, grid, tick). */
#ifndef NIBBLE_TRAIN_REPORT_CHART_H
#define NIBBLE_TRAIN_REPORT_CHART_H

#include <stddef.h>

#include "core/text.h"

typedef struct ChartPoint {
    double x, y; /* y NaN: a gap */
} ChartPoint;

typedef struct Chart {
    const char *id;    /* unique in the page */
    const char *label; /* what it shows, for screen readers */
    int width, height;
    const ChartPoint *raw, *smooth, *marks; /* behind, in front, dots joined by a line */
    size_t raw_count, smooth_count, mark_count;
    ChartPoint best; /* ringed and labelled; y NaN: none */
    int is_band;     /* raw is a closed outline: greatest values forwards, then least ones backwards */
    int from_zero;   /* the y axis includes 0 */
} Chart;

void chart_svg(const Chart *chart, Text *out);
/* "12k", "1.5M", "0.002", "2e-5": a tick's label, with digits for steps of `step`. */
void chart_number(Text *out, double value, double step);

#endif
