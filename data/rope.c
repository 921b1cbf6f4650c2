/* Inverse frequencies of the rotary embedding, per scaling type.
 *
 *   inv_i = theta^(-2i/d), i = 0 … d/2-1, d = head_dim
 *
 * Source of each rule: transformers, modeling_rope_utils.py, function _compute_<type>_parameters. The reference computes in
 * FP32 (theta^x with x rounded to FP32), so that its values differ from these by up to about 1e-6 relative; callers round
 * these once, to FP32, when they make their tables.
 */
#include <math.h>

#include "data/hf_config.h"

static double frequency(double theta, int64_t pair, int64_t head_dim) {
    return pow(theta, -2.0 * (double)pair / (double)head_dim);
}

/* Raises theta so that the longest wavelength just spans the longer sequence. No effect up to the model's context. */
static double dynamic_theta(const ModelConfig *config, int64_t longest) {
    double d = (double)config->head_dim, f = config->rope.factor;
    int64_t length = longest > config->context ? longest : config->context;
    double stretch = f * (double)length / (double)config->context - (f - 1);
    return config->rope.theta * pow(stretch, d / (d - 2));
}

/* Long wavelengths are divided by the factor, short ones kept, those between blended. */
static double llama3_frequency(const RopeConfig *rope, double inverse) {
    double wavelength = 2 * M_PI / inverse, context = (double)rope->original_context;
    if (wavelength > context / rope->low_freq_factor) return inverse / rope->factor;
    if (wavelength < context / rope->high_freq_factor) return inverse;
    double smooth = (context / wavelength - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * inverse / rope->factor + smooth * inverse;
}

/* ---- yarn ---------------------------------------------------------------------------------------------------------- */

/* The (fractional) pair that turns `rotations` times within the original context, in units of dimensions. */
static double yarn_correction(const ModelConfig *config, double rotations) {
    const RopeConfig *rope = &config->rope;
    return (double)config->head_dim * log((double)rope->original_context / (rotations * 2 * M_PI)) / (2 * log(rope->theta));
}

static void yarn_frequencies(const ModelConfig *config, double *inverse_frequency) {
    double low = yarn_correction(config, config->rope.beta_fast), high = yarn_correction(config, config->rope.beta_slow);
    if (config->rope.truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)config->head_dim - 1);
    if (low == high) high += 0.001; /* as the reference, against division by zero */
    for (int64_t i = 0; i < config->head_dim / 2; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        double inverse = frequency(config->rope.theta, i, config->head_dim);
        inverse_frequency[i] = inverse / config->rope.factor * ramp + inverse * (1 - ramp);
    }
}

static double yarn_mscale(double scale, double mscale) {
    return scale <= 1 ? 1 : 0.1 * mscale * log(scale) + 1;
}

static double yarn_attention_factor(const RopeConfig *rope) {
    if (rope->attention_factor > 0) return rope->attention_factor;
    if (rope->mscale > 0 && rope->mscale_all_dim > 0)
        return yarn_mscale(rope->factor, rope->mscale) / yarn_mscale(rope->factor, rope->mscale_all_dim);
    return yarn_mscale(rope->factor, 1);
}

/* ---- longrope ------------------------------------------------------------------------------------------------------ */

static double longrope_attention_factor(const RopeConfig *rope) {
    if (rope->attention_factor > 0) return rope->attention_factor;
    return rope->factor <= 1 ? 1 : sqrt(1 + log(rope->factor) / log((double)rope->original_context));
}

Status rope_frequencies(const ModelConfig *config, int64_t longest, double *inverse_frequency, double *attention_factor,
                        Error *err) {
    const RopeConfig *rope = &config->rope;
    const int64_t d = config->head_dim;
    if (d < 2 || d % 2 != 0 || d / 2 > ROPE_MAX_PAIRS)
        FAIL("head_dim: want an even number from 2 to %d, got %lld", 2 * ROPE_MAX_PAIRS, (long long)d);
    if (rope->type == ROPE_DYNAMIC && d == 2) FAIL("head_dim: rope_type 'dynamic' wants more than 2, got 2");
    if (rope->type == ROPE_LONGROPE && rope->factors != d / 2)
        FAIL("longrope: want %lld factors (half of head_dim), got %d", (long long)(d / 2), rope->factors);
    *attention_factor = 1;
    if (rope->type == ROPE_YARN) {
        yarn_frequencies(config, inverse_frequency);
        *attention_factor = yarn_attention_factor(rope);
        return OK;
    }
    if (rope->type == ROPE_LONGROPE) *attention_factor = longrope_attention_factor(rope);
    const float *factors = longest > rope->original_context ? rope->long_factor : rope->short_factor;
    const double theta = rope->type == ROPE_DYNAMIC ? dynamic_theta(config, longest) : rope->theta;
    for (int64_t i = 0; i < d / 2; i++) {
        double inverse = frequency(theta, i, d);
        if (rope->type == ROPE_LINEAR) inverse /= rope->factor;
        if (rope->type == ROPE_LLAMA3) inverse = llama3_frequency(rope, inverse);
        if (rope->type == ROPE_LONGROPE) inverse /= (double)factors[i];
        inverse_frequency[i] = inverse;
    }
    return OK;
}
