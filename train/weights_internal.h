/* What the parts of the weight loader share.
 *
 *   weights_names.c    numbers, names and shapes
 *   weights_storage.c  how each weight will lie in memory: the plan, and the same for real
 *   weights_check.c    the folder's tensors against the config, before anything is read
 *   weights_bnb.c      bitsandbytes' tensors: quant_state, constants, LLM.int8
 *   weights_grouped.c  folders of GPTQ, AWQ and compressed-tensors
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
/* What the options (or a pre-quantized folder) make of every weight, from the config alone. entries: [weight_count]. */
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
Status bnb4_read(const TensorFiles *files, WeightEntry *entry, int drop_cache, Error *err);
/* The same for LLM.int8 (X.weight I8, X.SCB, X.weight_format). */
Status bnb8_find(WeightCheck *check, const char *name, WeightEntry *entry, int *found, Error *err);

/* Grouped integers. The spec that config.json asks for; the tensor of a linear's codes, where that is not X.weight (NULL: there is
 * none); and, as above, finding and reading what belongs to a linear. */
QuantSpec grouped_spec(const ModelConfig *config, DType scale_type);
const TensorInfo *grouped_codes(const TensorFiles *files, const ModelConfig *config, const char *name);
Status grouped_find(WeightCheck *check, const char *name, int32_t id, WeightEntry *entry, int *found, Error *err);
Status grouped_read(const TensorFiles *files, const ModelConfig *config, WeightEntry *entry, Pool *pool, int drop_cache,
                    Error *err);
/* Random bytes and constants in a tensor's storage, and values of a layer's usual spread (weights_random.c). */
void weights_random_codes(uint64_t *state, QuantizedTensor *tensor);
void weights_random_values(uint64_t *state, int64_t count, bf16 *out);

/* What grouped_read allocates. */
size_t grouped_staging(const WeightEntry *entry);

/* Staging: the reader thread fills STAGE_COUNT buffers of at most STAGE_BYTES (or one row) in turn. */
#define STAGE_BYTES ((size_t)2 << 20)
#define STAGE_COUNT 3
int64_t stage_rows(const WeightEntry *entry, DType file_dtype);
size_t stage_bytes(const WeightEntry *entry, DType file_dtype);
/* All buffers, and the FP32 constants of the largest double-quantized weight. */
size_t weights_staging(const WeightEntry *entries, int32_t count, DType file_dtype);

/* `count` rows of type `type`, from row `row` of the entry on, as its dense type; refuses NaN and Inf. */
Status weight_convert_rows(Pool *pool, const WeightEntry *entry, const void *rows, DType type, int64_t row, int64_t count,
                           void *to, Error *err);

/* Rows on their way to a device, through slots of pinned memory that are used in turn. */
typedef struct WeightStream WeightStream;
#define STREAM_SLOTS 4
/* Whether all that the files hold can go that way: numbers of 16 or 32 bits, whose blocks end where slots end. */
int stream_suits(const WeightEntry *entries, int32_t count);
/* order: the entries that come, in this order. */
Status stream_open(WeightStream **out, ModelWeights *weights, const int32_t *order, int32_t count, Pool *pool, Error *err);
int64_t stream_rows(const WeightEntry *entry);
void *stream_slot(const WeightStream *stream, int slot);
/* Starts the work on rows that lie in a slot; the place is the entry's in order[]. stream_wait: the slot may be filled again. */
Status stream_part(WeightStream *stream, int32_t place, int64_t row, int64_t rows, int slot, Error *err);
Status stream_wait(WeightStream *stream, int slot, Error *err);
/* Waits for everything and completes the entries; refuses NaN and Inf by their place. */
Status stream_finish(WeightStream *stream, Error *err);
void stream_close(WeightStream *stream); /* NULL is fine */

/* Fills the storage of every entry from the files: through a stream to the mirror of `streamed`, whose entries they are,
 * or (NULL) into host memory. */
Status weights_read(const TensorFiles *files, const ModelConfig *config, WeightEntry *entries, ModelWeights *streamed,
                    const Backend *backend, Pool *pool, Error *err);

#endif
