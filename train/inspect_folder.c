/* nibble inspect PATH: finds out what the path is, and says what is in it. */
#include <cjson/cJSON.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/memory.h"
#include "data/gguf_model.h"
#include "data/hf_config.h"
#include "data/template.h"
#include "data/tokenizer.h"
#include "train/adapter_gguf.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/inspect.h"

#define CONFIG_LIMIT ((size_t)4 << 20)

static int has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    int found = file_exists(path);
    memory_free(path);
    return found;
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static Status add_tensors(InspectOutput *out, const char *path, const char *stem, Error *err) {
    TensorFiles *files;
    TRY(tensors_open(&files, path, stem, err));
    Status status = inspect_tensors(out, files, err);
    tensors_close(files);
    return status;
}

/* ---- model --------------------------------------------------------------------------------------------------------------- */

static const char *quantization(const ModelConfig *model, char text[128]) {
    if (prequant_is_grouped(model->prequant)) return grouped_config_text(model, text, 128);
    if (model->prequant == PREQUANT_BNB_8BIT) return "bitsandbytes LLM.int8";
    if (model->prequant == PREQUANT_NONE) return "none";
    if (model->prequant_nf4) return model->prequant_double ? "bitsandbytes nf4, double quantization" : "bitsandbytes nf4";
    return model->prequant_double ? "bitsandbytes fp4, double quantization" : "bitsandbytes fp4";
}

/* The built-in that renders the same, "interpreted", or why it is not. */
static const char *name_template(const Tokenizer *tokenizer, const char *jinja, Error *reason) {
    const char *known = template_recognise(jinja);
    int32_t bos = tokenizer_bos(tokenizer), eos = tokenizer_eos(tokenizer);
    TemplateJinja *interpreted;
    if (known != NULL) return known;
    Status status = template_jinja_open(&interpreted, tokenizer, bos >= 0 ? tokenizer_token(tokenizer, bos) : "",
                                        eos >= 0 ? tokenizer_token(tokenizer, eos) : "", reason);
    template_jinja_close(interpreted);
    return status == OK ? "interpreted" : reason->text;
}

static int has_tokenizer(const char *folder) {
    return has(folder, "tokenizer.json") || has(folder, "tokenizer.model") ||
           (has(folder, "vocab.json") && has(folder, "merges.txt"));
}

static Status add_tokenizer(InspectOutput *out, const char *folder, Error *err) {
    Tokenizer *tokenizer;
    TRY(tokenizer_open(&tokenizer, folder, err));
    const char *jinja = tokenizer_chat_template(tokenizer);
    int32_t bos = tokenizer_bos(tokenizer), eos = tokenizer_eos(tokenizer);
    Error reason = {0};
    inspect_string(out, "tokenizer", tokenizer_form(tokenizer));
    inspect_integer(out, "tokenizer_vocabulary", tokenizer_vocab_size(tokenizer));
    inspect_string(out, "bos", bos >= 0 ? tokenizer_token(tokenizer, bos) : "none");
    inspect_string(out, "eos", eos >= 0 ? tokenizer_token(tokenizer, eos) : "none");
    inspect_bool(out, "adds_bos", tokenizer_adds_bos(tokenizer));
    inspect_string(out, "chat_template", jinja == NULL ? "none" : name_template(tokenizer, jinja, &reason));
    tokenizer_close(tokenizer);
    return OK;
}

static void add_shape(InspectOutput *out, const ModelConfig *m) {
    static const char *const ropes[] = {"default", "linear", "dynamic", "llama3", "yarn", "longrope"};
    inspect_string(out, "model_type", m->model_type);
    inspect_string(out, "architecture", m->architecture);
    inspect_integer(out, "parameters", m->parameters);
    inspect_integer(out, "layers", m->layers);
    inspect_integer(out, "hidden", m->hidden);
    inspect_integer(out, "intermediate", m->intermediate);
    inspect_integer(out, "heads", m->heads);
    inspect_integer(out, "kv_heads", m->kv_heads);
    inspect_integer(out, "head_size", m->head_dim);
    inspect_integer(out, "vocabulary", m->vocab);
    inspect_integer(out, "context", m->context);
    inspect_string(out, "rope", ropes[m->rope.type]);
    inspect_number(out, "rope_theta", m->rope.theta);
    inspect_bool(out, "tied_embeddings", m->tied_embeddings);
    inspect_bool(out, "qkv_bias", m->qkv_bias);
    inspect_bool(out, "qk_norm", m->qk_norm);
    inspect_string(out, "activation", m->gelu_gate ? "gelu_pytorch_tanh" : "silu");
    inspect_string(out, "dtype", dtype_name(m->dtype));
    char text[128];
    inspect_string(out, "quantization", quantization(m, text));
}

