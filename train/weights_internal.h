/* What the parts of the weight loader share.
 *
 *   weights_names.c    numbers, names and shapes
 *   weights_storage.c  how each weight will lie in memory: the plan, and the same for real
 *   weights_check.c    the folder's tensors against the config, before anything is read
 *   weights_bnb.c      bitsandbytes' tensors: quant_state, constants, LLM.int8
 *   weights_grouped.c  folders of GPTQ, AWQ and compressed-tensors
 *   weights_parts.c    what tensors a weight is read from, and what the host makes of them
 *   weights_load.c     reader thread, staging, quantizing
 *   weights_stream.c   the same with a device that quantizes
 *   weights_head.c     the head's copy in Q8_0
 *   weights_shard.c    a base that is split over the ranks
 *   weights.c          the loaded weights as a source
 */
#ifndef NIBBLE_TRAIN_WEIGHTS_INTERNAL_H
#define NIBBLE_TRAIN_WEIGHTS_INTERNAL_H

#include "core/memory.h"
#include "data/safetensors.h"
#include "quant/quantize.h"
#include "train/weights.h"

#define WEIGHT_NAME_MAX 192

typedef enum WeightOrigin {
    ORIGIN_DENSE,  /* F32, BF16 or F16 values */
    ORIGIN_BNB4,   /* bitsandbytes NF4 or FP4: kept byte for byte */
    ORIGIN_INT8,   /* bitsandbytes LLM.int8: dequantized while it is read */
    ORIGIN_GGML,   /* rows of a GGUF file's blocks, or of F16: kept byte for byte */
    ORIGIN_GROUPED /* GPTQ, AWQ, compressed-tensors: integers that stay what they are */
} WeightOrigin;

typedef struct WeightEntry {
    int present;
    int64_t rows, cols;
    /* storage */
    int quantized; /* else dense */
    DType dense;
    uint32_t ggml; /* ORIGIN_GGML: the type; 0: dense */
    void *data;    /* dense, and the blocks */
    QuantSpec spec;
    QuantizedTensor tensor; /* quantized */
    int pinned;             /* in ModelWeights.pinned instead of the arena */
    int resident;           /* also dequantized, once and for all, */
    void *dequantized;      /* here on the device; NULL: not yet */
    /* where it comes from; valid while the files are open */
    WeightOrigin origin;
    const TensorInfo *file;          /* X.weight or X.bias */
    const TensorInfo *scales;        /* X.SCB; X.weight.absmax; X.scales, X.weight_scale */
    const TensorInfo *zeros, *order; /* grouped integers; NULL: none */
    const TensorInfo *map, *nested_absmax, *nested_map;
    float nested_offset;
} WeightEntry;

struct ModelWeights {
    ModelConfig config;
    int32_t count;
    WeightEntry *entries; /* [count], by number */
    Arena arena;          /* pointers of the entries lead here */
    Arena mirror;         /* the same on a device; then `arena` has addresses, and no memory */
    Arena pinned;         /* what the device reads in host memory */
    Arena dense;          /* on the device: layers that are dequantized already */
    Arena small_head;     /* weights_quantize_head; base NULL: the head is as it was stored */
    DType act;
    const Backend *backend;
    const Exec *exec;
    struct WeightShards *shards; /* train/weights_shard.h; NULL: everything lies here */
};

/* Takes one weight's storage, and adds what an entry took to its kind. */
Status weight_take_entry(const ModelConfig *config, int32_t id, WeightEntry *entry, Arena *arena, Error *err);
void weight_add_bytes(int32_t id, const WeightEntry *entry, size_t taken, WeightBytes *bytes);
/* Bytes of `data` where the entry is not quantized. */
size_t weight_data_bytes(const WeightEntry *entry);

int weight_is_linear(int32_t id); /* one of a layer's seven */
int weight_is_vector(int32_t id); /* a norm or a bias */

/* How a dense weight from a file of this type is held. */
DType weight_dense_type(int32_t id, DType act, DType file_dtype);
struct WeightFacts {
    int32_t count;
    struct {
        WeightOrigin origin;
        DType type;
        QuantSpec spec;
    } weight[]; /* [count], by number */
};

