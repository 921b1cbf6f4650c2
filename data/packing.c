/* Best-fit-decreasing packing in runs, and a tighter one where that leaves room.
 *
 * An epoch's sequences, in random order, are cut into runs of at least RUN_SEQUENCES sequences and RUN_WINDOWS windows'
 * worth of tokens. In a run the longest sequence goes first, each into the fullest window that still has room (E. G.
 * Coffman et al., "Approximation algorithms for bin packing", 1996). Windows are found by what is left in them: one list
 * per number of tokens left, and a two-level bitmap over the lists that are not empty. A run that could do with a window less is
 * packed again (packing_tight.c), and the better of the two counts. The windows of a run are then shuffled, so that long and
 * short sequences mix over its steps.
 */
#include "data/packing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/philox.h"
#include "data/packing_internal.h"

#define RUN_SEQUENCES 4096
#define RUN_WINDOWS 128
#define WINDOW_KEYS (UINT64_C(1) << 63) /* random numbers of windows: beside those of the sequences */
#define DRAW_KEYS (UINT64_C(1) << 62)   /* and of the sequences that a weight's fraction draws */
#define BUCKET_KEYS (UINT64_C(3) << 62) /* and of the buckets of sequences that are alike in length */
#define BUCKET_SEQUENCES 32

struct PackPlan {
    int64_t count, capacity; /* windows */
    int64_t *start;          /* count + 1, into members */
    int64_t *members;        /* sequences, each once */
    int64_t used, window;
};

typedef struct Keyed {
    uint64_t key;
    int64_t value; /* sequence, or window of the run */
} Keyed;

static int compare_keyed(const void *a, const void *b) {
    const Keyed *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->value < y->value ? -1 : x->value > y->value;
}

static uint64_t random_key(uint64_t seed, int64_t epoch, uint64_t index) {
    uint32_t block[4];
    random_block(seed, RANDOM_ORDER, (uint64_t)epoch, index, block);
    return ((uint64_t)block[0] << 32) | block[1];
}

/* The windows of one run while it is packed. */
typedef struct Run {
    int64_t window;
    const Dataset *dataset;
    Keyed *order;           /* the run's sequences; key: the length, inverted */
    int64_t *open;          /* per tokens left, 0..window: last window with that much left, -1 none */
    uint64_t *bits, *top;   /* bit r: open[r] >= 0; bit w of top: bits[w] != 0 */
    int64_t *left, *next;   /* per window of the run: tokens left; next window in the same list */
    int64_t *last, *before; /* per window: its last sequence; per sequence of the run: the one placed before it, -1 */
    int64_t windows;
} Run;

static int64_t length_of(const Dataset *d, int64_t sequence) {
    return d->start[sequence + 1] - d->start[sequence];
}

/* How many of a file's sequences an epoch has. */
static int64_t weighted_count(const DatasetFile *file) {
    int64_t total = (int64_t)floor(file->weight * (double)file->count + 0.5);
    return total == 0 && file->count > 0 ? 1 : total;
}

static void list_add(Run *run, int64_t w) {
    int64_t r = run->left[w];
    run->next[w] = run->open[r];
    run->open[r] = w;
    run->bits[r >> 6] |= UINT64_C(1) << (r & 63);
    run->top[r >> 12] |= UINT64_C(1) << ((r >> 6) & 63);
}

static int64_t list_take(Run *run, int64_t r) {
    int64_t w = run->open[r];
    run->open[r] = run->next[w];
    if (run->open[r] < 0) {
        run->bits[r >> 6] &= ~(UINT64_C(1) << (r & 63));
        if (run->bits[r >> 6] == 0) run->top[r >> 12] &= ~(UINT64_C(1) << ((r >> 6) & 63));
    }
    return w;
}

