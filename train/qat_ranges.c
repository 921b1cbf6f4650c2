#include "train/qat_ranges.h"

#include <cjson/cJSON.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/dtype.h"
#include "core/file.h"
#include "core/memory.h"

#define FILE_LIMIT ((size_t)1 << 20)

typedef struct Seen {
    double sum, squares, most;
    int64_t count;
    int64_t *bins; /* [RANGE_BINS] of |x| over [0, most] */
} Seen;

struct RangeSearch {
    RangeMethod method;
    double value;
    int64_t inputs;
    int second;
    Seen *seen;
    int64_t *bins;
};

Status range_method_named(const char *name, RangeMethod *method, Error *err) {
    static const char *const names[] = {"absmax", "percentile", "std", "mse"};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) {
            *method = (RangeMethod)i;
            return OK;
        }
    FAIL_USAGE("ranges: want absmax, percentile, std or mse, got \"%.60s\"", name);
}

RangeSearch *range_search_create(RangeMethod method, double value, int64_t inputs) {
    RangeSearch *search = memory_calloc(1, sizeof *search);
    search->method = method;
    search->value = value;
    search->inputs = inputs;
    search->seen = memory_calloc((size_t)inputs, sizeof *search->seen);
    search->bins = memory_calloc((size_t)inputs * RANGE_BINS, sizeof *search->bins);
    for (int64_t i = 0; i < inputs; i++)
        search->seen[i].bins = search->bins + i * RANGE_BINS;
    return search;
}

void range_search_free(RangeSearch *search) {
    if (search == NULL) return;
    memory_free(search->bins);
    memory_free(search->seen);
    memory_free(search);
}

static float value_at(const void *x, DType act, int64_t i) {
    return act == DTYPE_BF16 ? bf16_to_float(((const bf16 *)x)[i]) : ((const float *)x)[i];
}

void range_search_observe(void *self, int64_t index, const void *x, DType act, int64_t values) {
    RangeSearch *search = self;
    Seen *seen = &search->seen[index];
    for (int64_t i = 0; i < values; i++) {
        double v = (double)value_at(x, act, i), size = fabs(v);
        if (search->second) {
            double bin = seen->most > 0.0 ? size / seen->most * RANGE_BINS : 0.0;
            seen->bins[bin < RANGE_BINS ? (int64_t)bin : RANGE_BINS - 1]++; /* NaN too, which the first pass has seen */
            continue;
        }
        seen->sum += v;
        seen->squares += v * v;
        seen->count++;
        if (!(size <= seen->most) && !isnan(seen->most)) seen->most = size; /* NaN stays */
    }
}

void range_search_second(RangeSearch *search) {
    search->second = 1;
}

static double percentile_of(const Seen *seen, double percent) {
    double wanted = percent / 100.0 * (double)seen->count, below = 0.0;
    for (int64_t b = 0; b < RANGE_BINS; b++) {
        double here = (double)seen->bins[b];
        if (here > 0.0 && below + here >= wanted) return seen->most * ((double)b + (wanted - below) / here) / RANGE_BINS;
        below += here;
    }
    return seen->most;
}

/* Squared error of rounding the bins' middles to steps of r / 127.5 and cutting at 127. */
static double error_of(const Seen *seen, double r) {
    double step = r / 127.5, error = 0.0;
    for (int64_t b = 0; b < RANGE_BINS; b++) {
        if (seen->bins[b] == 0) continue;
        double middle = seen->most * ((double)b + 0.5) / RANGE_BINS, code = fmin(nearbyint(middle / step), 127.0);
        error += (double)seen->bins[b] * (middle - code * step) * (middle - code * step);
    }
    return error;
}

static double least_error(const Seen *seen) {
    double best = seen->most, least = INFINITY;
    for (int i = RANGE_STEPS; i > 0; i--) {
        double r = seen->most * i / RANGE_STEPS, error = error_of(seen, r);
        if (!(error < least)) continue;
        least = error;
        best = r;
    }
    return best;
}

static double range_of(const RangeSearch *search, const Seen *seen) {
    double mean = seen->sum / (double)seen->count, variance = seen->squares / (double)seen->count - mean * mean;
    double spread = search->value * sqrt(variance > 0.0 ? variance : 0.0);
    switch (search->method) {
        case RANGE_ABSMAX: break;
        case RANGE_PERCENTILE: return percentile_of(seen, search->value);
        case RANGE_STD: return fmin(fmax(fabs(mean - spread), fabs(mean + spread)), seen->most);
        case RANGE_MSE: return least_error(seen);
    }
    return seen->most;
}

Status range_search_finish(const RangeSearch *search, float *scales, Error *err) {
    for (int64_t i = 0; i < search->inputs; i++) {
        const Seen *seen = &search->seen[i];
        if (seen->count == 0 || !isfinite(seen->most))
            FAIL("the range of input %lld of the linears cannot be found: %s", (long long)i,
                 seen->count == 0 ? "nothing was run" : "it held NaN or Inf");
        float scale = (float)(range_of(search, seen) / 127.5);
        scales[i] = scale < 0x1p-23f ? 0x1p-23f : scale;
    }
    return OK;
}

/* ---- the file -------------------------------------------------------------------------------------------------------------- */

void qat_ranges_print(const float *scales, int64_t count, Text *out) {
    for (int64_t i = 0; i < count; i++)
        text_addf(out, "%s%.9g", i == 0 ? "[" : ", ", (double)scales[i]);
    text_adds(out, "]");
}

Status qat_ranges_write(const char *folder, const float *scales, int64_t count, Error *err) {
    Text out = {0};
    char *path = path_join(folder, QAT_RANGES_FILE);
    text_adds(&out, "{\"nibble_ranges\": ");
    qat_ranges_print(scales, count, &out);
    text_adds(&out, "}\n");
    Status status = file_write_atomic(path, out.data, out.length, err);
    text_free(&out);
    memory_free(path);
    return status;
}

Status qat_ranges_read(const char *folder, int64_t count, float *scales, Error *err) {
    char *path = path_join(folder, QAT_RANGES_FILE), *text = NULL;
    size_t length;
    cJSON *json = NULL;
    Status status;
    TRY_GOTO(file_read(path, FILE_LIMIT, &text, &length, err));
    json = cJSON_ParseWithLength(text, length);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "nibble_ranges"), *item;
    int64_t found = 0;
    cJSON_ArrayForEach(item, list) {
        float scale = cJSON_IsNumber(item) ? (float)item->valuedouble : 0.0f;
        if (found == count || !(scale > 0.0f && scale <= FLT_MAX)) break;
        scales[found++] = scale;
    }
    if (found != count || cJSON_GetArraySize(list) != (int)count)
        status = error_set(err, ERR_FAILED, "%s: want a list nibble_ranges of %lld scales above 0", path, (long long)count);
done:
    cJSON_Delete(json);
    memory_free(text);
    memory_free(path);
    return status;
}
