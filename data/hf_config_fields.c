#include "data/hf_config_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FAIL_FIELD(object, key, format, ...) FAIL("%s: %s%s: " format, (object)->what, (object)->prefix, key, __VA_ARGS__)

const char *field_shown(const cJSON *value, char out[96]) {
    if (value == NULL) return "nothing";
    if (cJSON_IsNumber(value))
        (void)snprintf(out, 96, "%.17g", value->valuedouble);
    else if (cJSON_IsString(value))
        (void)snprintf(out, 96, "'%.80s'", value->valuestring);
    else
        (void)snprintf(out, 96, "%s",
                       cJSON_IsBool(value)    ? (cJSON_IsTrue(value) ? "true" : "false")
                       : cJSON_IsNull(value)  ? "null"
                       : cJSON_IsArray(value) ? "an array"
                                              : "an object");
    return out;
}

Status field_find(const ConfigObject *object, const char *key, const cJSON **out, Error *err) {
    *out = NULL;
    const cJSON *item;
    cJSON_ArrayForEach(item, object->json) {
        if (item->string == NULL || strcmp(item->string, key) != 0) continue;
        if (*out != NULL) FAIL_FIELD(object, key, "%s", "the key stands there twice");
        *out = item;
    }
    return OK;
}

Status field_value(const ConfigObject *object, const char *key, const cJSON **out, Error *err) {
    TRY(field_find(object, key, out, err));
    if (*out != NULL && cJSON_IsNull(*out)) *out = NULL;
    return OK;
}

Status field_integer(const ConfigObject *object, const char *key, int64_t minimum, int64_t maximum, int64_t fallback,
                     int64_t *out, Error *err) {
    const cJSON *value = NULL;
    char text[96];
    TRY(field_value(object, key, &value, err));
    *out = fallback;
    if (value == NULL) return OK;
    /* cJSON keeps numbers as doubles: every range asked for lies within the exact integers. */
    double number = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    if (!(number >= (double)minimum && number <= (double)maximum) || floor(number) != number)
        FAIL_FIELD(object, key, "want an integer from %lld to %lld, got %s", (long long)minimum, (long long)maximum,
                   field_shown(value, text));
    *out = (int64_t)number;
    return OK;
}

Status field_number(const ConfigObject *object, const char *key, double minimum, double maximum, double fallback, double *out,
                    Error *err) {
    const cJSON *value = NULL;
    char text[96];
    TRY(field_value(object, key, &value, err));
    *out = fallback;
    if (value == NULL) return OK;
    double number = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    if (!(number >= minimum && number <= maximum))
        FAIL_FIELD(object, key, "want a number from %g to %g, got %s", minimum, maximum, field_shown(value, text));
    *out = number;
    return OK;
}

Status field_bool(const ConfigObject *object, const char *key, int fallback, int *out, Error *err) {
    const cJSON *value = NULL;
    char text[96];
    TRY(field_value(object, key, &value, err));
    *out = fallback;
    if (value == NULL) return OK;
    if (!cJSON_IsBool(value)) FAIL_FIELD(object, key, "want true or false, got %s", field_shown(value, text));
    *out = cJSON_IsTrue(value) ? 1 : 0;
    return OK;
}

Status field_string(const ConfigObject *object, const char *key, const char **out, Error *err) {
    const cJSON *value = NULL;
    char text[96];
    *out = NULL;
    TRY(field_value(object, key, &value, err));
    if (value == NULL) return OK;
    if (!cJSON_IsString(value)) FAIL_FIELD(object, key, "want a string, got %s", field_shown(value, text));
    *out = value->valuestring;
    return OK;
}

Status field_object(const ConfigObject *object, const char *key, const char *prefix, ConfigObject *out, Error *err) {
    const cJSON *value = NULL;
    char text[96];
    *out = (ConfigObject){.what = object->what, .prefix = prefix};
    TRY(field_value(object, key, &value, err));
    if (value == NULL) return OK;
    if (!cJSON_IsObject(value)) FAIL_FIELD(object, key, "want an object, got %s", field_shown(value, text));
    out->json = value;
    return OK;
}