static Status inspect_model(InspectOutput *out, const char *folder, Error *err) {
    ModelConfig *model = memory_alloc(sizeof *model);
    Status status = model_config_read(folder, model, err);
    if (status == OK) {
        inspect_string(out, "kind", "model");
        add_shape(out, model);
    }
    memory_free(model);
    TRY(status);
    if (has_tokenizer(folder))
        TRY(add_tokenizer(out, folder, err));
    else
        inspect_string(out, "tokenizer", "none");
    if (has(folder, "model.safetensors") || has(folder, "model.safetensors.index.json"))
        return add_tensors(out, folder, NULL, err);
    inspect_string(out, "weights", "none");
    return OK;
}

/* ---- adapter ------------------------------------------------------------------------------------------------------------- */

static void add_targets(InspectOutput *out, const cJSON *value) {
    Text names = {0};
    const cJSON *item = cJSON_IsArray(value) ? value->child : NULL;
    if (cJSON_IsString(value)) text_adds(&names, value->valuestring);
    for (; item != NULL; item = item->next)
        if (cJSON_IsString(item)) text_addf(&names, "%s%s", names.length > 0 ? ", " : "", item->valuestring);
    inspect_string(out, "target_modules", names.data != NULL ? names.data : "none");
    text_free(&names);
}

static Status add_adapter_config(InspectOutput *out, const char *path, Error *err) {
    static const char *const numbers[] = {"r", "lora_alpha", "lora_dropout"};
    static const char *const strings[] = {"base_model_name_or_path", "peft_type", "task_type", "bias"};
    static const char *const flags[] = {"use_rslora", "use_dora"};
    char *text;
    size_t length;
    TRY(file_read(path, CONFIG_LIMIT, &text, &length, err));
    cJSON *root = cJSON_ParseWithLength(text, length);
    memory_free(text);
    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        FAIL("%s: not a JSON object", path);
    }
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(root, strings[i]);
        if (cJSON_IsString(value)) inspect_string(out, strings[i], value->valuestring);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(root, numbers[i]);
        if (cJSON_IsNumber(value)) inspect_number(out, numbers[i], value->valuedouble);
    }
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(root, flags[i]);
        if (cJSON_IsBool(value)) inspect_bool(out, flags[i], cJSON_IsTrue(value));
    }
    add_targets(out, cJSON_GetObjectItemCaseSensitive(root, "target_modules"));
    cJSON_Delete(root);
    return OK;
}

static Status inspect_adapter(InspectOutput *out, const char *folder, Error *err) {
    char *path = path_join(folder, "adapter_config.json");
    inspect_string(out, "kind", "adapter");
    Status status = add_adapter_config(out, path, err);
    memory_free(path);
    TRY(status);
    TensorFiles *files;
    TRY(tensors_open(&files, folder, "adapter_model", err));
    int64_t trained = 0, modules = 0;
    for (int64_t i = 0; i < tensors_count(files); i++) {
        const TensorInfo *tensor = tensors_get(files, i);
        trained += (int64_t)(tensor->bytes / dtype_size(tensor->dtype));
        modules += ends_with(tensor->name, ".lora_A.weight");
    }
    inspect_integer(out, "modules", modules);
    inspect_integer(out, "parameters", trained);
    status = inspect_tensors(out, files, err);
    tensors_close(files);
    return status;
}

/* ---- checkpoint and run -------------------------------------------------------------------------------------------------- */

static Status inspect_checkpoint(InspectOutput *out, const char *folder, Error *err) {
    CheckpointState state;
    TRY(checkpoint_inspect(folder, &state, err));
    inspect_string(out, "kind", "checkpoint");
    inspect_bool(out, "valid", 1);
    inspect_integer(out, "step", state.step);
    inspect_integer(out, "optimizer_steps", state.optimizer_steps);
    inspect_integer(out, "micro_batches", state.micro_batches);
    inspect_integer(out, "tokens", state.tokens);
    inspect_integer(out, "trained_tokens", state.trained_tokens);
    inspect_number(out, "seconds", state.seconds);
    inspect_number(out, "first_eval", state.first_eval);
    inspect_number(out, "best_eval", state.best_eval);
    inspect_integer(out, "elements", state.elements);
    return OK;
}

