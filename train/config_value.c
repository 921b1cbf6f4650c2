/* Storing and printing one value of the table. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/config_table.h"

#define EXACT_LIMIT 9007199254740992.0 /* 2^53: from here on a double no longer tells neighbouring integers apart */

static void *field(const Config *config, size_t offset) {
    return (char *)(uintptr_t)config + offset;
}

/* The value as the user wrote it, shortened. */
static const char *describe(const cJSON *value, char *out, size_t capacity) {
    char *text = cJSON_PrintUnformatted(value);
    (void)snprintf(out, capacity, strlen(text == NULL ? "" : text) > 60 ? "%.60s…" : "%s", text == NULL ? "?" : text);
    cJSON_free(text);
    return out;
}

static int is_word(const cJSON *value, const char *word) {
    return cJSON_IsString(value) && strcmp(value->valuestring, word) == 0;
}

static int list_has(const char *const *list, const char *word) {
    for (; list != NULL && *list != NULL; list++)
        if (strcmp(*list, word) == 0) return 1;
    return 0;
}

static Status fail_pending(const ConfigKey *key, const char *where, const char *value, Error *err) {
    FAIL_USAGE("%s: %s: %s is not supported yet: %s", where, key->path, value, key->pending_reason);
}

/* ---- numbers --------------------------------------------------------------------------------------------------------- */

static Status check_range(const ConfigKey *key, double value, const char *where, Error *err) {
    int below = key->above_minimum ? !(value > key->minimum) : !(value >= key->minimum);
    int above = key->below_maximum ? !(value < key->maximum) : !(value <= key->maximum);
    if (!below && !above) return OK;
    FAIL_USAGE("%s: %s: want a value %s %.17g and %s %.17g, got %.17g", where, key->path,
               key->above_minimum ? "above" : "of at least", key->minimum, key->below_maximum ? "below" : "at most",
               key->maximum, value);
}

static Status store_integer(const ConfigKey *key, const cJSON *value, int64_t *out, const char *where, Error *err) {
    char got[80];
    if (key->automatic && is_word(value, "auto")) {
        *out = CONFIG_AUTO;
        return OK;
    }
    const char *want = key->automatic ? "a whole number or \"auto\"" : "a whole number";
    if (!cJSON_IsNumber(value) || value->valuedouble != floor(value->valuedouble))
        FAIL_USAGE("%s: %s: want %s, got %s", where, key->path, want, describe(value, got, sizeof got));
    if (!(fabs(value->valuedouble) < EXACT_LIMIT))
        FAIL_USAGE("%s: %s: want %s whose size is below 2^53, so that no digit is lost, got %s", where, key->path, want,
                   describe(value, got, sizeof got));
    TRY(check_range(key, value->valuedouble, where, err));
    *out = (int64_t)value->valuedouble;
    return OK;
}

static Status store_number(const ConfigKey *key, const cJSON *value, double *out, const char *where, Error *err) {
    char got[80];
    if (!cJSON_IsNumber(value)) FAIL_USAGE("%s: %s: want a number, got %s", where, key->path, describe(value, got, sizeof got));
    TRY(check_range(key, value->valuedouble, where, err));
    *out = value->valuedouble;
    return OK;
}

static Status store_bool(const ConfigKey *key, const cJSON *value, int *out, const char *where, Error *err) {
    char got[80];
    if (!cJSON_IsBool(value))
        FAIL_USAGE("%s: %s: want true or false, got %s", where, key->path, describe(value, got, sizeof got));
    if (cJSON_IsTrue(value) && list_has(key->pending, "true")) return fail_pending(key, where, "true", err);
    *out = cJSON_IsTrue(value) ? 1 : 0;
    return OK;
}

/* ---- text ------------------------------------------------------------------------------------------------------------ */

static Status check_choice(const ConfigKey *key, const char *word, const char *where, Error *err) {
    const char *names[64];
    size_t count = 0;
    if (key->automatic) names[count++] = "auto";
    for (const char *const *p = key->choices; *p != NULL && count < 64; p++)
        names[count++] = *p;
    if (list_has(key->pending, word)) return fail_pending(key, where, word, err);
    Text known = {0};
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], word) == 0) {
            text_free(&known);
            return OK;
        }
        if (list_has(key->pending, names[i])) continue;
        text_addf(&known, "%s%s", known.length == 0 ? "" : ", ", names[i]);
    }
    const char *near = nearest_word(word, names, count);
    if (count == 1)
        error_set(err, ERR_USAGE, "%s: %s: \"%.60s\" is not supported yet; want %s", where, key->path, word, names[0]);
    else
        error_set(err, ERR_USAGE, "%s: %s: \"%.60s\" is not one of %s%s%s%s", where, key->path, word, known.data,
                  near == NULL ? "" : "; did you mean ", near == NULL ? "" : near, near == NULL ? "" : "?");
    text_free(&known);
    return ERR_USAGE;
}

