/* The same text through three models: base with adapter (live), the merge in the type of its folder (merged), and what was
 * written (exported). All run in FP32, so that nothing but the weights differs. Documents and conversations are cut at
 * EVAL_TOKENS tokens; every token that would be trained (of plain text: all but a piece's first) is scored. */
#include <math.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "data/dataset.h"
#include "train/engine.h"
#include "train/export.h"
#include "train/export_gguf.h"
#include "train/generate.h"

#define EVAL_TOKENS 512 /* their logits stand in memory: 512 x vocabulary x 4 bytes */

typedef struct Evaluation {
    Export *export;
    Tokenizer *tokenizer;
    Dataset data;
    int64_t scored;
} Evaluation;

static Status read_data(Evaluation *e, Error *err) {
    const ExportOptions *o = e->export->options;
    const ModelConfig *model = merge_model(e->export->merge);
    TRY(tokenizer_open(&e->tokenizer, o->model, err));
    DatasetOptions options = {.path = o->eval,
                              .layout = LAYOUT_AUTO,
                              .template_name = "auto",
                              .max_length = model->context < EVAL_TOKENS ? model->context : EVAL_TOKENS,
                              .tokenizer = e->tokenizer,
                              .eos_id = tokenizer_eos(e->tokenizer),
                              .open_documents = 1};
    if (options.eos_id < 0 && model->eos_count > 0) options.eos_id = (int32_t)model->eos_ids[0];
    TRY(dataset_read(&options, &e->data, err));
    for (int64_t t = 0; t < e->data.tokens; t++) {
        if (e->data.ids[t] < 0 || e->data.ids[t] >= model->vocab)
            FAIL("%s: token %d is not in the model's vocabulary of %lld; the tokenizer does not belong to this model", o->eval,
                 e->data.ids[t], (long long)model->vocab);
        e->scored += e->data.train[t];
    }
    return OK;
}

/* Log-sum-exp minus the target's logit, in double; *best: the most likely token, the first of equals. */
static double token_loss(const float *logits, int64_t vocab, int32_t target, int32_t *best) {
    int64_t most = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (logits[v] > logits[most]) most = v;
    double sum = 0.0;
    for (int64_t v = 0; v < vocab; v++)
        sum += exp((double)logits[v] - (double)logits[most]);
    *best = (int32_t)most;
    return log(sum) + (double)logits[most] - (double)logits[target];
}

static Status score(const Evaluation *e, Generator *generator, float *logits, EvalRun *run, Error *err) {
    int64_t vocab = merge_model(e->export->merge)->vocab, at = 0;
    double sum = 0.0;
    for (int64_t s = 0; s < e->data.count; s++) {
        int64_t first = e->data.start[s], count = e->data.start[s + 1] - first;
        TRY(export_interrupted(err));
        TRY(generator_logits(generator, e->data.ids + first, count, logits, err));
        for (int64_t t = 1; t < count; t++)
            if (e->data.train[first + t])
                sum += token_loss(logits + (t - 1) * vocab, vocab, e->data.ids[first + t], &run->argmax[at++]);
    }
    run->loss = sum / (double)e->scored;
    run->done = 1;
    return OK;
}

static Status check_memory(size_t need, Error *err) {
    size_t left = memory_available();
    char want[32], have[32];
    if (need <= left) return OK;
    FAIL("--eval needs %s and %s are left; leave --eval out", format_bytes((double)need, want, sizeof want),
         format_bytes((double)left, have, sizeof have));
}

