#include "train/compare.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "train/config_table.h"
#include "train/signals.h"
#include "train/trainer.h"

#define FILE_MAX ((size_t)1 << 20)

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

static Status read_string(const cJSON *value, const char *what, char **out, Error *err) {
    if (!cJSON_IsString(value) || value->valuestring[0] == 0) FAIL_USAGE("%s: want a text", what);
    memory_free(*out);
    *out = memory_strdup(value->valuestring);
    return OK;
}

static Status read_numbers(const cJSON *list, const char *what, int most, double *out, int *count, Error *err) {
    const cJSON *item;
    *count = 0;
    if (!cJSON_IsArray(list)) FAIL_USAGE("%s: want a list of numbers", what);
    cJSON_ArrayForEach(item, list) {
        if (*count == most || !cJSON_IsNumber(item) || !(item->valuedouble > 0.0 && item->valuedouble < 9e15))
            FAIL_USAGE("%s: want 1 to %d numbers above 0", what, most);
        out[(*count)++] = item->valuedouble;
    }
    if (*count == 0) FAIL_USAGE("%s: want 1 to %d numbers above 0", what, most);
    return OK;
}

static Status find_arm(const Compare *compare, const cJSON *value, const char *what, int *out, Error *err) {
    if (!cJSON_IsString(value)) FAIL_USAGE("%s: want the name of an arm", what);
    for (*out = 0; *out < compare->arm_count; (*out)++)
        if (strcmp(compare->arms[*out].name, value->valuestring) == 0) return OK;
    FAIL_USAGE("%s: no earlier arm is called \"%.60s\"", what, value->valuestring);
}

static Status read_settings(const cJSON *list, CompareArm *arm, Error *err) {
    const cJSON *item;
    if (!cJSON_IsArray(list)) FAIL_USAGE("arms: %.60s: set: want a list of \"key=value\"", arm->name);
    cJSON_ArrayForEach(item, list) {
        if (arm->setting_count == COMPARE_SETTINGS || !cJSON_IsString(item))
            FAIL_USAGE("arms: %.60s: set: want at most %d texts \"key=value\"", arm->name, COMPARE_SETTINGS);
        arm->settings[arm->setting_count++] = memory_strdup(item->valuestring);
    }
    return OK;
}

static int name_is_plain(const char *name) {
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == strlen(name) && name[0] != '.';
}

static Status check_arm(const Compare *compare, const CompareArm *arm, Error *err) {
    if (arm->name == NULL) FAIL_USAGE("arms: an arm has no name");
    if (!name_is_plain(arm->name))
        FAIL_USAGE("arms: %.60s: a name is a folder's: letters, digits, '-', '_' and '.'", arm->name);
    for (int i = 0; i < compare->arm_count; i++)
        if (strcmp(compare->arms[i].name, arm->name) == 0) FAIL_USAGE("arms: two are called %.60s", arm->name);
    if (arm->rounds >= 0 && compare->arms[arm->rounds].rounds >= 0)
        FAIL_USAGE("arms: %.60s: rounds an arm that is itself rounded", arm->name);
    if (arm->against >= 0 && compare->arms[arm->against].rounds < 0)
        FAIL_USAGE("arms: %.60s: against: want an arm that rounds another", arm->name);
    return OK;
}

static Status read_arm(Compare *compare, const cJSON *object, Error *err) {
    if (compare->arm_count == COMPARE_ARMS) FAIL_USAGE("arms: more than %d", COMPARE_ARMS);
    CompareArm *arm = &compare->arms[compare->arm_count];
    arm->rounds = arm->against = -1;
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, "name");
    if (item != NULL) TRY(read_string(item, "arms: name", &arm->name, err));
    cJSON_ArrayForEach(item, object) {
        if (strcmp(item->string, "name") == 0) continue;
        if (strcmp(item->string, "set") == 0)
            TRY(read_settings(item, arm, err));
        else if (strcmp(item->string, "rounds") == 0)
            TRY(find_arm(compare, item, "arms: rounds", &arm->rounds, err));
        else if (strcmp(item->string, "against") == 0)
            TRY(find_arm(compare, item, "arms: against", &arm->against, err));
        else
            FAIL_USAGE("arms: \"%.60s\" is not known; want name, set, rounds, against", item->string);
    }
    TRY(check_arm(compare, arm, err));
    compare->arm_count++;
    return OK;
}

