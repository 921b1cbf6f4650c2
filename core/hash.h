/* A streaming 64-bit checksum: XXH3 of libxxhash (not cryptographic: it finds damage, not intent). */
#ifndef NIBBLE_CORE_HASH_H
#define NIBBLE_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* Lives wherever the caller puts it; nothing to free. */
typedef struct Hash {
    _Alignas(64) uint8_t state[576];
} Hash;

void hash_init(Hash *hash);
void hash_update(Hash *hash, const void *bytes, size_t length);
uint64_t hash_final(const Hash *hash); /* of everything so far; more may follow */

/* All of it in one call: equal to init, update, final. */
uint64_t hash_bytes(const void *bytes, size_t length);

#endif
