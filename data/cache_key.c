/* What a token cache is found by: a hash of all that decides its tokens. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "data/cache.h"

#define READ_BYTES ((size_t)1 << 20)
#define NOTE_MAX_BYTES 64
/* A file that changed less than this before it was read could change again within one tick of its time stamp. */
#define SETTLED_SECONDS 2

typedef struct Identity { /* of a file whose content does not change unnoticed while all of this stays */
    uint64_t device, inode, size;
    int64_t changed[2], modified[2]; /* seconds, nanoseconds */
} Identity;

static Status identify(const char *path, Identity *id, Error *err) {
    struct stat info;
    if (stat(path, &info) != 0) FAIL("%s: cannot open: %s", path, strerror(errno));
    *id = (Identity){(uint64_t)info.st_dev,
                     (uint64_t)info.st_ino,
                     (uint64_t)info.st_size,
                     {info.st_ctim.tv_sec, info.st_ctim.tv_nsec},
                     {info.st_mtim.tv_sec, info.st_mtim.tv_nsec}};
    return OK;
}

static Status hash_content(const char *path, uint64_t *out, Error *err) {
    Hash hash;
    int fd = -1;
    uint64_t size = 0;
    TRY(file_open(path, &fd, &size, err));
    char *buffer = memory_alloc(READ_BYTES);
    Status status = OK;
    hash_init(&hash);
    for (uint64_t at = 0; at < size && status == OK; at += READ_BYTES) {
        size_t bytes = size - at < READ_BYTES ? (size_t)(size - at) : READ_BYTES;
        status = file_read_at(fd, path, at, buffer, bytes, err);
        if (status == OK) hash_update(&hash, buffer, bytes);
    }
    *out = hash_final(&hash);
    memory_free(buffer);
    close(fd);
    return status;
}

/* A note holds the content's hash, and that hash's hash. Notes that cannot be read or written cost time only. */
static int read_note(const char *note, uint64_t *content) {
    char *text = NULL;
    size_t length = 0;
    uint64_t check[2] = {0};
    int good = file_read(note, NOTE_MAX_BYTES, &text, &length, NULL) == OK && length == sizeof check;
    if (good) memcpy(check, text, sizeof check);
    memory_free(text);
    *content = check[0];
    return good && check[1] == hash_bytes(check, sizeof *check);
}

static Status content_of(const char *root, const char *path, uint64_t *content, Error *err) {
    Identity id, after;
    struct timespec now;
    TRY(identify(path, &id, err));
    char *name = memory_format("content-%016llx", (unsigned long long)hash_bytes(&id, sizeof id));
    char *note = path_join(root, name);
    Status status = OK;
    if (!read_note(note, content)) {
        (void)clock_gettime(CLOCK_REALTIME, &now);
        status = hash_content(path, content, err);
        uint64_t check[2] = {*content, hash_bytes(content, sizeof *content)};
        int settled = now.tv_sec - id.changed[0] > SETTLED_SECONDS && now.tv_sec - id.modified[0] > SETTLED_SECONDS;
        if (status == OK) status = identify(path, &after, err);
        if (status == OK && settled && memcmp(&id, &after, sizeof id) == 0)
            (void)file_write_atomic(note, check, sizeof check, NULL);
    }
    memory_free(note);
    memory_free(name);
    return status;
}

/* With its end, so that two texts never look like others that are cut elsewhere. */
static void add_text(Hash *hash, const char *text) {
    if (text == NULL) text = "";
    hash_update(hash, text, strlen(text) + 1);
}

static void add_settings(Hash *hash, const DatasetOptions *o) {
    int64_t numbers[] = {CACHE_VERSION,
                         o->layout,
                         o->train_on,
                         o->on_error,
                         o->too_long,
                         o->max_length,
                         o->eos_id,
                         o->open_documents != 0,
                         tokenizer_bos(o->tokenizer),
                         tokenizer_eos(o->tokenizer),
                         tokenizer_adds_bos(o->tokenizer),
                         tokenizer_vocab_size(o->tokenizer),
                         (int64_t)tokenizer_hash(o->tokenizer)};
    hash_update(hash, numbers, sizeof numbers);
    add_text(hash, o->template_name == NULL ? "auto" : o->template_name);
    add_text(hash, tokenizer_chat_template(o->tokenizer));
}

Status cache_key(const char *root, const DatasetOptions *options, const DatasetFile *files, int64_t count, uint64_t *key,
                 Error *err) {
    Hash hash;
    hash_init(&hash);
    add_settings(&hash, options);
    for (int64_t f = 0; f < count; f++) {
        uint64_t content = 0;
        TRY(content_of(root, files[f].path, &content, err));
        hash_update(&hash, &content, sizeof content);
        add_text(&hash, files[f].path);
    }
    *key = hash_final(&hash);
    return OK;
}

char *cache_default_root(void) {
    return user_cache_path("tokens");
}
