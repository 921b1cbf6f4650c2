/* The line of one step, as people read it. */
#ifndef NIBBLE_TRAIN_REPORTER_LINE_H
#define NIBBLE_TRAIN_REPORTER_LINE_H

#include <stddef.h>

#include "core/text.h"
#include "train/reporter.h"

/* Overwrites *out with the line: at most `width` columns, of plain ASCII; fields are left out, the least needed first, until it
 * fits. width 0: no limit. */
void reporter_line(const StepRecord *record, size_t width, Text *out);
/* Columns of the terminal on stderr: asked from it, else COLUMNS, else 80. */
size_t reporter_columns(void);

#endif
