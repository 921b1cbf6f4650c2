/* What the table says, in three forms: a resolved config, the defaults with help, and a JSON Schema. */
#include <string.h>

#include "train/config_table.h"

static const char *section_help(const char *path, size_t length) {
    for (int i = 0; i < config_section_count; i++)
        if (strlen(config_sections[i].name) == length && strncmp(config_sections[i].name, path, length) == 0)
            return config_sections[i].help;
    return "";
}

static int same_section(int a, int b) {
    size_t length = config_section_length(config_keys[a].path);
    if (b < 0 || b >= config_key_count || config_section_length(config_keys[b].path) != length) return 0;
    return strncmp(config_keys[a].path, config_keys[b].path, length) == 0;
}

/* The skeleton that all three share: opens and closes sections, sets commas, calls `one` for each key. */
typedef void PrintKey(const void *context, int index, const char *indent, Text *out);
typedef void PrintOpen(const char *section, size_t length, Text *out);

static void print_keys(PrintKey *one, PrintOpen *open, const char *close, const char *indent, const char *nested,
                       const void *context, Text *out) {
    for (int i = 0; i < config_key_count; i++) {
        size_t section = config_section_length(config_keys[i].path);
        int is_last = i + 1 == config_key_count;
        if (section > 0 && !same_section(i, i - 1)) open(config_keys[i].path, section, out);
        one(context, i, section > 0 ? nested : indent, out);
        int closes = section > 0 && !same_section(i, i + 1);
        if (closes) text_adds(out, close);
        if (!closes || !is_last) text_adds(out, is_last ? "" : ",");
        text_adds(out, "\n");
    }
}

/* ---- resolved config ------------------------------------------------------------------------------------------------- */

static void open_plain(const char *section, size_t length, Text *out) {
    text_addf(out, "  \"%.*s\": {\n", (int)length, section);
}

static void print_plain(const void *config, int index, const char *indent, Text *out) {
    text_addf(out, "%s\"%s\": ", indent, config_leaf(config_keys[index].path));
    config_print_value(config, &config_keys[index], out);
}

void config_print(const Config *config, Text *out) {
    text_adds(out, "{\n");
    print_keys(print_plain, open_plain, "\n  }", "  ", "    ", config, out);
    text_adds(out, "}\n");
}

/* ---- defaults with help ---------------------------------------------------------------------------------------------- */

static void open_commented(const char *section, size_t length, Text *out) {
    text_addf(out, "\n  // %s\n  \"%.*s\": {\n", section_help(section, length), (int)length, section);
}

static int is_pending(const ConfigKey *key, const char *word) {
    for (const char *const *p = key->pending; p != NULL && *p != NULL; p++)
        if (strcmp(*p, word) == 0) return 1;
    return 0;
}

static void print_choices(const ConfigKey *key, const char *separator, const char *quote, Text *out) {
    const char *between = "";
    if (key->automatic) {
        text_addf(out, "%sauto%s", quote, quote);
        between = separator;
    }
    for (const char *const *p = key->choices; *p != NULL; p++) {
        if (is_pending(key, *p)) continue;
        text_addf(out, "%s%s%s%s", between, quote, *p, quote);
        between = separator;
    }
}

static void print_commented(const void *unused, int index, const char *indent, Text *out) {
    const ConfigKey *key = &config_keys[index];
    (void)unused;
    text_addf(out, "%s// %s", indent, key->help);
    if (key->kind == KEY_CHOICE) {
        text_adds(out, " One of ");
        print_choices(key, ", ", "", out);
        text_adds(out, ".");
    }
    text_addf(out, "\n%s\"%s\": %s", indent, config_leaf(key->path), key->fallback);
}

void config_print_defaults(Text *out) {
    text_adds(out, "{\n");
    print_keys(print_commented, open_commented, "\n  }", "  ", "    ", NULL, out);
    text_adds(out, "}\n");
}

/* ---- JSON Schema ----------------------------------------------------------------------------------------------------- */

