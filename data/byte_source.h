/* A file's bytes from front to back, decompressed on the way when its name ends in .gz or .zst.
 *
 * Memory is one input block and the decoder's window (gzip: 32 KiB; zstd: 128 MiB at most, what `zstd` without --ultra --long
 * needs at most). Several gzip members or zstd frames in a row are one stream, as gzip and zstd read them. Refused: damage,
 * a truncated stream, bytes behind the last frame that begin no other, and a bomb (see BYTE_SOURCE_BOMB_RATIO).
 */
#ifndef NIBBLE_DATA_BYTE_SOURCE_H
#define NIBBLE_DATA_BYTE_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"

/* Text shrinks 3 to 20 times; what grows more than this, once it gave this many bytes, is not data. */
#define BYTE_SOURCE_BOMB_RATIO 256
#define BYTE_SOURCE_BOMB_BYTES ((uint64_t)64 << 20)

typedef enum Compression { COMPRESSION_NONE, COMPRESSION_GZIP, COMPRESSION_ZSTD } Compression;

typedef struct ByteSource {
    const char *path; /* borrowed */
    int fd;
    Compression compression;
    uint64_t size, offset; /* of the file as it lies on disk; what was read of it */
    uint64_t produced;     /* bytes handed out */
    uint8_t *input;        /* compressed bytes not decoded yet: [begin, end) */
    size_t begin, end;
    struct z_stream_s *gzip;
    struct ZSTD_DCtx_s *zstd;
    int inside; /* a frame has begun and not ended */
} ByteSource;

/* By the name's ending, in any case; *length: the name's length without that ending. */
Compression compression_of(const char *path, size_t *length);
/* Regular files only. */
Status byte_source_open(ByteSource *source, const char *path, Error *err);
void byte_source_close(ByteSource *source);
/* Up to `capacity` (> 0) bytes into `out`; *got = 0 at the end only. */
Status byte_source_read(ByteSource *source, void *out, size_t capacity, size_t *got, Error *err);

#endif