/* What the options (or a pre-quantized folder) make of every weight, from the config and the facts. entries: [weight_count]. */
void weights_decide(const ModelConfig *config, const WeightOptions *options, DType file_dtype, WeightEntry *entries);
/* Takes every weight's storage from the arenas (or counts it) and adds up the bytes. pinned may be NULL where none is. */
Status weights_take(const ModelConfig *config, WeightEntry *entries, Arena *arena, Arena *pinned, WeightBytes *bytes,
                    Error *err);
/* Makes both arenas, and the device's, and takes the storage: for entries that were decided on. */
Status weights_reserve(ModelWeights *weights, const WeightOptions *options, const Backend *backend, Error *err);
/* Where a linear lies among those that stay dequantized, *end bytes of which are taken, its own then too: the members of a group
 * (q, k, v; gate, up) follow each other without a gap, as one matrix. */
size_t weight_dense_place(int32_t id, const WeightEntry *entry, DType act, size_t *end);
/* The entry as it is stored, and where the backend's entries find it. */
WeightView weight_stored_view(const ModelWeights *weights, const WeightEntry *entry);

/* Finds every weight in the folder and checks its shape and type; names what is missing, wrong or unexpected. Fills in the
 * origins, and changes the storage where the folder is pre-quantized. */
Status weights_check(const TensorFiles *files, const char *folder, const ModelConfig *config, const WeightOptions *options,
                     WeightEntry *entries, Error *err);

typedef struct WeightCheck {
    const TensorFiles *files;
    const char *folder;
    const ModelConfig *config;
    const WeightOptions *options;
    const TensorInfo **used; /* every tensor that some weight needs; at most WEIGHT_TENSORS a weight */
    int used_count;
} WeightCheck;
#define WEIGHT_TENSORS 6

/* bitsandbytes: whether X.weight (`name`, entry->file) has a quant_state; reads and checks it, and the sizes of what belongs
 * to it. */
Status bnb4_find(WeightCheck *check, const char *name, WeightEntry *entry, int *found, Error *err);
/* The same for LLM.int8 (X.weight I8, X.SCB, X.weight_format). */
Status bnb8_find(WeightCheck *check, const char *name, WeightEntry *entry, int *found, Error *err);

/* Grouped integers. The spec that config.json asks for; the tensor of a linear's codes, where that is not X.weight (NULL: there is
 * none); and, as above, finding what belongs to a linear. */
QuantSpec grouped_spec(const ModelConfig *config, DType scale_type);
const TensorInfo *grouped_codes(const TensorFiles *files, const ModelConfig *config, const char *name);
Status grouped_find(WeightCheck *check, const char *name, int32_t id, WeightEntry *entry, int *found, Error *err);
/* The device's memory, of the host arena's size; nothing without a device (options->exec). */
Status weights_take_mirror(ModelWeights *weights, const WeightOptions *options, Error *err);
/* Random bytes and constants in a tensor's storage, and values of a layer's usual spread (weights_random.c). */
void weights_random_codes(uint64_t *state, QuantizedTensor *tensor);
void weights_random_values(uint64_t *state, int64_t count, bf16 *out);

/* ---- tensors on their way (weights_parts.c) ---- */

typedef enum PartKind {
    PART_VALUES,
    PART_INT8,
    PART_BYTES,
    PART_FLOATS,
    PART_BLOCKS,
    PART_WORDS,
    PART_SIGNED,
    PART_SCALES,
    PART_ZEROS,
    PART_ORDER
} PartKind;

/* One tensor of the files. It is read in whole lines. */
typedef struct WeightPart {
    PartKind kind;
    int32_t id; /* of its weight */
    const TensorInfo *file;
    int64_t lines, unit; /* unit: lines that stay together */
    size_t line_bytes;   /* in the file */
    size_t made;         /* what part_make makes of a line */
    size_t widest;       /* the most that a line takes on its way */
    int quantize;        /* what is made is quantized, by whoever has it then */
    void *to;            /* in the entry's storage; NULL: it is quantized, or only checked */
} WeightPart;

/* What an entry is read from: at most WEIGHT_TENSORS. whole_blocks: rows stay together until a block ends as well. */
int weight_parts(const ModelConfig *config, int32_t id, const WeightEntry *entry, int whole_blocks,
                 WeightPart out[WEIGHT_TENSORS]);
