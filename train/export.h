/* What the parts of nibble export share.
 *
 *   cmd_export.c      options, the order of things, the folder that is published whole or not at all
 *   export_onto.c     which base the adapters are merged onto, and why
 *   export_calibrate.c  the run over calibration data that decides how weights are rounded
 *   export_hf.c       a 16- or 32-bit model folder
 *   export_nf4.c      one in bitsandbytes' NF4
 *   export_grouped*.c one of grouped integers: gptq, awq, compressed-tensors (export_grouped.h)
 *   export_peft.c     an adapter as a normalised PEFT folder
 *   export_gguf*.c    a GGUF file (export_gguf.h); export_lora_gguf.c: an adapter as one
 *   export_proof.c    the written weights, read back, against the FP32 merge
 *   export_eval.c     live, merged and exported model on a file
 *   export_report.c   export_report.json and the table
 */
#ifndef NIBBLE_TRAIN_EXPORT_H
#define NIBBLE_TRAIN_EXPORT_H

#include "core/text.h"
#include "train/merge.h"
#include "train/options.h"

typedef enum ExportFormat {
    EXPORT_HF,
    EXPORT_NF4,
    EXPORT_PEFT,
    EXPORT_GGUF,
    EXPORT_LORA_GGUF,
    EXPORT_GPTQ,
    EXPORT_AWQ,
    EXPORT_COMPRESSED
} ExportFormat;

/* How codes of grouped integers are decided on. */
typedef enum Quantizing { QUANTIZER_NEAREST, QUANTIZER_GPTQ, QUANTIZER_AWQ, QUANTIZER_MSE, QUANTIZER_PERCENTILE } Quantizing;

typedef struct ExportOptions {
    const char *model, *format_name, *out, *onto, *dtype_name, *eval, *gguf_type, *gguf_embeddings, *calibration, *activations;
    int64_t calibration_samples, calibration_tokens; /* 0: not given */
    const char *quantizer;
    double damping, percentile; /* 0: not given */
    int act_order, static_groups;
    OptionList adapters, weights;
    char *paths[MERGE_MAX_ADAPTERS]; /* of adapters that were given with a weight */
    int no_verify, overwrite, json, symmetric, asymmetric;
    int64_t bits, group; /* grouped integers; 0: not given */
    int64_t shard_size;  /* million bytes of a file; 0: not given */
    int64_t threads;
    /* filled in by the check */
    Quantizing quantizing;
    ExportFormat format;
    int is_adapter; /* what is written is an adapter, not a model */
    int dtype_given;
    DType dtype;
} ExportOptions;

/* One weight, written and read back. M = W + Delta is the FP32 merge, X what was written, Q(W) the base written the same way. */
typedef struct WeightProof {
    int32_t id;
    int adapted;
    double error;                     /* |X - M| / |M| */
    double surviving;                 /* <X - Q(W), Delta> / |Delta|^2: 1 when the change is there, 0 when it rounded away */
    double noise;                     /* |X - Q(W) - Delta| / |Delta|: what rounding adds to the change, in units of it */
    double delta;                     /* |Delta| / |W| */
    double projection, delta_squares; /* the parts of `surviving`, for sums over weights */
} WeightProof;

typedef enum EvalRole { EVAL_LIVE, EVAL_MERGED, EVAL_EXPORTED, EVAL_ROLES } EvalRole;

typedef struct EvalRun {
    int done;
    const char *why_not; /* where not done */
    double loss;
    int32_t *argmax; /* [tokens scored] */
} EvalRun;

typedef struct ExportProof {
    WeightProof *weights; /* [count] */
    int32_t count;
    double worst_error, surviving; /* surviving: over all adapted weights together; NAN without an adapter */
    int32_t vanished;              /* adapted weights of which less than half survived */
    EvalRun runs[EVAL_ROLES];
    int64_t tokens;               /* scored; 0: no --eval */
    double agreement[EVAL_ROLES]; /* of each with the exported model's most likely tokens; NAN where not done */
} ExportProof;

