/* The searches for many sub-blocks at a time, one in each lane of a vector. A lane's sums are one chain in index order, as a single
 * sub-block's are: the bytes depend on that, and eight chains run while one would wait for its last addition.
 * Source: ggml 0.25.3 src/ggml-quants.c, make_qx_quants, make_qkx2_quants, make_qkx3_quants. */
#include <string.h>

#include "quant/ggml_internal.h"

#define NOTHING 1e-15f /* a group whose largest magnitude is below this is zero */
#define INLINE static inline __attribute__((always_inline))

/* Four lanes are what every 64-bit machine has; two such vectors side by side hide the latency of an addition. */
typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
#define WIDTH 4
#define PARTS (GGML_LANES / WIDTH)
#define EACH_PART(p) for (int p = 0; p < PARTS; p++)

INLINE Float4 same(float value) {
    return (Float4){value, value, value, value};
}

INLINE Float4 choose(Int4 mask, Float4 yes, Float4 no) {
    return (Float4)((mask & (Int4)yes) | (~mask & (Int4)no));
}

INLINE Float4 magnitude(Float4 v) {
    return (Float4)((Int4)v & 0x7FFFFFFF);
}

/* ggml_nearest and ggml_clamp. */
INLINE Int4 code_of(Float4 value, int low, int high) {
    Int4 code = ((Int4)(value + 12582912.0f) & 0x007FFFFF) - 0x00400000;
    Int4 below = code<low, above = code> high;
    code = (below & low) | (~below & code);
    return (above & high) | (~above & code);
}

INLINE Float4 number_of(Int4 code) {
    return __builtin_convertvector(code, Float4);
}

INLINE void load(int n, const float (*from)[GGML_LANES], Float4 (*to)[PARTS]) {
    memcpy(to, from, (size_t)n * sizeof *from);
}

void ggml_lanes_spread(int n, int lanes, const float *x, float (*out)[GGML_LANES]) {
    for (int lane = 0; lane < GGML_LANES; lane++) {
        const float *from = x + (lane < lanes ? lane : 0) * n;
        for (int i = 0; i < n; i++)
            out[i][lane] = from[i];
    }
}

/* codes [lanes, n]; 0 in a lane with live 0. */
INLINE void store(int n, int lanes, const Int4 (*found)[PARTS], const float *live, int offset, uint8_t *codes) {
    int32_t all[GGML_SEARCH_MAX][GGML_LANES];
    memcpy(all, found, (size_t)n * sizeof *all);
    for (int lane = 0; lane < lanes; lane++)
        for (int i = 0; i < n; i++)
            codes[lane * n + i] = live[lane] != 0.0f ? (uint8_t)(all[i][lane] + offset) : 0;
}

/* ---- signed codes -------------------------------------------------------------------------------------------------------- */

/* The first value of the largest magnitude; 0 where that is next to nothing. */
INLINE void extremes(int n, const Float4 (*x)[PARTS], Float4 *value) {
    EACH_PART(p) {
        Float4 largest = same(0.0f);
        value[p] = same(0.0f);
        for (int i = 0; i < n; i++) {
            Float4 size = magnitude(x[i][p]);
            Int4 more = size > largest;
            largest = choose(more, size, largest);
            value[p] = choose(more, x[i][p], value[p]);
        }
        value[p] = choose(largest < NOTHING, same(0.0f), value[p]);
    }
}

typedef struct SignedSums {
    Float4 xl[PARTS], ll[PARTS]; /* sums of w*x*l and w*l*l */
} SignedSums;

INLINE void fit_signed(int n, int levels, const Float4 *inverse, const Float4 (*x)[PARTS], const Float4 (*w)[PARTS],
                       const Float4 (*wx)[PARTS], SignedSums *sums) {
    SignedSums s;
    EACH_PART(p) s.xl[p] = s.ll[p] = same(0.0f);
    for (int i = 0; i < n; i++)
        EACH_PART(p) {
            Float4 l = number_of(code_of(inverse[p] * x[i][p], -levels, levels - 1));
            s.xl[p] += wx[i][p] * l;
            s.ll[p] += w[i][p] * l * l;
        }
    *sums = s;
}

/* Where `better` says so, the trial becomes what is kept. */
typedef struct SignedBest {
    Float4 inverse[PARTS], scale[PARTS], energy[PARTS];
} SignedBest;

INLINE void keep_signed(const Float4 *inverse, const SignedSums *sums, int is_first, SignedBest *best) {
    EACH_PART(p) {
        Float4 xl = sums->xl[p], ll = sums->ll[p], scale = xl / ll;
        Int4 some = ll > 0.0f, better = some & (xl * xl > best->energy[p] * ll);
        if (is_first) {
            scale = choose(ll != 0.0f, scale, same(0.0f));
            better = some | ~some;
        }
        best->inverse[p] = choose(better, inverse[p], best->inverse[p]);
        best->energy[p] = choose(better, scale * xl, best->energy[p]);
        best->scale[p] = choose(better, scale, best->scale[p]);
    }
}

