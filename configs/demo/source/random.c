#include "world.h"

#include <stdlib.h>

static uint64_t next(Random *random) {
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int random_below(Random *random, int n) {
    return (int)(((next(random) >> 32) * (uint64_t)n) >> 32);
}

void random_order(Random *random, int *order, int n) {
    for (int i = 0; i < n; i++) {
        int j = random_below(random, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}

const char *random_of(Random *random, const char *const *list) {
    int count = 0;
    while (list[count] != NULL)
        count++;
    return list[random_below(random, count)];
}
