#include "train/reporter.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "train/history.h"
#include "train/metrics.h"
#include "train/report_html.h"
#include "train/reporter_line.h"
#include "train/tensorboard.h"

#define FIRST_LINES 3   /* steps that are always shown */
#define LINES_A_RUN 100 /* about so many of the others, where there is no terminal */

struct Reporter {
    char *run, *metrics_path;
    int metrics;
    Tensorboard board;
    History *history;
    int terminal;       /* the live line is rewritten in place */
    int line_is_open;   /* the cursor stands behind it */
    int64_t shown_here; /* steps since this process began */
    int64_t step;       /* the newest of any record */
    Text line, record;  /* reused */
    ReporterFacts facts;
};

/* ---- facts ------------------------------------------------------------------------------------------------------------------ */

static const char **copy_pairs(const char *const *pairs) {
    size_t count = 0;
    while (pairs != NULL && pairs[count] != NULL)
        count++;
    const char **copy = memory_calloc(count + 1, sizeof *copy);
    for (size_t i = 0; i < count; i++)
        copy[i] = memory_strdup(pairs[i]);
    return copy;
}

static void free_pairs(const char *const *pairs) {
    for (size_t i = 0; pairs != NULL && pairs[i] != NULL; i++)
        memory_free((void *)(uintptr_t)pairs[i]);
    memory_free((void *)(uintptr_t)pairs);
}

static void free_facts(ReporterFacts *facts) {
    memory_free((void *)(uintptr_t)facts->title);
    memory_free((void *)(uintptr_t)facts->config_json);
    free_pairs(facts->model);
    free_pairs(facts->data);
    free_pairs(facts->machine);
}

/* ---- open and close ---------------------------------------------------------------------------------------------------------- */

static void reporter_free(Reporter *reporter) {
    if (reporter->metrics >= 0) close(reporter->metrics);
    tensorboard_close(&reporter->board);
    history_free(reporter->history);
    text_free(&reporter->line);
    text_free(&reporter->record);
    free_facts(&reporter->facts);
    memory_free(reporter->metrics_path);
    memory_free(reporter->run);
    memory_free(reporter);
}

static void remember(void *context, const MetricsRecord *record) {
    history_add(context, record);
}

static Status open_files(Reporter *reporter, int64_t resume_step, Error *err) {
    if (resume_step >= 0) {
        int64_t dropped;
        TRY(metrics_cut(reporter->metrics_path, resume_step, remember, reporter->history, &dropped, err));
        if (dropped > 0)
            log_warning("%s: %lld lines were no whole records and are dropped", reporter->metrics_path, (long long)dropped);
        reporter->step = resume_step;
    }
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (resume_step < 0 ? O_TRUNC : 0);
    reporter->metrics = open(reporter->metrics_path, flags, 0666);
    if (reporter->metrics < 0) FAIL("%s: cannot open: %s", reporter->metrics_path, strerror(errno));
    return tensorboard_open(&reporter->board, reporter->run, resume_step, err);
}

Status reporter_open(Reporter **reporter_out, const char *run, const ReporterFacts *facts, int64_t resume_step, Error *err) {
    *reporter_out = NULL;
    Reporter *reporter = memory_calloc(1, sizeof *reporter);
    const char *term = getenv("TERM");
    reporter->run = memory_strdup(run);
    reporter->metrics_path = path_join(run, METRICS_NAME);
    reporter->metrics = reporter->board.fd = -1;
    reporter->history = history_create();
    reporter->terminal = isatty(STDERR_FILENO) && (term == NULL || strcmp(term, "dumb") != 0);
    reporter->facts = (ReporterFacts){.title = memory_strdup(facts->title != NULL ? facts->title : run),
                                      .config_json = memory_strdup(facts->config_json != NULL ? facts->config_json : ""),
                                      .model = copy_pairs(facts->model),
                                      .data = copy_pairs(facts->data),
                                      .machine = copy_pairs(facts->machine)};
    Status status = open_files(reporter, resume_step, err);
    if (status != OK) {
        reporter_free(reporter);
        return status;
    }
    *reporter_out = reporter;
    return OK;
}

