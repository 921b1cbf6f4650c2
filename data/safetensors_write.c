/* Writing safetensors: one file, or shards with an index. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/safetensors_private.h"

struct TensorWriter {
    AtomicFile *file;
    const char *path;
    const TensorSpec *spec;   /* being produced */
    uint64_t wanted, written; /* bytes of it */
};

/* ---- order and header ---------------------------------------------------------------------------------------------- */

/* Place in the reference's dtype enum, which is its sort order: greater alignment is greater. */
static int dtype_rank(DType dtype) {
    static const uint8_t ranks[DTYPE_COUNT] = {
        [DTYPE_BOOL] = 0, [DTYPE_U8] = 1,   [DTYPE_I8] = 2,   [DTYPE_F8_E5M2] = 3, [DTYPE_F8_E4M3] = 4,
        [DTYPE_I16] = 5,  [DTYPE_U16] = 6,  [DTYPE_F16] = 7,  [DTYPE_BF16] = 8,    [DTYPE_I32] = 9,
        [DTYPE_U32] = 10, [DTYPE_F32] = 11, [DTYPE_F64] = 12, [DTYPE_I64] = 13,    [DTYPE_U64] = 14};
    return ranks[dtype];
}

static int by_file_order(const void *a, const void *b) {
    const TensorSpec *x = *(const TensorSpec *const *)a, *y = *(const TensorSpec *const *)b;
    int rank = dtype_rank(y->dtype) - dtype_rank(x->dtype);
    return rank != 0 ? rank : strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    const TensorSpec *x = *(const TensorSpec *const *)a, *y = *(const TensorSpec *const *)b;
    return strcmp(x->name, y->name);
}

static const TensorSpec **sorted(const TensorSpec *const *specs, int64_t count, int (*compare)(const void *, const void *)) {
    const TensorSpec **list = memory_alloc((size_t)count * sizeof *list);
    if (count > 0) memcpy((void *)list, (const void *)specs, (size_t)count * sizeof *list);
    if (count > 1) qsort((void *)list, (size_t)count, sizeof *list, compare);
    return list;
}

static Status specs_check(const char *path, const TensorSpec *const *specs, int64_t count, Error *err) {
    NameTable seen = {0};
    Status status = OK;
    uint64_t total = 0;
    for (int64_t i = 0; i < count && status == OK; i++) {
        const TensorSpec *spec = specs[i];
        uint64_t bytes = 0;
        if (strcmp(spec->name, "__metadata__") == 0 || strlen(spec->name) > TENSOR_NAME_MAX_BYTES)
            status = error_set(err, ERR_FAILED, "%s: '%.64s' cannot be a tensor's name", path, spec->name);
        else if (names_put(&seen, spec->name, i) >= 0)
            status = error_set(err, ERR_FAILED, "%s: tensor '%s' is to be written twice", path, spec->name);
        else if (spec->ndim < 0 || spec->ndim > TENSOR_MAX_DIMS || shape_bytes(spec->dtype, spec->ndim, spec->shape, &bytes) ||
                 __builtin_add_overflow(total, bytes, &total))
            status = error_set(err, ERR_FAILED, "%s: tensor '%s': its shape is not valid or too large", path, spec->name);
    }
    names_free(&seen);
    return status;
}

static void add_string(Text *text, const char *string) {
    text_add_json_string(text, string, strlen(string));
}

static Status add_metadata(Text *text, const char *path, const char *const *metadata, Error *err) {
    text_adds(text, "\"__metadata__\":{\"format\":\"pt\"");
    for (; metadata != NULL && metadata[0] != NULL; metadata += 2) {
        if (strcmp(metadata[0], "format") == 0) FAIL("%s: metadata 'format' is always written as \"pt\"", path);
        text_adds(text, ",");
        add_string(text, metadata[0]);
        text_adds(text, ":");
        add_string(text, metadata[1]);
    }
    text_adds(text, "}");
    return OK;
}

static void add_tensor(Text *text, const TensorSpec *spec, uint64_t *cursor) {
    uint64_t bytes = 0;
    (void)shape_bytes(spec->dtype, spec->ndim, spec->shape, &bytes); /* specs_check was first */
    text_adds(text, ",");
    add_string(text, spec->name);
    text_addf(text, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(spec->dtype));
    for (int i = 0; i < spec->ndim; i++)
        text_addf(text, i ? ",%lld" : "%lld", (long long)spec->shape[i]);
    uint64_t end = *cursor + bytes;
    text_addf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)*cursor, (unsigned long long)end);
    *cursor = end;
}

