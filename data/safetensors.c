/* Opening files and folders, finding and reading tensors. */
#include "data/safetensors.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_model.h"
#include "data/json.h"
#include "data/safetensors_private.h"

#define INDEX_MAX_BYTES HEADER_MAX_BYTES
#define INDEX_DEPTH 8

typedef struct ShardFile {
    char *path;
    char *name; /* as weight_map spells it; NULL for a single file */
    int fd;
    TensorHeader header;
} ShardFile;

struct TensorFiles {
    ShardFile *files;
    int64_t file_count, file_capacity;
    TensorInfo *tensors;
    int64_t count, capacity;
    NameTable by_name;
    GgufModel *gguf; /* instead of files; NULL */
};

/* Reads and checks the header of an open file. */
static Status header_read(ShardFile *file, uint64_t size, Error *err) {
    unsigned char prefix[8];
    if (size < 8)
        FAIL("%s: want at least 8 bytes (the header's length), got a file of %llu", file->path, (unsigned long long)size);
    TRY(file_read_at(file->fd, file->path, 0, prefix, sizeof prefix, err));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | prefix[i];
    if (length > HEADER_MAX_BYTES)
        FAIL("%s: header length: want at most %u bytes, got %llu; is this a safetensors file?", file->path, HEADER_MAX_BYTES,
             (unsigned long long)length);
    if (length > size - 8)
        FAIL("%s: header length: want at most the %llu bytes that follow it in the file, got %llu; the file is truncated",
             file->path, (unsigned long long)(size - 8), (unsigned long long)length);
    char *text = memory_alloc((size_t)length);
    Status status = file_read_at(file->fd, file->path, 8, text, (size_t)length, err);
    if (status == OK) status = header_parse(&file->header, file->path, text, (size_t)length, size, err);
    memory_free(text);
    return status;
}

/* Takes path. On failure the file stays in the list and is freed with it. */
static Status file_add(TensorFiles *files, char *path, const char *name, Error *err) {
    files->files = grow_array(files->files, files->file_count, &files->file_capacity, sizeof *files->files);
    ShardFile *file = &files->files[files->file_count++];
    *file = (ShardFile){.path = path, .name = name != NULL ? memory_strdup(name) : NULL, .fd = -1};
    uint64_t size = 0;
    TRY(file_open(path, &file->fd, &size, err));
    return header_read(file, size, err);
}

/* Moves the last file's tensors into the set; their names stay with the header. */
static Status tensors_add(TensorFiles *files, Error *err) {
    const int64_t number = files->file_count - 1;
    ShardFile *file = &files->files[number];
    for (int64_t i = 0; i < file->header.count; i++) {
        files->tensors = grow_array(files->tensors, files->count, &files->capacity, sizeof *files->tensors);
        TensorInfo *tensor = &files->tensors[files->count];
        *tensor = file->header.tensors[i];
        tensor->file = (int)number;
        int64_t other = names_put(&files->by_name, tensor->name, files->count);
        if (other >= 0)
            FAIL("%s: tensor '%s' is also in %s", file->path, tensor->name, files->files[files->tensors[other].file].path);
        files->count++;
    }
    memory_free(file->header.tensors);
    file->header.tensors = NULL;
    return OK;
}

/* ---- sharded ------------------------------------------------------------------------------------------------------- */

/* Where weight_map sends each tensor, in its order, until every shard is open. */
typedef struct IndexMap {
    char **names;
    int64_t *file;
    int64_t count, capacity, file_capacity;
    NameTable seen, shards;
} IndexMap;

static void index_free(IndexMap *map) {
    for (int64_t i = 0; i < map->count; i++)
        memory_free(map->names[i]);
    memory_free(map->names);
    memory_free(map->file);
    names_free(&map->seen);
    names_free(&map->shards);
}

/* A shard lies beside its index: a name that could lead elsewhere is an attack. */
static Status shard_name_check(const char *index, const char *tensor, const char *name, size_t length, Error *err) {
    if (length == 0 || length > 255 || strlen(name) != length || strpbrk(name, "/\\") != NULL || strstr(name, "..") != NULL)
        FAIL("%s: weight_map: '%.200s': want a plain file name without '/', '\\' or '..', got '%.200s'", index, tensor, name);
    return OK;
}

