/* The searches behind ggml's quantizers. Every sum is one chain in index order: the bytes depend on it.
 * Source: ggml 0.25.3 src/ggml-quants.c, make_qx_quants, make_q3_quants, make_qkx2_quants, make_qkx3_quants, make_qp_quants. */
#include <math.h>
#include <string.h>

#include "quant/ggml_internal.h"

#define SEARCH_MAX 32
#define INLINE static inline __attribute__((always_inline))
#define NOTHING 1e-15f /* a group whose largest magnitude is below this is zero */

static void clear(int n, uint8_t *codes) {
    for (int i = 0; i < n; i++)
        codes[i] = 0;
}

/* ---- signed codes -------------------------------------------------------------------------------------------------------- */

/* The first value of the largest magnitude; 0 where that is next to nothing. */
INLINE float extreme(int n, const float *x) {
    float largest = 0.0f, value = 0.0f;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > largest) {
            largest = fabsf(x[i]);
            value = x[i];
        }
    return largest < NOTHING ? 0.0f : value;
}

typedef struct SignedFit {
    float xl, ll; /* sums of w*x*l and w*l*l */
} SignedFit;

INLINE SignedFit fit_signed(int n, int levels, float inverse, const float *x, const float *weights, int *codes) {
    SignedFit fit = {0.0f, 0.0f};
    for (int i = 0; i < n; i++) {
        int code = ggml_clamp(ggml_nearest(inverse * x[i]), -levels, levels - 1);
        float w = weights != NULL ? weights[i] : x[i] * x[i], l = (float)code;
        codes[i] = code;
        fit.xl += w * x[i] * l;
        fit.ll += w * l * l;
    }
    return fit;
}

INLINE void store_signed(int n, int levels, const int *codes, uint8_t *out) {
    for (int i = 0; i < n; i++)
        out[i] = (uint8_t)(codes[i] + levels);
}

INLINE float search_signed(int n, int levels, const float *x, const float *weights, uint8_t *codes) {
    int trial[SEARCH_MAX];
    float most = extreme(n, x);
    clear(n, codes);
    if (most == 0.0f) return 0.0f;
    SignedFit fit = fit_signed(n, levels, (float)-levels / most, x, weights, trial);
    store_signed(n, levels, trial, codes);
    float scale = fit.ll != 0.0f ? fit.xl / fit.ll : 0.0f;
    float best = scale * fit.xl;
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        fit = fit_signed(n, levels, -((float)levels + 0.1f * (float)step) / most, x, weights, trial);
        if (fit.ll > 0.0f && fit.xl * fit.xl > best * fit.ll) {
            store_signed(n, levels, trial, codes);
            scale = fit.xl / fit.ll;
            best = scale * fit.xl;
        }
    }
    return scale;
}

/* For each size that occurs, so that the compiler knows how long its loops are. */
float ggml_search_signed(int n, int levels, const float *x, const float *weights, uint8_t *codes) {
    return n == 16 ? search_signed(16, levels, x, weights, codes) : search_signed(SEARCH_MAX, levels, x, weights, codes);
}

/* One round over all codes; returns whether one changed. */
INLINE int descend_signed(int n, int levels, const float *x, int *codes, SignedFit *fit) {
    int changed = 0;
    for (int i = 0; i < n; i++) {
        float w = x[i] * x[i], l = (float)codes[i];
        float xl = fit->xl - w * x[i] * l;
        if (!(xl > 0.0f)) continue;
        float ll = fit->ll - w * l * l;
        int code = ggml_clamp(ggml_nearest(x[i] * ll / xl), -levels, levels - 1);
        if (code == codes[i]) continue;
        l = (float)code;
        xl += w * x[i] * l;
        ll += w * l * l;
        if (ll > 0.0f && xl * xl * fit->ll > fit->xl * fit->xl * ll) {
            codes[i] = code;
            *fit = (SignedFit){xl, ll};
            changed = 1;
        }
    }
    return changed;
}

float ggml_search_signed_descent(int n, int levels, const float *x, uint8_t *codes) {
    int trial[SEARCH_MAX];
    float most = extreme(n, x);
    clear(n, codes);
    if (most == 0.0f) return 0.0f;
    SignedFit fit = fit_signed(n, levels, (float)-levels / most, x, NULL, trial);
    for (int round = 0; round < 5 && descend_signed(n, levels, x, trial, &fit); round++) {
    }
    store_signed(n, levels, trial, codes);
    return fit.ll > 0.0f ? fit.xl / fit.ll : 0.0f;
}

/* ---- scale and min ------------------------------------------------------------------------------------------------------- */

INLINE void codes_above(const GgmlMinSearch *search, int n, const float *x, float min, float inverse, uint8_t *codes) {
    for (int i = 0; i < n; i++)
        codes[i] = (uint8_t)ggml_clamp(ggml_nearest(inverse * (x[i] - min)), 0, search->levels);
}

INLINE float error_of(const GgmlMinSearch *search, int n, const float *x, const float *weights, const uint8_t *codes,
                      float scale, float min) {
    float error = 0.0f;
    for (int i = 0; i < n; i++) {
        float difference = scale * (float)codes[i] + min - x[i];
        error += weights[i] * (search->is_absolute ? fabsf(difference) : difference * difference);
    }
    return error;
}

