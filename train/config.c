#include "train/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/config_table.h"

#define CONFIG_FILE_MAX ((size_t)1 << 20)
#define WHERE_MAX 512

const char *config_source_name(const ConfigLoader *loader, const ConfigSource *source, char *out, size_t capacity) {
    if (source->override != NULL)
        (void)snprintf(out, capacity, "--set %s", source->override);
    else if (source->line > 0)
        (void)snprintf(out, capacity, "%s:%lld", loader->path, (long long)source->line);
    else
        (void)snprintf(out, capacity, "default");
    return out;
}

/* ---- unknown keys ---------------------------------------------------------------------------------------------------- */

/* What other trainers call a key. */
static const char *foreign_key(const char *leaf) {
    static const char *const names[][2] = {{"learning_rate", "train.lr"},
                                           {"lr_scheduler_type", "train.schedule"},
                                           {"lr_scheduler", "train.schedule"},
                                           {"warmup_ratio", "train.warmup"},
                                           {"warmup_steps", "train.warmup"},
                                           {"num_train_epochs", "train.epochs"},
                                           {"num_epochs", "train.epochs"},
                                           {"max_steps", "train.steps"},
                                           {"batch_size", "train.micro_batch_tokens"},
                                           {"save_steps", "train.save_every"},
                                           {"micro_batch_size", "train.micro_batch_tokens"},
                                           {"eval_steps", "train.eval_every"},
                                           {"r", "lora.rank"},
                                           {"lora_r", "lora.rank"},
                                           {"lora_alpha", "lora.alpha"},
                                           {"lora_dropout", "lora.dropout"},
                                           {"base_model", "model.path"},
                                           {"model_name_or_path", "model.path"},
                                           {"max_seq_length", "data.max_length"},
                                           {"sequence_len", "data.max_length"},
                                           {"output_dir", "output.path"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(leaf, names[i][0]) == 0) return names[i][1];
    return NULL;
}

/* The known key that was probably meant by `path`, or NULL: the same name in another section, then another trainer's word for
 * it, then the nearest name in the same section, then the nearest of all. */
static const char *nearest_key(const char *path) {
    const char *names[CONFIG_KEYS_MAX + CONFIG_SECTIONS_MAX];
    int indices[CONFIG_KEYS_MAX];
    size_t count = 0;
    const char *leaf = config_leaf(path);
    size_t section = config_section_length(path);
    for (int i = 0; i < config_key_count; i++)
        if (strcmp(config_leaf(config_keys[i].path), leaf) == 0) return config_keys[i].path;
    if (foreign_key(leaf) != NULL) return foreign_key(leaf);
    for (int i = 0; i < config_key_count; i++) {
        const char *candidate = config_keys[i].path;
        if (config_section_length(candidate) != section || strncmp(candidate, path, section) != 0) continue;
        names[count] = config_leaf(candidate);
        indices[count++] = i;
    }
    if (section > 0) {
        const char *near = nearest_word(leaf, names, count);
        for (size_t i = 0; near != NULL && i < count; i++)
            if (names[i] == near) return config_keys[indices[i]].path;
    }
    count = 0;
    for (int i = 0; i < config_key_count; i++)
        names[count++] = config_keys[i].path;
    for (int i = 0; i < config_section_count; i++)
        names[count++] = config_sections[i].name;
    const char *near = nearest_word(path, names, count);
    if (near != NULL || section > 0) return near;
    for (size_t i = 0; i < (size_t)config_key_count; i++)
        names[i] = config_leaf(config_keys[i].path);
    near = nearest_word(path, names, (size_t)config_key_count);
    for (int i = 0; near != NULL && i < config_key_count; i++)
        if (config_leaf(config_keys[i].path) == near) return config_keys[i].path;
    return NULL;
}

static Status fail_unknown(const char *where, const char *path, Error *err) {
    const char *near = nearest_key(path);
    if (near != NULL) FAIL_USAGE("%s: %.200s is not a key; did you mean %s?", where, path, near);
    size_t section = config_section_length(path);
    Text known = {0};
    for (int i = 0; i < config_key_count; i++) {
        const char *candidate = config_keys[i].path;
        if (config_section_length(candidate) == section && strncmp(candidate, path, section) == 0)
            text_addf(&known, "%s%s", known.length > 0 ? ", " : "", candidate);
    }
    for (int i = 0; section == 0 && i < config_section_count; i++)
        text_addf(&known, ", %s", config_sections[i].name);
    (void)error_set(err, ERR_USAGE, "%s: %.200s is not a key; the keys there are %s", where, path,
                    known.length > 0 ? known.data : "none");
    text_free(&known);
    return ERR_USAGE;
}

/* ---- walking parsed JSON --------------------------------------------------------------------------------------------- */

static ConfigSource current_source(ConfigLoader *loader) {
    ConfigSource source = {.override = loader->override};
    if (loader->override == NULL && loader->line_next < loader->line_count) source.line = loader->lines[loader->line_next++];
    return source;
}

/* Keys of the objects in a value: no deeper than config_scan let the text be. */
static int64_t keys_inside(const cJSON *value) {
    int64_t count = 0;
    for (const cJSON *item = value->child; item != NULL; item = item->next)
        count += (item->string != NULL) + keys_inside(item);
    return count;
}

static Status apply_key(ConfigLoader *loader, int index, const cJSON *value, ConfigSource source, Error *err) {
    char where[WHERE_MAX];
    config_source_name(loader, &source, where, sizeof where);
    ConfigSource *known = &loader->source[index];
    if (source.line > 0 && known->line > 0)
        FAIL_USAGE("%s: %s is given twice, on lines %lld and %lld", where, config_keys[index].path, (long long)known->line,
                   (long long)source.line);
    *known = source;
    if (loader->override == NULL) loader->line_next += keys_inside(value); /* their lines stand in the list as well */
    return config_store(loader->config, &config_keys[index], value, where, err);
}

static Status apply_section(ConfigLoader *loader, const char *section, const cJSON *object, Error *err) {
    for (const cJSON *item = object->child; item != NULL; item = item->next) {
        char path[256], where[WHERE_MAX];
        ConfigSource source = current_source(loader);
        (void)snprintf(path, sizeof path, "%s.%s", section, item->string);
        int index = config_key_find(path);
        if (index < 0) return fail_unknown(config_source_name(loader, &source, where, sizeof where), path, err);
        TRY(apply_key(loader, index, item, source, err));
    }
    return OK;
}

static int section_find(const char *name) {
    for (int i = 0; i < config_section_count; i++)
        if (strcmp(config_sections[i].name, name) == 0) return i;
    return -1;
}

static Status apply_section_value(ConfigLoader *loader, int section, const cJSON *value, ConfigSource source, Error *err) {
    char where[WHERE_MAX];
    const char *name = config_sections[section].name;
    config_source_name(loader, &source, where, sizeof where);
    if (!cJSON_IsObject(value)) FAIL_USAGE("%s: %s: want an object with the keys of this section", where, name);
    if (source.line > 0) {
        if (loader->section_line[section] > 0)
            FAIL_USAGE("%s: %s is given twice, on lines %lld and %lld", where, name, (long long)loader->section_line[section],
                       (long long)source.line);
        loader->section_line[section] = source.line;
    }
    return apply_section(loader, name, value, err);
}

static Status apply_file_value(ConfigLoader *loader, const cJSON *root, Error *err) {
    for (const cJSON *item = root->child; item != NULL; item = item->next) {
        char where[WHERE_MAX];
        ConfigSource source = current_source(loader);
        int section = section_find(item->string);
        if (section >= 0) {
            TRY(apply_section_value(loader, section, item, source, err));
            continue;
        }
        int index = strchr(item->string, '.') == NULL ? config_key_find(item->string) : -1;
        if (index < 0 && config_key_find(item->string) >= 0)
            FAIL_USAGE("%s: write %s as an object inside the section; dotted keys are for --set",
                       config_source_name(loader, &source, where, sizeof where), item->string);
        if (index < 0) return fail_unknown(config_source_name(loader, &source, where, sizeof where), item->string, err);
        TRY(apply_key(loader, index, item, source, err));
    }
    return OK;
}

/* ---- the file -------------------------------------------------------------------------------------------------------- */

static Status fail_syntax(const char *path, const char *text, const char *at, Error *err) {
    long long line = 1;
    for (const char *p = text; p < at; p++)
        line += *p == '\n';
    int shown = 0;
    while (shown < 30 && at[shown] != 0 && at[shown] != '\n')
        shown++;
    if (shown == 0) FAIL_USAGE("%s:%lld: not valid JSON: the line or the file ends too early, or lacks a comma", path, line);
    FAIL_USAGE("%s:%lld: not valid JSON at `%.*s`; look for a missing or a superfluous comma, quote or bracket", path, line,
               shown, at);
}

/* text: length bytes and a zero; comments in it are blanked. */
static Status load_text(ConfigLoader *loader, char *text, size_t length, Error *err) {
    Status status = OK;
    int64_t *lines = NULL;
    cJSON *root = NULL;
    const char *end = NULL;
    TRY_GOTO(config_scan(loader->path, text, length, &lines, &loader->line_count, err));
    loader->lines = lines;
    root = cJSON_ParseWithLengthOpts(text, length + 1, &end, 1);
    if (root == NULL) {
        status = fail_syntax(loader->path, text, end != NULL && end <= text + length ? end : text, err);
        goto done;
    }
    if (!cJSON_IsObject(root)) {
        status = error_set(err, ERR_USAGE, "%s: a config is a JSON object, { … }", loader->path);
        goto done;
    }
    status = apply_file_value(loader, root, err);
done:
    loader->lines = NULL;
    cJSON_Delete(root);
    memory_free(lines);
    return status;
}

/* ---- overrides ------------------------------------------------------------------------------------------------------- */

static cJSON *parse_json(const char *text) {
    return cJSON_ParseWithLengthOpts(text, strlen(text) + 1, NULL, 1);
}

/* q_proj,v_proj or 0,1,2 as a list, the way people type it. */
static cJSON *parse_comma_list(const ConfigKey *key, const char *text) {
    cJSON *list = cJSON_CreateArray();
    while (list != NULL) {
        size_t length = strcspn(text, ",");
        char *word = memory_format("%.*s", (int)length, text);
        cJSON *item = key->kind == KEY_LAYERS ? parse_json(word) : NULL;
        if (item == NULL) item = cJSON_CreateString(word);
        memory_free(word);
        cJSON_AddItemToArray(list, item);
        if (text[length] == 0) break;
        text += length + 1;
    }
    return list;
}

/* A value as JSON; a string key takes any other text as it stands. NULL: brackets or quotes that do not close. */
static cJSON *parse_override(const ConfigKey *key, const char *text) {
    cJSON *value = parse_json(text);
    int is_text = key != NULL && (key->kind == KEY_STRING || key->kind == KEY_CHOICE || key->kind == KEY_PATHS);
    int is_structure = key != NULL && key->kind == KEY_PATHS && (cJSON_IsArray(value) || cJSON_IsObject(value));
    if (value != NULL && is_text && !is_structure && !cJSON_IsString(value) && !cJSON_IsNull(value)) {
        cJSON_Delete(value);
        value = NULL;
    } else if (value != NULL || text[0] == '[' || text[0] == '{' || text[0] == '"') {
        return value;
    }
    if (key != NULL && (key->kind == KEY_NAMES || key->kind == KEY_LAYERS) && strchr(text, ',') != NULL)
        return parse_comma_list(key, text);
    return cJSON_CreateString(text);
}

static Status apply_override(ConfigLoader *loader, const char *override, Error *err) {
    char path[256], where[WHERE_MAX];
    const char *equals = strchr(override, '=');
    if (equals == NULL || equals == override || (size_t)(equals - override) >= sizeof path)
        FAIL_USAGE("--set %.200s: want key=value, such as train.lr=1e-4", override);
    if (strlen(override) > 65536) FAIL_USAGE("--set %.100s…: the value is longer than 64 KiB", override);
    (void)snprintf(path, sizeof path, "%.*s", (int)(equals - override), override);
    loader->override = override;
    ConfigSource source = {.override = override};
    config_source_name(loader, &source, where, sizeof where);
    int index = config_key_find(path), section = section_find(path);
    if (index < 0 && section < 0) return fail_unknown(where, path, err);

    char *text = memory_strdup(equals + 1);
    int64_t *lines = NULL, line_count = 0;
    Status status = OK;
    cJSON *value = NULL;
    int has_structure = text[0] == '[' || text[0] == '{' || text[0] == '"';
    if (has_structure) TRY_GOTO(config_scan(where, text, strlen(text), &lines, &line_count, err));
    value = parse_override(index < 0 ? NULL : &config_keys[index], text);
    if (value == NULL)
        status = error_set(err, ERR_USAGE, "%s: %s is not valid JSON", where, path);
    else if (section >= 0)
        status = apply_section_value(loader, section, value, source, err);
    else
        status = apply_key(loader, index, value, source, err);
done:
    cJSON_Delete(value);
    memory_free(lines);
    memory_free(text);
    return status;
}

/* ---- loading --------------------------------------------------------------------------------------------------------- */

static Status load_defaults(Config *config, Error *err) {
    for (int i = 0; i < config_key_count; i++) {
        cJSON *value = parse_json(config_keys[i].fallback);
        Status status = value == NULL ? error_set(err, ERR_FAILED, "%s: the table's default is not JSON", config_keys[i].path)
                                      : config_store(config, &config_keys[i], value, "default", err);
        cJSON_Delete(value);
        TRY(status);
    }
    return OK;
}

/* text NULL: no file. */
static Status load_all(Config *config, const char *what, char *text, size_t length, const char *const *overrides,
                       int override_count, Error *err) {
    Status status = OK;
    memset(config, 0, sizeof *config);
    ConfigLoader loader = {.config = config, .path = what};
    TRY_GOTO(load_defaults(config, err));
    if (text != NULL) TRY_GOTO(load_text(&loader, text, length, err));
    for (int i = 0; i < override_count; i++)
        TRY_GOTO(apply_override(&loader, overrides[i], err));
    TRY_GOTO(config_check(&loader, err));
done:
    if (status != OK) config_free(config);
    return status;
}

Status config_load_text(Config *config, const char *what, const char *text, size_t length, const char *const *overrides,
                        int override_count, Error *err) {
    char *copy = memory_alloc(length + 1);
    memcpy(copy, text, length);
    copy[length] = 0;
    Status status = load_all(config, what, copy, length, overrides, override_count, err);
    memory_free(copy);
    return status;
}

Status config_load(Config *config, const char *path, const char *const *overrides, int override_count, Error *err) {
    char *text = NULL;
    size_t length = 0;
    memset(config, 0, sizeof *config);
    if (path != NULL && file_read(path, CONFIG_FILE_MAX, &text, &length, err) != OK) {
        if (err != NULL) err->status = ERR_USAGE; /* no config is a mistake on the command line */
        return ERR_USAGE;
    }
    Status status = load_all(config, path, text, length, overrides, override_count, err);
    memory_free(text);
    return status;
}

void config_free(Config *config) {
    for (int i = 0; i < config_key_count; i++)
        config_clear(config, &config_keys[i]);
}

Status config_parse_bytes(const char *text, uint64_t *bytes, Error *err) {
    static const struct {
        const char *name;
        double factor;
    } units[] = {{"", 1.0},    {"B", 1.0},      {"kB", 1e3},     {"KB", 1e3},     {"MB", 1e6},    {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char *end = NULL;
    /* strtod also takes hexadecimal, "inf" and leading space, none of which is a size here */
    int is_number = text[0] >= '0' && text[0] <= '9' && text[1] != 'x' && text[1] != 'X';
    double value = is_number ? strtod(text, &end) : 0.0;
    if (!is_number) FAIL_USAGE("\"%.60s\" is not a size; want a number with a unit, such as 16GiB, 800MB or 1e9", text);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(end, units[i].name) != 0) continue;
        value *= units[i].factor;
        if (!(value >= 1.0 && value < 0x1p62)) FAIL_USAGE("\"%.60s\" is not a size between one byte and 4 EiB", text);
        *bytes = (uint64_t)value;
        return OK;
    }
    FAIL_USAGE("\"%.60s\": the unit `%.20s` is not known; want B, kB, MB, GB, TB, KiB, MiB, GiB or TiB", text, end);
}
