/* Element types and the exact conversions between them.
 *
 * Rounding to 16 bits is to nearest, ties to even, everywhere (RNE). NaN stays
 * NaN: float to bf16 sets the quiet bit so that a NaN whose payload lies in the
 * low half does not become infinity.
 */
#ifndef NIBBLE_CORE_DTYPE_H
#define NIBBLE_CORE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum DType {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_F64, /* tests only: finite differences through the reference */
    DTYPE_I8,
    DTYPE_U8,
    DTYPE_I16,
    DTYPE_U16,
    DTYPE_I32,
    DTYPE_U32,
    DTYPE_I64,
    DTYPE_U64,
    DTYPE_BOOL,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_COUNT
} DType;

/* Bytes of one element. */
static inline size_t dtype_size(DType type) {
    static const uint8_t sizes[DTYPE_COUNT] = {4, 2, 2, 8, 1, 1, 2, 2, 4, 4, 8, 8, 1, 1, 1};
    return sizes[type];
}

/* "F32", "BF16", … as safetensors spells them. */
static inline const char *dtype_name(DType type) {
    static const char *const names[DTYPE_COUNT] = {"F32", "BF16", "F16", "F64", "I8",   "U8",      "I16",    "U16",
                                                   "I32", "U32",  "I64", "U64", "BOOL", "F8_E4M3", "F8_E5M2"};
    return names[type];
}

typedef uint16_t bf16; /* bit pattern; converts only through the functions below */
typedef uint16_t f16;

static inline float bf16_to_float(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline bf16 bf16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bf16)((bits >> 16) | 64u);
    return (bf16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float bf16_round(float value) {
    return bf16_to_float(bf16_from_float(value));
}

float f16_to_float(f16 value);
f16 f16_from_float(float value);

/* count elements, any of F32, BF16, F16 and F64 on either side; the areas must not overlap. F64 to 16 bits is rounded to
 * F32 first. Equal types are copied, whatever they are. */
void dtype_convert(void *to, DType to_type, const void *from, DType from_type, int64_t count);

#endif
