/* Growing a Dataset, its figures, and the split for evaluation. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "core/memory.h"
#include "core/philox.h"
#include "data/dataset_internal.h"

/* Doubles at powers of two, so that no capacity has to be kept beside the public fields. */
static int is_full(int64_t count) {
    return count >= 64 ? (count & (count - 1)) == 0 : count == 0;
}

static void reserve_tokens(Dataset *d, int64_t more) {
    int64_t have = 64, want = 64;
    while (have < d->tokens)
        have *= 2;
    while (want < d->tokens + more)
        want *= 2;
    if (want == have && d->tokens > 0) return;
    d->ids = memory_resize(d->ids, (size_t)want * sizeof *d->ids);
    d->train = memory_resize(d->train, (size_t)want);
}

static void append_place(Dataset *d, int64_t count, int64_t record) {
    d->record[d->count++] = record;
    d->tokens += count;
    d->start[d->count] = d->tokens;
    d->files[d->file_count - 1].count++;
}

static void reserve_places(Dataset *d) {
    if (!is_full(d->count)) return;
    size_t capacity = d->count == 0 ? 64 : (size_t)d->count * 2;
    d->start = memory_resize(d->start, (capacity + 1) * sizeof *d->start);
    d->record = memory_resize(d->record, capacity * sizeof *d->record);
    if (d->cache != NULL) d->chosen = memory_resize(d->chosen, capacity * sizeof *d->chosen);
    d->start[0] = 0;
}

void dataset_append(Dataset *d, const int32_t *ids, const uint8_t *train, int64_t count, int64_t record) {
    reserve_places(d);
    reserve_tokens(d, count);
    memcpy(d->ids + d->tokens, ids, (size_t)count * sizeof *ids);
    memcpy(d->train + d->tokens, train, (size_t)count);
    d->train[d->tokens] = 0;
    append_place(d, count, record);
}

/* Sequence i of another data set: copied, or, from a cache, its number. */
static void append_sequence(Dataset *d, const Dataset *all, int64_t i) {
    int64_t begin = all->start[i], count = all->start[i + 1] - begin;
    if (all->cache == NULL) {
        dataset_append(d, all->ids + begin, all->train + begin, count, all->record[i]);
        return;
    }
    reserve_places(d);
    d->chosen[d->count] = all->chosen != NULL ? all->chosen[i] : i;
    append_place(d, count, all->record[i]);
}

void dataset_add_file(Dataset *d, const char *path, double weight) {
    if (is_full(d->file_count)) {
        size_t capacity = d->file_count == 0 ? 64 : (size_t)d->file_count * 2;
        d->files = memory_resize(d->files, capacity * sizeof *d->files);
    }
    d->files[d->file_count++] = (DatasetFile){.path = memory_strdup(path), .weight = weight};
}

void dataset_name_layout(Dataset *d) {
    d->layout = d->files[0].layout;
    memcpy(d->template_name, d->files[0].template_name, sizeof d->template_name);
    for (int64_t f = 1; f < d->file_count; f++) {
        if (d->files[f].layout != d->layout) d->layout = LAYOUT_MIXED;
        if (strcmp(d->files[f].template_name, d->template_name) != 0) memcpy(d->template_name, "mixed", sizeof "mixed");
    }
}

int dataset_is_weighted(const Dataset *d) {
    for (int64_t f = 0; f < d->file_count; f++)
        if (d->files[f].weight != 1) return 1;
    return 0;
}

uint64_t sequence_hash(const int32_t *ids, const uint8_t *train, int64_t count) {
    uint64_t parts[3] = {(uint64_t)count, hash_bytes(ids, (size_t)count * sizeof *ids), hash_bytes(train, (size_t)count)};
    return hash_bytes(parts, sizeof parts);
}

/* The cache's number of a sequence. */
static int64_t in_cache(const Dataset *d, int64_t i) {
    return d->chosen != NULL ? d->chosen[i] : i;
}

Status dataset_sequence(const Dataset *d, int64_t i, const int32_t **ids, const uint8_t **train, Error *err) {
    if (d->cache != NULL) return token_cache_get(d->cache, in_cache(d, i), ids, train, err);
    *ids = d->ids + d->start[i];
    *train = d->train + d->start[i];
    return OK;
}

int64_t dataset_sequence_trained(const Dataset *d, int64_t i) {
    if (d->cache != NULL) return token_cache_trained(d->cache)[in_cache(d, i)];
    int64_t trained = 0;
    for (int64_t t = d->start[i] + 1; t < d->start[i + 1]; t++)
        trained += d->train[t] != 0;
    return trained;
}

const int32_t *dataset_used_ids(const Dataset *d, int64_t *count) {
    if (d->cache != NULL) return token_cache_used(d->cache, count);
    *count = d->tokens;
    return d->ids;
}

