/* Text out of a model: one sequence through a key/value cache, or several beside each other, whose tokens share the reading of the
 * weights.
 *
 * A Generator owns a GENERATE tape for chunks of a prompt (and single tokens), and the cache.
 */
#ifndef NIBBLE_TRAIN_GENERATE_H
#define NIBBLE_TRAIN_GENERATE_H

#include <stdint.h>

#include "train/engine.h"
#include "train/sample.h"

typedef struct Generator Generator;

typedef struct SampleOptions {
    SampleSpec spec;
    int64_t max_new_tokens;
    const int32_t *stop_ids;
    int stop_count;
    int reuse; /* rows of the cache that hold the prompt's beginning already are kept, as by generator_prefill */
} SampleOptions;

/* Called per new token; a non-zero return stops. The stop token itself is not passed. */
typedef int GenerateCallback(void *context, int32_t id);

#define GENERATE_BESIDE 8  /* as many rows as products take that are the same for a row alone and beside others */
#define GENERATE_CHUNK 256 /* rows of a prompt that go through the model at once */

/* capacity: rows of the cache (prompt and answer). chunk: rows of the tape. logit_rows: rows whose logits one run of the tape
 * can give (1 to sample; chunk for generator_logits). Records the tape and takes cache and logits from an arena of
 * generator_bytes. */
Status generator_create(Generator **generator, Engine *engine, int64_t capacity, int64_t chunk, int64_t logit_rows, Error *err);
/* The tape whose arena the engine must reserve (engine_reserve) before generating; owned by the generator. */
Tape *generator_tape(Generator *generator);
size_t generator_bytes(const ModelConfig *model, DType act, int64_t capacity, int64_t logit_rows);
/* Bytes of the cache on a device; 0 on the CPU. */
size_t generator_device_bytes(const Generator *generator);
/* The same with a cache for `sequences` (generate_all; on a device for one), of which generator_bytes takes the capacity times their
 * number. */
Status generator_create_beside(Generator **generator, Engine *engine, int64_t capacity, int64_t chunk, int64_t logit_rows,
                               int64_t sequences, Error *err);
/* How many to take: at most GENERATE_BESIDE and `wanted`, and more than one only as far as the cache stays within 512 MiB. */
int64_t generator_beside(const ModelConfig *model, DType act, int64_t capacity, int64_t wanted);
/* Seconds are added per instruction of its tape from here on; NULL: no more. */
void generator_profile(Generator *generator, double *seconds);
void generator_free(Generator *generator);

/* Starts a new sequence with `prompt` (count >= 1), appends up to max_new_tokens. *generated: how many. */
Status generate(Generator *generator, const int32_t *prompt, int64_t count, const SampleOptions *options,
                GenerateCallback *callback, void *context, int64_t *generated, Error *err);
typedef struct GenerateJob {
    const int32_t *prompt;
    int64_t count;
    SampleOptions options; /* reuse: not read */
    GenerateCallback *callback;
    void *context;
    /* written */
    int64_t generated;
} GenerateJob;
/* As generate() with each of them, with the same tokens; as many at a time as the generator has room for. Ends early when a
 * signal is pending. */
Status generate_all(Generator *generator, GenerateJob *jobs, int64_t count, Error *err);
/* Logits of every position of a sequence, FP32 [count, vocab], for tests and `eval --logits`. */
Status generator_logits(Generator *generator, const int32_t *ids, int64_t count, float *logits, Error *err);

/* Makes the cache hold `ids` [count >= 1], of which the longest beginning that it holds already is not computed again (how
 * much is known changes how products are shaped, so the last bits of what follows may differ). *logits: FP32 [vocab] of the
 * last token, valid until the next call that changes the cache. */
Status generator_prefill(Generator *generator, const int32_t *ids, int64_t count, const float **logits, Error *err);
/* As if `ids` [count <= logit_rows] followed what was prefilled: *logits FP32 [count, vocab], valid until the next call. The
 * cache then holds what it held before. */
Status generator_look_ahead(Generator *generator, const int32_t *ids, int64_t count, const float **logits, Error *err);

#endif
