/* Reading a token cache. A frame is decompressed when one of its sequences is asked for; the frames used last are kept. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/memory.h"
#include "data/cache.h"
#include "data/cache_internal.h"

#define META_MAX_BYTES ((size_t)16 << 20)
#define KEPT_BYTES ((size_t)64 << 20) /* of decompressed frames, but always the one in use */
#define KEPT_MAX 64
#define SHARDS_MAX 1000000
#define FRAME_MAX_TOKENS (INT64_C(1) << 30)

typedef struct Mapped {
    const uint8_t *data;
    size_t bytes;
} Mapped;

typedef struct KeptFrame {
    int64_t frame; /* -1: none */
    uint64_t used; /* when, counted in calls */
    uint8_t *raw;
} KeptFrame;

struct TokenCache {
    int references;
    char *folder, *text; /* text: the file "meta" */
    CacheMeta meta;
    Mapped sections[SECTION_COUNT], *shards;
    KeptFrame kept[KEPT_MAX];
    int kept_count;
    uint64_t clock;
    ZSTD_DCtx *zstd;
};

static Status map_file(const char *folder, const char *name, Mapped *out, Error *err) {
    char *path = path_join(folder, name);
    int fd = -1;
    uint64_t size = 0;
    Status status = file_open(path, &fd, &size, err);
    if (status == OK && size > 0) {
        void *data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED)
            status = error_set(err, ERR_FAILED, "%s: cannot map it", path);
        else
            *out = (Mapped){data, (size_t)size};
    }
    if (fd >= 0) close(fd);
    memory_free(path);
    return status;
}

static void unmap(Mapped *mapped) {
    if (mapped->data != NULL) munmap((void *)(uintptr_t)mapped->data, mapped->bytes);
    *mapped = (Mapped){0};
}

static const int64_t *starts(const TokenCache *cache) {
    return (const int64_t *)(const void *)cache->sections[SECTION_STARTS].data;
}

static const CacheFrame *frames(const TokenCache *cache) {
    return (const CacheFrame *)(const void *)cache->sections[SECTION_FRAMES].data;
}

static int64_t frame_count(const TokenCache *cache) {
    return (int64_t)cache->meta.counts[SECTION_FRAMES];
}

