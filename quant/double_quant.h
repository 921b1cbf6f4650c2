/* Double quantization: the FP32 constants of 4-bit blocks as 8 bits in blocks of 256 around one offset.
 *
 *   offset          = mean of absmax, summed in double in index order, rounded once to FP32
 *   z[b]            = absmax[b] - offset                                             (FP32)
 *   nested_absmax[g] = max |z| over blocks 256g .. 256g+255
 *   codes[b]        = the entry of the dynamic map nearest to z[b] / nested_absmax[g]; a tie goes to the lower entry
 *
 * Source: Dettmers et al., QLoRA (2023), as bitsandbytes' Python `default` backend does it (release 0.50.2:
 * functional.py create_dynamic_map, backends/default/ops.py quantize_blockwise): full groups are multiplied by the
 * reciprocal of max(nested_absmax, ABSMAX_FLOOR), a short last group is divided by it. A group of zeros has
 * nested_absmax 0 and codes 127 (the map's 0).
 */
#ifndef NIBBLE_QUANT_DOUBLE_QUANT_H
#define NIBBLE_QUANT_DOUBLE_QUANT_H

#include <stdint.h>

#include "core/pool.h"

#define DYNAMIC_MAP_ENTRIES 256

/* Overwrites map with the signed 8-bit dynamic map, ascending: +-10^(i-6) * (centre k of 2^i equal parts of [0.1, 1]) for
 * i = 0..6, and 0 (entry 127) and 1 (entry 255). Equal to bitsandbytes' to the last bit. */
void dynamic_map(float map[DYNAMIC_MAP_ENTRIES]);

/* The mean of `blocks` constants (0 for none). */
float double_quant_offset(const float *absmax, int64_t blocks);

/* Overwrites codes [blocks] and nested_absmax [ceil(blocks/256)], with the given offset. A NULL pool runs in the caller. */
void double_quantize(Pool *pool, const float *absmax, int64_t blocks, float offset, const float map[DYNAMIC_MAP_ENTRIES],
                     uint8_t *codes, float *nested_absmax);

#endif