static int by_number(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Numbers of the folders step-N, ascending. */
static int64_t *list_checkpoints(const char *folder, int64_t *count) {
    int64_t *steps = NULL;
    DIR *listing = opendir(folder);
    *count = 0;
    for (struct dirent *entry; listing != NULL && (entry = readdir(listing)) != NULL;) {
        char *end;
        if (strncmp(entry->d_name, "step-", 5) != 0) continue;
        long long step = strtoll(entry->d_name + 5, &end, 10);
        if (end == entry->d_name + 5 || *end != 0 || step < 0) continue;
        steps = memory_resize(steps, (size_t)(*count + 1) * sizeof *steps);
        steps[(*count)++] = step;
    }
    if (listing != NULL) (void)closedir(listing);
    if (*count > 1) qsort(steps, (size_t)*count, sizeof *steps, by_number);
    return steps;
}

static void add_checkpoints(InspectOutput *out, const char *run) {
    char *folder = path_join(run, "checkpoints");
    int64_t count;
    int64_t *steps = list_checkpoints(folder, &count);
    inspect_key(out, "checkpoints");
    text_adds(&out->text, out->json ? "[" : count == 0 ? "none\n" : "\n");
    for (int64_t i = 0; i < count; i++) {
        CheckpointState state;
        Error problem = {0};
        char *path = memory_format("%s/step-%lld", folder, (long long)steps[i]);
        int valid = checkpoint_inspect(path, &state, &problem) == OK;
        memory_free(path);
        if (!out->json) {
            text_addf(&out->text, "  step %-8lld %s\n", (long long)steps[i], valid ? "valid" : problem.text);
            continue;
        }
        text_addf(&out->text, "%s{\"step\": %lld, \"valid\": %s", i > 0 ? ", " : "", (long long)steps[i],
                  valid ? "true" : "false");
        if (!valid) {
            text_adds(&out->text, ", \"reason\": ");
            text_add_json_string(&out->text, problem.text, strlen(problem.text));
        }
        text_adds(&out->text, "}");
    }
    text_adds(&out->text, out->json ? "]" : "");
    memory_free(steps);
    memory_free(folder);
}

static Status inspect_run(InspectOutput *out, const char *folder, Error *err) {
    Config config;
    char *path = path_join(folder, "config.json");
    Status status = config_load(&config, path, NULL, 0, err);
    if (status == OK) {
        inspect_string(out, "kind", "run");
        inspect_string(out, "model", config.model.path);
        inspect_string(out, "method", config.method);
        if (strcmp(config.method, "qlora") == 0) inspect_string(out, "quant", config.quant.type);
        Text name = {0};
        config_print_paths(&config, &name);
        inspect_string(out, "data", name.data);
        text_free(&name);
        inspect_number(out, "lr", config.train.lr);
        inspect_integer(out, "micro_batch_tokens", config.train.micro_batch_tokens);
        inspect_integer(out, "gradient_accumulation", config.train.gradient_accumulation);
        inspect_bool(out, "adapter", has(folder, "adapter"));
        inspect_bool(out, "report", has(folder, "report.html"));
        add_checkpoints(out, folder);
    }
    config_free(&config);
    memory_free(path);
    return status;
}

static Status inspect_gguf_inside(InspectOutput *out, const char *folder, const char *name, Error *err) {
    char *path = path_join(folder, name);
    Status status = inspect_gguf(out, path, err);
    memory_free(path);
    return status;
}

Status inspect_path(InspectOutput *out, const char *path, Error *err) {
    if (!file_exists(path)) FAIL("%s: there is no such file or folder", path);
    inspect_string(out, "path", path);
    if (!file_is_folder(path)) {
        if (ends_with(path, ".gguf")) return inspect_gguf(out, path, err);
        if (!ends_with(path, ".safetensors"))
            FAIL_USAGE("%s: want a folder, a .safetensors or a .gguf file (for data: --data CONFIG.json)", path);
        inspect_string(out, "kind", "safetensors");
        return add_tensors(out, path, NULL, err);
    }
    if (has(path, "adapter_config.json")) return inspect_adapter(out, path, err);
    if (gguf_is_file(path)) return inspect_gguf(out, path, err);
    if (adapter_is_gguf(path)) return inspect_gguf_inside(out, path, ADAPTER_GGUF_FILE, err);
    if (has(path, "state.json")) return inspect_checkpoint(out, path, err);
    if (has(path, "config.json") && (has(path, "metrics.jsonl") || has(path, "checkpoints")))
        return inspect_run(out, path, err);
    if (has(path, "config.json")) return inspect_model(out, path, err);
    if (has_tokenizer(path)) {
        inspect_string(out, "kind", "tokenizer");
        return add_tokenizer(out, path, err);
    }
    FAIL_USAGE("%s: is no model (config.json), adapter (adapter_config.json), checkpoint (state.json), run or tokenizer folder",
               path);
}