static Status store_text(const ConfigKey *key, const cJSON *value, char **out, const char *where, Error *err) {
    char got[80];
    if (key->nullable && cJSON_IsNull(value)) return OK;
    if (!cJSON_IsString(value))
        FAIL_USAGE("%s: %s: want a string%s, got %s", where, key->path, key->nullable ? " or null" : "",
                   describe(value, got, sizeof got));
    if (value->valuestring[0] == 0)
        FAIL_USAGE("%s: %s: want a string that is not empty%s", where, key->path, key->nullable ? ", or null" : "");
    if (key->kind == KEY_CHOICE) TRY(check_choice(key, value->valuestring, where, err));
    *out = memory_strdup(value->valuestring);
    return OK;
}

/* ---- lists ----------------------------------------------------------------------------------------------------------- */

static Status store_name(const ConfigKey *key, const cJSON *item, char **names, int64_t *count, const char *where, Error *err) {
    char got[80];
    if (!cJSON_IsString(item))
        FAIL_USAGE("%s: %s: want a name or a list of names, got %s", where, key->path, describe(item, got, sizeof got));
    TRY(check_choice(key, item->valuestring, where, err));
    for (int64_t i = 0; i < *count; i++)
        if (strcmp(names[i], item->valuestring) == 0)
            FAIL_USAGE("%s: %s: %s is given twice", where, key->path, item->valuestring);
    if (*count == CONFIG_MAX_TARGETS) FAIL_USAGE("%s: %s: more than %d names", where, key->path, CONFIG_MAX_TARGETS);
    names[(*count)++] = memory_strdup(item->valuestring);
    return OK;
}

static Status store_names(const ConfigKey *key, const cJSON *value, char **names, int64_t *count, const char *where,
                          Error *err) {
    if (!cJSON_IsArray(value)) return store_name(key, value, names, count, where, err);
    for (const cJSON *item = value->child; item != NULL; item = item->next)
        TRY(store_name(key, item, names, count, where, err));
    if (*count == 0) FAIL_USAGE("%s: %s: want at least one name, got an empty list", where, key->path);
    for (int64_t i = 0; i<*count && * count> 1; i++)
        if (strcmp(names[i], "all-linear") == 0)
            FAIL_USAGE("%s: %s: all-linear stands alone; leave out the other names", where, key->path);
    return OK;
}

static Status store_layers(const ConfigKey *key, const cJSON *value, int64_t *layers, int64_t *count, const char *where,
                           Error *err) {
    char got[80];
    if (!cJSON_IsArray(value))
        FAIL_USAGE("%s: %s: want a list of layer numbers, got %s", where, key->path, describe(value, got, sizeof got));
    for (const cJSON *item = value->child; item != NULL; item = item->next) {
        int64_t layer;
        TRY(store_integer(key, item, &layer, where, err));
        for (int64_t i = 0; i < *count; i++)
            if (layers[i] == layer) FAIL_USAGE("%s: %s: layer %lld is given twice", where, key->path, (long long)layer);
        layers[(*count)++] = layer; /* different numbers in the key's range: at most CONFIG_MAX_LAYERS of them */
    }
    return OK;
}

static Status store_path(const ConfigKey *key, const cJSON *item, ConfigPath *paths, int64_t *count, const char *where,
                         Error *err) {
    char got[80];
    const cJSON *path = item, *weight = NULL;
    if (cJSON_IsObject(item)) {
        path = NULL;
        for (const cJSON *field = item->child; field != NULL; field = field->next) {
            const cJSON **slot = strcmp(field->string, "path") == 0     ? &path
                                 : strcmp(field->string, "weight") == 0 ? &weight
                                                                        : NULL;
            if (slot == NULL)
                FAIL_USAGE("%s: %s: want \"path\" and \"weight\", got \"%.60s\"", where, key->path, field->string);
            if (*slot != NULL) FAIL_USAGE("%s: %s: %s is given twice", where, key->path, field->string);
            *slot = field;
        }
    }
    if (path == NULL || !cJSON_IsString(path) || path->valuestring[0] == 0)
        FAIL_USAGE("%s: %s: want a path, {\"path\", \"weight\"} or a list of these, got %s", where, key->path,
                   describe(item, got, sizeof got));
    double value = 1;
    if (weight != NULL && !cJSON_IsNumber(weight))
        FAIL_USAGE("%s: %s: weight: want a number, got %s", where, key->path, describe(weight, got, sizeof got));
    if (weight != NULL) value = weight->valuedouble;
    TRY(check_range(key, value, where, err));
    for (int64_t i = 0; i < *count; i++)
        if (strcmp(paths[i].path, path->valuestring) == 0)
            FAIL_USAGE("%s: %s: %.200s is given twice; a weight makes it count more", where, key->path, path->valuestring);
    if (*count == CONFIG_MAX_PATHS)
        FAIL_USAGE("%s: %s: more than %d paths; a pattern such as \"part-*.jsonl\" names many files", where, key->path,
                   CONFIG_MAX_PATHS);
    paths[(*count)++] = (ConfigPath){memory_strdup(path->valuestring), value};
    return OK;
}

