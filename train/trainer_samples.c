/* What the model writes before and after training: answers to held-out prompts, greedily. */
#include <string.h>

#include "core/memory.h"
#include "train/signals.h"
#include "train/trainer.h"

#define ANSWER_MAX 96

typedef struct Answer {
    int32_t ids[ANSWER_MAX];
    int64_t count;
} Answer;

static int collect(void *context, int32_t id) {
    Answer *answer = context;
    answer->ids[answer->count++] = id;
    return answer->count == ANSWER_MAX;
}

/* The prompt of a sequence ends where its first trained token stands; plain text is cut after a quarter. */
static Status split_sequence(const Dataset *data, int64_t sequence, const int32_t **ids, int64_t *prompt, int64_t *length,
                             Error *err) {
    const uint8_t *train;
    TRY(dataset_sequence(data, sequence, ids, &train, err));
    *length = data->start[sequence + 1] - data->start[sequence];
    *prompt = 1;
    while (*prompt < *length && !train[*prompt])
        (*prompt)++;
    if (*prompt == 1 && *length > 8) *prompt = *length / 4;
    return OK;
}

static Status write_answer(Trainer *trainer, const Dataset *data, int64_t sequence, Answer *answer, Error *err) {
    int64_t prompt, length, generated;
    const int32_t *ids;
    TRY(split_sequence(data, sequence, &ids, &prompt, &length, err));
    int32_t stops[MODEL_MAX_EOS + 1];
    int stop_count = 0;
    if (tokenizer_eos(trainer->tokenizer) >= 0) stops[stop_count++] = tokenizer_eos(trainer->tokenizer);
    for (int i = 0; i < trainer->engine.model.eos_count; i++)
        stops[stop_count++] = (int32_t)trainer->engine.model.eos_ids[i];
    int64_t wanted = length - prompt + 16;
    SampleOptions options = {.spec = {.top_p = 1.0},
                             .max_new_tokens = wanted < ANSWER_MAX ? wanted : ANSWER_MAX,
                             .stop_ids = stops,
                             .stop_count = stop_count};
    TRY(generate(trainer->generator, ids, prompt, &options, collect, answer, &generated, err));
    if (signals_pending()) return error_set(err, ERR_INTERRUPTED, "interrupted while sampling");
    return OK;
}

static Status report_answer(Trainer *trainer, const Dataset *data, int64_t sequence, const Answer *answer, int after,
                            Error *err) {
    int64_t prompt, length;
    const int32_t *ids;
    TRY(split_sequence(data, sequence, &ids, &prompt, &length, err));
    char *texts[3] = {NULL, NULL, NULL};
    size_t bytes;
    Status status = tokenizer_decode(trainer->tokenizer, ids, prompt, 1, &texts[0], &bytes, err);
    if (status == OK) status = tokenizer_decode(trainer->tokenizer, answer->ids, answer->count, 1, &texts[1], &bytes, err);
    if (status == OK) status = tokenizer_decode(trainer->tokenizer, ids + prompt, length - prompt, 1, &texts[2], &bytes, err);
    if (status == OK) status = reporter_sample(trainer->reporter, after, texts[0], texts[1], texts[2], err);
    for (int i = 0; i < 3; i++)
        memory_free(texts[i]);
    return status;
}

/* With a sharded base every rank writes the same answer, since all take part in gathering each layer; a signal then waits for
 * its end, so that none of them leaves the others. */
static Status write_answer_together(Trainer *trainer, const Dataset *data, int64_t sequence, Answer *answer, Error *err) {
    if (!trainer->config.distributed.shard_base || trainer->comm == NULL)
        return write_answer(trainer, data, sequence, answer, err);
    int64_t stop = signals_pending();
    TRY(comm_max(trainer->comm, &stop, err));
    if (stop != 0) {
        signals_adopt((int)stop);
        return error_set(err, ERR_INTERRUPTED, "interrupted before sampling");
    }
    signals_hold(1);
    Status status = write_answer(trainer, data, sequence, answer, err);
    signals_hold(-1);
    return status;
}

/* All answers first, then the records: a signal in between leaves none of them, and a resumed run none twice. */
static Status write_samples(Trainer *trainer, int after, Error *err) {
    const Dataset *data = trainer->eval_data.count > 0 ? &trainer->eval_data : &trainer->train_data;
    int64_t wanted = trainer->config.train.samples < data->count ? trainer->config.train.samples : data->count;
    Answer *answers = memory_calloc((size_t)wanted, sizeof *answers);
    Status status = OK;
    for (int64_t i = 0; status == OK && i < wanted; i++)
        status = write_answer_together(trainer, data, i * data->count / wanted, &answers[i], err);
    for (int64_t i = 0; status == OK && i < wanted; i++)
        status = report_answer(trainer, data, i * data->count / wanted, &answers[i], after, err);
    memory_free(answers);
    return status;
}

/* Without a sharded base one rank can do it alone. */
Status trainer_samples(Trainer *trainer, int after, Error *err) {
    if (trainer->generator == NULL) return OK;
    int takes_part = comm_rank(trainer->comm) == 0 || trainer->config.distributed.shard_base;
    comm_set_place(trainer->comm, trainer->progress.step, "samples");
    return comm_agree(trainer->comm, takes_part ? write_samples(trainer, after, err) : OK, err);
}