typedef struct Export {
    const ExportOptions *options;
    Backend backend;
    Pool *pool;
    MergeOptions merging;
    const char *onto; /* "original" or "dequantized" */
    char reason[512]; /* why that base */
    Merge *merge;
    QuantSpec spec;           /* bnb-nf4 and grouped integers: of what is written */
    QuantSpec trained_grid;   /* qat.weights nf4 or an integer grid of the adapter's run; else format is none of these */
    char spec_text[96];       /* grouped integers: "int4, groups of 128, symmetric" */
    int trained_scales;       /* and its scales were learned */
    float *ranges;            /* rounding.fixed: scales, [layers * RANGES_PER_LAYER] */
    ActivationQuant rounding; /* of activations: as it was trained with, else as the base says */
    int int8_activations;     /* compressed-tensors: what is written is served with such activations */
    DType type;               /* hf: of the merged weights */
    const struct GgufMix *gguf;
    const char *trained_gguf;        /* ggml type that a run's linears were trained as, or NULL */
    const char *embeddings;          /* gguf: type of embedding and head instead of the mix's, or NULL */
    struct Calibration *calibration; /* NULL: none was asked for */
    int64_t linears, adapted;
    uint64_t bytes;
    ExportProof proof;
} Export;

/* Fills in merging, onto and reason. Refuses --onto original of a quantized folder. */
Status export_choose_base(Export *export, Error *err);

/* Decides on o->quantizing, and refuses combinations that make no sense; the run itself (nothing without --calibration). */
Status export_calibrate_check(ExportOptions *o, Error *err);
Status export_calibrate(Export *export, Error *err);
const char *export_quantizer_name(Quantizing quantizer);
/* Whether the codes are a calibration's (GPTQ, AWQ); whether a weight of that width then has its columns in groups of any order. */
int export_is_calibrated(const Export *export);
int export_is_ordered(const Export *export, int64_t cols);
/* Rows of a weight of the model into what AWQ made of them before rounding (calibration_transform); nothing for others. */
void export_transform(const Export *export, int32_t id, int64_t first, int64_t count, int64_t cols, float *rows);
/* Codes of the linear that is at hand in the merge, with adapters, into what quantized_take gave for export->spec (and the order). */
Status export_quantize_linear(Export *export, int32_t id, QuantizedTensor *out, Error *err);

/* The type in which export_hf_write stores a weight; DTYPE_COUNT: the file's tensor is not copied (part of a quantized one). */
DType export_hf_type(const Export *export, const TensorInfo *tensor, int32_t id);
/* Of a safetensors file at most, as --shard-size says or huggingface_hub splits. */
uint64_t export_shard_bytes(const Export *export);
/* Into an empty folder. */
Status export_hf_write(Export *export, const char *folder, Error *err);
Status export_nf4_write(Export *export, const char *folder, Error *err);
/* Writes, reads back, and reports into the folder. */
Status export_peft_write(Export *export, const char *folder, Error *err);

/* How a format that merge_open does not read is read back. cols: of the weight; rows in the order of a model folder. */
typedef struct ExportReader {
    Status (*open)(Export *export, const char *folder, void **state, Error *err); /* *state is closed also after a failure */
    /* What was written, and Q(base) for `count` rows of the base: FP32 [count, cols], overwritten. */
    Status (*rows)(void *state, int32_t id, int64_t cols, int64_t first, int64_t count, float *out, Error *err);
    Status (*alone)(void *state, int32_t id, int64_t cols, int64_t count, const float *base, float *out, Error *err);
    void (*close)(void *state); /* NULL is fine */
} ExportReader;

/* Fills in gguf and embeddings: as asked for, else as the run trained. */
Status export_gguf_choose(Export *export, Error *err);
Status export_gguf_write(Export *export, const char *folder, Error *err);
Status export_lora_gguf_write(Export *export, const char *folder, Error *err);
extern const ExportReader export_gguf_reader;
/* The reader of the format at hand; NULL: merge_open reads it. */
const ExportReader *export_reader(const Export *export);

/* Reads `folder` back. written as NF4: export->format. */
Status export_proof_weights(Export *export, const char *folder, Error *err);
Status export_proof_eval(Export *export, const char *folder, Error *err);
void export_proof_free(ExportProof *proof);
/* Loud where the merge has mostly vanished. */
void export_proof_warn(const Export *export);

/* ERR_INTERRUPTED once a signal has asked to stop; asked between weights. */
Status export_interrupted(Error *err);

Status export_report_write(const Export *export, const char *folder, Error *err);
void export_report_json(const Export *export, Text *out);
void export_report_table(const Export *export, Text *out);

#endif
