#include "core/dtype.h"

#include <stdlib.h>

float f16_to_float(f16 value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t exponent = (value >> 10) & 31u;
    uint32_t mantissa = value & 1023u;
    uint32_t bits;
    if (exponent == 31u) {
        bits = sign | 0x7F800000u | (mantissa << 13);
    } else if (exponent != 0u) {
        bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
    } else { /* zero or subnormal: mantissa * 2^-24 is exact in a float */
        float magnitude = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &magnitude, sizeof bits);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

f16 f16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (f16)(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    if (magnitude >= 0x477FF000u) return (f16)(sign | 0x7C00u); /* rounds to or beyond 65520 */
    if (magnitude >= 0x38800000u) {                             /* normal half */
        uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
        return (f16)(sign | ((rounded - 0x38000000u) >> 13));
    }
    /* subnormal half: adding 2^-1 aligns the half's last bit with the float's, so the addition rounds to even */
    float absolute;
    memcpy(&absolute, &magnitude, sizeof absolute);
    float shifted = absolute + 0.5f;
    uint32_t shifted_bits;
    memcpy(&shifted_bits, &shifted, sizeof shifted_bits);
    return (f16)(sign | (shifted_bits - 0x3F000000u));
}

static double load(const void *from, DType type, int64_t i) {
    switch (type) {
        case DTYPE_F32: return (double)((const float *)from)[i];
        case DTYPE_BF16: return (double)bf16_to_float(((const bf16 *)from)[i]);
        case DTYPE_F16: return (double)f16_to_float(((const f16 *)from)[i]);
        case DTYPE_F64: return ((const double *)from)[i];
        default: abort(); /* the contract names four types */
    }
}

void dtype_convert(void *to, DType to_type, const void *from, DType from_type, int64_t count) {
    if (to_type == from_type) {
        memcpy(to, from, (size_t)count * dtype_size(to_type));
        return;
    }
    if (to_type == DTYPE_F32 && from_type == DTYPE_BF16) {
        const bf16 *in = from;
        float *out = to;
        for (int64_t i = 0; i < count; i++)
            out[i] = bf16_to_float(in[i]);
        return;
    }
    if (to_type == DTYPE_BF16 && from_type == DTYPE_F32) {
        const float *in = from;
        bf16 *out = to;
        for (int64_t i = 0; i < count; i++)
            out[i] = bf16_from_float(in[i]);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        double value = load(from, from_type, i);
        switch (to_type) {
            case DTYPE_F32: ((float *)to)[i] = (float)value; break;
            case DTYPE_BF16: ((bf16 *)to)[i] = bf16_from_float((float)value); break;
            case DTYPE_F16: ((f16 *)to)[i] = f16_from_float((float)value); break;
            case DTYPE_F64: ((double *)to)[i] = value; break;
            default: abort();
        }
    }
}
