/* One optimizer step. */
#include <math.h>
#include <string.h>

#include "core/file.h"
#include "train/optimizer.h"
#include "train/signals.h"
#include "train/trainer.h"

Status trainer_gather(Trainer *trainer, Error *err) {
    StepSequences *step = &trainer->step;
    const Dataset *data = &trainer->train_data;
    int64_t wanted = trainer->config.train.gradient_accumulation;
    int64_t left = trainer->total_micro_batches - trainer->progress.micro_batches;
    step->micro_batches = wanted < left ? wanted : left;
    step->supervised = step->tokens = 0;
    step->begin[0] = 0;
    for (int64_t k = 0; k < step->micro_batches; k++) {
        const int64_t *sequences;
        int64_t count;
        TRY(batch_stream_get(&trainer->stream, trainer->progress.micro_batches + k, &sequences, &count, &step->epoch[k], err));
        memcpy(step->sequences + step->begin[k], sequences, (size_t)count * sizeof *sequences);
        step->begin[k + 1] = step->begin[k] + count;
        step->supervised += batch_supervised(data, sequences, count);
        for (int64_t s = 0; s < count; s++)
            step->tokens += data->start[sequences[s] + 1] - data->start[sequences[s]];
    }
    return OK;
}

static Status run_micro_batch(Trainer *trainer, int64_t k, double *loss_sum, TapeFault *watch, Error *err) {
    const StepSequences *step = &trainer->step;
    Batch batch = {.grad_scale = step->supervised > 0 ? 1.0f / (float)step->supervised : 0.0f,
                   .seed = (uint64_t)trainer->config.seed,
                   .dropout = 1};
    TRY(batch_fill(&batch, &trainer->batch, &trainer->train_data, step->sequences + step->begin[k],
                   step->begin[k + 1] - step->begin[k], (uint64_t)(step->epoch[k] * trainer->train_data.count), err));
    if (trainer->teacher_tape != NULL) {
        TRY(engine_teach(&trainer->engine, trainer->teacher_tape, &batch, trainer->teacher.base, err));
        batch.teacher = trainer->teacher.base;
    }
    TapeRun run = engine_run(&trainer->engine, &batch);
    run.loss_sum = loss_sum;
    run.watch = watch;
    if (trainer->comm != NULL && watch == NULL && (trainer->last_round || !engine_records(&trainer->engine))) {
        run.segment_done = trainer_segment_done;
        run.segment_self = trainer;
    }
    return tape_run(trainer->train_tape, &run, err);
}

/* A signal that one rank got is one for all. */
static Status stop_if_asked(int agreed, Error *err) {
    if (agreed == 0) return OK;
    signals_adopt(agreed);
    return error_set(err, ERR_INTERRUPTED, "interrupted");
}

/* This rank's micro-batches of the step, and the sums over all ranks. */
static Status run_rounds(Trainer *trainer, Error *err) {
    int64_t count = trainer->step.micro_batches, ranks = comm_size(trainer->comm), rounds = (count + ranks - 1) / ranks;
    int agreed;
    replicas_begin(trainer->replicas);
    memset(trainer->losses, 0, (size_t)count * sizeof *trainer->losses);
    for (int64_t round = 0; round < rounds; round++) {
        int64_t k = round * ranks + comm_rank(trainer->comm);
        TRY(replicas_vote(trainer->replicas, signals_pending(), &agreed, err));
        TRY(stop_if_asked(agreed, err));
        trainer->last_round = round + 1 == rounds;
        if (k < count)
            TRY(run_micro_batch(trainer, k, &trainer->losses[k], NULL, err));
        else
            TRY(trainer_idle_round(trainer, err));
    }
    return replicas_finish(trainer->replicas, trainer->losses, count, err);
}

static Status run_step(Trainer *trainer, StepResult *result, Error *err) {
    Engine *engine = &trainer->engine;
    double loss_sum = 0.0;
    int agreed;
    if (engine->qat != NULL) qat_set_step(engine->qat, trainer->progress.step);
    TRY(engine_clear_gradients(engine, err));
    TRY(run_rounds(trainer, err));
    for (int64_t k = 0; k < trainer->step.micro_batches; k++)
        loss_sum += trainer->losses[k];
    result->loss = loss_sum / (double)trainer->step.supervised;
    result->grad_norm = gradient_norm(&engine->exec, &engine->backend, &engine->params, &engine->state);
    result->lr = schedule_lr(&trainer->config, trainer->progress.step, trainer->steps);
    result->bad = !(isfinite(result->loss) && isfinite(result->grad_norm));
    if (result->bad) return OK;
    TRY(replicas_vote_now(trainer->replicas, signals_pending(), &agreed, err));
    TRY(stop_if_asked(agreed, err));
    optimizer_step(&engine->exec, &engine->backend, &trainer->config, &engine->params, &engine->state, engine->exec.config.act,
                   result->lr, clip_factor(result->grad_norm, trainer->config.train.max_grad_norm),
                   trainer->progress.optimizer_steps + 1);
    TRY(replicas_gather_trained(trainer->replicas, engine->exec.config.act, err));
    return OK;
}

Status trainer_step(Trainer *trainer, StepResult *result, Error *err) {
    memset(result, 0, sizeof *result);
    memory_forbid(1);
    Status status = run_step(trainer, result, err);
    memory_forbid(-1);
    TRY(status);
    (void)fault_point(FAULT_STEP);
    trainer->progress.step++;
    trainer->progress.micro_batches += trainer->step.micro_batches;
    trainer->progress.tokens += trainer->step.tokens;
    if (result->bad) {
        trainer->progress.bad_steps++;
    } else {
        trainer->progress.bad_steps = 0;
        trainer->progress.optimizer_steps++;
        trainer->progress.trained_tokens += trainer->step.supervised;
    }
    return OK;
}

Status trainer_find_fault(Trainer *trainer, TapeFault *fault, Error *err) {
    memset(fault, 0, sizeof *fault);
    TRY(engine_clear_gradients(&trainer->engine, err));
    int64_t ranks = comm_size(trainer->comm);
    for (int64_t first = 0; first < trainer->step.micro_batches; first += ranks) {
        int64_t k = first + comm_rank(trainer->comm);
        double loss_sum = 0.0;
        if (k >= trainer->step.micro_batches || fault->found) {
            TRY(weights_idle_pass(trainer->engine.weights, 1, NULL, NULL, err));
            continue;
        }
        TRY(run_micro_batch(trainer, k, &loss_sum, fault, err));
        if (fault->found) TRY(weights_finish_pass(trainer->engine.weights, 1, err));
    }
    TRY(trainer_first_fault(trainer, fault, err));
    return engine_clear_gradients(&trainer->engine, err);
}
