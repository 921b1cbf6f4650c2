/* params.zst: one zstd frame with the library's own checksum over master, m, v, written and read in pieces. */
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "core/file.h"
#include "core/hash.h"
#include "core/memory.h"
#include "train/checkpoint_internal.h"

#define LEVEL 1                   /* FP32 numbers of training hardly shrink at any level: speed decides */
#define PIECE ((size_t)128 << 10) /* of the file at a time */
#define WINDOW_LOG_MAX 21         /* 2 MiB: level 1 uses at most 2^19 bytes; a frame that asks for more is not ours */

/* ---- writing --------------------------------------------------------------------------------------------------------------- */

typedef struct Writer {
    ZSTD_CCtx *zstd;
    AtomicFile *file;
    void *out; /* [PIECE] */
    Hash hash;
    uint64_t bytes;
} Writer;

/* Compresses `length` bytes; with ZSTD_e_end also closes the frame. */
static Status compress(Writer *writer, const void *bytes, size_t length, ZSTD_EndDirective directive, Error *err) {
    ZSTD_inBuffer in = {bytes, length, 0};
    for (;;) {
        ZSTD_outBuffer out = {writer->out, PIECE, 0};
        size_t left = ZSTD_compressStream2(writer->zstd, &out, &in, directive);
        if (ZSTD_isError(left)) FAIL("%s: cannot compress: %s", CHECKPOINT_PARAMS_NAME, ZSTD_getErrorName(left));
        TRY(atomic_write(writer->file, writer->out, out.pos, err));
        hash_update(&writer->hash, writer->out, out.pos);
        writer->bytes += out.pos;
        if (directive == ZSTD_e_end ? left == 0 : in.pos == in.size) return OK;
    }
}

static Status write_frame(Writer *writer, const ParamState *params, int64_t elements, Error *err) {
    size_t bytes = (size_t)elements * sizeof(float);
    size_t code = ZSTD_CCtx_setParameter(writer->zstd, ZSTD_c_compressionLevel, LEVEL);
    if (!ZSTD_isError(code)) code = ZSTD_CCtx_setParameter(writer->zstd, ZSTD_c_checksumFlag, 1);
    if (!ZSTD_isError(code)) code = ZSTD_CCtx_setPledgedSrcSize(writer->zstd, 3 * (unsigned long long)bytes);
    if (ZSTD_isError(code)) FAIL("%s: cannot set up zstd: %s", CHECKPOINT_PARAMS_NAME, ZSTD_getErrorName(code));
    TRY(compress(writer, params->master, bytes, ZSTD_e_continue, err));
    TRY(compress(writer, params->m, bytes, ZSTD_e_continue, err));
    return compress(writer, params->v, bytes, ZSTD_e_end, err);
}

Status checkpoint_params_write(const char *folder, const ParamState *params, int64_t elements, CheckpointFile *file,
                               Error *err) {
    char *path = path_join(folder, CHECKPOINT_PARAMS_NAME);
    Writer writer = {.zstd = ZSTD_createCCtx()};
    Status status = atomic_open(&writer.file, path, err);
    memory_free(path);
    if (status == OK && writer.zstd == NULL) status = error_set(err, ERR_FAILED, "no memory for zstd");
    writer.out = memory_alloc(PIECE);
    hash_init(&writer.hash);
    if (status == OK) status = write_frame(&writer, params, elements, err);
    if (status == OK)
        status = atomic_commit(writer.file, err);
    else
        atomic_abandon(writer.file);
    *file = (CheckpointFile){writer.bytes, hash_final(&writer.hash)};
    memory_free(writer.out);
    (void)ZSTD_freeCCtx(writer.zstd);
    return status;
}

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

typedef struct Reader {
    ZSTD_DCtx *zstd;
    int fd;
    const char *path;
    void *in, *scratch; /* [PIECE] */
    ParamState *into;   /* NULL: only check */
    uint64_t part;      /* bytes of each of the three buffers */
    uint64_t done;      /* bytes decompressed so far */
    size_t left;        /* what the decompressor still wants; 0: the frame is complete */
    Hash hash;
} Reader;