INLINE void search_signed(int n, int lanes, int levels, const float (*values)[GGML_LANES], const float (*weights)[GGML_LANES],
                          uint8_t *codes, float *scales) {
    Float4 x[GGML_SEARCH_MAX][PARTS], w[GGML_SEARCH_MAX][PARTS], wx[GGML_SEARCH_MAX][PARTS], most[PARTS], inverse[PARTS];
    Int4 found[GGML_SEARCH_MAX][PARTS];
    SignedSums sums;
    SignedBest best = {0};
    float live[GGML_LANES], scale[GGML_LANES];
    load(n, values, x);
    if (weights != NULL) load(n, weights, w);
    for (int i = 0; i < n; i++)
        EACH_PART(p) {
            if (weights == NULL) w[i][p] = x[i][p] * x[i][p];
            wx[i][p] = w[i][p] * x[i][p];
        }
    extremes(n, x, most);
    EACH_PART(p) inverse[p] = (float)-levels / most[p];
    fit_signed(n, levels, inverse, x, w, wx, &sums);
    keep_signed(inverse, &sums, 1, &best);
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        EACH_PART(p) inverse[p] = -((float)levels + 0.1f * (float)step) / most[p];
        fit_signed(n, levels, inverse, x, w, wx, &sums);
        keep_signed(inverse, &sums, 0, &best);
    }
    for (int i = 0; i < n; i++)
        EACH_PART(p) found[i][p] = code_of(best.inverse[p] * x[i][p], -levels, levels - 1);
    memcpy(live, most, sizeof live);
    memcpy(scale, best.scale, sizeof scale);
    store(n, lanes, found, live, levels, codes);
    for (int lane = 0; lane < lanes; lane++)
        scales[lane] = live[lane] != 0.0f ? scale[lane] : 0.0f;
}

/* For each size that occurs, so that the compiler knows how long its loops are. */
void ggml_search_signed(int n, int lanes, int levels, const float (*x)[GGML_LANES], const float (*weights)[GGML_LANES],
                        uint8_t *codes, float *scales) {
    if (n == 16)
        search_signed(16, lanes, levels, x, weights, codes, scales);
    else
        search_signed(GGML_SEARCH_MAX, lanes, levels, x, weights, codes, scales);
}

/* ---- scale and min ------------------------------------------------------------------------------------------------------- */

typedef struct MinData {
    Float4 x[GGML_SEARCH_MAX][PARTS], w[GGML_SEARCH_MAX][PARTS];
    Float4 sum_w[PARTS], sum_x[PARTS]; /* of w, of w*x */
    Float4 max[PARTS];
} MinData;

typedef struct MinTrial {
    Float4 l[GGML_SEARCH_MAX][PARTS];
    Float4 scale[PARTS], min[PARTS];
    Int4 fits[PARTS]; /* the codes determine a line */
} MinTrial;

typedef struct MinBest {
    Float4 error[PARTS], scale[PARTS], min[PARTS];
    Float4 inverse[PARTS], from[PARTS]; /* what the codes were made with */
} MinBest;

INLINE void begin_min(int n, MinData *d, Float4 *min) {
    EACH_PART(p) {
        min[p] = d->max[p] = d->x[0][p];
        d->sum_w[p] = d->w[0][p];
        d->sum_x[p] = d->w[0][p] * d->x[0][p];
    }
    for (int i = 1; i < n; i++)
        EACH_PART(p) {
            Float4 x = d->x[i][p];
            min[p] = choose(x < min[p], x, min[p]);
            d->max[p] = choose(x > d->max[p], x, d->max[p]);
            d->sum_w[p] += d->w[i][p];
            d->sum_x[p] += d->w[i][p] * x;
        }
    EACH_PART(p) min[p] = choose(min[p] > 0.0f, same(0.0f), min[p]);
}

/* The codes of one trial and the least-squares line through them. A line's min stays <= 0. */
INLINE void fit_line(int n, int levels, const MinData *d, const Float4 *inverse, const Float4 *from, MinTrial *trial) {
    Float4 sum_l[PARTS], sum_ll[PARTS], sum_xl[PARTS];
    EACH_PART(p) sum_l[p] = sum_ll[p] = sum_xl[p] = same(0.0f);
    for (int i = 0; i < n; i++)
        EACH_PART(p) {
            Float4 l = number_of(code_of(inverse[p] * (d->x[i][p] - from[p]), 0, levels)), wl = d->w[i][p] * l;
            trial->l[i][p] = l;
            sum_l[p] += wl;
            sum_ll[p] += wl * l;
            sum_xl[p] += wl * d->x[i][p];
        }
    EACH_PART(p) {
        Float4 determinant = d->sum_w[p] * sum_ll[p] - sum_l[p] * sum_l[p];
        Float4 scale = (d->sum_w[p] * sum_xl[p] - d->sum_x[p] * sum_l[p]) / determinant;
        Float4 min = (sum_ll[p] * d->sum_x[p] - sum_l[p] * sum_xl[p]) / determinant;
        Int4 above = min > 0.0f;
        trial->fits[p] = determinant > 0.0f;
        trial->scale[p] = choose(above, sum_xl[p] / sum_ll[p], scale);
        trial->min[p] = choose(above, same(0.0f), min);
    }
}

