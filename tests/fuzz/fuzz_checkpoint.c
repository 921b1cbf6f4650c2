/* A checkpoint's state.json: what is accepted must print and parse back to itself. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "train/checkpoint_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    CheckpointState state, again;
    CheckpointFile params, params_again;
    uint64_t claimed;
    size_t covered;
    Error err;
    if (checkpoint_state_parse("fuzz", (const char *)data, size, &state, &params, &claimed, &covered, &err) != OK) return 0;
    if (covered > size || state.step < 0 || state.elements < 0 || state.elements > CHECKPOINT_MAX_ELEMENTS) abort();
    Text text = {0};
    checkpoint_state_print(&state, &params, &text);
    if (checkpoint_state_parse("again", text.data, text.length, &again, &params_again, &claimed, &covered, &err) != OK) abort();
    if (hash_bytes(text.data, covered) != claimed) abort();
    Text second = {0};
    checkpoint_state_print(&again, &params_again, &second);
    if (second.length != text.length || memcmp(second.data, text.data, text.length) != 0) abort();
    text_free(&second);
    text_free(&text);
    return 0;
}
