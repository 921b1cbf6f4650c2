/* adapter_config.json of a PEFT folder, through the file that it is read from: scales that are accepted are finite. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/adapter_internal.h"
#include "train/adapter_peft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = "/tmp/nibble-fuzz-adapter-XXXXXX";
static char path[64];
static ModelConfig model;

static void remove_files(void) {
    (void)unlink(path);
    (void)rmdir(folder);
}

static void prepare(void) {
    static const char text[] =
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"num_hidden_layers\":2,\"vocab_size\":40,\"max_position_embeddings\":128,"
        "\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\"}";
    Error err;
    if (path[0] != 0) return;
    if (mkdtemp(folder) == NULL || model_config_parse("fuzz", text, sizeof text - 1, &model, &err) != OK) abort();
    (void)snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    (void)atexit(remove_files);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    prepare();
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
    Adapter adapter = {0};
    Error err;
    adapter_reserve(&adapter, &model);
    for (int64_t layer = 0; layer < adapter.layers; layer++)
        adapter_module(&adapter, layer, LAYER_Q)->rank = 1 + layer;
    if (adapter_config_apply(&adapter, folder, &model, &err) == OK)
        for (int64_t layer = 0; layer < adapter.layers; layer++)
            if (!isfinite(adapter_module(&adapter, layer, LAYER_Q)->scale)) abort();
    adapter_free(&adapter);
    return 0;
}