static Status store_paths(const ConfigKey *key, const cJSON *value, ConfigPath *paths, int64_t *count, const char *where,
                          Error *err) {
    if (!cJSON_IsArray(value)) return store_path(key, value, paths, count, where, err);
    for (const cJSON *item = value->child; item != NULL; item = item->next)
        TRY(store_path(key, item, paths, count, where, err));
    if (*count == 0) FAIL_USAGE("%s: %s: want at least one path, got an empty list", where, key->path);
    return OK;
}

/* ---- any key --------------------------------------------------------------------------------------------------------- */

void config_clear(Config *config, const ConfigKey *key) {
    void *at = field(config, key->offset);
    int64_t *count = field(config, key->count_offset);
    switch (key->kind) {
        case KEY_BOOL: *(int *)at = 0; break;
        case KEY_INTEGER: *(int64_t *)at = 0; break;
        case KEY_NUMBER: *(double *)at = 0.0; break;
        case KEY_STRING:
        case KEY_CHOICE:
            memory_free(*(char **)at);
            *(char **)at = NULL;
            break;
        case KEY_NAMES:
            for (int64_t i = 0; i < *count; i++) {
                memory_free(((char **)at)[i]);
                ((char **)at)[i] = NULL;
            }
            *count = 0;
            break;
        case KEY_PATHS:
            for (int64_t i = 0; i < *count; i++) {
                memory_free(((ConfigPath *)at)[i].path);
                ((ConfigPath *)at)[i] = (ConfigPath){0};
            }
            *count = 0;
            break;
        case KEY_LAYERS: *count = 0; break;
    }
}

Status config_store(Config *config, const ConfigKey *key, const cJSON *value, const char *where, Error *err) {
    config_clear(config, key);
    void *at = field(config, key->offset);
    int64_t *count = field(config, key->count_offset);
    switch (key->kind) {
        case KEY_BOOL: return store_bool(key, value, at, where, err);
        case KEY_INTEGER: return store_integer(key, value, at, where, err);
        case KEY_NUMBER: return store_number(key, value, at, where, err);
        case KEY_STRING:
        case KEY_CHOICE: return store_text(key, value, at, where, err);
        case KEY_NAMES: return store_names(key, value, at, count, where, err);
        case KEY_PATHS: return store_paths(key, value, at, count, where, err);
        case KEY_LAYERS: return store_layers(key, value, at, count, where, err);
    }
    FAIL("%s: %s: the table names a kind of key that does not exist", where, key->path);
}

/* The shortest decimal that reads back as the same double. */
static void print_number(double value, Text *out) {
    char digits[40];
    for (int precision = 1; precision <= 17; precision++) {
        (void)snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value) break;
    }
    text_adds(out, digits);
}

/* One path of weight 1 as a string, anything else as a list. */
static void print_paths(const ConfigPath *paths, int64_t count, Text *out) {
    int is_list = count != 1 || paths[0].weight != 1;
    text_adds(out, is_list ? "[" : "");
    for (int64_t i = 0; i < count; i++) {
        text_adds(out, i > 0 ? ", " : "");
        if (paths[i].weight != 1) text_adds(out, "{\"path\": ");
        text_add_json_string(out, paths[i].path, strlen(paths[i].path));
        if (paths[i].weight == 1) continue;
        text_adds(out, ", \"weight\": ");
        print_number(paths[i].weight, out);
        text_adds(out, "}");
    }
    text_adds(out, is_list ? "]" : "");
}

void config_print_paths(const Config *config, Text *out) {
    for (int64_t i = 0; i < config->data.path_count; i++) {
        const ConfigPath *path = &config->data.path[i];
        text_addf(out, "%s%s", i > 0 ? ", " : "", path->path);
        if (path->weight == 1) continue;
        text_adds(out, " (weight ");
        print_number(path->weight, out);
        text_adds(out, ")");
    }
}

void config_print_value(const Config *config, const ConfigKey *key, Text *out) {
    const void *at = field(config, key->offset);
    const int64_t *count = field(config, key->count_offset);
    const char *text;
    switch (key->kind) {
        case KEY_BOOL: text_adds(out, *(const int *)at ? "true" : "false"); break;
        case KEY_INTEGER:
            if (key->automatic && *(const int64_t *)at == CONFIG_AUTO)
                text_adds(out, "\"auto\"");
            else
                text_addf(out, "%lld", (long long)*(const int64_t *)at);
            break;
        case KEY_NUMBER: print_number(*(const double *)at, out); break;
        case KEY_STRING:
        case KEY_CHOICE:
            text = *(char *const *)at;
            if (text == NULL)
                text_adds(out, "null");
            else
                text_add_json_string(out, text, strlen(text));
            break;
        case KEY_NAMES:
            text_adds(out, "[");
            for (int64_t i = 0; i < *count; i++) {
                text = ((char *const *)at)[i];
                if (i > 0) text_adds(out, ", ");
                text_add_json_string(out, text, strlen(text));
            }
            text_adds(out, "]");
            break;
        case KEY_PATHS: print_paths(at, *count, out); break;
        case KEY_LAYERS:
            text_adds(out, "[");
            for (int64_t i = 0; i < *count; i++)
                text_addf(out, "%s%lld", i > 0 ? ", " : "", (long long)((const int64_t *)at)[i]);
            text_adds(out, "]");
            break;
    }
}
