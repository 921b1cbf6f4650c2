/* The loop: evaluate, step, report, save; and what ends it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/text.h"
#include "train/full_model.h"
#include "train/qat_ranges.h"
#include "train/qat_scales.h"
#include "train/signals.h"
#include "train/trainer.h"

/* ---- what is written ------------------------------------------------------------------------------------------------------ */

/* What export needs beside the adapter. */
static Status write_grid(void *context, const char *folder, Error *err) {
    const Engine *engine = context;
    if (qat_keeps_scales(engine->qat)) TRY(qat_scales_write(engine->qat, folder, err));
    if (engine->ranges == NULL) return OK;
    return qat_ranges_write(folder, engine->ranges, engine->model.layers * RANGES_PER_LAYER, err);
}

Status trainer_write_model(Trainer *trainer, const char *name, Error *err) {
    Engine *engine = &trainer->engine;
    if (comm_rank(trainer->comm) != 0) return OK;
    const Config *config = &trainer->config;
    TRY(engine_fetch_params(engine, err));
    char *folder = path_join(config->output.path, name);
    Status status;
    if (engine->method == METHOD_FULL) {
        status = full_model_write(engine, config->model.path, folder, err);
    } else {
        AdapterInfo info = {.base_model = config->model.path, .dropout = config->lora.dropout};
        if (engine->qat != NULL) {
            info.extra = write_grid;
            info.context = engine;
        }
        status = adapter_write(&engine->adapter, &engine->params, folder, &engine->model, &info, engine->state.copy,
                               engine->exec.config.act, err);
    }
    memory_free(folder);
    return status;
}

static const char *model_folder(const Trainer *trainer, int best) {
    if (trainer->engine.method == METHOD_FULL) return best ? "model-best" : "model";
    return best ? "adapter-best" : "adapter";
}

static int model_is_written(const Trainer *trainer) {
    char *folder = path_join(trainer->config.output.path, model_folder(trainer, 0));
    int there = file_is_folder(folder);
    memory_free(folder);
    return there;
}

static Status save_checkpoint(Trainer *trainer, Error *err) {
    const Config *config = &trainer->config;
    const ParamState *state = &trainer->engine.state;
    int writes = comm_rank(trainer->comm) == 0;
    ParamState whole;
    if (!writes && !replicas_save_together(trainer->replicas)) return OK;
    TRY(engine_fetch_params(&trainer->engine, err));
    Status status = replicas_collect_moments(trainer->replicas, state, &whole, err);
    if (status == OK && writes) status = checkpoint_save(config->output.path, &trainer->progress, &whole, err);
    replicas_whole_free(state, &whole);
    TRY(status);
    trainer->last_save = clock_seconds();
    if (!writes) return OK;
    return checkpoint_prune(config->output.path, config->train.keep_last, -1, err);
}

static Status save_at(Trainer *trainer, const char *why, Error *err) {
    TRY(save_checkpoint(trainer, err));
    char text[256];
    (void)snprintf(text, sizeof text, "%s: saved step %lld", why, (long long)trainer->progress.step);
    return reporter_event(trainer->reporter, trainer->progress.step, text, err);
}

/* ---- evaluation -------------------------------------------------------------------------------------------------------------- */

static Status run_evaluation(Trainer *trainer, Error *err) {
    if (trainer->eval_plan == NULL) return OK;
    EvalResult result;
    CheckpointState *progress = &trainer->progress;
    comm_set_place(trainer->comm, progress->step, "evaluation");
    TRY(evaluate(&trainer->engine, trainer->eval_tape, &trainer->eval_data, trainer->eval_plan, &trainer->batch, &result, err));
    if (isnan(progress->first_eval)) progress->first_eval = result.loss;
    int best = isfinite(result.loss) && !(result.loss >= progress->best_eval);
    if (best) {
        progress->best_eval = result.loss;
        progress->best_step = progress->step;
    }
    TRY(reporter_eval(trainer->reporter, progress->step, result.loss, result.tokens, result.seconds, best, err));
    if (best && trainer->config.train.save_best && progress->step > 0)
        TRY(trainer_write_model(trainer, model_folder(trainer, 1), err));
    progress->last_eval = progress->step;
    return reporter_write_html(trainer->reporter, err);
}