static Status read_all(Compare *compare, const cJSON *root, Error *err) {
    const cJSON *item;
    double seeds[COMPARE_SEEDS];
    if (!cJSON_IsObject(root)) FAIL_USAGE("want an object with config, output, seeds, learning_rates and arms");
    cJSON_ArrayForEach(item, root) {
        if (strcmp(item->string, "config") == 0)
            TRY(read_string(item, "config", &compare->config, err));
        else if (strcmp(item->string, "output") == 0)
            TRY(read_string(item, "output", &compare->output, err));
        else if (strcmp(item->string, "seeds") == 0)
            TRY(read_numbers(item, "seeds", COMPARE_SEEDS, seeds, &compare->seed_count, err));
        else if (strcmp(item->string, "learning_rates") == 0)
            TRY(read_numbers(item, "learning_rates", COMPARE_RATES, compare->rates, &compare->rate_count, err));
        else if (strcmp(item->string, "arms") != 0)
            FAIL_USAGE("\"%.60s\" is not known; want config, output, seeds, learning_rates, arms", item->string);
    }
    for (int s = 0; s < compare->seed_count; s++)
        compare->seeds[s] = (int64_t)seeds[s];
    const cJSON *arms = cJSON_GetObjectItemCaseSensitive(root, "arms");
    if (compare->config == NULL || compare->output == NULL || compare->seed_count == 0 || compare->rate_count == 0 ||
        !cJSON_IsArray(arms))
        FAIL_USAGE("want all of config, output, seeds, learning_rates and arms");
    cJSON_ArrayForEach(item, arms) TRY(read_arm(compare, item, err));
    if (compare->arm_count == 0) FAIL_USAGE("arms: there is none");
    return OK;
}

Status compare_read(Compare *compare, const char *path, Error *err) {
    char *text = NULL;
    size_t length;
    int64_t *lines = NULL, line_count;
    cJSON *root = NULL;
    memset(compare, 0, sizeof *compare);
    Status status;
    TRY_GOTO(file_read(path, FILE_MAX, &text, &length, err));
    TRY_GOTO(config_scan(path, text, length, &lines, &line_count, err));
    root = cJSON_ParseWithLength(text, length);
    status = root == NULL ? error_set(err, ERR_USAGE, "not valid JSON") : read_all(compare, root, err);
    if (status != OK) error_prefix(err, "%s", path);
done:
    cJSON_Delete(root);
    memory_free(lines);
    memory_free(text);
    if (status != OK) compare_free(compare);
    return status;
}

void compare_free(Compare *compare) {
    memory_free(compare->config);
    memory_free(compare->output);
    for (int a = 0; a < COMPARE_ARMS; a++) { /* also one that was refused half-read */
        memory_free(compare->arms[a].name);
        for (int i = 0; i < compare->arms[a].setting_count; i++)
            memory_free(compare->arms[a].settings[i]);
    }
    memset(compare, 0, sizeof *compare);
}

/* ---- running --------------------------------------------------------------------------------------------------------------- */

static char *run_folder(const Compare *compare, const CompareArm *arm, int seed, int rate) {
    if (arm->rounds >= 0) return memory_format("%s/%s/seed-%lld", compare->output, arm->name, (long long)compare->seeds[seed]);
    return memory_format("%s/%s/seed-%lld-lr-%g", compare->output, arm->name, (long long)compare->seeds[seed],
                         compare->rates[rate]);
}

/* Bits of a weight as its format stores it; a mean over widths is not needed but for int8, which takes the hidden size. */
static double bits_of(const Trainer *trainer) {
    QatOptions qat;
    if (qat_options(&trainer->config, &qat, NULL) != OK || qat.mode == QAT_NONE) return 16.0;
    const FakeQuant *grid = &qat.grid;
    double group = grid->group > 0 ? (double)grid->group : (double)trainer->engine.model.hidden;
    switch (grid->grid) {
        case FAKE_INT: return (double)grid->bits + (16.0 + (grid->symmetric ? 0.0 : (double)grid->bits)) / group;
        case FAKE_Q4_0:
        case FAKE_Q4_K: return 4.5;
        case FAKE_Q8_0: return 8.5;
        case FAKE_NF4: break;
    }
    return 4.0 + (grid->double_quant ? 8.0 + 32.0 / NESTED_BLOCK : 32.0) / (double)grid->block_size;
}