/* Lines that are read at a time where `bytes` are at hand for them: at least a unit. */
int64_t part_lines(const WeightPart *part, size_t bytes);
/* Whether it is read to its place as it is, where that is in host memory. */
int part_is_in_place(const WeightPart *part);
/* *least = value where that is less: for the first fault that several threads find. */
void keep_least(_Atomic int64_t *least, int64_t value);

/* What the host's work on parts needs. */
typedef struct PartWork {
    const TensorFiles *files;
    const ModelConfig *config;
    Pool *pool;
    int drop_cache;
    float *row_scales; /* SCB of the INT8 weight at hand */
    float *decoded;    /* a piece of INT8 in FP32 that is converted then */
} PartWork;
/* bytes: as in part_lines. */
void part_work_take(PartWork *work, const WeightEntry *entries, const WeightPart *parts, int32_t count, size_t bytes);
void part_work_free(PartWork *work);
/* Checks lines that lie in `raw`, and makes of them what belongs at their place: overwrites `to`, `made` bytes a line, unless the
 * part is as it was read (PART_BYTES, FLOATS, BLOCKS; PART_VALUES that are quantized) or PART_WORDS. Refuses NaN and Inf. */
Status part_make(PartWork *work, const WeightPart *part, const WeightEntry *entry, int64_t line, int64_t lines, const void *raw,
                 void *to, Error *err);

/* Reads a packed weight (ORIGIN_BNB4, GROUPED, GGML) into its storage, in this thread and the pool's. */
Status weight_read_packed(PartWork *work, int32_t id, WeightEntry *entry, Error *err);

/* Grouped integers: the same two; and PART_WORDS into the entry's codes. */
int grouped_parts(const ModelConfig *config, int32_t id, const WeightEntry *entry, WeightPart *out);
Status grouped_make(PartWork *work, const WeightPart *part, const WeightEntry *entry, int64_t lines, const void *raw, void *to,
                    Error *err);
void grouped_words_in(PartWork *work, const WeightEntry *entry, int64_t line, int64_t lines, const void *raw);
/* The most that one piece of them takes. */
size_t grouped_staging(const WeightEntry *entry);

/* Staging: the reader thread fills STAGE_COUNT buffers of at most STAGE_BYTES (or one unit of lines) in turn. */
#define STAGE_BYTES ((size_t)2 << 20)
#define STAGE_COUNT 3

/* ---- to a device, through slots of pinned memory that are used in turn (weights_stream.c) ---- */
typedef struct WeightStream WeightStream;
#define STREAM_SLOTS 4
#define SLOT_BYTES ((size_t)8 << 20) /* a third of a millisecond of PCIe */
#define SLOT_MOST ((size_t)64 << 20) /* for lines that are longer, or whose blocks end only after many of them */
/* Whether all of these weights can go that way: no piece takes more than SLOT_MOST. */
int stream_suits(const ModelConfig *config, const WeightEntry *entries);
/* What is given is borrowed for the stream's life. */
Status stream_open(WeightStream **out, const ModelWeights *weights, WeightEntry *entries, const WeightPart *parts,
                   int32_t count, PartWork *work, Error *err);
void *stream_slot(const WeightStream *stream, int slot);
/* Starts the work on lines of parts[place] that lie in `raw`: in the slot, or, where they are at their place, there. stream_wait:
 * the slot may be filled again. */
Status stream_piece(WeightStream *stream, int32_t place, int64_t line, int64_t lines, int slot, const void *raw, Error *err);
Status stream_wait(WeightStream *stream, int slot, Error *err);
/* Waits for everything and completes the entries; refuses NaN and Inf by their place. */
Status stream_finish(WeightStream *stream, Error *err);
void stream_close(WeightStream *stream); /* NULL is fine */

/* Fills the storage of every entry that is present from the files: through a stream to the mirror of `streamed`, in whose arenas it
 * is, or (NULL) into host memory. */
Status weights_read(const TensorFiles *files, const ModelConfig *config, WeightEntry *entries, ModelWeights *streamed,
                    const Backend *backend, Pool *pool, Error *err);

#endif
