/* The table of configuration keys, and what the loader and the printer share. Private to train/config*.c and its tests.
 *
 *   table -> parser (config.c), combination checks (config_check.c), printer, schema, defaults, help (config_print.c)
 *
 * A key's default is JSON text that goes through the same parser as a file's value.
 */
#ifndef NIBBLE_TRAIN_CONFIG_TABLE_H
#define NIBBLE_TRAIN_CONFIG_TABLE_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "train/config.h"

typedef enum KeyKind {
    KEY_BOOL,    /* int */
    KEY_INTEGER, /* int64_t; CONFIG_AUTO for "auto" where allowed */
    KEY_NUMBER,  /* double */
    KEY_STRING,  /* char *; NULL for null where allowed */
    KEY_CHOICE,  /* char *, one of choices */
    KEY_NAMES,   /* char *[CONFIG_MAX_TARGETS], one of choices each; a string or a list of strings */
    KEY_PATHS,   /* ConfigPath[CONFIG_MAX_PATHS]; a path, {"path", "weight"}, or a list of both; range: of the weight */
    KEY_LAYERS   /* int64_t[CONFIG_MAX_LAYERS], a list of different integers */
} KeyKind;

typedef struct ConfigKey {
    const char *path; /* "train.lr", or "seed" */
    KeyKind kind;
    size_t offset, count_offset;      /* in Config; count_offset for the list kinds */
    const char *fallback;             /* the default, as JSON */
    double minimum, maximum;          /* numbers, both inclusive unless said otherwise */
    int above_minimum, below_maximum; /* the end itself is not allowed */
    int nullable, automatic;          /* null, "auto" are values too */
    const char *const *choices;       /* NULL-terminated */
    const char *const *pending;       /* choices, or "true", whose feature is not there yet; NULL-terminated */
    const char *pending_reason;       /* what to do instead */
    const char *help;
} ConfigKey;

typedef struct ConfigSection {
    const char *name, *help;
} ConfigSection;

enum { CONFIG_KEYS_MAX = 96, CONFIG_SECTIONS_MAX = 16, CONFIG_MAX_LAYERS = 512 };
/* Keys of a section follow one another; sections stand in the order of the table. */
extern const ConfigKey config_keys[];
extern const int config_key_count;
extern const ConfigSection config_sections[];
extern const int config_section_count;

/* Length of the section's name in a path; 0 for a top-level key. */
size_t config_section_length(const char *path);
const char *config_leaf(const char *path);
/* Index of the key with this path, or -1. */
int config_key_find(const char *path);

/* Where a value comes from: a line of the file, an override, or (all zero) the default. */
typedef struct ConfigSource {
    int64_t line;
    const char *override; /* "train.lr=3" */
} ConfigSource;

typedef struct ConfigLoader {
    Config *config;
    const char *path;     /* the file's name, for messages */
    const int64_t *lines; /* of every key of the file, in the order in which they stand */
    int64_t line_count, line_next;
    const char *override;                 /* the one being applied, or NULL */
    ConfigSource source[CONFIG_KEYS_MAX]; /* where each key got its value */
    int64_t section_line[CONFIG_SECTIONS_MAX];
} ConfigLoader;

/* "my.json:7", "--set train.lr=3", or "default" into a caller's buffer; returns the buffer. */
const char *config_source_name(const ConfigLoader *loader, const ConfigSource *source, char *out, size_t capacity);

/* Blanks comments in place, keeping the lines, and records the line of every key. Fails with ERR_USAGE on a comment or string
 * without an end, control characters, ill-formed UTF-8, and containers more than CONFIG_MAX_DEPTH deep. *lines: memory_free. */
#define CONFIG_MAX_DEPTH 8
Status config_scan(const char *path, char *text, size_t length, int64_t **lines, int64_t *count, Error *err);

/* Stores one value; `where` is put in front of messages. */
Status config_store(Config *config, const ConfigKey *key, const cJSON *value, const char *where, Error *err);
/* Frees what the key holds and zeroes it. */
void config_clear(Config *config, const ConfigKey *key);
/* The key's value as JSON. */
void config_print_value(const Config *config, const ConfigKey *key, Text *out);
/* Combinations that need no file; also settles double_quant where a type has none. */
Status config_check(ConfigLoader *loader, Error *err);

#endif