/* The least-squares line through codes and values; returns 0 where they do not determine one. min stays <= 0. */
INLINE int fit_line(int n, const float *x, const float *weights, const uint8_t *codes, float sum_w, float sum_x, float *scale,
                    float *min) {
    float sum_l = 0.0f, sum_ll = 0.0f, sum_xl = 0.0f;
    for (int i = 0; i < n; i++) {
        float l = (float)codes[i], wl = weights[i] * l;
        sum_l += wl;
        sum_ll += wl * l;
        sum_xl += wl * x[i];
    }
    float determinant = sum_w * sum_ll - sum_l * sum_l;
    if (!(determinant > 0.0f)) return 0;
    *scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    *min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    if (*min > 0.0f) {
        *min = 0.0f;
        *scale = sum_xl / sum_ll;
    }
    return 1;
}

INLINE float search_min(const GgmlMinSearch *search, int n, const float *x, const float *weights, uint8_t *codes,
                        float *min_out) {
    uint8_t trial[SEARCH_MAX];
    float min = x[0], max = x[0], sum_w = weights[0], sum_x = weights[0] * x[0];
    for (int i = 1; i < n; i++) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if (min > 0.0f) min = 0.0f;
    clear(n, codes);
    *min_out = -min;
    if (max == min) return 0.0f;
    float inverse = (float)search->levels / (max - min), scale = 1.0f / inverse;
    codes_above(search, n, x, min, inverse, codes);
    float best = error_of(search, n, x, weights, codes, scale, min);
    for (int i = 0; i <= search->steps; i++) {
        float trial_scale, trial_min;
        /* From the min that was kept last, not from the smallest value: the reference does so. */
        inverse = (search->first + search->step * (float)i + (float)search->levels) / (max - min);
        codes_above(search, n, x, min, inverse, trial);
        if (!fit_line(n, x, weights, trial, sum_w, sum_x, &trial_scale, &trial_min)) continue;
        float error = error_of(search, n, x, weights, trial, trial_scale, trial_min);
        if (error < best) {
            memcpy(codes, trial, (size_t)n);
            best = error;
            scale = trial_scale;
            min = trial_min;
        }
    }
    *min_out = -min;
    return scale;
}

float ggml_search_min(const GgmlMinSearch *search, int n, const float *x, const float *weights, uint8_t *codes, float *min) {
    return n == 16 ? search_min(search, 16, x, weights, codes, min) : search_min(search, SEARCH_MAX, x, weights, codes, min);
}

/* ---- scales of scales ---------------------------------------------------------------------------------------------------- */

static float error_positive(int n, int levels, const float *x, const float *weights, float inverse) {
    float scale = 1.0f / inverse, error = 0.0f;
    for (int i = 0; i < n; i++) {
        int code = ggml_nearest(inverse * x[i]);
        float difference = x[i] - scale * (float)(code < levels ? code : levels);
        error += weights[i] * difference * difference;
    }
    return error;
}

static int descend_positive(int n, int levels, const float *x, const float *weights, uint8_t *codes, SignedFit *fit) {
    int changed = 0;
    for (int i = 0; i < n; i++) {
        float w = weights[i], l = (float)codes[i];
        float xl = fit->xl - w * x[i] * l, ll = fit->ll - w * l * l;
        if (!(xl > 0.0f && ll > 0.0f)) continue;
        int code = ggml_nearest(x[i] * ll / xl);
        if (code > levels) code = levels;
        if (code == codes[i]) continue;
        l = (float)code;
        xl += w * x[i] * l;
        ll += w * l * l;
        if (xl * xl * fit->ll > fit->xl * fit->xl * ll) {
            codes[i] = (uint8_t)code;
            *fit = (SignedFit){xl, ll};
            changed = 1;
        }
    }
    return changed;
}

float ggml_search_positive(int n, int levels, const float *x, const float *weights, uint8_t *codes) {
    float max = 0.0f;
    for (int i = 0; i < n; i++)
        max = max > x[i] ? max : x[i];
    clear(n, codes);
    if (max < NOTHING) return 0.0f;
    float inverse = (float)levels / max, best = error_positive(n, levels, x, weights, inverse);
    for (int step = -4; step <= 4; step++) {
        if (step == 0) continue;
        float trial = (0.1f * (float)step + (float)levels) / max;
        float error = error_positive(n, levels, x, weights, trial);
        if (error < best) {
            best = error;
            inverse = trial;
        }
    }
    SignedFit fit = {0.0f, 0.0f};
    for (int i = 0; i < n; i++) {
        int code = ggml_nearest(inverse * x[i]);
        codes[i] = (uint8_t)(code < levels ? code : levels);
        float l = (float)(code < levels ? code : levels);
        fit.xl += weights[i] * x[i] * l;
        fit.ll += weights[i] * l * l;
    }
    for (int round = 0; round < 5 && descend_positive(n, levels, x, weights, codes, &fit); round++) {
    }
    return fit.ll > 0.0f ? fit.xl / fit.ll : 0.0f;
}