static void open_schema(const char *section, size_t length, Text *out) {
    const char *help = section_help(section, length);
    text_addf(out,
              "    \"%.*s\": {\n      \"type\": \"object\",\n      \"additionalProperties\": false,\n      \"description\": ",
              (int)length, section);
    text_add_json_string(out, help, strlen(help));
    text_adds(out, ",\n      \"properties\": {\n");
}

static void print_bounds(const ConfigKey *key, Text *out) {
    text_addf(out, "\"%s\": %.17g, \"%s\": %.17g", key->above_minimum ? "exclusiveMinimum" : "minimum", key->minimum,
              key->below_maximum ? "exclusiveMaximum" : "maximum", key->maximum);
}

static void print_names_schema(const ConfigKey *key, Text *out) {
    text_adds(out, "\"anyOf\": [{\"enum\": [");
    print_choices(key, ", ", "\"", out);
    text_addf(out,
              "]}, {\"type\": \"array\", \"minItems\": 1, \"maxItems\": %d, \"uniqueItems\": true, \"items\": {\"enum\": [",
              CONFIG_MAX_TARGETS);
    print_choices(key, ", ", "\"", out);
    text_adds(out, "]}}]");
}

static void print_paths_schema(const ConfigKey *key, Text *out) {
    static const char text[] = "{\"type\": \"string\", \"minLength\": 1}";
    Text one = {0};
    text_addf(
        &one,
        "%s, {\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"path\"], \"properties\": {\"path\": "
        "%s, \"weight\": {\"type\": \"number\", \"default\": 1, ",
        text, text);
    print_bounds(key, &one);
    text_adds(&one, "}}}");
    text_addf(out,
              "\"anyOf\": [%s, {\"type\": \"array\", \"minItems\": 1, \"maxItems\": %d, \"uniqueItems\": true, \"items\": "
              "{\"anyOf\": [%s]}}]",
              one.data, CONFIG_MAX_PATHS, one.data);
    text_free(&one);
}

static void print_type_schema(const ConfigKey *key, Text *out) {
    switch (key->kind) {
        case KEY_BOOL: text_adds(out, is_pending(key, "true") ? "\"const\": false" : "\"type\": \"boolean\""); break;
        case KEY_INTEGER:
        case KEY_NUMBER:
            if (key->automatic) text_adds(out, "\"anyOf\": [{\"const\": \"auto\"}, {");
            text_addf(out, "\"type\": \"%s\", ", key->kind == KEY_INTEGER ? "integer" : "number");
            print_bounds(key, out);
            if (key->automatic) text_adds(out, "}]");
            break;
        case KEY_STRING:
            text_adds(out, key->nullable ? "\"type\": [\"string\", \"null\"], \"minLength\": 1"
                                         : "\"type\": \"string\", \"minLength\": 1");
            break;
        case KEY_CHOICE:
            text_adds(out, "\"enum\": [");
            print_choices(key, ", ", "\"", out);
            text_adds(out, "]");
            break;
        case KEY_NAMES: print_names_schema(key, out); break;
        case KEY_PATHS: print_paths_schema(key, out); break;
        case KEY_LAYERS:
            text_adds(out, "\"type\": \"array\", \"uniqueItems\": true, \"items\": {\"type\": \"integer\", ");
            print_bounds(key, out);
            text_adds(out, "}");
            break;
    }
}

static void print_schema_key(const void *unused, int index, const char *indent, Text *out) {
    const ConfigKey *key = &config_keys[index];
    (void)unused;
    text_addf(out, "%s\"%s\": {", indent, config_leaf(key->path));
    print_type_schema(key, out);
    text_addf(out, ", \"default\": %s, \"description\": ", key->fallback);
    text_add_json_string(out, key->help, strlen(key->help));
    text_adds(out, "}");
}

void config_print_schema(Text *out) {
    text_adds(out, "{\n  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n");
    text_adds(out, "  \"title\": \"nibble training config\",\n  \"type\": \"object\",\n  \"additionalProperties\": false,\n");
    text_adds(out, "  \"properties\": {\n");
    print_keys(print_schema_key, open_schema, "\n      }\n    }", "    ", "        ", NULL, out);
    text_adds(out, "  }\n}\n");
}
