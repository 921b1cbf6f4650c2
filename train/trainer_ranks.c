/* A training run as one of several ranks: whether all are the same, and what a rank does that others do not. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/hash.h"
#include "core/log.h"
#include "train/run_folder.h"
#include "train/trainer.h"

/* ---- the same program on the same things ------------------------------------------------------------------------------------------ */

enum { SAME_PROGRAM, SAME_KERNELS, SAME_CONFIG, SAME_DATA, SAME_BASE, SAME_RESUME, SAME_COUNT };

static const char *const same_names[SAME_COUNT] = {
    [SAME_PROGRAM] = "the program (XXH3 of its file)",
    [SAME_KERNELS] = "its kernels (another processor? NIBBLE_CPU names ones that all have)",
    [SAME_CONFIG] = "the config, or what --set made of it",
    [SAME_DATA] = "the data (files, tokenizer or template)",
    [SAME_BASE] = "the base model",
    [SAME_RESUME] = "--resume",
};

static uint64_t hash_program(void) {
    enum { BLOCK = 1 << 16 };
    Hash hash;
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    uint8_t *block = memory_alloc(BLOCK);
    hash_init(&hash);
    for (ssize_t bytes; (bytes = read(file, block, BLOCK)) > 0;)
        hash_update(&hash, block, (size_t)bytes);
    memory_free(block);
    (void)close(file);
    return hash_final(&hash);
}

/* Names at most a few ranks whose item is not rank 0's. */
static void name_differing(const uint64_t *all, int size, int item, char *out, size_t capacity) {
    size_t used = 0;
    out[0] = 0;
    for (int r = 1; r < size && used + 16 < capacity; r++)
        if (all[r * SAME_COUNT + item] != all[item])
            used += (size_t)snprintf(out + used, capacity - used, "%s%d", used > 0 ? ", " : "", r);
}

static Status compare(Trainer *trainer, const uint64_t *all, Error *err) {
    int size = comm_size(trainer->comm);
    for (int item = 0; item < SAME_COUNT; item++) {
        char ranks[128];
        name_differing(all, size, item, ranks, sizeof ranks);
        if (ranks[0] == 0) continue;
        comm_share_failure(trainer->comm);
        FAIL("%s is not the same on all ranks as on rank 0: it differs on %s", same_names[item], ranks);
    }
    return OK;
}

Status trainer_ranks_check(Trainer *trainer, Error *err) {
    Comm *comm = trainer->comm;
    if (comm == NULL) return OK;
    if (trainer->config.train.gradient_accumulation < comm_size(comm))
        log_warning("%d ranks and %lld micro-batches in a step: some ranks have none; raise train.gradient_accumulation",
                    comm_size(comm), (long long)trainer->config.train.gradient_accumulation);
    const char *kernels = trainer->engine.backend.variant.linear;
    const CheckpointState *progress = &trainer->progress;
    uint64_t *all = memory_calloc((size_t)comm_size(comm) * SAME_COUNT, sizeof *all);
    uint64_t *own = all + comm_rank(comm) * SAME_COUNT;
    own[SAME_PROGRAM] = hash_program();
    own[SAME_KERNELS] = hash_bytes(kernels, strlen(kernels));
    own[SAME_CONFIG] = progress->config_hash;
    own[SAME_DATA] = progress->data_hash;
    own[SAME_BASE] = progress->weights_hash;
    own[SAME_RESUME] = (uint64_t)trainer->resume;
    Status status = comm_gather(comm, all, SAME_COUNT * sizeof *all, COMM_CONTROL, err);
    if (status == OK) status = compare(trainer, all, err);
    memory_free(all);
    return status;
}

/* ---- a step ------------------------------------------------------------------------------------------------------------------------- */

Status trainer_segment_done(void *self, int32_t segment, Pass pass, Error *err) {
    Trainer *trainer = self;
    comm_tick(trainer->comm);
    if (pass != PASS_BACKWARD || !trainer->last_round || segment < 0) return OK;
    return replicas_layer_done(trainer->replicas, segment, err);
}

Status trainer_idle_round(Trainer *trainer, Error *err) {
    return weights_idle_pass(trainer->engine.weights, 1, trainer_segment_done, trainer, err);
}

Status trainer_first_fault(Trainer *trainer, TapeFault *fault, Error *err) {
    Comm *comm = trainer->comm;
    if (comm == NULL) return OK;
    size_t capacity = sizeof fault->text;
    char *texts = memory_calloc((size_t)comm_size(comm), capacity);
    Status status = comm_gather_texts(comm, fault->found ? fault->text : "", texts, capacity, err);
    for (int r = comm_size(comm) - 1; r >= 0 && status == OK; r--) {
        const char *text = texts + (size_t)r * capacity;
        if (text[0] == 0) continue;
        fault->found = 1;
        (void)snprintf(fault->text, capacity, "%.*s", (int)capacity - 1, text);
    }
    memory_free(texts);
    return status;
}
