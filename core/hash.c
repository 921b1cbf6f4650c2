#include "core/hash.h"

#define XXH_STATIC_LINKING_ONLY /* the size of the state */
#include <string.h>
#include <xxhash.h>

_Static_assert(sizeof(XXH3_state_t) <= sizeof(Hash), "Hash must hold the library's state");
_Static_assert(_Alignof(Hash) >= _Alignof(XXH3_state_t), "and align it");

void hash_init(Hash *hash) {
    memset(hash, 0, sizeof *hash); /* reset reads one field before it writes it */
    (void)XXH3_64bits_reset((XXH3_state_t *)hash->state);
}

void hash_update(Hash *hash, const void *bytes, size_t length) {
    if (length != 0) (void)XXH3_64bits_update((XXH3_state_t *)hash->state, bytes, length);
}

uint64_t hash_final(const Hash *hash) {
    return XXH3_64bits_digest((const XXH3_state_t *)hash->state);
}

uint64_t hash_bytes(const void *bytes, size_t length) {
    return XXH3_64bits(bytes, length);
}
