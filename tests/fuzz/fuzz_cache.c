/* A token cache whose files somebody changed: it is refused in words, or what it gives is what its index says: ids that the index
 * knows, masks of 0 and 1 with as many trained tokens as counted, whole sequences.
 *
 * The input edits the files of a small good cache. Its first byte says which checksums are made to fit again afterwards; each edit is
 * a file, a place, a number of bytes (less than 128: they are overwritten, else the file ends there) and the bytes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "data/cache.h"
#include "data/cache_internal.h"
#include "data/dataset_internal.h"
#include "data/packing.h"

#define KEY 7
#define FILES (SECTION_COUNT + 3) /* the sections, a shard, an empty second one that nothing names, meta */
#define FILE_META (SECTION_COUNT + 2)
#define SEQUENCES 40

typedef struct Content {
    char *bytes;
    size_t length;
} Content;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *folder; /* of this process, in memory where there is one */

static const char *name_of(int file) {
    static const char *const last[] = {"shard-00000", "shard-00001", "meta"};
    return file < SECTION_COUNT ? cache_section_names[file] : last[file - SECTION_COUNT];
}

static char *path_of(int file) {
    return path_join(folder, name_of(file));
}

static void must(int good) {
    if (!good) abort();
}

static void write_good(void) {
    CacheWriter *writer;
    Error err;
    Dataset d = {.records = SEQUENCES, .skipped_bad = 1, .skip_reasons = memory_strdup("line 3: no")};
    dataset_add_file(&d, "one", 1);
    dataset_add_file(&d, "two", 1);
    d.files[0].count = 10;
    d.files[1].count = SEQUENCES - 10;
    must(cache_writer_open(&writer, folder, &err) == OK);
    for (int i = 0; i < SEQUENCES; i++) {
        int32_t ids[32];
        uint8_t mask[32];
        int count = 2 + i % 30;
        for (int t = 0; t < count; t++) {
            ids[t] = (i * 7 + t * 3) % 50;
            mask[t] = t > count / 2;
        }
        must(cache_writer_append(writer, ids, mask, count, i + 1, &err) == OK);
    }
    must(cache_writer_finish(writer, &d, KEY, &err) == OK);
    cache_writer_close(writer);
    dataset_free(&d);
}

static void remove_folder(void) {
    Error ignored;
    (void)folder_remove(folder, &ignored);
}

/* The folder, and the contents that are good. */
static void prepare(Content good[FILES]) {
    static char in_memory[] = "/dev/shm/fuzz-cache-XXXXXX", on_disk[] = "/tmp/fuzz-cache-XXXXXX";
    Error err;
    folder = mkdtemp(in_memory) != NULL ? in_memory : mkdtemp(on_disk);
    must(folder != NULL && atexit(remove_folder) == 0);
    write_good();
    for (int f = 0; f < FILES; f++) {
        char *path = path_of(f);
        if (file_exists(path)) must(file_read(path, (size_t)1 << 20, &good[f].bytes, &good[f].length, &err) == OK);
        memory_free(path);
    }
}

/* Unless the file has just these bytes already. */
static void write_content(int file, const Content *content, Content *there) {
    if (there->bytes != NULL && there->length == content->length && memcmp(there->bytes, content->bytes, content->length) == 0)
        return;
    char *path = path_of(file);
    FILE *out = fopen(path, "wb");
    must(out != NULL);
    if (content->length > 0) must(fwrite(content->bytes, content->length, 1, out) == 1);
    must(fclose(out) == 0);
    memory_free(path);
    there->bytes = memory_resize(there->bytes, content->length + 1);
    if (content->length > 0) memcpy(there->bytes, content->bytes, content->length);
    there->length = content->length;
}

static void edit(Content *content, size_t place, size_t count, const uint8_t *bytes) {
    if (content->length > 0) place %= content->length + 1;
    if (count >= 128) {
        if (place < content->length) content->length = place;
        return;
    }
    if (place + count > content->length) {
        content->bytes = memory_resize(content->bytes, place + count);
        memset(content->bytes + content->length, 0, place + count - content->length);
        content->length = place + count;
    }
    if (count > 0) memcpy(content->bytes + place, bytes, count);
}

