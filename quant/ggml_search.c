/* The searches that go from code to code, one group at a time. Every sum is one chain in index order: the bytes depend on it.
 * Source: ggml 0.25.3 src/ggml-quants.c, make_q3_quants, make_qp_quants. */
#include <math.h>
#include <string.h>

#include "quant/ggml_internal.h"

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

INLINE SignedFit fit_signed(int n, int levels, float inverse, const float *x, int *codes) {
    SignedFit fit = {0.0f, 0.0f};
    for (int i = 0; i < n; i++) {
        int code = ggml_clamp(ggml_nearest(inverse * x[i]), -levels, levels - 1);
        float w = x[i] * x[i], l = (float)code;
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
    int trial[GGML_SEARCH_MAX];
    float most = extreme(n, x);
    clear(n, codes);
    if (most == 0.0f) return 0.0f;
    SignedFit fit = fit_signed(n, levels, (float)-levels / most, x, trial);
    for (int round = 0; round < 5 && descend_signed(n, levels, x, trial, &fit); round++) {
    }
    store_signed(n, levels, trial, codes);
    return fit.ll > 0.0f ? fit.xl / fit.ll : 0.0f;
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
