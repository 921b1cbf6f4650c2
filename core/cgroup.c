#include "core/cgroup.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 4096

typedef struct Level {
    char path[PATH_BYTES]; /* folder of a group, under the controller's mount */
    size_t root;           /* length of the mount's own path */
} Level;

/* The text after `key` (which may be empty) in the first line of folder/name that starts with it; 0 when there is none. */
static int read_value(const char *folder, const char *name, const char *key, char out[256]) {
    char path[PATH_BYTES + 64];
    int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof path) return 0;
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    char line[256];
    size_t length = strlen(key);
    int found = 0;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = strncmp(line, key, length) == 0;
    fclose(file);
    if (found) memmove(out, line + length, strlen(line + length) + 1);
    return found;
}

/* "max" and "-1" mean no limit: 0 here. */
static unsigned long long read_number(const char *folder, const char *name, const char *key) {
    char text[256];
    if (!read_value(folder, name, key, text) || text[0] == '-') return 0;
    return strtoull(text, NULL, 10);
}

/* Whether the comma-separated list of controllers in a line of /proc/self/cgroup names this one; version 2 has no list. */
static int names_controller(const char *list, const char *controller) {
    size_t length = strlen(controller);
    while (*list != 0) {
        size_t n = strcspn(list, ",");
        if (n == length && strncmp(list, controller, n) == 0) return 1;
        list += n + (list[n] == ',');
    }
    return length == 0 && list[0] == 0;
}

/* The group of this process under a controller ("" is version 2). A container may see its own group as the mount's root
 * although /proc names the host's path, so folders that are not there are skipped by the readers. */
static int find_group(const char *controller, const char *mount, Level *level) {
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (file == NULL) return 0;
    char line[PATH_BYTES];
    int found = 0;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        char *list = strchr(line, ':');
        char *path = list == NULL ? NULL : strchr(list + 1, ':');
        if (path == NULL) continue;
        *path++ = 0;
        if (!names_controller(list + 1, controller)) continue;
        int n = snprintf(level->path, sizeof level->path, "%s%s", mount, path);
        found = n > 0 && (size_t)n < sizeof level->path;
    }
    fclose(file);
    level->root = strlen(mount);
    return found;
}

/* Up one level; 0 at the mount. */
static int parent(Level *level) {
    char *slash = strrchr(level->path, '/');
    if (slash == NULL || (size_t)(slash - level->path) < level->root) return 0;
    *slash = 0;
    return 1;
}

static double least_quota(double least, double quota, double period) {
    if (!(quota > 0.0) || !(period > 0.0)) return least;
    double processors = quota / period;
    return least == 0.0 || processors < least ? processors : least;
}

double cgroup_processors(void) {
    double least = 0.0;
    Level level;
    if (find_group("", "/sys/fs/cgroup", &level)) do {
            char text[256];
            double quota = 0.0, period = 0.0; /* "max 100000" leaves both zero */
            if (read_value(level.path, "cpu.max", "", text) && sscanf(text, "%lf %lf", &quota, &period) == 2)
                least = least_quota(least, quota, period);
        } while (parent(&level));
    if (find_group("cpu", "/sys/fs/cgroup/cpu", &level)) do {
            least = least_quota(least, (double)read_number(level.path, "cpu.cfs_quota_us", ""),
                                (double)read_number(level.path, "cpu.cfs_period_us", ""));
        } while (parent(&level));
    return least;
}

/* Lowers *least to what this level's limit leaves. Cached file pages are dropped before anything is refused. */
static void lower_memory(const char *folder, const char *limit_name, const char *used_name, const char *prefix, size_t *least) {
    unsigned long long limit = read_number(folder, limit_name, "");
    if (limit == 0) return;
    char inactive[64], active[64];
    (void)snprintf(inactive, sizeof inactive, "%sinactive_file ", prefix);
    (void)snprintf(active, sizeof active, "%sactive_file ", prefix);
    unsigned long long used = read_number(folder, used_name, "");
    unsigned long long cached = read_number(folder, "memory.stat", inactive) + read_number(folder, "memory.stat", active);
    used = used > cached ? used - cached : 0;
    unsigned long long left = limit > used ? limit - used : 0;
    if (left < *least) *least = (size_t)left;
}

size_t cgroup_memory_left(void) {
    size_t least = SIZE_MAX;
    Level level;
    if (find_group("", "/sys/fs/cgroup", &level)) do {
            lower_memory(level.path, "memory.max", "memory.current", "", &least);
        } while (parent(&level));
    if (find_group("memory", "/sys/fs/cgroup/memory", &level)) do {
            lower_memory(level.path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_", &least);
        } while (parent(&level));
    return least;
}