/* The least number of tokens left, at least `want`, that some window has; -1. */
static int64_t find_left(const Run *run, int64_t want) {
    int64_t word = want >> 6, tops = (run->window >> 12) + 1;
    uint64_t here = run->bits[word] >> (want & 63);
    if (here != 0) return want + __builtin_ctzll(here);
    int64_t first = word + 1;
    for (int64_t t = first >> 6; t < tops; t++) {
        uint64_t words = run->top[t];
        if (t == first >> 6) words &= ~UINT64_C(0) << (first & 63);
        if (words == 0) continue;
        word = t * 64 + __builtin_ctzll(words);
        return word * 64 + __builtin_ctzll(run->bits[word]);
    }
    return -1;
}

static void place(Run *run, int64_t item, int64_t length) {
    int64_t r = find_left(run, length), w;
    if (r < 0) {
        w = run->windows++;
        run->left[w] = run->window;
        run->last[w] = -1;
    } else {
        w = list_take(run, r);
    }
    run->before[item] = run->last[w];
    run->last[w] = item;
    run->left[w] -= length;
    list_add(run, w);
}

static void clear_lists(Run *run) {
    for (int64_t w = 0; w < run->windows; w++) {
        int64_t r = run->left[w];
        run->open[r] = -1;
        run->bits[r >> 6] = 0;
        run->top[r >> 12] = 0;
    }
}

static void add_window(PackPlan *plan) {
    if (plan->count == plan->capacity) {
        plan->capacity = plan->capacity * 2 + 64;
        plan->start = memory_resize(plan->start, (size_t)(plan->capacity + 1) * sizeof *plan->start);
    }
    plan->start[plan->count + 1] = plan->start[plan->count];
    plan->count++;
}

static void add_member(PackPlan *plan, int64_t sequence) {
    plan->members[plan->start[plan->count]++] = sequence;
}

/* The run's windows in their order: shuffled, or by the first sequence in each. */
static Keyed *order_windows(const Run *run, const PackPlan *plan, const Keyed *items, uint64_t seed, int64_t epoch,
                            int shuffle) {
    Keyed *windows = memory_alloc((size_t)run->windows * sizeof *windows);
    for (int64_t w = 0; w < run->windows; w++) {
        uint64_t key = random_key(seed, epoch, WINDOW_KEYS | (uint64_t)(plan->count + w));
        if (!shuffle) {
            int64_t least = INT64_MAX;
            for (int64_t i = run->last[w]; i >= 0; i = run->before[i])
                least = items[i].value < least ? items[i].value : least;
            key = (uint64_t)least;
        }
        windows[w] = (Keyed){key, w};
    }
    qsort(windows, (size_t)run->windows, sizeof *windows, compare_keyed);
    return windows;
}

/* Replaces the run's windows by fewer where there is such a packing. */
static void pack_again(Run *run, const Keyed *items, int64_t count) {
    int64_t *lengths = memory_alloc((size_t)count * sizeof *lengths), *last = memory_alloc((size_t)count * sizeof *last),
            *before = memory_alloc((size_t)count * sizeof *before), tokens = 0;
    for (int64_t i = 0; i < count; i++)
        tokens += lengths[i] = length_of(run->dataset, items[i].value);
    if ((tokens + run->window - 1) / run->window < run->windows) {
        int64_t windows = pack_tight(lengths, count, run->window, run->windows, last, before);
        if (windows < run->windows) {
            run->windows = windows;
            memcpy(run->last, last, (size_t)windows * sizeof *last);
            memcpy(run->before, before, (size_t)count * sizeof *before);
        }
    }
    memory_free(lengths);
    memory_free(last);
    memory_free(before);
}

