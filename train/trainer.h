/* One training run: everything that lives from its start to its end, and the loop.
 *
 * An optimizer step is: micro-batches forward and backward, accumulating gradients of (sum of losses) / (supervised tokens of the
 * whole global batch); global norm; clip; AdamW. Nothing is allocated between the start of the first micro-batch and the end of
 * AdamW. A signal drops the partial step: parameters change only at its very end.
 */
#ifndef NIBBLE_TRAIN_TRAINER_H
#define NIBBLE_TRAIN_TRAINER_H

#include "data/dataset.h"
#include "data/tokenizer.h"
#include "train/batches.h"
#include "train/checkpoint.h"
#include "train/engine.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/replicas.h"
#include "train/reporter.h"
#include "train/run_plan.h"

typedef struct StepSequences { /* which sequences the micro-batches of one step hold */
    int64_t *sequences;        /* [accumulation * window] */
    int64_t *begin;            /* [accumulation + 1] into sequences */
    int64_t *epoch;            /* [accumulation] */
    int64_t micro_batches;     /* fewer than the accumulation only in a run's last step */
    int64_t supervised, tokens;
} StepSequences;

typedef struct Trainer {
    Config config;
    const char *config_path;
    int resume;
    Engine engine;
    Tokenizer *tokenizer;
    Dataset train_data, eval_data; /* eval_data.count 0: none */
    BatchStream stream;
    PackPlan *eval_plan;
    RunPlan plan;
    Tape *train_tape, *eval_tape;
    Tape *teacher_tape;   /* train.loss distill; NULL without */
    Arena teacher;        /* what it gives for a micro-batch */
    Generator *generator; /* NULL without samples */
    Arena buffers;
    BatchBuffer batch;
    StepSequences step;
    double *losses; /* [accumulation] of the step's micro-batches */
    int64_t steps, total_micro_batches;
    Comm *comm; /* borrowed; NULL: one rank */
    Replicas *replicas;
    int last_round;               /* the micro-batches at hand are the step's last */
    uint64_t sent[COMM_PURPOSES]; /* before this step */
    CheckpointState progress;
    Reporter *reporter;
    double gemm_peak;     /* FLOP/s that this machine's units were measured at; NaN: unknown */
    double smoothed_rate; /* tokens per second */
    double last_save;     /* clock */
} Trainer;

/* Loads, checks and plans everything; the run folder exists afterwards. Config errors come first, before any weight is read. */
Status trainer_open(Trainer *trainer, const char *config_path, const char *const *overrides, int override_count, int resume,
                    int threads, Error *err);
/* The same as one of several ranks. Every rank reads config, data and base; rank 0 alone looks at the run folder, resumes from
 * it, and writes. */
Status trainer_open_rank(Trainer *trainer, Comm *comm, const char *config_path, const char *const *overrides,
                         int override_count, int resume, int threads, Error *err);
/* Tokenizer, data sets and stream of a trainer that has nothing but its config: what `inspect` looks at. */
Status trainer_open_data(Trainer *trainer, const ModelConfig *model, Pool *pool, Error *err);
uint64_t trainer_data_hash(const Trainer *trainer); /* of what it opened: ids and masks, held-out ones too */
/* Runs to the end, or to a signal (ERR_INTERRUPTED after saving), or to too many bad steps. */
Status trainer_run(Trainer *trainer, Error *err);
/* qat.activations int8-static: scales from the run's first micro-batches and first values, the same after a resume. */
Status trainer_find_ranges(Trainer *trainer, Error *err);
void trainer_close(Trainer *trainer);

/* Pieces of the loop (trainer_step.c). */
typedef struct StepResult {
    double loss, grad_norm, lr;
    int bad; /* loss or gradients were not finite: nothing was changed */
} StepResult;
/* Fills trainer->step with the micro-batches that come next. */
Status trainer_gather(Trainer *trainer, Error *err);
/* One optimizer step; ERR_INTERRUPTED when a signal came before its end (nothing was changed). */
Status trainer_step(Trainer *trainer, StepResult *result, Error *err);
/* Names the first op that gives a NaN or Inf in the step's micro-batches. */
Status trainer_find_fault(Trainer *trainer, TapeFault *fault, Error *err);
/* The adapter (or, for method full, the model folder) of the present parameters into the run folder. */
Status trainer_write_model(Trainer *trainer, const char *name, Error *err);
/* Ranks (trainer_ranks.c). Fails, naming what differs, unless all ranks run the same program on the same things. */
Status trainer_ranks_check(Trainer *trainer, Error *err);
/* A rank's part in a round in which it has no micro-batch. */
Status trainer_idle_round(Trainer *trainer, Error *err);
/* Every rank's own fault into the first of all. */
Status trainer_first_fault(Trainer *trainer, TapeFault *fault, Error *err);
/* TapeRun.segment_done of a training step; self: the trainer. */
Status trainer_segment_done(void *self, int32_t segment, Pass pass, Error *err);
/* Samples for the report (trainer_samples.c). */
Status trainer_samples(Trainer *trainer, int after, Error *err);

#endif
