/* report.html: one page without scripts and without anything from elsewhere. */
#ifndef NIBBLE_TRAIN_REPORT_HTML_H
#define NIBBLE_TRAIN_REPORT_HTML_H

#include "core/text.h"
#include "train/history.h"
#include "train/reporter.h"

/* Appends the page. */
void report_html(const ReporterFacts *facts, const History *history, Text *out);
/* Appends text for an element or a quoted attribute: escaped; ill-formed UTF-8 and control characters become U+FFFD. */
void html_escape(Text *out, const char *text);

#endif
