#include "data/byte_source.h"

#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "core/file.h"
#include "core/memory.h"

#define INPUT_BYTES ((size_t)128 << 10)
#define WINDOW_LOG_MAX 27 /* 128 MiB */

static const char *const tool_names[] = {"", "gzip", "zstd"};

Compression compression_of(const char *path, size_t *length) {
    static const char *const endings[] = {"", ".gz", ".zst"};
    size_t n = strlen(path);
    for (int c = COMPRESSION_GZIP; c <= COMPRESSION_ZSTD; c++) {
        size_t m = strlen(endings[c]);
        if (n < m || strcasecmp(path + n - m, endings[c]) != 0) continue;
        *length = n - m;
        return (Compression)c;
    }
    *length = n;
    return COMPRESSION_NONE;
}

static Status open_decoder(ByteSource *source, Error *err) {
    if (source->compression == COMPRESSION_NONE) return OK;
    source->input = memory_alloc(INPUT_BYTES);
    if (source->compression == COMPRESSION_ZSTD) {
        source->zstd = ZSTD_createDCtx();
        if (source->zstd == NULL || ZSTD_isError(ZSTD_DCtx_setParameter(source->zstd, ZSTD_d_windowLogMax, WINDOW_LOG_MAX)))
            FAIL("%s: cannot set up the zstd decoder", source->path);
        return OK;
    }
    source->gzip = memory_calloc(1, sizeof *source->gzip);
    if (inflateInit2(source->gzip, 16 + MAX_WBITS) != Z_OK) FAIL("%s: cannot set up the gzip decoder", source->path);
    return OK;
}

Status byte_source_open(ByteSource *source, const char *path, Error *err) {
    size_t length;
    *source = (ByteSource){.path = path, .fd = -1, .compression = compression_of(path, &length)};
    TRY(file_open(path, &source->fd, &source->size, err));
    Status status = open_decoder(source, err);
    if (status != OK) byte_source_close(source);
    return status;
}

void byte_source_close(ByteSource *source) {
    if (source->gzip != NULL) (void)inflateEnd(source->gzip);
    memory_free(source->gzip);
    ZSTD_freeDCtx(source->zstd);
    memory_free(source->input);
    if (source->fd >= 0) close(source->fd);
    *source = (ByteSource){.fd = -1};
}

static Status read_block(ByteSource *source, void *out, size_t capacity, size_t *got, Error *err) {
    uint64_t left = source->size - source->offset;
    *got = left < capacity ? (size_t)left : capacity;
    if (*got > 0) TRY(file_read_at(source->fd, source->path, source->offset, out, *got, err));
    source->offset += *got;
    return OK;
}

static Status fail_decoder(const ByteSource *source, const char *reason, Error *err) {
    FAIL("%s: not whole %s data: %s, at about byte %llu; test it with `%s -t`, and fetch or compress it again", source->path,
         tool_names[source->compression], reason, (unsigned long long)(source->offset - (source->end - source->begin)),
         tool_names[source->compression]);
}

static Status step_zstd(ByteSource *source, void *out, size_t capacity, size_t *got, Error *err) {
    ZSTD_inBuffer in = {source->input + source->begin, source->end - source->begin, 0};
    ZSTD_outBuffer to = {out, capacity, 0};
    size_t rest = ZSTD_decompressStream(source->zstd, &to, &in);
    if (ZSTD_isError(rest)) return fail_decoder(source, ZSTD_getErrorName(rest), err);
    source->begin += in.pos;
    source->inside = rest != 0;
    *got = to.pos;
    return OK;
}

static Status step_gzip(ByteSource *source, void *out, size_t capacity, size_t *got, Error *err) {
    z_stream *z = source->gzip;
    uInt room = capacity < (size_t)1 << 30 ? (uInt)capacity : (uInt)1 << 30;
    if (!source->inside && inflateReset(z) != Z_OK) FAIL("%s: cannot reset the gzip decoder", source->path);
    z->next_in = source->input + source->begin;
    z->avail_in = (uInt)(source->end - source->begin);
    z->next_out = out;
    z->avail_out = room;
    int result = inflate(z, Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
        return fail_decoder(source, z->msg != NULL ? z->msg : "damaged", err);
    source->begin = source->end - z->avail_in;
    source->inside = result != Z_STREAM_END;
    *got = room - z->avail_out;
    return OK;
}

static Status check_bomb(const ByteSource *source, Error *err) {
    if (source->produced <= BYTE_SOURCE_BOMB_BYTES || source->produced / BYTE_SOURCE_BOMB_RATIO <= source->offset) return OK;
    FAIL(
        "%s: the first %llu bytes expand to more than %llu, over %d times as many; no text does that. If the data is meant, "
        "decompress it first (%s -dk)",
        source->path, (unsigned long long)source->offset, (unsigned long long)source->produced, BYTE_SOURCE_BOMB_RATIO,
        tool_names[source->compression]);
}

Status byte_source_read(ByteSource *source, void *out, size_t capacity, size_t *got, Error *err) {
    if (source->compression == COMPRESSION_NONE) return read_block(source, out, capacity, got, err);
    *got = 0;
    while (*got == 0) {
        if (source->begin == source->end) {
            source->begin = source->end = 0; /* nothing is left also when reading fails */
            TRY(read_block(source, source->input, INPUT_BYTES, &source->end, err));
        }
        int at_end = source->begin == source->end;
        if (at_end && !source->inside) return OK;
        TRY(source->compression == COMPRESSION_ZSTD ? step_zstd(source, out, capacity, got, err)
                                                    : step_gzip(source, out, capacity, got, err));
        if (at_end && *got == 0 && source->inside) return fail_decoder(source, "it ends too early", err);
    }
    source->produced += *got;
    return check_bomb(source, err);
}
