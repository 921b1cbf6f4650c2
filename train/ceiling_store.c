#include "train/ceiling_store.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"

#define FILE_LIMIT ((size_t)1 << 16)
#define RATE_MAX 1e16 /* more is no processor's, and the line is wrong */

static void processor_name(char *out, size_t capacity) {
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "re");
    (void)snprintf(out, capacity, "unknown processor");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        colon[strcspn(colon, "\n")] = 0;
        (void)snprintf(out, capacity, "%s", colon + 1 + (colon[1] == ' '));
        break;
    }
    if (file != NULL) (void)fclose(file);
}

/* Copies the lines of others to `rest`; returns this key's rate, or NaN. */
static double find(const char *text, const char *key, Text *rest) {
    double found = NAN;
    for (const char *line = text; *line != 0;) {
        size_t length = strcspn(line, "\n");
        char *end;
        double rate = strtod(line, &end);
        size_t number = (size_t)(end - line);
        int good = end != line && number < length && *end == ' ' && rate > 0.0 && rate < RATE_MAX;
        if (good && strlen(key) == length - number - 1 && strncmp(end + 1, key, strlen(key)) == 0)
            found = rate;
        else if (good)
            text_addf(rest, "%.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
    return found;
}

double ceiling_best(const char *variant, const char *type, int threads, double measured) {
    char *path = user_cache_path("ceilings"), name[256], key[384], *text = NULL;
    size_t length;
    Text rest = {0};
    if (path == NULL) return measured;
    processor_name(name, sizeof name);
    (void)snprintf(key, sizeof key, "%s %s %d %s", variant, type, threads, name);
    double kept = NAN;
    if (file_read(path, FILE_LIMIT, &text, &length, NULL) == OK && strlen(text) == length) kept = find(text, key, &rest);
    int better = isfinite(measured) && measured > 0.0 && !(measured <= kept);
    if (better) {
        char *slash = strrchr(path, '/');
        text_addf(&rest, "%.6g %s\n", measured, key);
        *slash = 0;
        Status made = folder_create(path, NULL);
        *slash = '/';
        if (made == OK) (void)file_write_atomic(path, rest.data, rest.length, NULL);
    }
    text_free(&rest);
    memory_free(text);
    memory_free(path);
    return better ? measured : isfinite(kept) ? kept : measured;
}
