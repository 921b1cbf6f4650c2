/* Writing a token cache: sequences are gathered into frames, frames into shards; memory is one frame and small buffers. */
#include <stdio.h>
#include <string.h>
#include <zstd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/cache.h"
#include "data/cache_internal.h"

#define FRAME_TOKENS 65536              /* a frame ends at the first sequence that reaches this */
#define SHARD_TOKENS (INT64_C(1) << 26) /* a shard at the first frame */
#define BUFFER_BYTES ((size_t)64 << 10)
#define COMPRESSION_LEVEL 1

const char *const cache_section_names[SECTION_COUNT] = {"starts", "records", "hashes", "trained", "used", "frames"};
const unsigned cache_section_widths[SECTION_COUNT] = {8, 8, 8, 4, 4, sizeof(CacheFrame)};

typedef struct SectionWriter {
    AtomicFile *file;
    Hash hash;
    uint64_t count;
    size_t length;
    uint8_t *buffer;
} SectionWriter;

struct CacheWriter {
    char *folder;
    SectionWriter sections[SECTION_COUNT];
    AtomicFile *shard; /* NULL between shards */
    int64_t shards, shard_tokens;
    uint64_t shard_bytes;
    int32_t *ids; /* of the frame */
    uint8_t *train;
    int64_t frame_tokens, frame_capacity, frame_first, largest_frame;
    int64_t sequences, tokens, trained_tokens, longest;
    uint8_t *seen; /* per id */
    int64_t seen_capacity;
    ZSTD_CCtx *zstd;
    uint8_t *raw, *packed;
};

static Status open_file(const CacheWriter *writer, const char *name, AtomicFile **file, Error *err) {
    char *path = path_join(writer->folder, name);
    Status status = atomic_open(file, path, err);
    memory_free(path);
    return status;
}

static Status flush_section(SectionWriter *section, Error *err) {
    hash_update(&section->hash, section->buffer, section->length);
    TRY(atomic_write(section->file, section->buffer, section->length, err));
    section->length = 0;
    return OK;
}

static Status section_add(CacheWriter *writer, CacheSection which, const void *value, Error *err) {
    SectionWriter *section = &writer->sections[which];
    if (section->length + cache_section_widths[which] > BUFFER_BYTES) TRY(flush_section(section, err));
    memcpy(section->buffer + section->length, value, cache_section_widths[which]);
    section->length += cache_section_widths[which];
    section->count++;
    return OK;
}

Status cache_writer_open(CacheWriter **out, const char *folder, Error *err) {
    CacheWriter *writer = memory_calloc_aligned(_Alignof(CacheWriter), sizeof *writer);
    const int64_t zero = 0;
    Status status = OK;
    writer->folder = memory_strdup(folder);
    writer->zstd = ZSTD_createCCtx();
    if (writer->zstd == NULL) status = error_set(err, ERR_FAILED, "%s: cannot set up the zstd encoder", folder);
    for (int s = 0; s < SECTION_COUNT; s++) {
        hash_init(&writer->sections[s].hash);
        writer->sections[s].buffer = memory_alloc(BUFFER_BYTES);
        if (status == OK) status = open_file(writer, cache_section_names[s], &writer->sections[s].file, err);
    }
    if (status == OK) status = section_add(writer, SECTION_STARTS, &zero, err);
    *out = status == OK ? writer : NULL;
    if (status != OK) cache_writer_close(writer);
    return status;
}

void cache_writer_close(CacheWriter *writer) {
    if (writer == NULL) return;
    for (int s = 0; s < SECTION_COUNT; s++) {
        atomic_abandon(writer->sections[s].file);
        memory_free(writer->sections[s].buffer);
    }
    atomic_abandon(writer->shard);
    ZSTD_freeCCtx(writer->zstd);
    memory_free(writer->ids);
    memory_free(writer->train);
    memory_free(writer->seen);
    memory_free(writer->raw);
    memory_free(writer->packed);
    memory_free(writer->folder);
    memory_free(writer);
}

static Status close_shard(CacheWriter *writer, Error *err) {
    AtomicFile *file = writer->shard;
    writer->shard = NULL;
    writer->shard_tokens = 0;
    writer->shard_bytes = 0;
    writer->shards++;
    return atomic_commit(file, err);
}

static Status open_shard(CacheWriter *writer, Error *err) {
    char name[32];
    (void)snprintf(name, sizeof name, CACHE_SHARD_NAME, (long long)writer->shards);
    return open_file(writer, name, &writer->shard, err);
}

static Status flush_frame(CacheWriter *writer, Error *err) {
    size_t ids = (size_t)writer->frame_tokens * sizeof *writer->ids, raw = ids + (size_t)writer->frame_tokens;
    size_t room = ZSTD_compressBound(raw);
    if (writer->frame_tokens == 0) return OK;
    if (writer->shard == NULL) TRY(open_shard(writer, err));
    if (writer->frame_tokens > writer->largest_frame) {
        writer->largest_frame = writer->frame_tokens;
        writer->raw = memory_resize(writer->raw, raw);
        writer->packed = memory_resize(writer->packed, room);
    }
    memcpy(writer->raw, writer->ids, ids);
    memcpy(writer->raw + ids, writer->train, raw - ids);
    size_t bytes = ZSTD_compressCCtx(writer->zstd, writer->packed, room, writer->raw, raw, COMPRESSION_LEVEL);
    if (ZSTD_isError(bytes)) FAIL("%s: cannot compress: %s", writer->folder, ZSTD_getErrorName(bytes));
    CacheFrame frame = {writer->frame_first, writer->shards, writer->shard_bytes, bytes, hash_bytes(writer->packed, bytes)};
    TRY(atomic_write(writer->shard, writer->packed, bytes, err));
    TRY(section_add(writer, SECTION_FRAMES, &frame, err));
    writer->shard_bytes += bytes;
    writer->shard_tokens += writer->frame_tokens;
    writer->frame_first = writer->sequences;
    writer->frame_tokens = 0;
    return writer->shard_tokens >= SHARD_TOKENS ? close_shard(writer, err) : OK;
}

