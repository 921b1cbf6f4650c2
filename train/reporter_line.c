#include "train/reporter_line.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FIELDS 8
#define FIELD_BYTES 64

typedef struct LineField {
    char text[FIELD_BYTES];
} LineField;

/* The brief forms have shorter words and fewer digits, so that all of it stands in the 80 columns of a usual terminal. */
enum { LINE_WHOLE, LINE_BRIEF, LINE_BRIEFEST };

static void describe(const StepRecord *r, int form, LineField *f) {
    int brief = form != LINE_WHOLE;
    char text[32];
    int digits = snprintf(NULL, 0, "%lld", (long long)r->steps);
    (void)snprintf(f[0].text, FIELD_BYTES, "%s%*lld/%lld", form == LINE_BRIEFEST ? "" : "step ", brief ? 0 : digits,
                   (long long)r->step, (long long)r->steps);
    (void)snprintf(f[1].text, FIELD_BYTES, r->skipped ? "loss %.4f skipped" : "loss %.4f",
                   fabs(r->loss)); /* a NaN without its sign */
    (void)snprintf(f[2].text, FIELD_BYTES, "grad %.3g", fabs(r->grad_norm));
    (void)snprintf(f[3].text, FIELD_BYTES, "lr %.*e", LINE_BRIEFEST - form, r->lr);
    (void)snprintf(f[4].text, FIELD_BYTES, "%.*f tok/s", r->tokens_per_second < 100.0 ? 1 : 0, r->tokens_per_second);
    f[5].text[0] = 0;
    if (isfinite(r->peak_fraction))
        (void)snprintf(f[5].text, FIELD_BYTES, brief ? "%.0f%% peak" : "%.0f %% of peak", 100.0 * r->peak_fraction);
    (void)snprintf(f[6].text, FIELD_BYTES, "%s", format_bytes((double)r->resident, text, sizeof text));
    (void)snprintf(f[7].text, FIELD_BYTES, "ETA %s", format_duration(r->eta_seconds, text, sizeof text));
}

/* Fields of rank `most` and below. */
static void join(const LineField *fields, int most, const char *gap, Text *out) {
    static const int ranks[FIELDS] = {0, 0, 3, 4, 2, 5, 6, 1};
    text_clear(out);
    for (int i = 0; i < FIELDS; i++)
        if (ranks[i] <= most && fields[i].text[0] != 0) text_addf(out, "%s%s", out->length ? gap : "", fields[i].text);
}

void reporter_line(const StepRecord *record, size_t width, Text *out) {
    LineField fields[FIELDS];
    for (int form = LINE_WHOLE; form <= LINE_BRIEFEST; form++) {
        describe(record, form, fields);
        join(fields, FIELDS, form == LINE_WHOLE ? "  " : " ", out);
        if (width == 0 || out->length <= width) return;
    }
    describe(record, LINE_BRIEF, fields);
    for (int most = FIELDS - 1; most >= 0; most--) {
        join(fields, most, " ", out);
        if (out->length <= width) return;
    }
    out->length = width;
    out->data[width] = 0;
}

size_t reporter_columns(void) {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    const char *text = getenv("COLUMNS");
    char *end;
    long columns = text != NULL ? strtol(text, &end, 10) : 0;
    return columns > 0 && columns < 10000 && *end == 0 ? (size_t)columns : 80;
}
