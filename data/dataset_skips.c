/* Why bad records were left out: the first reason of each kind, and how many there are of it. Two reasons are of one kind when
 * they differ in nothing but digits (lines, bytes, the numbers of messages). */
#include <string.h>

#include "core/memory.h"
#include "data/dataset_internal.h"

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

static int same_kind(const char *a, const char *b) {
    for (;; a++, b++) {
        while (is_digit(*a))
            a++;
        while (is_digit(*b))
            b++;
        if (*a != *b) return 0;
        if (*a == 0) return 1;
    }
}

void skips_add(SkipKinds *skips, char *reason) {
    for (int k = 0; k < skips->count; k++) {
        if (!same_kind(skips->reasons[k], reason)) continue;
        skips->times[k]++;
        memory_free(reason);
        return;
    }
    if (skips->count == SKIP_KINDS) {
        skips->others++;
        memory_free(reason);
        return;
    }
    skips->times[skips->count] = 1;
    skips->reasons[skips->count++] = reason;
}

char *skips_print(const SkipKinds *skips) {
    Text text = {0};
    for (int k = 0; k < skips->count; k++) {
        text_adds(&text, k > 0 ? "\n" : "");
        for (const char *c = skips->reasons[k]; *c != 0; c++) /* one line each */
            text_add(&text, *c == '\n' ? " " : c, 1);
        if (skips->times[k] > 1) text_addf(&text, " (and %lld more like it)", (long long)skips->times[k] - 1);
    }
    if (skips->others > 0) text_addf(&text, "\nand %lld more, for other reasons", (long long)skips->others);
    return text.data;
}

void skips_free(SkipKinds *skips) {
    for (int k = 0; k < skips->count; k++)
        memory_free(skips->reasons[k]);
    *skips = (SkipKinds){0};
}
