/* --calibration and --quantizer: what they may be given with, and the run over the calibration's data before anything is written. */
#include <string.h>

#include "train/calibrate.h"
#include "train/export.h"

static Status check_counts(const ExportOptions *o, Error *err) {
    if (o->calibration == NULL && (o->calibration_samples != 0 || o->calibration_tokens != 0))
        FAIL_USAGE("--calibration-samples and --calibration-tokens belong to --calibration FILE");
    if (o->calibration_samples < 0 || o->calibration_samples > 1000000)
        FAIL_USAGE("--calibration-samples: want 1 to 1000000, got %lld", (long long)o->calibration_samples);
    if (o->calibration_tokens < 0 || o->calibration_tokens > 1000000)
        FAIL_USAGE("--calibration-tokens: want 1 to 1000000, got %lld", (long long)o->calibration_tokens);
    return OK;
}

Status export_calibrate_check(const ExportOptions *o, Error *err) {
    TRY(check_counts(o, err));
    if (o->calibration != NULL && o->format != EXPORT_GGUF)
        FAIL_USAGE("--calibration: format %s rounds without looking at data; leave it out", o->format_name);
    return OK;
}

Status export_calibrate(Export *export, Error *err) {
    const ExportOptions *o = export->options;
    if (o->calibration == NULL) return OK;
    CalibrationOptions options = {.method = CALIBRATE_IMPORTANCE,
                                  .model = o->model,
                                  .data = o->calibration,
                                  .samples = o->calibration_samples != 0 ? o->calibration_samples : CALIBRATION_SAMPLES,
                                  .tokens = o->calibration_tokens != 0 ? o->calibration_tokens : CALIBRATION_TOKENS,
                                  .interrupted = export_interrupted};
    return calibration_run(&export->calibration, &options, export->merge, &export->backend, export->pool, err);
}
