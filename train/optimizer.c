#include "train/optimizer.h"

#include <math.h>
#include <string.h>

int64_t schedule_warmup_steps(const Config *config, int64_t steps) {
    double warmup = config->train.warmup;
    double wanted = warmup < 1.0 ? ceil(warmup * (double)steps) : warmup;
    return wanted > (double)steps ? steps : (int64_t)wanted;
}

double schedule_lr(const Config *config, int64_t step, int64_t steps) {
    double lr = config->train.lr, floor_ratio = config->train.min_lr_ratio;
    int64_t warmup = schedule_warmup_steps(config, steps);
    if (step < warmup) return lr * (double)(step + 1) / (double)warmup;
    const char *name = config->train.schedule;
    if (strcmp(name, "constant") == 0) return lr;
    if (strcmp(name, "wsd") == 0) {
        int64_t decay = (int64_t)ceil(config->train.decay_ratio * (double)steps), begin = steps - decay;
        if (begin < warmup) begin = warmup;
        if (step < begin) return lr;
        double p = (double)(step - begin) / (double)(steps - begin);
        return lr * (1.0 - (1.0 - floor_ratio) * p);
    }
    double p = (double)(step - warmup) / (double)(steps - warmup);
    if (strcmp(name, "linear") == 0) return lr * (1.0 - (1.0 - floor_ratio) * p);
    return lr * (floor_ratio + (1.0 - floor_ratio) * 0.5 * (1.0 + cos(3.141592653589793 * p)));
}

double gradient_norm(const Exec *exec, const Backend *backend, const ParamSet *set, const ParamState *state) {
    return sqrt(backend->sum_squares(exec, set->elements, params_there(state, state->gradient)));
}

double clip_factor(double norm, double max_norm) {
    if (max_norm <= 0.0) return 1.0;
    double factor = max_norm / (norm + 1e-6);
    return factor < 1.0 ? factor : 1.0;
}

void optimizer_step(const Exec *exec, const Backend *backend, const Config *config, const ParamSet *set, ParamState *state,
                    DType act, double lr, double clip, int64_t t) {
    AdamStep step = {.lr = lr,
                     .beta1 = config->train.beta1,
                     .beta2 = config->train.beta2,
                     .epsilon = config->train.epsilon,
                     .clip = clip,
                     .step = t};
    int64_t share = params_share(set), first = share * set->rank;
    for (int64_t e = 0; e < set->count;) { /* runs of entries with the same decay lie together */
        int64_t last = e;
        while (last + 1 < set->count && set->entries[last + 1].decay == set->entries[e].decay)
            last++;
        int64_t begin = set->entries[e].offset;
        int64_t end = last + 1 < set->count ? set->entries[last + 1].offset : set->elements;
        e = last + 1;
        if (begin < first) begin = first;
        if (end > first + share) end = first + share;
        if (begin >= end) continue; /* another rank's */
        step.weight_decay = set->entries[last].decay ? config->train.weight_decay : 0.0;
        backend->adamw(exec, end - begin, params_there(state, state->master + begin),
                       params_there(state, state->m + (begin - first)), params_there(state, state->v + (begin - first)),
                       params_there(state, state->gradient + begin),
                       params_there(state, (uint8_t *)state->copy + (size_t)begin * dtype_size(act)), &step);
    }
}