/* The length and the header itself, padded so that the data starts on a multiple of 8. */
static Status header_write(AtomicFile *file, const char *path, const TensorSpec *const *specs, int64_t count,
                           const char *const *metadata, Error *err) {
    Text text = {0};
    text_adds(&text, "{");
    Status status = add_metadata(&text, path, metadata, err);
    uint64_t cursor = 0;
    for (int64_t i = 0; i < count && status == OK; i++)
        add_tensor(&text, specs[i], &cursor);
    text_adds(&text, "}");
    while (text.length % 8 != 0)
        text_adds(&text, " ");
    if (status == OK && text.length > HEADER_MAX_BYTES)
        status = error_set(err, ERR_FAILED, "%s: a header of %zu bytes exceeds the format's %u; write more shards", path,
                           text.length, HEADER_MAX_BYTES);
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)((uint64_t)text.length >> (8 * i));
    if (status == OK) status = atomic_write(file, prefix, sizeof prefix, err);
    if (status == OK) status = atomic_write(file, text.data, text.length, err);
    text_free(&text);
    return status;
}

/* ---- one file ------------------------------------------------------------------------------------------------------ */

Status tensor_write_bytes(TensorWriter *writer, const void *bytes, size_t length, Error *err) {
    if (length > writer->wanted - writer->written)
        FAIL("%s: tensor '%s': want %llu bytes, got at least %llu from its producer", writer->path, writer->spec->name,
             (unsigned long long)writer->wanted, (unsigned long long)(writer->written + length));
    writer->written += length;
    return length == 0 ? OK : atomic_write(writer->file, bytes, length, err);
}

static Status data_write(TensorWriter *writer, const TensorSpec *const *specs, int64_t count, TensorProducer *producer,
                         void *context, Error *err) {
    for (int64_t i = 0; i < count; i++) {
        writer->spec = specs[i];
        writer->written = 0;
        (void)shape_bytes(specs[i]->dtype, specs[i]->ndim, specs[i]->shape, &writer->wanted);
        TRY(producer(context, specs[i], writer, err));
        if (writer->written != writer->wanted)
            FAIL("%s: tensor '%s': want %llu bytes, got %llu from its producer", writer->path, specs[i]->name,
                 (unsigned long long)writer->wanted, (unsigned long long)writer->written);
    }
    return OK;
}

static Status file_write(const char *path, const TensorSpec *const *specs, int64_t count, const char *const *metadata,
                         TensorProducer *producer, void *context, Error *err) {
    TRY(specs_check(path, specs, count, err));
    TensorWriter writer = {.path = path};
    TRY(atomic_open(&writer.file, path, err));
    const TensorSpec **order = sorted(specs, count, by_file_order);
    Status status = header_write(writer.file, path, order, count, metadata, err);
    if (status == OK) status = data_write(&writer, order, count, producer, context, err);
    memory_free((void *)order);
    if (status == OK) return atomic_commit(writer.file, err);
    atomic_abandon(writer.file);
    return status;
}

static const TensorSpec **pointers(const TensorSpec *specs, int64_t count) {
    const TensorSpec **list = memory_alloc((size_t)count * sizeof *list);
    for (int64_t i = 0; i < count; i++)
        list[i] = &specs[i];
    return list;
}

Status tensors_write(const char *path, const TensorSpec *specs, int64_t count, const char *const *metadata,
                     TensorProducer *producer, void *context, Error *err) {
    const TensorSpec **list = pointers(specs, count);
    Status status = file_write(path, list, count, metadata, producer, context, err);
    memory_free((void *)list);
    return status;
}

/* ---- shards -------------------------------------------------------------------------------------------------------- */

/* shard[i]: the number of spec i's shard, from 0; returns how many there are. Greedy in the order given; a tensor larger
 * than the limit stands alone and does not close the shard being filled (huggingface_hub, serialization/_base.py). */
