/* Who runs next. EMU_SCHED: "seq" (default), "rev", "rand:SEED" (anyone; blocks shuffled too) or "prio:SEED" (random
 * priorities of warps and lanes: some warps run far ahead of others, which finds what uniform chance does not). */
#include "tests/cuda_emu/emulator.h"

#include <cstdlib>
#include <utility>

namespace emu {
static int rq[MAX_THREADS], rq_head, rq_n;    // FIFO ring, or a bag for rand
static uint64_t prio_ready[MAX_THREADS / 64]; /* PRIO: ready threads by rank */
static uint16_t rank_of[MAX_THREADS], by_rank[MAX_THREADS];
int policy = -1;
static uint64_t rng_state;
uint64_t rng() {
    rng_state ^= rng_state << 13, rng_state ^= rng_state >> 7, rng_state ^= rng_state << 17;
    return rng_state;
}
void read_policy() {
    const char *e = getenv("EMU_SCHED");
    policy = SEQ;
    if (e && !strcmp(e, "rev")) policy = REV;
    if (e && !strncmp(e, "rand", 4)) policy = RAND;
    if (e && !strncmp(e, "prio", 4)) policy = PRIO;
    rng_state = 0x9E3779B97F4A7C15ull * (e && strlen(e) > 5 ? strtoull(e + 5, 0, 10) + 1 : 1);
}
static void shuffle(uint16_t *v, int n) {
    for (int i = n - 1; i > 0; i--)
        std::swap(v[i], v[(rng() >> 33) % (uint64_t)(i + 1)]);
}
void new_ranks(int n) { /* warps in random order, and the lanes of each in random order */
    uint16_t w[MAX_THREADS / 32], l[32];
    int nw = (n + 31) / 32, r = 0;
    for (int i = 0; i < nw; i++)
        w[i] = (uint16_t)i;
    shuffle(w, nw);
    for (int i = 0; i < nw; i++) {
        for (int k = 0; k < 32; k++)
            l[k] = (uint16_t)k;
        shuffle(l, 32);
        for (int k = 0; k < 32; k++)
            if (w[i] * 32 + l[k] < n) by_rank[r] = (uint16_t)(w[i] * 32 + l[k]), rank_of[by_rank[r]] = (uint16_t)r, r++;
    }
}
void make_ready(int i) {
    if (policy == PRIO) {
        prio_ready[rank_of[i] / 64] |= 1ull << (rank_of[i] & 63), rq_n++;
        return;
    }
    rq[(rq_head + rq_n++) & (MAX_THREADS - 1)] = i;
}
int pick() {
    if (!rq_n) return -1;
    if (policy == PRIO) {
        int k = 0;
        while (!prio_ready[k])
            k++;
        int b = __builtin_ctzll(prio_ready[k]);
        prio_ready[k] &= prio_ready[k] - 1, rq_n--;
        return by_rank[k * 64 + b];
    }
    if (policy == RAND) {
        int k = (rq_head + (int)(((rng() >> 32) * (uint64_t)rq_n) >> 32)) & (MAX_THREADS - 1);
        int r = rq[k];
        rq[k] = rq[rq_head];
        rq_head = (rq_head + 1) & (MAX_THREADS - 1), rq_n--;
        return r;
    }
    int r = rq[rq_head];
    rq_head = (rq_head + 1) & (MAX_THREADS - 1), rq_n--;
    return r;
}

void clear_ready(int n) {
    rq_head = rq_n = 0;
    if (policy == PRIO) memset(prio_ready, 0, sizeof prio_ready), new_ranks(n);
}
} /* namespace emu */
