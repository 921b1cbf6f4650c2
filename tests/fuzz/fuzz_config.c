/* Any bytes as a config. What is accepted must print, read back, and print the same again. What follows a zero byte, if there
 * is one, is an override. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(const Config *config) {
    Config again;
    Error err = {0};
    Text first = {0}, second = {0};
    config_print(config, &first);
    if (config_load_text(&again, "printed", first.data, first.length, NULL, 0, &err) != OK) abort();
    config_print(&again, &second);
    if (strcmp(first.data, second.data) != 0) abort();
    text_free(&first);
    text_free(&second);
    config_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size == 0 ? NULL : memchr(data, 0, size);
    size_t length = zero == NULL ? size : (size_t)(zero - data);
    char *override = zero == NULL ? NULL : memory_format("%.*s", (int)(size - length - 1), (const char *)zero + 1);
    const char *overrides[] = {override};
    Config config;
    Error err = {0};
    Status status = config_load_text(&config, "fuzz", (const char *)data, length, overrides, override != NULL, &err);
    if (status == OK) {
        check_round_trip(&config);
        config_free(&config);
    } else if (status != ERR_USAGE || err.text[0] == 0) {
        abort();
    }
    memory_free(override);
    return 0;
}
