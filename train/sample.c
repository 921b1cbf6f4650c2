#include "train/sample.h"

#include <math.h>

#include "core/philox.h"

static int32_t greedy(const float *logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (logits[v] > logits[best]) best = v;
    return (int32_t)best;
}

/* Whether token a comes before token b: likelier first, then lower id. */
static int before(const float *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(const float *logits, int32_t *heap, int64_t count, int64_t at) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) return;
        if (child + 1 < count && before(logits, heap[child + 1], heap[child])) child++;
        if (!before(logits, heap[child], heap[at])) return;
        int32_t swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

int32_t sample_token(float *logits, int32_t *order, int64_t vocab, const SampleSpec *spec, uint64_t position) {
    if (!(spec->temperature > 0.0)) return greedy(logits, vocab);
    float top = logits[greedy(logits, vocab)];
    double sum = 0.0;
    for (int64_t v = 0; v < vocab; v++) {
        logits[v] = (float)exp((double)(logits[v] - top) / spec->temperature);
        sum += (double)logits[v];
        order[v] = (int32_t)v;
    }
    uint32_t bits[4];
    random_block(spec->seed, RANDOM_SAMPLING, 0, position, bits);
    double draw = ((double)bits[0] + (double)bits[1] / 4294967296.0) / 4294967296.0;
    /* A heap gives the tokens from the likeliest on, only as many as are needed. The tokens that stay are those before top_k
     * and top_p cut; the draw is scaled to their probability, so they are walked twice: once to sum, once to choose. */
    int64_t limit = spec->top_k > 0 && spec->top_k < vocab ? spec->top_k : vocab;
    if (limit == vocab && spec->top_p >= 1.0) { /* nothing is cut: id order will do */
        double target = draw * sum, running = 0.0;
        for (int64_t v = 0; v < vocab; v++) {
            running += (double)logits[v];
            if (running > target) return (int32_t)v;
        }
        return (int32_t)(vocab - 1);
    }
    for (int64_t i = vocab / 2; i-- > 0;)
        sift_down(logits, order, vocab, i);
    int64_t kept = 0, left = vocab;
    double kept_sum = 0.0;
    while (kept < limit && (kept == 0 || kept_sum < spec->top_p * sum)) {
        int32_t token = order[0];
        order[0] = order[--left];
        order[left] = token; /* kept tokens collect at the end, likeliest last */
        sift_down(logits, order, left, 0);
        kept_sum += (double)logits[token];
        kept++;
    }
    double target = draw * kept_sum, running = 0.0;
    for (int64_t i = vocab - 1; i > vocab - kept; i--) {
        running += (double)logits[order[i]];
        if (running > target) return order[i];
    }
    return order[vocab - kept];
}