/* Where the next decompressed bytes go: never across the end of a buffer, one byte of room past the end of the last. */
static ZSTD_outBuffer next_room(const Reader *reader) {
    ZSTD_outBuffer scratch = {reader->scratch, PIECE, 0};
    if (reader->into == NULL || reader->done >= 3 * reader->part) return scratch;
    float *const buffers[3] = {reader->into->master, reader->into->m, reader->into->v};
    uint64_t offset = reader->done % reader->part;
    return (ZSTD_outBuffer){(char *)buffers[reader->done / reader->part] + offset, (size_t)(reader->part - offset), 0};
}

static Status decompress(Reader *reader, size_t length, Error *err) {
    ZSTD_inBuffer in = {reader->in, length, 0};
    int full; /* the decompressor may hold back what did not fit */
    do {
        if (reader->left == 0 && in.pos < in.size) FAIL("%s: something follows the numbers", CHECKPOINT_PARAMS_NAME);
        ZSTD_outBuffer out = next_room(reader);
        reader->left = ZSTD_decompressStream(reader->zstd, &out, &in);
        if (ZSTD_isError(reader->left))
            FAIL("%s: cannot decompress: %s", CHECKPOINT_PARAMS_NAME, ZSTD_getErrorName(reader->left));
        reader->done += out.pos;
        if (reader->done > 3 * reader->part)
            FAIL("%s: want %llu bytes of numbers, got more", CHECKPOINT_PARAMS_NAME, (unsigned long long)(3 * reader->part));
        full = out.pos == out.size && reader->left != 0;
    } while (in.pos < in.size || full);
    return OK;
}

static Status read_frame(Reader *reader, const CheckpointFile *file, Error *err) {
    size_t code = ZSTD_DCtx_setParameter(reader->zstd, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    if (ZSTD_isError(code)) FAIL("%s: cannot set up zstd: %s", CHECKPOINT_PARAMS_NAME, ZSTD_getErrorName(code));
    hash_init(&reader->hash);
    for (uint64_t at = 0; at < file->bytes;) {
        size_t piece = file->bytes - at < PIECE ? (size_t)(file->bytes - at) : PIECE;
        TRY(file_read_at(reader->fd, reader->path, at, reader->in, piece, err));
        hash_update(&reader->hash, reader->in, piece);
        TRY(decompress(reader, piece, err));
        at += piece;
    }
    if (hash_final(&reader->hash) != file->hash)
        FAIL("%s: checksum differs; the file was changed or is damaged", CHECKPOINT_PARAMS_NAME);
    if (reader->left != 0 || reader->done != 3 * reader->part)
        FAIL("%s: want %llu bytes of numbers, got %llu", CHECKPOINT_PARAMS_NAME, (unsigned long long)(3 * reader->part),
             (unsigned long long)reader->done);
    return OK;
}

Status checkpoint_params_read(const char *folder, const CheckpointFile *file, int64_t elements, ParamState *into, Error *err) {
    char *path = path_join(folder, CHECKPOINT_PARAMS_NAME);
    Reader reader = {.path = path, .into = into, .part = (uint64_t)elements * sizeof(float), .left = 1};
    uint64_t size;
    Status status = file_open(path, &reader.fd, &size, err);
    if (status == OK) {
        reader.zstd = ZSTD_createDCtx();
        reader.in = memory_alloc(PIECE);
        reader.scratch = memory_alloc(PIECE);
        if (size != file->bytes)
            status = error_set(err, ERR_FAILED, "%s: want %llu bytes, got %llu; is it truncated?", CHECKPOINT_PARAMS_NAME,
                               (unsigned long long)file->bytes, (unsigned long long)size);
        else if (reader.zstd == NULL)
            status = error_set(err, ERR_FAILED, "no memory for zstd");
        else
            status = read_frame(&reader, file, err);
        close(reader.fd);
        memory_free(reader.scratch);
        memory_free(reader.in);
        (void)ZSTD_freeDCtx(reader.zstd);
    }
    memory_free(path);
    return status;
}
