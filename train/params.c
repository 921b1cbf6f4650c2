#include "train/params.h"

#include <stdio.h>
#include <string.h>

#include "train/comm.h"
#include "train/device_memory.h"

int64_t params_add(ParamSet *set, ParamEntry entry) {
    if (set->count == set->capacity) {
        set->capacity = set->capacity ? 2 * set->capacity : 64;
        set->entries = memory_resize(set->entries, (size_t)set->capacity * sizeof *set->entries);
    }
    entry.offset = set->elements;
    int64_t numbers = entry.rows * entry.cols;
    set->elements += (numbers + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
    set->trained += numbers;
    set->entries[set->count++] = entry;
    return entry.offset;
}

void params_free(ParamSet *set) {
    memory_free(set->entries);
    memset(set, 0, sizeof *set);
}

void params_name(const ParamSet *set, const ModelConfig *config, int64_t index, char *out, size_t capacity) {
    const ParamEntry *entry = &set->entries[index];
    int64_t rows, cols;
    char base[128];
    int32_t weight = entry->role == PARAM_WEIGHT ? entry->weight : weight_id(entry->layer, entry->module);
    if (!weight_describe(config, weight, base, sizeof base, &rows, &cols)) base[0] = 0;
    if (entry->role == PARAM_WEIGHT) {
        (void)snprintf(out, capacity, "%s", base);
        return;
    }
    size_t stem = strlen(base);
    static const char suffix[] = ".weight";
    if (stem > sizeof suffix - 1 && strcmp(base + stem - (sizeof suffix - 1), suffix) == 0)
        base[stem - (sizeof suffix - 1)] = 0;
    if (entry->role == PARAM_SCALE)
        (void)snprintf(out, capacity, "%s.scale", base);
    else
        (void)snprintf(out, capacity, "%s.lora_%c", base, entry->role == PARAM_LORA_A ? 'A' : 'B');
}

int64_t params_share(const ParamSet *set) {
    if (set->ranks < 2) return set->elements;
    return (int64_t)(comm_share((size_t)set->elements * sizeof(float), set->ranks) / sizeof(float));
}

/* Elements that the other buffers have room for. */
static size_t room_of(const ParamSet *set) {
    return set->ranks < 2 ? (size_t)set->elements : (size_t)params_share(set) * (size_t)set->ranks;
}

size_t params_state_bytes(const ParamSet *set, DType act, int optimizer) {
    size_t flat = arena_align(room_of(set) * sizeof(float)), moments = arena_align((size_t)params_share(set) * sizeof(float));
    return flat + (optimizer ? flat + 2 * moments : 0) + arena_align(room_of(set) * dtype_size(act));
}

Status params_state_create(ParamState *state, const ParamSet *set, DType act, int optimizer, Error *err) {
    memset(state, 0, sizeof *state);
    TRY(arena_create(&state->arena, "trained parameters", params_state_bytes(set, act, optimizer), err));
    float **flat[4] = {&state->master, &state->m, &state->v, &state->gradient};
    for (int i = 0; i < (optimizer ? 4 : 1); i++) {
        void *memory;
        size_t bytes = (i == 1 || i == 2 ? (size_t)params_share(set) : room_of(set)) * sizeof(float);
        TRY(arena_take(&state->arena, bytes, &memory, err));
        *flat[i] = memset(memory, 0, bytes); /* touched now, so that step 0 finds its pages */
    }
    TRY(arena_take(&state->arena, room_of(set) * dtype_size(act), &state->copy, err));
    memset(state->copy, 0, room_of(set) * dtype_size(act));
    return OK;
}

void params_state_free(ParamState *state) {
    arena_free(&state->arena);
    memset(state, 0, sizeof *state);
}

void *params_there(const ParamState *state, const void *pointer) {
    return mirror_at(&state->mirror, &state->arena, pointer);
}

void params_refresh_copy(ParamState *state, const ParamSet *set, DType act) {
    dtype_convert(state->copy, act, state->master, DTYPE_F32, set->elements);
}
