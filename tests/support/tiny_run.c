#include "tests/support/tiny_run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/file.h"
#include "core/memory.h"
#include "core/text.h"
#include "train/commands.h"

static char folder[] = "/tmp/nibble-tiny-run-XXXXXX";

static const char arch[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\", \"hidden_size\": 64,"
    "\"intermediate_size\": 192, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    "\"vocab_size\": 320, \"max_position_embeddings\": 128, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0,"
    "\"bos_token_id\": 1, \"eos_token_id\": 2, \"tie_word_embeddings\": false, \"torch_dtype\": \"float32\"}";

static int write_file(const char *name, const char *text) {
    char *path = path_join(folder, name);
    Status status = file_write_atomic(path, text, strlen(text), NULL);
    memory_free(path);
    return (int)status;
}

int tiny_run_prepare(void **state) {
    (void)state;
    if (mkdtemp(folder) == NULL) return -1;
    Text lines = {0}, config = {0};
    for (int i = 0; i < 40; i++)
        text_addf(&lines, "{\"prompt\": \"say %d\", \"completion\": \" %.*s\"}\n", i, 1 + i % 17, "abcdefghijklmnopqrst");
    text_addf(
        &config,
        "{\"model\": {\"path\": \"%s/model\"}, \"data\": {\"path\": \"%s/data.jsonl\"}, \"output\": {\"path\": \"%s/run\"},"
        "\"train\": {\"steps\": 50, \"micro_batch_tokens\": 128, \"gradient_accumulation\": 2}}",
        folder, folder, folder);
    int bad = write_file("arch.json", arch) | write_file("data.jsonl", lines.data) | write_file("config.json", config.data);
    text_free(&lines);
    text_free(&config);
    if (bad) return -1;
    char words[5][64] = {"synth", "--arch", "", "--out", ""};
    (void)snprintf(words[2], sizeof words[2], "%s/arch.json", folder);
    (void)snprintf(words[4], sizeof words[4], "%s/model", folder);
    char *argv[] = {words[0], words[1], words[2], words[3], words[4], NULL};
    Error err = {0};
    Status status = command_synth(5, argv, &err);
    if (status != OK) print_error("%s\n", err.text);
    return (int)status;
}

int tiny_run_clean(void **state) {
    (void)state;
    return (int)folder_remove(folder, NULL);
}

Trainer *tiny_run_open(const char *const overrides[TINY_RUN_OVERRIDES], int threads) {
    char *config = path_join(folder, "config.json");
    Trainer *trainer = memory_calloc(1, sizeof *trainer);
    const char *all[TINY_RUN_OVERRIDES + 1] = {"output.overwrite=true"};
    int count = 1;
    for (int i = 0; i < TINY_RUN_OVERRIDES && overrides[i] != NULL; i++)
        all[count++] = overrides[i];
    Error err = {0};
    Status status = trainer_open(trainer, config, all, count, 0, threads, &err);
    memory_free(config);
    if (status == OK) return trainer;
    print_error("%s\n", err.text);
    trainer_close(trainer);
    memory_free(trainer);
    return NULL;
}
