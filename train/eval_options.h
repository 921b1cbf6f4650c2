/* Options of nibble eval, and their combinations. Private to the eval files. */
#ifndef NIBBLE_TRAIN_EVAL_OPTIONS_H
#define NIBBLE_TRAIN_EVAL_OPTIONS_H

#include "data/dataset.h"
#include "train/model_options.h"

typedef struct EvalOptions {
    ModelOptions model;
    const char *data, *suite, *details, *layout, *template_name, *train_on, *logits, *ids;
    int64_t max_length, window, stride, limit, show; /* 0: not given */
    int64_t shots;                                   /* -1: not given */
    int no_document_eos, exact_match, json;
    /* filled in by eval_options_check */
    DataLayout data_layout;
    TrainOn data_train_on;
} EvalOptions;

/* Everything that can be refused without reading a file. */
Status eval_options_check(EvalOptions *options, Error *err);
/* "1,2,3" within the vocabulary; *ids is memory_free. */
Status eval_options_ids(const EvalOptions *options, const ModelConfig *model, int32_t **ids, int64_t *count, Error *err);

#endif
