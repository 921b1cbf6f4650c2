/* Windows filled one after another, each as full as the sequences that are left allow.
 *
 * The longest sequence goes first; which others go with it is a subset-sum problem, solved exactly by a bitmap of the sums that
 * can be reached (R. Bellman, "Dynamic Programming", 1957), a word of 64 sums at a time. Lengths enter in decreasing order, and a
 * sum keeps the first way in which it was reached, so that long sequences are used up before short ones. The minimum bin slack
 * heuristic of J. N. D. Gupta and J. C. Ho, "A new heuristic algorithm for the one-dimensional bin-packing problem", 1999, with
 * its search replaced. Tried where best fit decreasing leaves a whole window of room. */
#include <string.h>

#include "core/memory.h"
#include "data/packing_internal.h"

#define WORK_LIMIT ((int64_t)1 << 31) /* words of bitmaps in one call: a second or so */

/* Sequences of one length. */
typedef struct Class {
    int64_t length, first, left; /* items first to first + left - 1 are not placed */
} Class;

/* `copies` items of a class that are taken together. */
typedef struct Part {
    int64_t class, copies;
} Part;

typedef struct Tight {
    Class *classes;
    int64_t class_count, longest; /* the first class that is not empty */
    int64_t room;                 /* of the window beside its longest item */
    uint64_t *reached;            /* bit s: some parts sum to s */
    int32_t *from;                /* per sum: the part that reached it */
    Part *parts;
    int32_t part_count;
    int64_t work;
    int64_t *last, *before, windows;
} Tight;

static void make_classes(Tight *t, const int64_t *lengths, int64_t count) {
    t->classes = memory_alloc((size_t)count * sizeof *t->classes);
    for (int64_t i = 0; i < count; i++) {
        if (i == 0 || lengths[i] != lengths[i - 1]) t->classes[t->class_count++] = (Class){lengths[i], i, 0};
        t->classes[t->class_count - 1].left++;
    }
}

/* The first class whose items are at most `length` long. */
static int64_t find_class(const Tight *t, int64_t length) {
    int64_t low = t->longest, high = t->class_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (t->classes[middle].length > length)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Adds the sums that become reachable with `part`, which adds `length`. From the highest word down: a part counts once. */
static void reach(Tight *t, int32_t part, int64_t length) {
    int64_t words = t->room / 64 + 1, skip = length / 64, bit = length % 64;
    for (int64_t w = words - 1; w >= skip; w--) {
        uint64_t sums = t->reached[w - skip] << bit;
        if (bit > 0 && w > skip) sums |= t->reached[w - skip - 1] >> (64 - bit);
        sums &= ~t->reached[w];
        t->reached[w] |= sums;
        for (; sums != 0; sums &= sums - 1)
            t->from[w * 64 + __builtin_ctzll(sums)] = part;
    }
    t->work += words - skip;
}

static int is_reached(const Tight *t, int64_t sum) {
    return t->reached[sum / 64] >> (sum % 64) & 1;
}

/* All multiples 1, 2, 4, ... and the rest: together any number of copies. Returns whether the window can be filled to the last token. */
static int reach_class(Tight *t, int64_t class) {
    int64_t length = t->classes[class].length, copies = t->room / length;
    if (copies > t->classes[class].left) copies = t->classes[class].left;
    for (int64_t some = 1; copies > 0 && !is_reached(t, t->room); copies -= some, some *= 2) {
        if (some > copies) some = copies;
        t->parts[t->part_count] = (Part){class, some};
        reach(t, t->part_count++, length * some);
    }
    return is_reached(t, t->room);
}

static void take(Tight *t, int64_t class, int64_t copies) {
    Class *c = &t->classes[class];
    for (; copies > 0; copies--, c->first++, c->left--) {
        t->before[c->first] = t->last[t->windows];
        t->last[t->windows] = c->first;
    }
}

/* Fills one window; returns the tokens in it. */
static int64_t fill_window(Tight *t, int64_t window) {
    t->last[t->windows] = -1;
    t->room = window - t->classes[t->longest].length;
    take(t, t->longest, 1);
    t->part_count = 0;
    memset(t->reached, 0, (size_t)(t->room / 64 + 1) * sizeof *t->reached);
    t->reached[0] = 1;
    for (int64_t c = find_class(t, t->room); c < t->class_count; c++)
        if (reach_class(t, c)) break;
    int64_t sum = t->room;
    while (!is_reached(t, sum))
        sum--;
    int64_t used = window - t->room + sum;
    while (sum > 0) {
        Part part = t->parts[t->from[sum]];
        take(t, part.class, part.copies);
        sum -= part.copies * t->classes[part.class].length;
    }
    t->windows++;
    while (t->longest < t->class_count && t->classes[t->longest].left == 0)
        t->longest++;
    return used;
}

int64_t pack_tight(const int64_t *lengths, int64_t count, int64_t window, int64_t at_most, int64_t *last, int64_t *before) {
    Tight t = {.last = last, .before = before};
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; i++)
        tokens += lengths[i];
    make_classes(&t, lengths, count);
    t.reached = memory_alloc((size_t)(window / 64 + 1) * sizeof *t.reached);
    t.from = memory_alloc((size_t)(window / 64 + 1) * 64 * sizeof *t.from);
    t.parts = memory_alloc((size_t)count * sizeof *t.parts); /* a class has at most as many parts as items */
    while (tokens > 0 && t.windows + (tokens + window - 1) / window < at_most && t.work < WORK_LIMIT)
        tokens -= fill_window(&t, window);
    memory_free(t.classes);
    memory_free(t.reached);
    memory_free(t.from);
    memory_free(t.parts);
    return tokens == 0 ? t.windows : at_most;
}