/* Packs `count` sequences (their order is lost) and appends the windows to the plan. */
static void pack_run(Run *run, PackPlan *plan, Keyed *items, int64_t count, uint64_t seed, int64_t epoch, int shuffle) {
    for (int64_t i = 0; i < count; i++)
        items[i].key = (uint64_t)(run->window - length_of(run->dataset, items[i].value));
    qsort(items, (size_t)count, sizeof *items, compare_keyed);
    run->windows = 0;
    for (int64_t i = 0; i < count; i++)
        place(run, i, length_of(run->dataset, items[i].value));
    clear_lists(run);
    pack_again(run, items, count);
    Keyed *windows = order_windows(run, plan, items, seed, epoch, shuffle);
    for (int64_t w = 0; w < run->windows; w++) {
        add_window(plan);
        for (int64_t i = run->last[windows[w].value]; i >= 0; i = run->before[i])
            add_member(plan, items[i].value);
    }
    memory_free(windows);
}

/* How many of the sequences from `first` on make the next run. What would be left over as less than a run joins it. */
static int64_t run_length(const Dataset *d, const Keyed *order, int64_t first, int64_t count, int64_t window,
                          int64_t tokens_left) {
    int64_t tokens = 0, i = first;
    while (i < count && (i - first < RUN_SEQUENCES || tokens / window < RUN_WINDOWS))
        tokens += length_of(d, order[i++].value);
    if (count - i < RUN_SEQUENCES || (tokens_left - tokens) / window < RUN_WINDOWS) i = count;
    return i - first;
}

static void run_free(Run *run) {
    memory_free(run->open);
    memory_free(run->bits);
    memory_free(run->top);
    memory_free(run->left);
    memory_free(run->next);
    memory_free(run->last);
    memory_free(run->before);
}

static void pack_best_fit(PackPlan *plan, const Dataset *d, Keyed *order, int64_t items, uint64_t seed, int64_t epoch,
                          int shuffle) {
    Run run = {.window = plan->window, .dataset = d};
    size_t lists = (size_t)plan->window + 1, count = (size_t)items;
    run.open = memory_alloc(lists * sizeof *run.open);
    memset(run.open, 0xFF, lists * sizeof *run.open);
    run.bits = memory_calloc(lists / 64 + 1, sizeof *run.bits);
    run.top = memory_calloc(lists / 4096 + 1, sizeof *run.top);
    run.left = memory_alloc(count * sizeof *run.left);
    run.next = memory_alloc(count * sizeof *run.next);
    run.last = memory_alloc(count * sizeof *run.last);
    run.before = memory_alloc(count * sizeof *run.before);
    int64_t tokens_left = plan->used;
    for (int64_t first = 0; first < items;) {
        int64_t length = run_length(d, order, first, items, plan->window, tokens_left);
        for (int64_t i = first; i < first + length; i++)
            tokens_left -= length_of(d, order[i].value);
        pack_run(&run, plan, order + first, length, seed, epoch, shuffle);
        first += length;
    }
    run_free(&run);
}

/* Appends what an epoch has of a file: floor(weight) times all its sequences, and once more those with the least random
 * numbers, so that the total is weight * count, rounded, and at least 1. Without weights: every sequence once, in order. */
static void list_file(Keyed *order, int64_t *items, const DatasetFile *file, int64_t first, uint64_t seed, int64_t epoch) {
    int64_t whole = (int64_t)floor(file->weight), total = weighted_count(file), drawn = total - whole * file->count;
    for (int64_t copy = 0; copy < whole; copy++)
        for (int64_t i = 0; i < file->count; i++)
            order[(*items)++].value = first + i;
    if (drawn <= 0) return;
    Keyed *keyed = memory_alloc((size_t)file->count * sizeof *keyed);
    for (int64_t i = 0; i < file->count; i++)
        keyed[i] = (Keyed){random_key(seed, epoch, DRAW_KEYS | (uint64_t)(first + i)), first + i};
    qsort(keyed, (size_t)file->count, sizeof *keyed, compare_keyed);
    for (int64_t i = 0; i < drawn; i++)
        order[(*items)++].value = keyed[i].value;
    memory_free(keyed);
}

