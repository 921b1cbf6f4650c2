/* Which plan a run takes: what stays on a device, what is computed again, what lies in the host's memory. */
#include <stdio.h>
#include <string.h>

#include "train/run_plan_internal.h"

/* Whether parts of the base may lie elsewhere than on the device, or there twice. */
static int is_movable(const PlanInput *in) {
    return in->backend->on_device && in->has_base && in->base.ranks <= 1;
}

static int is_quantized(const PlanInput *in) {
    return in->base.linear != WEIGHT_F32 && in->base.linear != WEIGHT_BF16;
}

static Status check_dequantized(const PlanInput *in, Error *err) {
    int64_t wanted = in->config->train.dequantized_layers;
    if (wanted == CONFIG_AUTO || wanted == 0) return OK;
    if (in->shape.qat != QAT_NONE)
        FAIL_USAGE("train.dequantized_layers: %lld: qat.mode decodes the base to FP32 in each step; leave it at \"auto\"",
                   (long long)wanted);
    if (!is_movable(in) || !is_quantized(in))
        FAIL_USAGE(
            "train.dequantized_layers: %lld: only a device with a quantized base that is not split has such layers; leave it "
            "at \"auto\"",
            (long long)wanted);
    if (wanted > in->model->layers)
        FAIL_USAGE("train.dequantized_layers: the model has %lld layers, got %lld", (long long)in->model->layers,
                   (long long)wanted);
    return OK;
}

#define SPARE_PART 32 /* of the memory is left where more of it only saves time: libraries load parts of themselves late */

/* More layers dequantized, as long as they fit. */
static Status add_dense_layers(PlanInput *in, size_t available, RunPlan *plan, Error *err) {
    size_t most = available - available / SPARE_PART;
    RunPlan other = *plan;
    int64_t *dense = &other.places.dense_layers;
    *dense = 1;
    TRY(plan_candidate(in, &other, err));
    if (other.weights.dense == 0 || plan->peak >= most) return OK;
    size_t count = (most - plan->peak) / other.weights.dense;
    *dense = count < (size_t)in->model->layers ? (int64_t)count : in->model->layers;
    for (; *dense > 0; --*dense) {
        TRY(plan_candidate(in, &other, err));
        if (other.peak > most) continue;
        *plan = other;
        break;
    }
    return OK;
}

/* The inputs of as few recomputed layers in pinned host memory as must be, or as help. */
static Status stash_inputs(PlanInput *in, size_t available, RunPlan *plan, Error *err) {
    RunPlan other = *plan;
    int64_t most = in->model->layers - 1;
    other.stashed_layers = most;
    TRY(plan_candidate(in, &other, err));
    if (other.peak >= plan->peak) return OK; /* the peak is not made of them */
    size_t input = in->backend->activation_bytes(in->act, in->config->train.micro_batch_tokens, in->model->hidden);
    size_t enough = other.peak > available ? other.peak : available;
    for (int64_t count = (int64_t)((plan->peak - enough) / (input + 1)) + 1; count < most; count++) {
        RunPlan fewer = *plan;
        fewer.stashed_layers = count;
        TRY(plan_candidate(in, &fewer, err));
        if (fewer.peak > enough) continue;
        other = fewer;
        break;
    }
    *plan = other;
    return OK;
}

/* As few packed layers in pinned host memory as must be. */
static Status pin_layers(PlanInput *in, size_t available, RunPlan *plan, Error *err) {
    size_t layer = (plan->weights.linear + plan->weights.constants) / (size_t)in->model->layers;
    int64_t *count = &plan->places.pinned_layers;
    for (*count = (int64_t)((plan->peak - available) / (layer + 1)) + 1; *count < in->model->layers; ++*count) {
        TRY(plan_candidate(in, plan, err));
        if (plan->peak <= available) return OK;
    }
    *count = in->model->layers;
    return plan_candidate(in, plan, err);
}

static void say_choice(const PlanInput *in, RunPlan *plan) {
    const WeightPlaces *places = &plan->places;
    long long layers = (long long)in->model->layers;
    Text text = {0};
    static const char *const kept[] = {"activations are kept", "activations are kept, but results of norms and gates",
                                       "layers are recomputed"};
    text_adds(&text, kept[plan->recompute]);
    if (places->dense_layers > 0)
        text_addf(&text, ", %lld of %lld layers stay dequantized", (long long)places->dense_layers, layers);
    const char *before = "; in pinned host memory: ";
    if (places->pinned_embedding) {
        text_addf(&text, "%sthe input embedding", before);
        before = ", ";
    }
    if (plan->stashed_layers > 0) {
        text_addf(&text, "%sthe inputs of %lld of %lld layers", before, (long long)plan->stashed_layers, layers);
        before = ", ";
    }
    if (places->pinned_layers > 0)
        text_addf(&text, "%sthe weights of %lld of %lld layers", before, (long long)places->pinned_layers, layers);
    (void)snprintf(plan->choice, sizeof plan->choice, "%s", text.data);
    text_free(&text);
}

static Status choose(PlanInput *in, size_t available, HostUse most, RunPlan *plan, Error *err) {
    const char *wanted = in->config->train.recompute;
    int64_t dense = in->config->train.dequantized_layers;
    int host = strcmp(wanted, "host") == 0;
    Recompute least_recompute = host || strcmp(wanted, "layers") == 0 ? RECOMPUTE_LAYERS
                                : strcmp(wanted, "light") == 0        ? RECOMPUTE_LIGHT
                                                                      : RECOMPUTE_NONE;
    Recompute most_recompute = strcmp(wanted, "auto") == 0 ? RECOMPUTE_LAYERS : least_recompute;
    int may_pin = is_movable(in) && !in->model->tied_embeddings;
    WeightPlaces places = {.dense_layers = dense == CONFIG_AUTO ? 0 : dense};
    if (available == 0) most_recompute = least_recompute;
    for (Recompute recompute = least_recompute; recompute <= most_recompute; recompute++)
        for (places.pinned_embedding = 0; places.pinned_embedding <= may_pin; places.pinned_embedding++) {
            plan->recompute = recompute;
            plan->places = places;
            plan->stashed_layers = host ? in->model->layers : 0;
            TRY(plan_candidate(in, plan, err));
            if (available == 0) return OK;
            if (plan->peak > available) continue;
            int adds = dense == CONFIG_AUTO && in->shape.qat == QAT_NONE && recompute != RECOMPUTE_LAYERS &&
                       !places.pinned_embedding && is_movable(in) && is_quantized(in);
            return adds ? add_dense_layers(in, available, plan, err) : OK;
        }
    if (most >= HOST_INPUTS && plan->recompute == RECOMPUTE_LAYERS && !host && in->backend->on_device)
        TRY(stash_inputs(in, available, plan, err));
    int may_move = most >= HOST_WEIGHTS && is_movable(in);
    return may_move && plan->peak > available ? pin_layers(in, available, plan, err) : OK;
}

Status plan_choose(PlanInput *in, size_t available, HostUse most, RunPlan *plan, Error *err) {
    if (strcmp(in->config->train.recompute, "host") == 0 && !in->backend->on_device)
        FAIL_USAGE("train.recompute: host is for a device, beside which the host's memory is another one; take layers");
    TRY(check_dequantized(in, err));
    TRY(choose(in, available, most, plan, err));
    if (in->backend->on_device) say_choice(in, plan);
    return OK;
}