void dataset_finish(Dataset *d) {
    Hash hash;
    hash_init(&hash);
    d->trained_tokens = d->longest = 0;
    for (int64_t i = 0; i < d->count; i++) {
        int64_t begin = d->start[i], length = d->start[i + 1] - begin;
        uint64_t own = d->cache != NULL ? token_cache_hashes(d->cache)[in_cache(d, i)]
                                        : sequence_hash(d->ids + begin, d->train + begin, length);
        d->trained_tokens += dataset_sequence_trained(d, i);
        if (length > d->longest) d->longest = length;
        hash_update(&hash, &own, sizeof own);
    }
    for (int64_t f = 0; dataset_is_weighted(d) && f < d->file_count; f++) {
        hash_update(&hash, &d->files[f].count, sizeof d->files[f].count);
        hash_update(&hash, &d->files[f].weight, sizeof d->files[f].weight);
    }
    d->hash = hash_final(&hash);
    if (d->count == 0 || (d->cache != NULL && d->chosen == NULL)) return;
    d->start = memory_resize(d->start, (size_t)(d->count + 1) * sizeof *d->start);
    d->record = memory_resize(d->record, (size_t)d->count * sizeof *d->record);
    if (d->cache != NULL) {
        d->chosen = memory_resize(d->chosen, (size_t)d->count * sizeof *d->chosen);
        return;
    }
    d->ids = memory_resize(d->ids, (size_t)d->tokens * sizeof *d->ids);
    d->train = memory_resize(d->train, (size_t)d->tokens);
}

void dataset_free(Dataset *dataset) {
    if (dataset->cache == NULL || dataset->chosen != NULL) { /* else they are the cache's */
        memory_free(dataset->start);
        memory_free(dataset->record);
    }
    memory_free(dataset->ids);
    memory_free(dataset->train);
    memory_free(dataset->chosen);
    token_cache_release(dataset->cache);
    for (int64_t f = 0; f < dataset->file_count; f++)
        memory_free(dataset->files[f].path);
    memory_free(dataset->files);
    memory_free(dataset->skip_reasons);
    *dataset = (Dataset){0};
}

/* Sequences [first, first + count) are of one record. */
typedef struct Group {
    uint64_t key;
    int64_t first, count;
} Group;

static int compare_groups(const void *a, const void *b) {
    const Group *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

static Group *list_groups(const Dataset *all, uint64_t seed, int64_t *count) {
    Group *groups = memory_alloc((size_t)all->count * sizeof *groups);
    *count = 0;
    for (int64_t i = 0; i < all->count; i++) {
        if (i > 0 && all->record[i] == all->record[i - 1]) {
            groups[*count - 1].count++;
            continue;
        }
        uint32_t block[4];
        random_block(seed, RANDOM_SPLIT, 0, (uint64_t)all->record[i], block);
        groups[(*count)++] = (Group){((uint64_t)block[0] << 32) | block[1], i, 1};
    }
    return groups;
}

/* Marks `want` sequences; see dataset_split. */
static void choose_held_out(const Dataset *all, uint64_t seed, int64_t want, uint8_t *held) {
    int64_t count = 0, taken = 0;
    Group *groups = list_groups(all, seed, &count);
    qsort(groups, (size_t)count, sizeof *groups, compare_groups);
    for (int64_t g = 0; g < count && taken < want; g++) {
        if (groups[g].count > want - taken) continue;
        memset(held + groups[g].first, 1, (size_t)groups[g].count);
        taken += groups[g].count;
    }
    if (taken == 0 && want > 0) memset(held + groups[0].first + groups[0].count - want, 1, (size_t)want);
    memory_free(groups);
}

/* Sequences whose flag is `which`, with the files they come from. */
static void copy_chosen(const Dataset *all, const uint8_t *held, uint8_t which, Dataset *out) {
    if (all->cache != NULL) {
        out->cache = token_cache_hold(all->cache);
        out->chosen = memory_alloc(sizeof *out->chosen); /* also when nothing is chosen: start is not the cache's */
    }
    for (int64_t f = 0, first = 0; f < all->file_count; first += all->files[f++].count) {
        const DatasetFile *file = &all->files[f];
        dataset_add_file(out, file->path, which ? 1 : file->weight);
        DatasetFile *copy = &out->files[f];
        copy->layout = file->layout;
        copy->records = file->records;
        memcpy(copy->template_name, file->template_name, sizeof copy->template_name);
        for (int64_t i = first; i < first + file->count; i++) {
            if (held[i] == which) append_sequence(out, all, i);
        }
    }
    out->layout = all->layout;
    memcpy(out->template_name, all->template_name, sizeof out->template_name);
    out->records = all->records;
    out->skipped_bad = all->skipped_bad;
    out->skipped_untrained = all->skipped_untrained;
    out->with_tools = all->with_tools;
    out->truncated = all->truncated;
    out->split = all->split;
    out->dropped = all->dropped;
    if (all->skip_reasons != NULL) out->skip_reasons = memory_strdup(all->skip_reasons);
    dataset_finish(out);
}

Status dataset_split(const Dataset *all, double fraction, uint64_t seed, Dataset *train, Dataset *held_out, Error *err) {
    *train = *held_out = (Dataset){0};
    if (!(fraction >= 0 && fraction < 1)) FAIL_USAGE("data.eval_fraction: want 0 <= fraction < 1, got %g", fraction);
    int64_t want = (int64_t)floor(fraction * (double)all->count + 0.5);
    if (fraction > 0 && want == 0 && all->count > 1) want = 1;
    if (want >= all->count) want = all->count > 0 ? all->count - 1 : 0;
    uint8_t *held = memory_calloc((size_t)all->count + 1, 1);
    choose_held_out(all, seed, want, held);
    copy_chosen(all, held, 0, train);
    copy_chosen(all, held, 1, held_out);
    memory_free(held);
    return OK;
}