/* One entry: its tensor's name is in *key, its value is the next token. */
static Status index_entry(TensorFiles *files, IndexMap *map, JsonReader *reader, const JsonToken *key, const char *index,
                          const char *folder, Error *err) {
    if (key->length > TENSOR_NAME_MAX_BYTES || memchr(key->text, 0, key->length) != NULL)
        FAIL("%s: weight_map: a tensor's name is longer than %u bytes or contains a zero byte", index, TENSOR_NAME_MAX_BYTES);
    map->names = grow_array(map->names, map->count, &map->capacity, sizeof *map->names);
    map->file = grow_array(map->file, map->count, &map->file_capacity, sizeof *map->file);
    char *tensor = map->names[map->count] = memory_alloc(key->length + 1);
    memcpy(tensor, key->text, key->length);
    tensor[key->length] = 0;
    int64_t entry = map->count++;
    if (names_put(&map->seen, tensor, entry) >= 0) FAIL("%s: weight_map: '%s' appears twice", index, tensor);
    char *name = NULL;
    size_t length = 0;
    TRY(json_get_string(reader, tensor, &name, &length, err));
    Status status = shard_name_check(index, tensor, name, length, err);
    if (status == OK) {
        map->file[entry] = names_find(&map->shards, name);
        if (map->file[entry] < 0) {
            map->file[entry] = files->file_count;
            status = file_add(files, path_join(folder, name), name, err);
            if (status == OK) status = tensors_add(files, err);
            if (status == OK)
                (void)names_put(&map->shards, files->files[files->file_count - 1].name, map->file[entry]);
            else
                error_prefix(err, "%s: weight_map: '%.200s'", index, tensor);
        }
    }
    memory_free(name);
    return status;
}

static Status index_parse(TensorFiles *files, IndexMap *map, JsonReader *reader, const char *index, const char *folder,
                          Error *err) {
    JsonToken token;
    int found = 0;
    TRY(json_expect(reader, JSON_OBJECT_BEGIN, "index", &token, err));
    for (;;) {
        TRY(json_next(reader, &token, err));
        if (token.kind == JSON_OBJECT_END) break;
        if (!json_key_is(&token, "weight_map")) {
            TRY(json_skip(reader, &token, err));
            continue;
        }
        if (found) FAIL("%s: weight_map appears twice", index);
        found = 1;
        TRY(json_expect(reader, JSON_OBJECT_BEGIN, "weight_map", &token, err));
        for (;;) {
            TRY(json_next(reader, &token, err));
            if (token.kind == JSON_OBJECT_END) break;
            TRY(index_entry(files, map, reader, &token, index, folder, err));
        }
    }
    if (!found) FAIL("%s: weight_map is missing", index);
    return json_expect(reader, JSON_END, "what follows the index", &token, err);
}

static Status index_check(const TensorFiles *files, const IndexMap *map, const char *index, Error *err) {
    if (map->count == 0) FAIL("%s: weight_map is empty", index);
    for (int64_t i = 0; i < map->count; i++) {
        const TensorInfo *tensor = tensors_find(files, map->names[i]);
        const char *want = files->files[map->file[i]].path;
        if (tensor == NULL) FAIL("%s: weight_map: tensor '%s' is not in %s", index, map->names[i], want);
        if (tensor->file != map->file[i])
            FAIL("%s: weight_map: tensor '%s': want it in %s, got it in %s", index, map->names[i], want,
                 files->files[tensor->file].path);
    }
    return OK;
}

static Status index_open(TensorFiles *files, const char *index, const char *folder, Error *err) {
    char *text = NULL;
    size_t length = 0;
    TRY(file_read(index, INDEX_MAX_BYTES, &text, &length, err));
    IndexMap map = {0};
    JsonReader reader;
    json_open(&reader, index, text, length, 1, (JsonLimits){.depth = INDEX_DEPTH});
    Status status = index_parse(files, &map, &reader, index, folder, err);
    if (status == OK) status = index_check(files, &map, index, err);
    json_close(&reader);
    index_free(&map);
    memory_free(text);
    return status;
}

/* ---- public -------------------------------------------------------------------------------------------------------- */