Status reporter_write_html(Reporter *reporter, Error *err) {
    if (reporter == NULL) return OK;
    Text page = {0};
    report_html(&reporter->facts, reporter->history, &page);
    char *path = path_join(reporter->run, "report.html");
    Status status = file_write_atomic(path, page.data, page.length, err);
    memory_free(path);
    text_free(&page);
    return status;
}

/* Puts the cursor on an empty line: what comes next is a line of its own. */
static void leave_line(Reporter *reporter) {
    if (reporter->line_is_open) fputs("\r\033[K", stderr);
    reporter->line_is_open = 0;
}

Status reporter_close(Reporter *reporter, Error *err) {
    if (reporter == NULL) return OK;
    if (reporter->line_is_open) fputc('\n', stderr);
    Status status = reporter_write_html(reporter, err);
    reporter_free(reporter);
    return status;
}

/* ---- records ------------------------------------------------------------------------------------------------------------------ */

static Status append(Reporter *reporter, const MetricsRecord *record, Error *err) {
    history_add(reporter->history, record);
    if (record->step.step > reporter->step) reporter->step = record->step.step;
    text_clear(&reporter->record);
    metrics_print(record, &reporter->record);
    return file_append(reporter->metrics, reporter->metrics_path, reporter->record.data, reporter->record.length, err);
}

static void show_step(Reporter *reporter, const StepRecord *record) {
    int64_t every = record->steps / LINES_A_RUN;
    reporter->shown_here++;
    if (reporter->terminal) {
        reporter_line(record, reporter_columns() - 1, &reporter->line);
        fprintf(stderr, "\r%s\033[K", reporter->line.data);
        fflush(stderr);
        reporter->line_is_open = 1;
    } else if (reporter->shown_here <= FIRST_LINES || record->step == record->steps || every <= 1 ||
               record->step % every == 0) {
        reporter_line(record, 0, &reporter->line);
        log_info("%s", reporter->line.data);
    }
}

Status reporter_step(Reporter *reporter, const StepRecord *record, Error *err) {
    if (reporter == NULL) return OK;
    MetricsRecord metrics = {.kind = METRICS_STEP, .step = *record};
    show_step(reporter, record);
    TRY(append(reporter, &metrics, err));
    const TensorboardScalar scalars[] = {{"train/loss", record->loss},
                                         {"train/grad_norm", record->grad_norm},
                                         {"train/lr", record->lr},
                                         {"train/tokens_per_second", record->tokens_per_second}};
    return tensorboard_scalars(&reporter->board, record->step, scalars, sizeof scalars / sizeof scalars[0], err);
}

Status reporter_eval(Reporter *reporter, int64_t step, double loss, int64_t tokens, double seconds, int is_best, Error *err) {
    if (reporter == NULL) return OK;
    MetricsRecord metrics = {
        .kind = METRICS_EVAL, .step = {.step = step, .loss = loss, .tokens = tokens, .seconds = seconds}, .is_best = is_best};
    char text[32];
    leave_line(reporter);
    log_info("evaluation at step %lld: loss %.4f on %lld tokens in %s%s", (long long)step, fabs(loss), (long long)tokens,
             format_duration(seconds, text, sizeof text), is_best && step > 0 ? ", the best so far" : "");
    TRY(append(reporter, &metrics, err));
    return tensorboard_scalars(&reporter->board, step, &(TensorboardScalar){"eval/loss", loss}, 1, err);
}

Status reporter_event(Reporter *reporter, int64_t step, const char *text, Error *err) {
    if (reporter == NULL) return OK;
    leave_line(reporter);
    log_info("%s", text);
    MetricsRecord metrics = {.kind = METRICS_EVENT, .step = {.step = step}, .text = text};
    return append(reporter, &metrics, err);
}

Status reporter_sample(Reporter *reporter, int after, const char *prompt, const char *written, const char *wanted, Error *err) {
    if (reporter == NULL) return OK;
    MetricsRecord metrics = {.kind = METRICS_SAMPLE,
                             .step = {.step = reporter->step},
                             .after = after != 0,
                             .prompt = prompt,
                             .written = written,
                             .wanted = wanted};
    return append(reporter, &metrics, err);
}
