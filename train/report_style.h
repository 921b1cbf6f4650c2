/* The style sheet of report.html: colours are defined once for light and once for dark. */
#ifndef NIBBLE_TRAIN_REPORT_STYLE_H
#define NIBBLE_TRAIN_REPORT_STYLE_H

extern const char report_style[];

#endif