static void note_ids(CacheWriter *writer, const int32_t *ids, int64_t count) {
    for (int64_t t = 0; t < count; t++) {
        if (ids[t] >= writer->seen_capacity) {
            int64_t old = writer->seen_capacity;
            writer->seen_capacity = (int64_t)ids[t] * 2 + 1024;
            writer->seen = memory_resize(writer->seen, (size_t)writer->seen_capacity);
            memset(writer->seen + old, 0, (size_t)(writer->seen_capacity - old));
        }
        writer->seen[ids[t]] = 1;
    }
}

Status cache_writer_append(CacheWriter *writer, const int32_t *ids, const uint8_t *train, int64_t count, int64_t record,
                           Error *err) {
    int64_t end = writer->frame_tokens + count;
    int32_t trained = 0;
    if (end > writer->frame_capacity) {
        writer->frame_capacity = end < FRAME_TOKENS ? FRAME_TOKENS : end * 2;
        writer->ids = memory_resize(writer->ids, (size_t)writer->frame_capacity * sizeof *ids);
        writer->train = memory_resize(writer->train, (size_t)writer->frame_capacity);
    }
    uint8_t *mask = writer->train + writer->frame_tokens;
    memcpy(writer->ids + writer->frame_tokens, ids, (size_t)count * sizeof *ids);
    memcpy(mask, train, (size_t)count);
    mask[0] = 0;
    for (int64_t t = 0; t < count; t++)
        trained += mask[t];
    note_ids(writer, ids, count);
    writer->frame_tokens = end;
    writer->sequences++;
    writer->tokens += count;
    writer->trained_tokens += trained;
    if (count > writer->longest) writer->longest = count;
    uint64_t hash = sequence_hash(ids, mask, count);
    TRY(section_add(writer, SECTION_STARTS, &writer->tokens, err));
    TRY(section_add(writer, SECTION_RECORDS, &record, err));
    TRY(section_add(writer, SECTION_HASHES, &hash, err));
    TRY(section_add(writer, SECTION_TRAINED, &trained, err));
    return end >= FRAME_TOKENS ? flush_frame(writer, err) : OK;
}

static Status write_meta(CacheWriter *writer, const Dataset *d, uint64_t key, Error *err) {
    CacheMeta meta = {.magic = CACHE_MAGIC,
                      .version = CACHE_VERSION,
                      .key = key,
                      .sequences = writer->sequences,
                      .tokens = writer->tokens,
                      .files = d->file_count,
                      .shards = writer->shards,
                      .largest_frame = writer->largest_frame,
                      .records = d->records,
                      .skipped_bad = d->skipped_bad,
                      .skipped_untrained = d->skipped_untrained,
                      .truncated = d->truncated,
                      .split = d->split,
                      .dropped = d->dropped,
                      .trained_tokens = writer->trained_tokens,
                      .longest = writer->longest,
                      .with_tools = d->with_tools,
                      .skip_reasons = d->skip_reasons == NULL ? -1 : (int64_t)strlen(d->skip_reasons)};
    Text text = {0};
    for (int s = 0; s < SECTION_COUNT; s++) {
        meta.counts[s] = writer->sections[s].count;
        meta.checksums[s] = hash_final(&writer->sections[s].hash);
    }
    text_add(&text, (const char *)&meta, sizeof meta);
    for (int64_t f = 0; f < d->file_count; f++) {
        CacheFileMeta file = {d->files[f].layout, d->files[f].records, d->files[f].count, {0}};
        memcpy(file.template_name, d->files[f].template_name, sizeof file.template_name);
        text_add(&text, (const char *)&file, sizeof file);
    }
    if (d->skip_reasons != NULL) text_adds(&text, d->skip_reasons);
    uint64_t checksum = hash_bytes(text.data, text.length);
    text_add(&text, (const char *)&checksum, sizeof checksum);
    char *path = path_join(writer->folder, "meta");
    Status status = file_write_atomic(path, text.data, text.length, err);
    memory_free(path);
    text_free(&text);
    return status;
}

Status cache_writer_finish(CacheWriter *writer, const Dataset *dataset, uint64_t key, Error *err) {
    TRY(flush_frame(writer, err));
    if (writer->shard != NULL) TRY(close_shard(writer, err));
    for (int64_t id = 0; id < writer->seen_capacity; id++) {
        int32_t value = (int32_t)id;
        if (writer->seen[id]) TRY(section_add(writer, SECTION_USED, &value, err));
    }
    for (int s = 0; s < SECTION_COUNT; s++) {
        TRY(flush_section(&writer->sections[s], err));
        AtomicFile *file = writer->sections[s].file;
        writer->sections[s].file = NULL;
        TRY(atomic_commit(file, err));
    }
    return write_meta(writer, dataset, key, err);
}