static Status run_model(const Evaluation *e, const char *folder, const char *adapter, const WeightOptions *weights,
                        EvalRun *run, Error *err) {
    EngineOptions options = {.model = folder,
                             .adapter = adapter,
                             .act = DTYPE_F32,
                             .threads = pool_threads(e->export->pool),
                             .weights = *weights,
                             .rounding = &e->export->rounding,
                             .method = METHOD_FROZEN};
    const ModelConfig *model = merge_model(e->export->merge);
    int64_t capacity = e->data.longest, chunk = capacity < GENERATE_CHUNK ? capacity : GENERATE_CHUNK;
    size_t logits_bytes = (size_t)(capacity * model->vocab) * sizeof(float);
    WeightBytes bytes;
    Engine engine;
    Generator *generator = NULL;
    Arena logits = {0};
    ModelConfig *written = memory_alloc(sizeof *written); /* its types may be others */
    Status planned = model_config_read(folder, written, err);
    if (planned == OK) planned = weights_plan(written, weights, written->dtype, &bytes, err);
    memory_free(written);
    TRY(planned);
    memset(&engine, 0, sizeof engine);
    Status status;
    TRY_GOTO(check_memory(bytes.arena + bytes.staging + logits_bytes, err));
    TRY_GOTO(engine_open(&engine, &options, err));
    TRY_GOTO(generator_create(&generator, &engine, capacity, chunk, chunk, err));
    Tape *tape = generator_tape(generator);
    TRY_GOTO(engine_reserve(&engine, &tape, 1, capacity, capacity, err));
    TRY_GOTO(arena_create(&logits, "logits", logits_bytes, err));
    run->argmax = memory_calloc((size_t)e->scored, sizeof *run->argmax);
    TRY_GOTO(score(e, generator, (float *)(void *)logits.base, run, err));
done:
    arena_free(&logits);
    generator_free(generator);
    engine_close(&engine);
    return status;
}

static Status run_live(Evaluation *e, EvalRun *run, Error *err) {
    const MergeOptions *m = &e->export->merging;
    const char *adapter = m->count > 0 ? m->adapters[0] : NULL;
    if (m->count > 1 || (m->count == 1 && m->weights[0] != 1.0)) {
        run->why_not = "only one adapter with weight 1 can be applied while a model runs";
        return OK;
    }
    if (merge_has_dora(e->export->merge)) {
        run->why_not = "a DoRA adapter can only be merged";
        return OK;
    }
    WeightOptions weights = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    if (m->requantize) {
        weights.linear = m->spec.format;
        weights.double_quant = m->spec.double_quant;
        weights.block_size = m->spec.block_size;
    }
    return run_model(e, e->export->options->model, adapter, &weights, run, err);
}

/* Written into the folder that is being made, and removed again. */
static Status run_merged(Evaluation *e, const char *folder, EvalRun *run, Error *err) {
    Export *export = e->export;
    const WeightOptions dense = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    if (export->options->format == EXPORT_HF) {
        run->why_not = "it is what was exported";
        return OK;
    }
    char *merged = path_join(folder, "merged.tmp");
    uint64_t bytes = export->bytes;
    Status status = folder_create(merged, err);
    if (status == OK) status = export_hf_write(export, merged, err);
    if (status == OK) status = run_model(e, merged, NULL, &dense, run, err);
    export->bytes = bytes;
    if (status == OK)
        status = folder_remove(merged, err);
    else
        (void)folder_remove(merged, NULL);
    memory_free(merged);
    return status;
}

static double agreement(const EvalRun *a, const EvalRun *b, int64_t tokens) {
    int64_t same = 0;
    if (!a->done || !b->done) return NAN;
    for (int64_t t = 0; t < tokens; t++)
        same += a->argmax[t] == b->argmax[t];
    return (double)same / (double)tokens;
}

Status export_proof_eval(Export *export, const char *folder, Error *err) {
    ExportProof *proof = &export->proof;
    if (export->options->eval == NULL) return OK;
    const WeightOptions dense = {.act = DTYPE_F32, .linear = WEIGHT_F32, .block_size = 64};
    const WeightOptions nf4 = {.act = DTYPE_F32,
                               .linear = WEIGHT_NF4,
                               .double_quant = export->spec.double_quant,
                               .block_size = export->spec.block_size};
    Evaluation e = {.export = export};
    int is_gguf = export->options->format == EXPORT_GGUF;
    char *written = is_gguf ? path_join(folder, EXPORT_GGUF_FILE) : memory_strdup(folder);
    Status status;
    TRY_GOTO(read_data(&e, err));
    TRY_GOTO(run_live(&e, &proof->runs[EVAL_LIVE], err));
    TRY_GOTO(run_merged(&e, folder, &proof->runs[EVAL_MERGED], err));
    TRY_GOTO(
        run_model(&e, written, NULL, export->options->format == EXPORT_NF4 ? &nf4 : &dense, &proof->runs[EVAL_EXPORTED], err));
    proof->tokens = e.scored;
    for (int i = 0; i < EVAL_ROLES; i++)
        proof->agreement[i] = agreement(&proof->runs[i], &proof->runs[EVAL_EXPORTED], e.scored);
done:
    memory_free(written);
    dataset_free(&e.data);
    tokenizer_close(e.tokenizer);
    return status;
}
