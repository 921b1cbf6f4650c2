/* A data set through the token cache: found and mapped, else tokenized into it first. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "data/cache.h"
#include "data/dataset_internal.h"

typedef struct Place {
    char *folder, *lock, *temporary;
    uint64_t key;
} Place;

static void place_free(Place *place) {
    memory_free(place->folder);
    memory_free(place->lock);
    memory_free(place->temporary);
}

static Status find_place(const char *root, const DatasetOptions *options, const Dataset *names, Place *place, Error *err) {
    TRY(folder_create(root, err));
    TRY(cache_key(root, options, names->files, names->file_count, &place->key, err));
    char *name = memory_format("%016llx", (unsigned long long)place->key);
    place->folder = path_join(root, name);
    place->lock = memory_format("%s.lock", place->folder);
    place->temporary = memory_format("%s.tmp-%lld", place->folder, (long long)getpid());
    memory_free(name);
    return OK;
}

/* -1: this file system has no locks. Two processes may then build the same cache; the first rename counts. */
static Status take_lock(const Place *place, int *lock, Error *err) {
    *lock = open(place->lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*lock < 0) FAIL("%s: cannot create it: %s", place->lock, strerror(errno));
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0) return OK;
    if (errno == EWOULDBLOCK) {
        log_info("another process tokenizes the same data; waiting for it");
        if (flock(*lock, LOCK_EX) == 0) return OK;
    }
    int code = errno;
    close(*lock);
    *lock = -1;
    if (code == EINTR) return error_set(err, ERR_INTERRUPTED, "interrupted while waiting for another process's token cache");
    return OK;
}

/* Removes what killed processes left of this cache. Under the lock only: nobody else builds it now. */
static Status remove_leftovers(const char *root, const Place *place, Error *err) {
    const char *name = strrchr(place->folder, '/') + 1;
    size_t length = strlen(name);
    DIR *folder = opendir(root);
    if (folder == NULL) FAIL("%s: cannot list it: %s", root, strerror(errno));
    Status status = OK;
    for (struct dirent *entry; status == OK && (entry = readdir(folder)) != NULL;) {
        if (strncmp(entry->d_name, name, length) != 0 || strncmp(entry->d_name + length, ".tmp-", 5) != 0) continue;
        char *path = path_join(root, entry->d_name);
        status = folder_remove(path, err);
        memory_free(path);
    }
    closedir(folder);
    return status;
}

static Status build(const DatasetOptions *options, const Place *place, Error *err) {
    CacheWriter *writer = NULL;
    Dataset built = {0};
    char bytes[32];
    double begin = clock_seconds();
    log_info("tokenizing into the cache %s", place->folder);
    TRY(folder_create(place->temporary, err));
    Status status = cache_writer_open(&writer, place->temporary, err);
    if (status == OK) status = dataset_read_into(options, &built, writer, err);
    if (status == OK) status = cache_writer_finish(writer, &built, place->key, err);
    cache_writer_close(writer);
    if (status == OK)
        log_info("tokenized: %lld sequences, %lld tokens in %s", (long long)built.count, (long long)built.tokens,
                 format_duration(clock_seconds() - begin, bytes, sizeof bytes));
    dataset_free(&built);
    if (status == OK && folder_replace(place->temporary, place->folder, err) != OK) {
        TokenCache *other = NULL; /* without locks, another process may have been first */
        status = token_cache_open(&other, place->folder, place->key, NULL) == OK ? OK : ERR_FAILED;
        token_cache_release(other);
    }
    Error ignored = {0};
    (void)folder_remove(place->temporary, &ignored);
    return status;
}

static Status open_or_build(const char *root, const DatasetOptions *options, const Place *place, TokenCache **cache,
                            Error *err) {
    Error reason = {0};
    double begin = clock_seconds();
    int lock = -1;
    char *meta = path_join(place->folder, "meta");
    if (!file_exists(meta) || token_cache_open(cache, place->folder, place->key, &reason) != OK) {
        TRY(take_lock(place, &lock, err));
        Status status = OK;
        reason.text[0] = 0;
        if (!file_exists(meta) || token_cache_open(cache, place->folder, place->key, &reason) != OK) {
            if (reason.text[0] != 0) log_warning("%s; it is built anew", reason.text);
            if (lock >= 0) status = remove_leftovers(root, place, err);
            if (status == OK) status = build(options, place, err);
            if (status == OK) status = token_cache_open(cache, place->folder, place->key, err);
        }
        if (lock >= 0) close(lock);
        memory_free(meta);
        return status;
    }
    memory_free(meta);
    log_info("token cache %s: opened in %.0f ms", place->folder, 1e3 * (clock_seconds() - begin));
    return OK;
}

Status dataset_cache_root(const DatasetOptions *options, const char *setting, char **root, Error *err) {
    Dataset names = {0};
    Error reason = {0};
    *root = NULL;
    if (strcmp(setting, "off") == 0) return OK;
    if (strcmp(setting, "auto") != 0) {
        *root = memory_strdup(setting);
        return OK;
    }
    Status status = dataset_list_files(options, &names, err);
    int large = status == OK && dataset_file_bytes(&names) >= DATASET_CACHE_BYTES;
    dataset_free(&names);
    if (!large) return status;
    *root = cache_default_root();
    if (*root != NULL && folder_create(*root, &reason) == OK) return OK;
    log_warning("data.cache: no place for a token cache (%s); everything is tokenized into memory, again in every run",
                *root == NULL ? "neither XDG_CACHE_HOME nor HOME is set" : reason.text);
    memory_free(*root);
    *root = NULL;
    return OK;
}

Status dataset_read_cached(const DatasetOptions *options, Dataset *out, Error *err) {
    Place place = {0};
    TokenCache *cache = NULL;
    *out = (Dataset){0};
    Status status = dataset_list_files(options, out, err);
    if (status == OK) status = find_place(options->cache, options, out, &place, err);
    if (status == OK) status = open_or_build(options->cache, options, &place, &cache, err);
    if (status == OK) status = token_cache_describe(cache, out, err);
    token_cache_release(cache);
    place_free(&place);
    if (status == OK) {
        dataset_name_layout(out);
        dataset_finish(out);
    } else {
        dataset_free(out);
    }
    return status;
}
