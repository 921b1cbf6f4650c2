/* Offsets from lifetimes.
 *
 * Largest area first, each at the lowest offset where it overlaps no area that lives at the same time: simple, repeatable,
 * and within a few percent of the fullest instant on transformer schedules.
 */
#include <stdlib.h>
#include <string.h>

#include "autograd/tape_internal.h"
#include "core/memory.h"

typedef struct Order {
    size_t bytes;
    int32_t index;
} Order;

static int by_size(const void *left, const void *right) {
    const Order *a = left, *b = right;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
    return a->index < b->index ? -1 : 1;
}

typedef struct Span {
    size_t begin, end;
} Span;

static int by_begin(const void *left, const void *right) {
    const Span *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

void layout_areas(Area *areas, int32_t count, size_t *arena) {
    Order *order = memory_alloc((size_t)count * sizeof *order);
    Span *taken = memory_alloc((size_t)count * sizeof *taken);
    for (int32_t i = 0; i < count; i++)
        order[i] = (Order){areas[i].bytes, i};
    qsort(order, (size_t)count, sizeof *order, by_size);
    size_t top = 0;
    for (int32_t n = 0; n < count; n++) {
        Area *area = &areas[order[n].index];
        int32_t overlapping = 0;
        for (int32_t m = 0; m < n; m++) {
            const Area *other = &areas[order[m].index];
            if (other->first <= area->last && area->first <= other->last)
                taken[overlapping++] = (Span){other->offset, other->offset + other->bytes};
        }
        qsort(taken, (size_t)overlapping, sizeof *taken, by_begin);
        size_t offset = 0;
        for (int32_t m = 0; m < overlapping && taken[m].begin < offset + area->bytes; m++)
            if (taken[m].end > offset) offset = taken[m].end;
        area->offset = offset;
        if (offset + area->bytes > top) top = offset + area->bytes;
    }
    memory_free(order);
    memory_free(taken);
    *arena = top;
}