static Status measure(Trainer *trainer, double *loss, Error *err) {
    EvalResult result;
    if (trainer->eval_data.count == 0) FAIL_USAGE("the config holds no data out: set data.eval_path or data.eval_fraction");
    if (trainer->engine.qat != NULL) qat_set_step(trainer->engine.qat, INT64_MAX); /* as it is shipped: quantized */
    TRY(evaluate(&trainer->engine, trainer->eval_tape, &trainer->eval_data, trainer->eval_plan, &trainer->batch, &result, err));
    *loss = result.loss;
    return OK;
}

static Status run_one(Compare *compare, CompareArm *arm, int seed, int rate, int threads, Error *err) {
    const char *overrides[COMPARE_SETTINGS + 4];
    int count = 0;
    char *folder = run_folder(compare, arm, seed, rate), *from = NULL, *owned[4] = {0};
    for (; count < arm->setting_count; count++)
        overrides[count] = arm->settings[count];
    overrides[count++] = owned[0] = memory_format("seed=%lld", (long long)compare->seeds[seed]);
    overrides[count++] = owned[1] = memory_format("output.path=\"%s\"", folder);
    overrides[count++] = owned[2] = memory_format("train.lr=%.17g", compare->rates[rate]);
    if (arm->rounds >= 0) {
        const CompareArm *rounded = &compare->arms[arm->rounds];
        from = run_folder(compare, rounded, seed, rounded->best);
        overrides[count++] = owned[3] = memory_format("lora.init=\"%s/adapter\"", from);
    }
    Trainer *trainer = memory_calloc(1, sizeof *trainer);
    Status status = trainer_open(trainer, compare->config, overrides, count, 1, threads, err);
    if (status == OK && arm->rounds < 0) status = trainer_run(trainer, err);
    if (status == OK) {
        arm->bits = bits_of(trainer);
        status = measure(trainer, &arm->loss[seed][rate], err);
    }
    trainer_close(trainer);
    memory_free(trainer);
    if (status != OK)
        error_prefix(err, "%s", folder);
    else
        log_info("compare: %s: held-out loss %.6f", folder, arm->loss[seed][rate]);
    for (int i = 0; i < 4; i++)
        memory_free(owned[i]);
    memory_free(from);
    memory_free(folder);
    return status;
}

static void choose_rate(const Compare *compare, CompareArm *arm, int rates) {
    double least = INFINITY;
    for (int r = 0; r < rates; r++) {
        double sum = 0.0;
        for (int s = 0; s < compare->seed_count; s++)
            sum += arm->loss[s][r];
        if (!(sum < least)) continue;
        least = sum;
        arm->best = r;
    }
}

Status compare_run(Compare *compare, int threads, Error *err) {
    for (int a = 0; a < compare->arm_count; a++) {
        CompareArm *arm = &compare->arms[a];
        int rates = arm->rounds >= 0 ? 1 : compare->rate_count;
        for (int s = 0; s < compare->seed_count; s++)
            for (int r = 0; r < rates; r++) {
                if (signals_pending()) return error_set(err, ERR_INTERRUPTED, "interrupted");
                TRY(run_one(compare, arm, s, r, threads, err));
            }
        choose_rate(compare, arm, rates);
    }
    return OK;
}

double compare_recovery(const Compare *compare, const CompareArm *arm, int seed) {
    if (arm->against < 0) return NAN;
    const CompareArm *ptq = &compare->arms[arm->against], *full = &compare->arms[ptq->rounds];
    double lost = ptq->loss[seed][ptq->best] - full->loss[seed][full->best];
    return lost > 0.0 ? (ptq->loss[seed][ptq->best] - arm->loss[seed][arm->best]) / lost : NAN;
}
