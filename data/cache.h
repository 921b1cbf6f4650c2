/* The token cache: a data set tokenized once, on disk, read sequence by sequence. Data may be larger than memory.
 *
 *   ROOT/KEY/            published in one rename, never changed afterwards
 *     meta               counts, settings' key, sizes and checksums of the other files
 *     starts, records, hashes, trained    one number a sequence (starts: one more), memory-mapped
 *     used               the different token ids, ascending
 *     frames             where each frame lies
 *     shard-00000 …      frames: whole sequences' ids, then their masks, zstd-compressed, memory-mapped
 *   ROOT/KEY.lock        held by the process that builds KEY; the others wait for it
 *   ROOT/KEY.tmp-PID     being built; what a killed process left is removed by the next one that builds KEY
 *   ROOT/content-…       what a file's content hashed to, so that an unchanged file is not read again
 *
 * KEY is a hash of everything that decides the tokens: contents and names of the files, tokenizer, chat template, settings and
 * CACHE_VERSION. Weights are not part of it. Numbers are in the machine's byte order; another order is taken for foreign data.
 */
#ifndef NIBBLE_DATA_CACHE_H
#define NIBBLE_DATA_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "core/error.h"
#include "data/dataset.h"

/* Raised with every change that makes other tokens or masks out of the same data and settings, or changes the format. */
#define CACHE_VERSION 2

/* ---- cache_read.c ---- */
typedef struct TokenCache TokenCache;

/* Maps a published cache and checks everything but the shards' contents, which are checked frame by frame as they are read. */
Status token_cache_open(TokenCache **out, const char *folder, uint64_t key, Error *err);
/* One more owner; each calls token_cache_release. */
TokenCache *token_cache_hold(TokenCache *cache);
void token_cache_release(TokenCache *cache); /* NULL is fine */
/* Ids and mask of a sequence, valid until the next call for this cache; one thread at a time. Allocates nothing. A damaged frame
 * makes the cache void: the next run builds it anew. */
Status token_cache_get(TokenCache *cache, int64_t sequence, const int32_t **ids, const uint8_t **train, Error *err);
const uint64_t *token_cache_hashes(const TokenCache *cache);              /* sequence_hash of each */
const int32_t *token_cache_trained(const TokenCache *cache);              /* trained tokens of each */
const int32_t *token_cache_used(const TokenCache *cache, int64_t *count); /* the different ids, ascending */
/* Describes the cache as a Dataset that shares it. `out` names the files (path and weight of each, as they were when it was built) and
 * is otherwise empty; fails when their number differs. */
Status token_cache_describe(TokenCache *cache, Dataset *out, Error *err);

/* ---- cache_write.c ---- */
typedef struct CacheWriter CacheWriter;
/* Writes into an existing, empty folder. */
Status cache_writer_open(CacheWriter **out, const char *folder, Error *err);
Status cache_writer_append(CacheWriter *writer, const int32_t *ids, const uint8_t *train, int64_t count, int64_t record,
                           Error *err);
/* Writes and syncs what is left; `dataset` holds the counts and files. The folder can be published then. */
Status cache_writer_finish(CacheWriter *writer, const Dataset *dataset, uint64_t key, Error *err);
void cache_writer_close(CacheWriter *writer); /* NULL is fine */

/* ---- cache_key.c ---- */
/* Key of these options' data in the cache at `root`; `files` are the expanded paths. Reads files whose content is not known yet. */
Status cache_key(const char *root, const DatasetOptions *options, const DatasetFile *files, int64_t count, uint64_t *key,
                 Error *err);
/* Where caches go unless told: $XDG_CACHE_HOME/nibble/tokens, ~/.cache/nibble/tokens; NULL when neither is known (memory_free). */
char *cache_default_root(void);

#endif