/* Before the first step, after the last and every eval_every; once, also where a run was stopped between the step and this. */
static Status evaluate_if_due(Trainer *trainer, Error *err) {
    int64_t step = trainer->progress.step, every = trainer->config.train.eval_every;
    int due = step == 0 || step == trainer->steps || (every > 0 && step % every == 0);
    return due && trainer->progress.last_eval != step ? run_evaluation(trainer, err) : OK;
}

/* ---- the reporter's facts ---------------------------------------------------------------------------------------------------- */

#define FACTS 16
typedef struct FactList {
    const char *items[2 * FACTS + 1];
    int count;
} FactList;

static void fact(FactList *list, const char *name, char *value) {
    if (list->count / 2 >= FACTS) return;
    list->items[list->count++] = name;
    list->items[list->count++] = value;
}

static void facts_free(FactList *list) {
    for (int i = 1; i < list->count; i += 2)
        memory_free((void *)(uintptr_t)list->items[i]);
}

static Status open_reporter(Trainer *trainer, Error *err) {
    if (comm_rank(trainer->comm) != 0) return OK;
    const Config *config = &trainer->config;
    const Engine *engine = &trainer->engine;
    const ModelConfig *m = &engine->model;
    const Dataset *data = &trainer->train_data;
    FactList model = {0}, facts = {0}, machine = {0};
    char bytes[32];
    ModelShape shape = engine_shape(engine);
    fact(&model, "model", memory_strdup(config->model.path));
    fact(&model, "architecture",
         memory_format("%s, %lld layers, width %lld, %lld/%lld heads, vocabulary %lld", m->model_type, (long long)m->layers,
                       (long long)m->hidden, (long long)m->heads, (long long)m->kv_heads, (long long)m->vocab));
    fact(&model, "parameters", memory_format("%.2f million", (double)m->parameters / 1e6));
    fact(&model, "method",
         memory_format("%s, base in %s%s", config->method, weight_format_name(shape.linear),
                       config->quant.double_quant && (shape.linear == WEIGHT_NF4 || shape.linear == WEIGHT_FP4)
                           ? " with double quantization"
                           : ""));
    fact(&model, "trained numbers", memory_format("%lld", (long long)engine->params.trained));
    Text name = {0};
    config_print_paths(config, &name);
    fact(&facts, "file", name.data); /* takes it */
    fact(&facts, "layout and template", memory_format("%s, %s", layout_name(data->layout), data->template_name));
    fact(&facts, "sequences",
         memory_format("%lld for training, %lld for evaluation", (long long)data->count, (long long)trainer->eval_data.count));
    fact(&facts, "tokens",
         memory_format("%lld, of which %lld are trained", (long long)data->tokens, (long long)data->trained_tokens));
    fact(&facts, "longest sequence", memory_format("%lld tokens", (long long)data->longest));
    fact(&facts, "packing", memory_format("%.1f %% of each window is used", 100.0 * pack_fill(trainer->stream.plan)));
    fact(&machine, "device",
         memory_format("%s, %d threads, kernels: %s", engine->device.name, engine->exec.config.threads,
                       engine->backend.variant.linear));
    fact(&machine, "measured GEMM peak", memory_format("%.0f GFLOP/s", trainer->gemm_peak / 1e9));
    fact(&machine, "memory planned", memory_strdup(format_bytes((double)trainer->plan.total, bytes, sizeof bytes)));
    Text text = {0};
    config_print(config, &text);
    ReporterFacts all = {.title = config->output.path,
                         .config_json = text.data,
                         .model = model.items,
                         .data = facts.items,
                         .machine = machine.items};
    int resumed = trainer->resume && trainer->progress.step > 0;
    Status status = reporter_open(&trainer->reporter, config->output.path, &all, resumed ? trainer->progress.step : -1, err);
    text_free(&text);
    facts_free(&model);
    facts_free(&facts);
    facts_free(&machine);
    return status;
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------------ */

/* For each rank's log. */
static void note_step(Trainer *trainer, const StepResult *result, double seconds) {
    uint64_t sent[COMM_PURPOSES];
    for (int p = 0; p < COMM_PURPOSES; p++) {
        uint64_t now = comm_sent(trainer->comm, (CommPurpose)p);
        sent[p] = now - trainer->sent[p];
    }
    log_note(
        "step %lld of %lld: loss %.9g, %.3f s; sent %llu bytes for gradients, %llu for the base, %llu for control, %llu for "
        "what "
        "is trained",
        (long long)trainer->progress.step, (long long)trainer->steps, result->loss, seconds,
        (unsigned long long)sent[COMM_GRADIENTS], (unsigned long long)sent[COMM_BASE], (unsigned long long)sent[COMM_CONTROL],
        (unsigned long long)sent[COMM_TRAINED]);
}

static Status report_step(Trainer *trainer, const StepResult *result, double seconds, Error *err) {
    CheckpointState *progress = &trainer->progress;
    progress->seconds += seconds;
    double rate = (double)trainer->step.tokens / seconds;
    trainer->smoothed_rate = trainer->smoothed_rate > 0.0 ? 0.9 * trainer->smoothed_rate + 0.1 * rate : rate;
    double flops = rate * trainer->plan.flops_per_token;
    if (flops > trainer->gemm_peak) trainer->gemm_peak = flops; /* the ceiling was measured while the machine did other work */
    StepRecord record = {.step = progress->step,
                         .steps = trainer->steps,
                         .loss = result->loss,
                         .grad_norm = result->grad_norm,
                         .lr = result->lr,
                         .tokens = trainer->step.tokens,
                         .trained_tokens = trainer->step.supervised,
                         .seconds = seconds,
                         .tokens_per_second = trainer->smoothed_rate,
                         .peak_fraction = flops / trainer->gemm_peak,
                         .gflops = flops / 1e9,
                         .resident = memory_resident(),
                         .eta_seconds = (double)(trainer->steps - progress->step) * progress->seconds / (double)progress->step,
                         .epoch = (double)trainer->stream.epoch + (double)(progress->micro_batches - trainer->stream.first) /
                                                                      (double)pack_count(trainer->stream.plan),
                         .skipped = result->bad};
    if (trainer->comm != NULL) note_step(trainer, result, seconds);
    return reporter_step(trainer->reporter, &record, err);
}

/* A skipped step: logged with the op that made the first NaN or Inf; too many in a row end the run. */
static Status handle_bad_step(Trainer *trainer, Error *err) {
    TapeFault fault;
    TRY(trainer_find_fault(trainer, &fault, err));
    const char *where = fault.found ? fault.text : "the sum of the gradients";
    char text[320];
    (void)snprintf(text, sizeof text, "step %lld skipped: NaN or Inf, first in %s (%lld in a row)",
                   (long long)trainer->progress.step, where, (long long)trainer->progress.bad_steps);
    TRY(reporter_event(trainer->reporter, trainer->progress.step, text, err));
    if (trainer->progress.bad_steps < trainer->config.train.max_bad_steps) return OK;
    TRY(save_at(trainer, "too many bad steps", err));
    FAIL(
        "%lld steps in a row gave NaN or Inf, first in %s; the parameters are those of the last good step, saved in %s. Try a "
        "smaller train.lr, or precision \"f32\"",
        (long long)trainer->progress.bad_steps, where, trainer->config.output.path);
}

static Status save_if_due(Trainer *trainer, Error *err) {
    const Config *config = &trainer->config;
    int64_t step = trainer->progress.step, every = config->train.save_every;
    int64_t due = step == trainer->steps || (every > 0 && step % every == 0);
    if (!due && config->train.save_minutes > 0.0) {
        due = clock_seconds() - trainer->last_save >= 60.0 * config->train.save_minutes;
        if (replicas_save_together(trainer->replicas)) TRY(comm_max(trainer->comm, &due, err)); /* clocks differ */
    }
    return due ? save_checkpoint(trainer, err) : OK;
}

/* Ranks see a signal in the next round of micro-batches, all in the same. */
static Status stop_if_alone(const Trainer *trainer, Error *err) {
    if (trainer->comm != NULL || !signals_pending()) return OK;
    return error_set(err, ERR_INTERRUPTED, "interrupted");
}

static Status check_replicas(Trainer *trainer, Error *err) {
    int64_t step = trainer->progress.step, every = trainer->config.distributed.check_every;
    if (step != trainer->steps && (every == 0 || step % every != 0)) return OK;
    if (trainer->comm != NULL) TRY(engine_fetch_params(&trainer->engine, err));
    return replicas_check(trainer->replicas, step, err);
}

static Status run_steps(Trainer *trainer, Error *err) {
    while (trainer->progress.step < trainer->steps) {
        StepResult result;
        double begin = clock_seconds();
        comm_set_place(trainer->comm, trainer->progress.step + 1, "training");
        for (int p = 0; p < COMM_PURPOSES; p++)
            trainer->sent[p] = comm_sent(trainer->comm, (CommPurpose)p);
        TRY(trainer_gather(trainer, err));
        TRY(trainer_step(trainer, &result, err));
        TRY(report_step(trainer, &result, clock_seconds() - begin, err));
        TRY(check_replicas(trainer, err));
        if (result.bad) TRY(handle_bad_step(trainer, err));
        TRY(evaluate_if_due(trainer, err));
        TRY(save_if_due(trainer, err));
        TRY(stop_if_alone(trainer, err));
    }
    return OK;
}

/* The frozen base is never written: what was hashed when it was loaded is what lies there now. */
static Status check_frozen(const Trainer *trainer, Error *err) {
    const Engine *engine = &trainer->engine;
    if (engine->weights == NULL) return OK;
    uint64_t now = weights_hash(engine->weights);
    if (now == engine->weights_hash) return OK;
    FAIL(
        "internal error: the base weights changed in memory during training (XXH3 %016llx, was %016llx); is the memory of this "
        "machine sound? The adapter is not written",
        (unsigned long long)now, (unsigned long long)engine->weights_hash);
}

static Status report_done(Trainer *trainer, Error *err) {
    const CheckpointState *p = &trainer->progress;
    char plan[32], peak[32];
    Text text = {0};
    text_addf(&text, "done");
    if (isfinite(p->first_eval))
        text_addf(&text, ": evaluation loss %.4f before, best %.4f at step %lld", p->first_eval, p->best_eval,
                  (long long)p->best_step);
    if (trainer->engine.weights != NULL)
        text_addf(&text, "; the base is unchanged, XXH3 %016llx", (unsigned long long)trainer->engine.weights_hash);
    text_addf(&text, "; memory planned %s, most resident %s", format_bytes((double)trainer->plan.total, plan, sizeof plan),
              format_bytes((double)memory_resident_peak(), peak, sizeof peak));
    Status status = reporter_event(trainer->reporter, p->step, text.data, err);
    text_free(&text);
    return status;
}

/* The checkpoint of the last step exists already. Only when all else is written is it marked complete. */
static Status finish(Trainer *trainer, Error *err) {
    TRY(check_frozen(trainer, err));
    TRY(trainer_write_model(trainer, model_folder(trainer, 0), err));
    TRY(trainer_samples(trainer, 1, err));
    TRY(report_done(trainer, err));
    TRY(reporter_write_html(trainer->reporter, err));
    trainer->progress.complete = 1;
    TRY(save_checkpoint(trainer, err));
    log_info("written: %s/%s and %s/report.html", trainer->config.output.path, model_folder(trainer, 0),
             trainer->config.output.path);
    return OK;
}

static Status begin(Trainer *trainer, Error *err) {
    if (trainer->progress.step > 0) {
        char text[96];
        (void)snprintf(text, sizeof text, "resumed at step %lld", (long long)trainer->progress.step);
        TRY(reporter_event(trainer->reporter, trainer->progress.step, text, err));
    } else {
        TRY(trainer_samples(trainer, 0, err));
    }
    return evaluate_if_due(trainer, err);
}

/* After a signal: the parameters are those of the last complete step. */
static Status interrupted(Trainer *trainer, Error *err) {
    int number = signals_pending();
    TRY(save_at(trainer, signals_name(number), err));
    TRY(reporter_write_html(trainer->reporter, err));
    comm_share_failure(trainer->comm);
    return error_set(err, ERR_INTERRUPTED, "stopped by %s after step %lld of %lld; go on with --resume", signals_name(number),
                     (long long)trainer->progress.step, (long long)trainer->steps);
}

Status trainer_run(Trainer *trainer, Error *err) {
    int64_t written = comm_rank(trainer->comm) == 0 && trainer->progress.complete && model_is_written(trainer);
    TRY(comm_max(trainer->comm, &written, err));
    if (written) {
        log_info("%s is complete: %lld steps are done and written; nothing is left to do", trainer->config.output.path,
                 (long long)trainer->steps);
        return OK;
    }
    signals_install();
    trainer->last_save = clock_seconds();
    TRY(open_reporter(trainer, err));
    Status status = begin(trainer, err);
    if (status == OK) status = run_steps(trainer, err);
    if (status == ERR_INTERRUPTED) status = interrupted(trainer, err);
    if (status == OK) status = finish(trainer, err);
    Error ignored;
    Status closed = reporter_close(trainer->reporter, status == OK ? err : &ignored);
    trainer->reporter = NULL;
    return status != OK ? status : closed;
}