INLINE void errors_of(int n, int is_absolute, const MinData *d, const MinTrial *trial, Float4 *error) {
    EACH_PART(p) error[p] = same(0.0f);
    for (int i = 0; i < n; i++)
        EACH_PART(p) {
            Float4 difference = trial->scale[p] * trial->l[i][p] + trial->min[p] - d->x[i][p];
            error[p] += d->w[i][p] * (is_absolute ? magnitude(difference) : difference * difference);
        }
}

INLINE void first_min(int n, const GgmlMinSearch *search, const MinData *d, MinTrial *trial, MinBest *best) {
    EACH_PART(p) {
        best->inverse[p] = (float)search->levels / (d->max[p] - best->min[p]);
        best->from[p] = trial->min[p] = best->min[p];
        best->scale[p] = trial->scale[p] = 1.0f / best->inverse[p];
    }
    for (int i = 0; i < n; i++)
        EACH_PART(p)
    trial->l[i][p] = number_of(code_of(best->inverse[p] * (d->x[i][p] - best->from[p]), 0, search->levels));
    errors_of(n, search->is_absolute, d, trial, best->error);
}

INLINE void search_min(int n, int lanes, const GgmlMinSearch *search, const float (*values)[GGML_LANES],
                       const float (*weights)[GGML_LANES], uint8_t *codes, float *scales, float *mins) {
    MinData d;
    MinTrial trial;
    MinBest best;
    Float4 least[PARTS], inverse[PARTS], from[PARTS], error[PARTS];
    load(n, values, d.x);
    load(n, weights, d.w);
    begin_min(n, &d, least);
    memcpy(best.min, least, sizeof least);
    first_min(n, search, &d, &trial, &best);
    for (int i = 0; i <= search->steps; i++) {
        /* From the min that was kept last, not from the smallest value: the reference does so. */
        EACH_PART(p) {
            from[p] = best.min[p];
            inverse[p] = (search->first + search->step * (float)i + (float)search->levels) / (d.max[p] - from[p]);
        }
        fit_line(n, search->levels, &d, inverse, from, &trial);
        errors_of(n, search->is_absolute, &d, &trial, error);
        EACH_PART(p) {
            Int4 better = trial.fits[p] & (error[p] < best.error[p]);
            best.error[p] = choose(better, error[p], best.error[p]);
            best.scale[p] = choose(better, trial.scale[p], best.scale[p]);
            best.min[p] = choose(better, trial.min[p], best.min[p]);
            best.inverse[p] = choose(better, inverse[p], best.inverse[p]);
            best.from[p] = choose(better, from[p], best.from[p]);
        }
    }
    Int4 found[GGML_SEARCH_MAX][PARTS];
    float live[GGML_LANES], scale[GGML_LANES], min[GGML_LANES];
    Float4 spread[PARTS];
    for (int i = 0; i < n; i++)
        EACH_PART(p) found[i][p] = code_of(best.inverse[p] * (d.x[i][p] - best.from[p]), 0, search->levels);
    EACH_PART(p) { /* a lane of equal values has no scale, and the min that it began with */
        Int4 flat = d.max[p] == least[p];
        spread[p] = choose(flat, same(0.0f), same(1.0f));
        best.scale[p] = choose(flat, same(0.0f), best.scale[p]);
        best.min[p] = choose(flat, least[p], best.min[p]);
    }
    memcpy(live, spread, sizeof live);
    memcpy(scale, best.scale, sizeof scale);
    memcpy(min, best.min, sizeof min);
    store(n, lanes, found, live, 0, codes);
    for (int lane = 0; lane < lanes; lane++) {
        scales[lane] = scale[lane];
        mins[lane] = -min[lane];
    }
}

void ggml_search_min(const GgmlMinSearch *search, int n, int lanes, const float (*x)[GGML_LANES],
                     const float (*weights)[GGML_LANES], uint8_t *codes, float *scales, float *mins) {
    if (n == 16)
        search_min(16, lanes, search, x, weights, codes, scales, mins);
    else
        search_min(GGML_SEARCH_MAX, lanes, search, x, weights, codes, scales, mins);
}

/* ---- codes for scales that are fixed --------------------------------------------------------------------------------------- */

void ggml_codes(int n, const float *x, float shift, float d, int low, int high, int offset, uint8_t *codes) {
    for (int i = 0; i < n; i += WIDTH) {
        Float4 v;
        int32_t found[WIDTH];
        memcpy(&v, x + i, sizeof v);
        Int4 code = code_of((v + shift) / d, low, high) + offset;
        memcpy(found, &code, sizeof found);
        for (int k = 0; k < WIDTH; k++)
            codes[i + k] = (uint8_t)found[k];
    }
}
