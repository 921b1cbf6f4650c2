/* Typed look-ups in a small JSON object that came from outside; every refusal names the file and the key.
 *
 * Absent and null mean the same (transformers writes either) unless the caller
 * asks. A key that is looked up and stands there twice is refused.
 */
#ifndef NIBBLE_DATA_HF_CONFIG_FIELDS_H
#define NIBBLE_DATA_HF_CONFIG_FIELDS_H

#include <cjson/cJSON.h>
#include <stdint.h>

#include "core/error.h"
#include "data/hf_config.h"

typedef struct ConfigObject {
    const char *what;   /* the file */
    const char *prefix; /* "" or "rope_scaling." */
    const cJSON *json;
} ConfigObject;

/* *out: the value, possibly a JSON null; NULL when the key is absent. */
Status field_find(const ConfigObject *object, const char *key, const cJSON **out, Error *err);
/* As field_find, with null as absent. */
Status field_value(const ConfigObject *object, const char *key, const cJSON **out, Error *err);
/* Absent or null: `fallback`, which need not lie in the range. */
Status field_integer(const ConfigObject *object, const char *key, int64_t minimum, int64_t maximum, int64_t fallback,
                     int64_t *out, Error *err);
Status field_number(const ConfigObject *object, const char *key, double minimum, double maximum, double fallback, double *out,
                    Error *err);
Status field_bool(const ConfigObject *object, const char *key, int fallback, int *out, Error *err);
/* Borrowed; NULL when absent or null. */
Status field_string(const ConfigObject *object, const char *key, const char **out, Error *err);
/* An object inside; out->json NULL when absent or null. */
Status field_object(const ConfigObject *object, const char *key, const char *prefix, ConfigObject *out, Error *err);
/* A value as a message shows it: 12, 'text', true, an object. */
const char *field_shown(const cJSON *value, char out[96]);

/* The RoPE part of a config; head_dim and context are already set. */
Status rope_parse(const ConfigObject *root, ModelConfig *config, Error *err);

#endif