/* A folder: the single file when it is there, as the reference's loader prefers it, else the index. */
static Status folder_open(TensorFiles *files, const char *folder, const char *stem, Error *err) {
    char *single = memory_format("%s/%s.safetensors", folder, stem);
    char *index = memory_format("%s/%s.safetensors.index.json", folder, stem);
    Status status;
    if (file_exists(single)) {
        status = file_add(files, memory_strdup(single), NULL, err);
        if (status == OK) status = tensors_add(files, err);
    } else if (file_exists(index)) {
        status = index_open(files, index, folder, err);
    } else {
        status = error_set(err, ERR_FAILED,
                           "%s: want %s.safetensors or %s.safetensors.index.json in this folder, got neither; weights in other "
                           "formats (.bin, .pth) must be converted to safetensors first",
                           folder, stem, stem);
    }
    memory_free(single);
    memory_free(index);
    return status;
}

static Status gguf_add(TensorFiles *files, const char *path, Error *err) {
    TRY(gguf_model_open(&files->gguf, path, err));
    for (int64_t i = 0; i < gguf_model_count(files->gguf); i++) {
        const TensorInfo *tensor = gguf_model_tensor(files->gguf, i);
        files->tensors = grow_array(files->tensors, files->count, &files->capacity, sizeof *files->tensors);
        files->tensors[files->count] = *tensor;
        if (names_put(&files->by_name, tensor->name, files->count) >= 0)
            FAIL("%s: two tensors have the name '%s'", path, tensor->name);
        files->count++;
    }
    return OK;
}

Status tensors_open(TensorFiles **files, const char *path, const char *stem, Error *err) {
    TensorFiles *set = memory_calloc(1, sizeof *set);
    *files = NULL;
    Status status;
    if (gguf_is_file(path) && (stem == NULL || !file_is_folder(path))) {
        status = gguf_add(set, path, err);
    } else if (file_is_folder(path)) {
        status = folder_open(set, path, stem != NULL ? stem : "model", err);
    } else {
        status = file_add(set, memory_strdup(path), NULL, err);
        if (status == OK) status = tensors_add(set, err);
    }
    if (status == OK)
        *files = set;
    else
        tensors_close(set);
    return status;
}

void tensors_close(TensorFiles *files) {
    if (files == NULL) return;
    for (int64_t i = 0; i < files->file_count; i++) {
        ShardFile *file = &files->files[i];
        if (file->fd >= 0) (void)close(file->fd);
        header_free(&file->header);
        memory_free(file->path);
        memory_free(file->name);
    }
    gguf_model_close(files->gguf);
    names_free(&files->by_name);
    memory_free(files->files);
    memory_free(files->tensors);
    memory_free(files);
}

int64_t tensors_count(const TensorFiles *files) {
    return files->count;
}

const TensorInfo *tensors_get(const TensorFiles *files, int64_t index) {
    return &files->tensors[index];
}

const TensorInfo *tensors_find(const TensorFiles *files, const char *name) {
    int64_t index = names_find(&files->by_name, name);
    return index < 0 ? NULL : &files->tensors[index];
}

const char *tensors_file_name(const TensorFiles *files, int file) {
    return files->gguf != NULL ? gguf_model_path(files->gguf) : files->files[file].path;
}

const char *tensors_metadata(const TensorFiles *files, const char *key) {
    if (files->file_count == 0) return NULL;
    const TensorHeader *header = &files->files[0].header;
    /* From the end: of equal keys the reference's map keeps the last. */
    for (int64_t i = header->metadata_count - 2; i >= 0; i -= 2)
        if (strcmp(header->metadata[i], key) == 0) return header->metadata[i + 1];
    return NULL;
}

Status tensors_read(const TensorFiles *files, const TensorInfo *tensor, uint64_t offset, void *out, size_t bytes,
                    int drop_cache, Error *err) {
    if (files->gguf != NULL) return gguf_model_read(files->gguf, tensor - files->tensors, offset, out, bytes, drop_cache, err);
    const ShardFile *file = &files->files[tensor->file];
    if (offset > tensor->bytes || bytes > tensor->bytes - offset)
        FAIL("%s: tensor '%s': want bytes %llu to %llu of it, got a tensor of %llu bytes", file->path, tensor->name,
             (unsigned long long)offset, (unsigned long long)(offset + bytes), (unsigned long long)tensor->bytes);
    if (bytes == 0) return OK;
    uint64_t start = tensor->offset + offset;
    Status status = file_read_at(file->fd, file->path, start, out, bytes, err);
    if (status != OK) error_prefix(err, "tensor '%s'", tensor->name);
    /* Advice only: where it is refused the pages merely stay cached. */
    if (status == OK && drop_cache) (void)posix_fadvise(file->fd, (off_t)start, (off_t)bytes, POSIX_FADV_DONTNEED);
    return status;
}