/* The sequences of an epoch, by files; keys are not set. */
static Keyed *list_epoch(const Dataset *d, uint64_t seed, int64_t epoch, int64_t *items) {
    const DatasetFile whole = {.weight = 1, .count = d->count}; /* of a data set that names no files */
    const DatasetFile *files = d->file_count > 0 ? d->files : &whole;
    int64_t total = 0, first = 0, count = d->file_count > 0 ? d->file_count : 1;
    for (int64_t f = 0; f < count; f++)
        total += weighted_count(&files[f]);
    Keyed *order = memory_alloc((size_t)total * sizeof *order);
    for (int64_t f = 0; f < count; first += files[f++].count)
        list_file(order, items, &files[f], first, seed, epoch);
    return order;
}

/* Sorts each run of sequences by length, cuts it into buckets and shuffles the buckets: neighbours have much the same length. */
static void bucket_lengths(const Dataset *d, Keyed *order, int64_t items, uint64_t seed, int64_t epoch) {
    for (int64_t first = 0; first < items; first += RUN_SEQUENCES) {
        Keyed *run = order + first;
        int64_t count = items - first < RUN_SEQUENCES ? items - first : RUN_SEQUENCES;
        for (int64_t i = 0; i < count; i++)
            run[i].key = (uint64_t)length_of(d, run[i].value);
        qsort(run, (size_t)count, sizeof *run, compare_keyed);
        for (int64_t i = 0; i < count; i++)
            run[i].key = random_key(seed, epoch, BUCKET_KEYS | (uint64_t)((first + i) / BUCKET_SEQUENCES));
        qsort(run, (size_t)count, sizeof *run, compare_keyed);
    }
}

Status pack_epoch(PackPlan **out, const Dataset *dataset, Packing packing, int64_t window, uint64_t seed, int64_t epoch,
                  int shuffle, Error *err) {
    *out = NULL;
    if (dataset->count == 0) FAIL("there are no sequences to pack");
    for (int64_t i = 0; i < dataset->count; i++) {
        if (length_of(dataset, i) > window) {
            FAIL(
                "sequence %lld has %lld tokens, more than the window of %lld; lower data.max_length or raise "
                "train.micro_batch_tokens",
                (long long)i, (long long)length_of(dataset, i), (long long)window);
        }
    }
    int64_t items = 0;
    Keyed *order = list_epoch(dataset, seed, epoch, &items);
    PackPlan *plan = memory_calloc(1, sizeof *plan);
    for (int64_t i = 0; i < items; i++) {
        order[i].key = shuffle ? random_key(seed, epoch, (uint64_t)i) : (uint64_t)i;
        plan->used += length_of(dataset, order[i].value);
    }
    if (shuffle) qsort(order, (size_t)items, sizeof *order, compare_keyed);
    plan->window = window;
    plan->members = memory_alloc((size_t)items * sizeof *plan->members);
    plan->start = memory_calloc(1, sizeof *plan->start);
    if (packing == PACKING_BEST_FIT) {
        pack_best_fit(plan, dataset, order, items, seed, epoch, shuffle);
    } else {
        if (shuffle) bucket_lengths(dataset, order, items, seed, epoch);
        for (int64_t i = 0; i < items; i++) {
            add_window(plan);
            add_member(plan, order[i].value);
        }
    }
    memory_free(order);
    *out = plan;
    return OK;
}

void pack_free(PackPlan *plan) {
    if (plan == NULL) return;
    memory_free(plan->start);
    memory_free(plan->members);
    memory_free(plan);
}

int64_t pack_count(const PackPlan *plan) {
    return plan->count;
}

void pack_get(const PackPlan *plan, int64_t index, const int64_t **sequences, int64_t *count) {
    *sequences = plan->members + plan->start[index];
    *count = plan->start[index + 1] - plan->start[index];
}

double pack_fill(const PackPlan *plan) {
    return (double)plan->used / ((double)plan->count * (double)plan->window);
}