static void fix_frames(Content *frames, const Content *shard) {
    for (size_t at = 0; at + sizeof(CacheFrame) <= frames->length; at += sizeof(CacheFrame)) {
        CacheFrame frame;
        memcpy(&frame, frames->bytes + at, sizeof frame);
        if (frame.offset > shard->length || frame.bytes > shard->length - frame.offset) continue;
        frame.checksum = hash_bytes(shard->bytes + frame.offset, frame.bytes);
        memcpy(frames->bytes + at, &frame, sizeof frame);
    }
}

static void fix_meta(Content files[FILES]) {
    Content *content = &files[FILE_META];
    CacheMeta meta;
    if (content->length < sizeof meta + sizeof(uint64_t)) return;
    memcpy(&meta, content->bytes, sizeof meta);
    for (int s = 0; s < SECTION_COUNT; s++)
        meta.checksums[s] = hash_bytes(files[s].bytes, files[s].length);
    memcpy(content->bytes, &meta, sizeof meta);
    uint64_t checksum = hash_bytes(content->bytes, content->length - sizeof checksum);
    memcpy(content->bytes + content->length - sizeof checksum, &checksum, sizeof checksum);
}

static void read_all(TokenCache *cache) {
    Dataset d = {0};
    Error err;
    int64_t used, total = 0;
    const int32_t *known = token_cache_used(cache, &used);
    dataset_add_file(&d, "one", 1);
    dataset_add_file(&d, "two", 1);
    if (token_cache_describe(cache, &d, &err) == OK) {
        dataset_finish(&d);
        for (int64_t i = 0; i < d.count; i++) {
            const int32_t *ids;
            const uint8_t *mask;
            int64_t trained = 0, length = d.start[i + 1] - d.start[i];
            must(length > 0);
            total += length;
            if (dataset_sequence(&d, i, &ids, &mask, &err) != OK) break;
            must(mask[0] == 0);
            for (int64_t t = 0; t < length; t++) {
                must(mask[t] <= 1 && ids[t] >= 0 && ids[t] <= known[used - 1]);
                trained += mask[t];
            }
            must(trained == dataset_sequence_trained(&d, i));
        }
        must(total <= d.tokens);
        PackPlan *plan;
        if (pack_epoch(&plan, &d, PACKING_BEST_FIT, 64, 1, 0, 1, &err) == OK) pack_free(plan);
    }
    dataset_free(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Content good[FILES], there[FILES];
    Content files[FILES];
    TokenCache *cache;
    Error err;
    if (folder == NULL) prepare(good);
    if (size == 0) return 0;
    for (int f = 0; f < FILES; f++) {
        files[f] = (Content){memory_alloc(good[f].length + 1), good[f].length};
        if (good[f].length > 0) memcpy(files[f].bytes, good[f].bytes, good[f].length);
    }
    for (size_t at = 1; at + 4 <= size;) {
        int file = data[at] % FILES;
        size_t place = (size_t)data[at + 1] << 8 | data[at + 2], count = data[at + 3], left = size - at - 4;
        size_t bytes = count >= 128 ? 0 : count < left ? count : left;
        edit(&files[file], place, count >= 128 ? count : bytes, data + at + 4);
        at += 4 + bytes;
    }
    if (data[0] & 1) fix_frames(&files[SECTION_FRAMES], &files[SECTION_COUNT]);
    if (data[0] & 2) fix_meta(files);
    for (int f = 0; f < FILES; f++) {
        write_content(f, &files[f], &there[f]);
    }
    if (token_cache_open(&cache, folder, KEY, &err) == OK) {
        read_all(cache);
        token_cache_release(cache);
    }
    char *meta = path_of(FILE_META); /* a damaged frame takes it away */
    if (!file_exists(meta)) there[FILE_META].length = 0;
    memory_free(meta);
    for (int f = 0; f < FILES; f++)
        memory_free(files[f].bytes);
    return 0;
}