static int64_t shards_assign(const TensorSpec *const *specs, int64_t count, uint64_t shard_bytes, int64_t *shard) {
    int64_t shards = 0, current = -1;
    uint64_t used = 0;
    for (int64_t i = 0; i < count; i++) {
        uint64_t bytes = 0;
        (void)shape_bytes(specs[i]->dtype, specs[i]->ndim, specs[i]->shape, &bytes);
        if (bytes > shard_bytes) {
            shard[i] = shards++;
            continue;
        }
        if (current < 0 || bytes > shard_bytes - used) {
            current = shards++;
            used = 0;
        }
        shard[i] = current;
        used += bytes;
    }
    return shards;
}

static char *shard_name(const char *stem, int64_t shard, int64_t shards) {
    return memory_format("%s-%05lld-of-%05lld.safetensors", stem, (long long)shard + 1, (long long)shards);
}

typedef struct ShardPlan {
    const char *folder, *stem;
    const TensorSpec **specs; /* in the caller's order */
    int64_t count, shards;
    int64_t *shard;
} ShardPlan;

/* Names in order; shard numbers are found again through the specs' places. */
static Status index_write(const ShardPlan *plan, Error *err) {
    uint64_t total = 0;
    int64_t elements = 0;
    NameTable places = {0};
    for (int64_t i = 0; i < plan->count; i++) {
        uint64_t bytes = 0;
        (void)shape_bytes(plan->specs[i]->dtype, plan->specs[i]->ndim, plan->specs[i]->shape, &bytes);
        total += bytes;
        elements += (int64_t)(bytes / dtype_size(plan->specs[i]->dtype));
        (void)names_put(&places, plan->specs[i]->name, plan->shard[i]);
    }
    Text text = {0};
    text_addf(&text,
              "{\n  \"metadata\": {\n    \"total_parameters\": %lld,\n    \"total_size\": %llu\n  },\n  \"weight_map\": {",
              (long long)elements, (unsigned long long)total);
    const TensorSpec **order = sorted(plan->specs, plan->count, by_name);
    for (int64_t i = 0; i < plan->count; i++) {
        char *name = shard_name(plan->stem, names_find(&places, order[i]->name), plan->shards);
        text_adds(&text, i ? ",\n    " : "\n    ");
        add_string(&text, order[i]->name);
        text_adds(&text, ": ");
        add_string(&text, name);
        memory_free(name);
    }
    text_adds(&text, "\n  }\n}\n");
    memory_free((void *)order);
    names_free(&places);
    char *path = memory_format("%s/%s.safetensors.index.json", plan->folder, plan->stem);
    Status status = file_write_atomic(path, text.data, text.length, err);
    memory_free(path);
    text_free(&text);
    return status;
}

static Status shard_write(const ShardPlan *plan, int64_t shard, TensorProducer *producer, void *context, Error *err) {
    const TensorSpec **members = memory_alloc((size_t)plan->count * sizeof *members);
    int64_t count = 0;
    for (int64_t i = 0; i < plan->count; i++)
        if (plan->shard[i] == shard) members[count++] = plan->specs[i];
    char *name = plan->shards > 1 ? shard_name(plan->stem, shard, plan->shards) : memory_format("%s.safetensors", plan->stem);
    char *path = path_join(plan->folder, name);
    Status status = file_write(path, members, count, NULL, producer, context, err);
    memory_free(path);
    memory_free(name);
    memory_free((void *)members);
    return status;
}

Status tensors_write_sharded(const char *folder, const char *stem, uint64_t shard_bytes, const TensorSpec *specs, int64_t count,
                             TensorProducer *producer, void *context, Error *err) {
    ShardPlan plan = {.folder = folder, .stem = stem != NULL ? stem : "model", .specs = pointers(specs, count), .count = count};
    plan.shard = memory_calloc((size_t)count, sizeof *plan.shard);
    Status status = specs_check(folder, plan.specs, count, err);
    if (status == OK) {
        plan.shards = shards_assign(plan.specs, count, shard_bytes, plan.shard);
        if (plan.shards == 0) plan.shards = 1; /* no tensors: still a valid file */
        for (int64_t shard = 0; shard < plan.shards && status == OK; shard++)
            status = shard_write(&plan, shard, producer, context, err);
        /* Last: a folder with an index has every shard. */
        if (status == OK && plan.shards > 1) status = index_write(&plan, err);
    }
    memory_free(plan.shard);
    memory_free((void *)plan.specs);
    return status;
}