/* Sequence behind the frame's last one. */
static int64_t frame_end(const TokenCache *cache, int64_t frame) {
    return frame + 1 < frame_count(cache) ? frames(cache)[frame + 1].first : cache->meta.sequences;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------- */

static Status read_meta(TokenCache *cache, uint64_t key, Error *err) {
    char *path = path_join(cache->folder, "meta");
    size_t length = 0, files = 0;
    uint64_t checksum = 0;
    Status status = file_read(path, META_MAX_BYTES, &cache->text, &length, err);
    memory_free(path);
    TRY(status);
    if (length < sizeof cache->meta + sizeof checksum) FAIL("%s: the file meta is cut", cache->folder);
    memcpy(&cache->meta, cache->text, sizeof cache->meta);
    memcpy(&checksum, cache->text + length - sizeof checksum, sizeof checksum);
    CacheMeta *m = &cache->meta;
    if (m->magic != CACHE_MAGIC || m->version != CACHE_VERSION) FAIL("%s: not a token cache of this version", cache->folder);
    if (checksum != hash_bytes(cache->text, length - sizeof checksum))
        FAIL("%s: the file meta does not match its checksum", cache->folder);
    if (m->key != key) FAIL("%s: holds other data than its name says", cache->folder);
    size_t text = m->skip_reasons < 0 ? 0 : (size_t)m->skip_reasons;
    if (m->files < 1 || size_mul((size_t)m->files, sizeof(CacheFileMeta), &files) || files > length || text > length ||
        sizeof *m + files + text + sizeof checksum != length)
        FAIL("%s: the file meta has not the length it wants", cache->folder);
    int64_t per_sequence = m->sequences;
    if (per_sequence < 1 || m->shards < 1 || m->shards > SHARDS_MAX || m->largest_frame < 1 ||
        m->largest_frame > FRAME_MAX_TOKENS || m->counts[SECTION_STARTS] != (uint64_t)per_sequence + 1 ||
        m->counts[SECTION_RECORDS] != (uint64_t)per_sequence || m->counts[SECTION_HASHES] != (uint64_t)per_sequence ||
        m->counts[SECTION_TRAINED] != (uint64_t)per_sequence || m->counts[SECTION_FRAMES] < 1 || m->counts[SECTION_USED] < 1)
        FAIL("%s: the counts in the file meta contradict each other", cache->folder);
    return OK;
}

static Status map_sections(TokenCache *cache, Error *err) {
    for (int s = 0; s < SECTION_COUNT; s++) {
        Mapped *mapped = &cache->sections[s];
        size_t want = 0;
        TRY(map_file(cache->folder, cache_section_names[s], mapped, err));
        if (size_mul((size_t)cache->meta.counts[s], cache_section_widths[s], &want) || mapped->bytes != want)
            FAIL("%s: the file %s has %zu bytes, not the %zu it wants", cache->folder, cache_section_names[s], mapped->bytes,
                 want);
        if (hash_bytes(mapped->data, mapped->bytes) != cache->meta.checksums[s])
            FAIL("%s: the file %s does not match its checksum", cache->folder, cache_section_names[s]);
    }
    return OK;
}

static Status map_shards(TokenCache *cache, Error *err) {
    cache->shards = memory_calloc((size_t)cache->meta.shards, sizeof *cache->shards);
    for (int64_t s = 0; s < cache->meta.shards; s++) {
        char name[32];
        (void)snprintf(name, sizeof name, CACHE_SHARD_NAME, (long long)s);
        TRY(map_file(cache->folder, name, &cache->shards[s], err));
    }
    return OK;
}

/* Of each sequence: where it lies, how many of its tokens are trained (never the first), its record. */
static int sequences_fit(const TokenCache *cache) {
    const int64_t *start = starts(cache), sequences = cache->meta.sequences;
    const int64_t *record = (const int64_t *)(const void *)cache->sections[SECTION_RECORDS].data;
    const int32_t *trained = token_cache_trained(cache);
    int good = start[0] == 0 && start[sequences] == cache->meta.tokens;
    for (int64_t i = 0; good && i < sequences; i++)
        good = start[i + 1] > start[i] && trained[i] >= 0 && trained[i] < start[i + 1] - start[i] && record[i] >= 0;
    return good;
}

/* Ascending and no less than 0, as whoever asks about single tokens relies on. */
static int used_fit(const TokenCache *cache) {
    int64_t count = 0;
    const int32_t *used = token_cache_used(cache, &count);
    int good = used[0] >= 0;
    for (int64_t i = 1; good && i < count; i++)
        good = used[i] > used[i - 1];
    return good;
}

/* What token_cache_get relies on: every frame lies in its shard, and its sequences lie in it. */
static int frames_fit(const TokenCache *cache) {
    const int64_t *start = starts(cache);
    int64_t largest = 0;
    int good = frames(cache)[0].first == 0;
    for (int64_t f = 0; good && f < frame_count(cache); f++) {
        const CacheFrame *frame = &frames(cache)[f];
        int64_t end = frame_end(cache, f);
        good = frame->first < end && end <= cache->meta.sequences && frame->shard >= 0 && frame->shard < cache->meta.shards &&
               frame->bytes > 0 && frame->offset <= cache->shards[frame->shard].bytes &&
               frame->bytes <= cache->shards[frame->shard].bytes - frame->offset;
        if (good && start[end] - start[frame->first] > largest) largest = start[end] - start[frame->first];
    }
    return good && largest == cache->meta.largest_frame;
}

static Status check_index(const TokenCache *cache, Error *err) {
    if (!sequences_fit(cache) || !used_fit(cache)) FAIL("%s: its index contradicts itself", cache->folder);
    if (!frames_fit(cache))
        FAIL("%s: its shards are not those that its index describes (a file is cut, or from another cache)", cache->folder);
    return OK;
}

static void reserve_kept(TokenCache *cache) {
    size_t bytes = (size_t)cache->meta.largest_frame * CACHE_TOKEN_BYTES;
    size_t fit = KEPT_BYTES / bytes;
    cache->kept_count = fit < 1 ? 1 : fit > KEPT_MAX ? KEPT_MAX : (int)fit;
    if (cache->kept_count > frame_count(cache)) cache->kept_count = (int)frame_count(cache);
    for (int i = 0; i < cache->kept_count; i++)
        cache->kept[i] = (KeptFrame){-1, 0, memory_alloc(bytes)};
}

Status token_cache_open(TokenCache **out, const char *folder, uint64_t key, Error *err) {
    TokenCache *cache = memory_calloc(1, sizeof *cache);
    Status status = OK;
    *out = NULL;
    cache->references = 1;
    cache->folder = memory_strdup(folder);
    TRY_GOTO(read_meta(cache, key, err));
    TRY_GOTO(map_sections(cache, err));
    TRY_GOTO(map_shards(cache, err));
    TRY_GOTO(check_index(cache, err));
    cache->zstd = ZSTD_createDCtx();
    if (cache->zstd == NULL) status = error_set(err, ERR_FAILED, "%s: cannot set up the zstd decoder", folder);
    reserve_kept(cache);
done:
    if (status != OK) token_cache_release(cache);
    if (status == OK) *out = cache;
    return status;
}

TokenCache *token_cache_hold(TokenCache *cache) {
    cache->references++;
    return cache;
}

void token_cache_release(TokenCache *cache) {
    if (cache == NULL || --cache->references > 0) return;
    for (int s = 0; s < SECTION_COUNT; s++)
        unmap(&cache->sections[s]);
    for (int64_t s = 0; cache->shards != NULL && s < cache->meta.shards; s++)
        unmap(&cache->shards[s]);
    for (int i = 0; i < cache->kept_count; i++)
        memory_free(cache->kept[i].raw);
    ZSTD_freeDCtx(cache->zstd);
    memory_free(cache->shards);
    memory_free(cache->text);
    memory_free(cache->folder);
    memory_free(cache);
}

/* ---- sequences ----------------------------------------------------------------------------------------------------------- */

static int64_t frame_of(const TokenCache *cache, int64_t sequence) {
    int64_t low = 0, high = frame_count(cache);
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (frames(cache)[middle].first <= sequence)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* A cache whose meta is gone is no cache: the next run builds it anew. */
static Status fail_frame(const TokenCache *cache, int64_t shard, const char *reason, Error *err) {
    char *path = path_join(cache->folder, "meta");
    int removed = unlink(path) == 0;
    memory_free(path);
    FAIL("%s: shard %lld of the token cache is damaged (%s); %s", cache->folder, (long long)shard, reason,
         removed ? "the cache is void now, and running again builds it anew" : "remove the folder and run again");
}

/* The masks agree with what the index says: whoever reserved rows for the trained tokens relies on that. */
static int masks_agree(const TokenCache *cache, int64_t number, const uint8_t *mask) {
    const int64_t *start = starts(cache);
    for (int64_t i = frames(cache)[number].first, end = frame_end(cache, number); i < end; i++) {
        int64_t trained = 0, bad = mask[0];
        for (int64_t left = start[i + 1] - start[i]; left > 0; left--, mask++) {
            trained += *mask;
            bad |= *mask > 1;
        }
        if (bad || trained != token_cache_trained(cache)[i]) return 0;
    }
    return 1;
}

/* Whoever checked the used ids against a vocabulary relies on there being no others. */
static int ids_within(const uint8_t *raw, size_t count, int32_t most) {
    const int32_t *ids = (const int32_t *)(const void *)raw;
    int bad = 0;
    for (size_t t = 0; t < count; t++)
        bad |= ids[t] < 0 || ids[t] > most;
    return !bad;
}

static Status decompress(TokenCache *cache, int64_t number, KeptFrame *kept, Error *err) {
    const CacheFrame *frame = &frames(cache)[number];
    const uint8_t *packed = cache->shards[frame->shard].data + frame->offset;
    size_t raw = (size_t)(starts(cache)[frame_end(cache, number)] - starts(cache)[frame->first]) * CACHE_TOKEN_BYTES;
    kept->frame = -1; /* nothing is left when it fails */
    if (hash_bytes(packed, frame->bytes) != frame->checksum)
        return fail_frame(cache, frame->shard, "it does not match its checksum", err);
    size_t got = ZSTD_decompressDCtx(cache->zstd, kept->raw, raw, packed, frame->bytes);
    if (ZSTD_isError(got) || got != raw) return fail_frame(cache, frame->shard, "it does not decompress", err);
    int64_t used = 0;
    const int32_t *different = token_cache_used(cache, &used);
    if (!ids_within(kept->raw, raw / CACHE_TOKEN_BYTES, different[used - 1]))
        return fail_frame(cache, frame->shard, "it has tokens that its index does not know", err);
    if (!masks_agree(cache, number, kept->raw + raw / CACHE_TOKEN_BYTES * sizeof(int32_t)))
        return fail_frame(cache, frame->shard, "its masks are not those that its index counted", err);
    kept->frame = number;
    return OK;
}

/* The kept frame, or the one that was not used for the longest time. */
static KeptFrame *choose_kept(TokenCache *cache, int64_t number) {
    KeptFrame *oldest = &cache->kept[0];
    for (int i = 0; i < cache->kept_count; i++) {
        KeptFrame *kept = &cache->kept[i];
        if (kept->frame == number) return kept;
        if (kept->used < oldest->used) oldest = kept;
    }
    return oldest;
}

Status token_cache_get(TokenCache *cache, int64_t sequence, const int32_t **ids, const uint8_t **train, Error *err) {
    int64_t number = frame_of(cache, sequence), first = frames(cache)[number].first;
    KeptFrame *kept = choose_kept(cache, number);
    if (kept->frame != number) TRY(decompress(cache, number, kept, err));
    kept->used = ++cache->clock;
    int64_t at = starts(cache)[sequence] - starts(cache)[first];
    int64_t tokens = starts(cache)[frame_end(cache, number)] - starts(cache)[first];
    *ids = (const int32_t *)(const void *)kept->raw + at;
    *train = kept->raw + (size_t)tokens * sizeof **ids + at;
    return OK;
}

const uint64_t *token_cache_hashes(const TokenCache *cache) {
    return (const uint64_t *)(const void *)cache->sections[SECTION_HASHES].data;
}

const int32_t *token_cache_trained(const TokenCache *cache) {
    return (const int32_t *)(const void *)cache->sections[SECTION_TRAINED].data;
}

const int32_t *token_cache_used(const TokenCache *cache, int64_t *count) {
    *count = (int64_t)cache->meta.counts[SECTION_USED];
    return (const int32_t *)(const void *)cache->sections[SECTION_USED].data;
}

static Status describe_files(const TokenCache *cache, Dataset *out, Error *err) {
    const char *at = cache->text + sizeof cache->meta;
    int64_t total = 0;
    if (out->file_count != cache->meta.files) FAIL("%s: was made of another number of files", cache->folder);
    for (int64_t f = 0; f < out->file_count; f++, at += sizeof(CacheFileMeta)) {
        CacheFileMeta file;
        memcpy(&file, at, sizeof file);
        file.template_name[sizeof file.template_name - 1] = 0;
        if (file.count < 0 || file.count > cache->meta.sequences - total || file.layout < LAYOUT_AUTO ||
            file.layout > LAYOUT_MIXED)
            FAIL("%s: file %lld of it makes no sense", cache->folder, (long long)f);
        total += file.count;
        out->files[f].layout = (DataLayout)file.layout;
        out->files[f].records = file.records;
        out->files[f].count = file.count;
        memcpy(out->files[f].template_name, file.template_name, sizeof file.template_name);
    }
    if (total != cache->meta.sequences) FAIL("%s: its files have not all of its sequences", cache->folder);
    if (cache->meta.skip_reasons < 0) return OK;
    out->skip_reasons = memory_format("%.*s", (int)cache->meta.skip_reasons, at);
    return OK;
}

Status token_cache_describe(TokenCache *cache, Dataset *out, Error *err) {
    const CacheMeta *m = &cache->meta;
    TRY(describe_files(cache, out, err));
    out->cache = token_cache_hold(cache);
    out->count = m->sequences;
    out->tokens = m->tokens;
    out->start = (int64_t *)(uintptr_t)cache->sections[SECTION_STARTS].data;
    out->record = (int64_t *)(uintptr_t)cache->sections[SECTION_RECORDS].data;
    out->records = m->records;
    out->skipped_bad = m->skipped_bad;
    out->skipped_untrained = m->skipped_untrained;
    out->with_tools = m->with_tools;
    out->truncated = m->truncated;
    out->split = m->split;
    out->dropped = m->dropped;
    return OK;
}
