/* What the files of a token cache hold: shared by cache_read.c and cache_write.c. Every struct is made of 8-byte fields only. */
#ifndef NIBBLE_DATA_CACHE_INTERNAL_H
#define NIBBLE_DATA_CACHE_INTERNAL_H

#include <stdint.h>

#define CACHE_MAGIC UINT64_C(0x31656863616E626E) /* "nbnache1", and the byte order */
#define CACHE_SHARD_NAME "shard-%05lld"
#define CACHE_TOKEN_BYTES 5 /* in a frame: an id of 4 bytes and a mask of 1 */

typedef enum CacheSection {
    SECTION_STARTS,  /* int64 */
    SECTION_RECORDS, /* int64 */
    SECTION_HASHES,  /* uint64 */
    SECTION_TRAINED, /* int32 */
    SECTION_USED,    /* int32 */
    SECTION_FRAMES,  /* CacheFrame */
    SECTION_COUNT
} CacheSection;
extern const char *const cache_section_names[SECTION_COUNT];
extern const unsigned cache_section_widths[SECTION_COUNT]; /* bytes of one element */

typedef struct CacheFrame {
    int64_t first;          /* sequence; the frame ends where the next one's begins */
    int64_t shard;          /* number */
    uint64_t offset, bytes; /* in the shard's file */
    uint64_t checksum;      /* of those bytes */
} CacheFrame;

/* The start of the file "meta"; then CacheFileMeta[files], the reasons for skipping, and a checksum of all before it. */
typedef struct CacheMeta {
    uint64_t magic, version, key;
    int64_t sequences, tokens, files, shards, largest_frame; /* largest_frame: in tokens */
    int64_t records, skipped_bad, skipped_untrained, truncated, split, dropped, trained_tokens, longest;
    int64_t with_tools;
    int64_t skip_reasons; /* bytes of text; -1: nothing was skipped */
    uint64_t counts[SECTION_COUNT], checksums[SECTION_COUNT];
} CacheMeta;

typedef struct CacheFileMeta {
    int64_t layout, records, count;
    char template_name[32];
} CacheFileMeta;

#endif
