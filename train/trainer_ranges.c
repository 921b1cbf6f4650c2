/* Fixed ranges of activations, found before the first step. */
#include "core/log.h"
#include "core/memory.h"
#include "train/qat_ranges.h"
#include "train/trainer.h"

static Status observe_pass(Trainer *trainer, RangeSearch *search, int64_t batches, Error *err) {
    for (int64_t k = 0; k < batches; k++) {
        const int64_t *sequences;
        int64_t count, epoch;
        double ignored = 0.0;
        Batch batch = {.dropout = 0};
        TRY(batch_stream_get(&trainer->stream, k, &sequences, &count, &epoch, err));
        TRY(batch_fill(&batch, &trainer->batch, &trainer->train_data, sequences, count, 0, err));
        TapeRun run = engine_run(&trainer->engine, &batch);
        run.loss_sum = &ignored;
        run.observe = range_search_observe;
        run.observe_self = search;
        TRY(tape_run(trainer->eval_tape, &run, err));
    }
    return OK;
}

Status trainer_find_ranges(Trainer *trainer, Error *err) {
    Engine *engine = &trainer->engine;
    const Config *config = &trainer->config;
    if (engine->qat == NULL || !engine->activations.fixed) return OK;
    RangeMethod method;
    TRY(range_method_named(config->qat.ranges, &method, err));
    double value = config->qat.range_value > 0.0 ? config->qat.range_value : method == RANGE_STD ? 6.0 : 99.99;
    int64_t inputs = engine->model.layers * RANGES_PER_LAYER, batches = config->qat.range_batches;
    if (batches > trainer->total_micro_batches) batches = trainer->total_micro_batches;
    float *scales = memory_alloc((size_t)inputs * sizeof *scales);
    RangeSearch *search = range_search_create(method, value, inputs);
    qat_set_step(engine->qat, INT64_MAX); /* the weights as they will be */
    Status status = observe_pass(trainer, search, batches, err);
    range_search_second(search);
    if (status == OK) status = observe_pass(trainer, search, batches, err);
    if (status == OK) status = range_search_finish(search, scales, err);
    range_search_free(search);
    if (status != OK) {
        memory_free(scales);
        return status;
    }
    engine->ranges = scales;
    log_info("qat.ranges %s: %lld inputs over %lld micro-batches", config->qat.ranges, (long long)inputs, (long long)batches);
    return OK;
}
