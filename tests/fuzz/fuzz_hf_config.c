/* A config.json, and the RoPE tables of those that are accepted: nothing that is not finite may come out. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "data/hf_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static ModelConfig config;
    Error err;
    if (model_config_parse("fuzz", (const char *)data, size, &config, &err) != OK) return 0;
    if (config.parameters <= 0 || config.heads % config.kv_heads != 0) abort();
    double inverse[ROPE_MAX_PAIRS], factor;
    const int64_t lengths[] = {1, config.context, 2 * config.context};
    for (int n = 0; n < 3; n++) {
        if (rope_frequencies(&config, lengths[n], inverse, &factor, &err) != OK) continue;
        if (!isfinite(factor)) abort();
        for (int64_t i = 0; i < config.head_dim / 2; i++)
            if (!isfinite(inverse[i])) abort();
    }
    return 0;
}
